"""A training split that is read from storage: every text once an epoch, in an order that a resume and other workers keep."""

import shutil
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import SMALL, alone, best_weights_together, refused
from hypothesis import given
from hypothesis import strategies as st

from distributed.train import shared_data
from distributed.train.shared_data import SharedData
from model.config import Config, TaggerConfig, TrainingConfig, make_config
from model.data.dataset import Dataset, RowGroup, Split
from model.errors import UserError
from model.network.tagger import new_tagger
from model.training import loop, training_texts
from model.training.communicator import SingleProcess
from model.training.loop import Training, TrainingState
from model.training.training_texts import GlobalBatch, StreamedSplit, StreamedTexts, TextsInMemory, row_ranges

FIELDS = {"cell": "gru", "word_feature_dim": 4, "rare_word_dropout": 1.0, **SMALL}


@pytest.fixture(scope="module")
def dataset(small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small dataset with row groups of about 60 texts."""
    folder = Path(shutil.copytree(small_dataset, tmp_path_factory.mktemp("streamed") / "data"))
    part = folder / "train" / "part-00000.parquet"
    pq.write_table(pq.read_table(part), part, row_group_size=60)
    return Dataset(str(folder))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_texts, "WINDOW_TEXTS", 200)


def words(batch: GlobalBatch) -> list[bytes]:
    """The texts of a batch as their ids."""
    return [batch.split.ids[batch.split.begins[row] : batch.split.begins[row + 1]].tobytes() for row in batch.rows]


def epoch(texts: StreamedTexts | TextsInMemory, number: int, first: int = 0) -> list[list[bytes]]:
    return [words(batch) for batch in texts.batches(number, first)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.data())
def test_rows_of_strung_groups_are_found(sizes: list[int], data: st.DataObject):
    groups = [RowGroup(part, 0, rows) for part, rows in enumerate(sizes)]
    begin, end = sorted(data.draw(st.integers(0, sum(sizes))) for _ in range(2))
    every = [(part, row) for part, rows in enumerate(sizes) for row in range(rows)]
    ranges = row_ranges(groups, begin, end)
    assert [(each.group.part, row) for each in ranges for row in range(each.begin, each.end)] == every[begin:end]


@pytest.mark.parametrize("batch_size", [7, 33, 300, 1000])
def test_every_text_comes_once_an_epoch_in_batches_of_the_same_sizes(dataset: Dataset, batch_size: int):
    config = TrainingConfig(global_batch_size=batch_size, seed=3)
    split = StreamedSplit.open(dataset)
    assert len(split.row_groups) == 12 and len(split) == 700
    streamed, whole = StreamedTexts(split, config), TextsInMemory(dataset.load("train"), config)
    assert (streamed.steps, streamed.tokens) == (whole.steps, whole.tokens)
    first, second, memory = epoch(streamed, 0), epoch(streamed, 1), epoch(whole, 0)
    assert sorted(map(len, first)) == sorted(map(len, memory))
    for order in (first, second):
        assert sorted(chain(*order)) == sorted(chain(*memory))
    assert first != second and first == epoch(StreamedTexts(split, config), 0)


@pytest.mark.parametrize("first", [1, 5, 6, 7, 20, 21])
def test_an_epoch_goes_on_at_any_step(dataset: Dataset, first: int):
    texts = StreamedTexts(StreamedSplit.open(dataset), TrainingConfig(global_batch_size=33))
    assert epoch(texts, 2, first) == epoch(texts, 2)[first:]


def test_texts_have_what_those_in_memory_have(dataset: Dataset):
    config = TrainingConfig(global_batch_size=50)
    whole = dataset.load("train", word_features=True)
    known = {words(GlobalBatch(whole, np.array([row])))[0]: row for row in range(len(whole))}
    for batch in StreamedTexts(StreamedSplit.open(dataset, word_features=True), config).batches(0):
        rows = np.array([known[text] for text in words(batch)])
        one, other = batch.split.take(batch.rows), whole.take(rows)
        assert np.array_equal(one.tags, other.tags) and np.array_equal(one.word_features, other.word_features)


def test_words_are_counted_by_all_workers_together(dataset: Dataset):
    config, words, device = TrainingConfig(), dataset.info["words"], torch.device("cpu")
    counts = TextsInMemory(dataset.load("train"), config).word_counts(words, SingleProcess(), device)
    texts = StreamedTexts(StreamedSplit.open(dataset), config)
    assert np.array_equal(texts.word_counts(words, SingleProcess(), device), counts) and counts.sum() == texts.tokens


def streamed_config(dataset: Dataset, **training: object) -> Config:
    fields = {"epochs": 2, "global_batch_size": 33, "lr": 0.01, "data": "stream", **training}
    return make_config({"data": dataset.location, "tagger": FIELDS | {"dropout": 0.0}, "training": fields})


def test_two_workers_end_with_the_weights_of_one(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = streamed_config(dataset)
    monkeypatch.undo()  # the processes have windows of the usual size
    together, one = best_weights_together(config, 2, tmp_path / "two"), alone(config)
    assert isinstance(one.texts, StreamedTexts) and one.best == 1
    for name, weight in one.tagger.state_dict().items():
        assert torch.allclose(weight, together[name], atol=1e-4), name


def test_a_training_goes_on_from_any_step_to_the_same_bits(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_STEPS_BETWEEN_CHECKS", 1)
    data, valid = StreamedSplit.open(dataset, word_features=True), dataset.load("valid", word_features=True)
    config = TrainingConfig(epochs=2, global_batch_size=33, lr=0.01)

    def training() -> Training:
        return Training(config, new_tagger(TaggerConfig(**FIELDS), dataset.info["words"], 0), data, valid)

    states: list[TrainingState] = []

    class Keeper:
        def should_save(self) -> bool:
            return True

        def save(self, running: Training) -> None:
            states.append(deepcopy(running.state()))

    whole = training()
    whole.checkpointer = Keeper()
    whole.run_epoch()
    assert [state["step"] for state in states] == list(range(1, whole.texts.steps))
    for state in states[::3]:
        again = training()
        again.restore(state)
        again.run_epoch()
        assert all(torch.equal(w, again.tagger.state_dict()[n]) for n, w in whole.tagger.state_dict().items())


def test_large_splits_stay_on_storage_unless_they_are_needed_in_memory(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    def kind(data: str, fold: str | None = None) -> type:
        config = TrainingConfig(data=data, held_out_fold=fold)
        return type(SharedData.load(dataset.location, TaggerConfig(**SMALL), config).train)

    assert (kind("auto"), kind("stream"), kind("memory")) == (Split, StreamedSplit, Split)
    monkeypatch.setattr(shared_data, "STREAM_TOKENS", 1000)
    assert (kind("auto"), kind("memory"), kind("auto", "1/2")) == (StreamedSplit, Split, Split)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"training": {"teacher": "labels"}}, "training.teacher needs the training split in memory"),
        ({"training": {"held_out_fold": "1/2"}}, "training.held_out_fold needs the training split in memory"),
        ({"tagger": {"encoder": "bert", "encoder_frozen": True}}, "tagger.encoder_frozen needs the training split"),
    ],
)
def test_what_needs_the_split_in_memory_is_refused(fields: dict, named: str):
    tree = {"data": "d"} | fields
    tree["training"] = fields.get("training", {}) | {"data": "stream"}
    refused(lambda: make_config(tree), named, "leave out training.data=stream")


def test_a_damaged_file_is_named(dataset: Dataset, tmp_path: Path):
    split = StreamedSplit.open(dataset)
    damaged = Path(shutil.copytree(dataset.location, tmp_path / "data"))
    part = damaged / "train" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    part.write_bytes(content)
    texts = StreamedTexts(replace(split, dataset=Dataset(str(damaged))), TrainingConfig())
    with pytest.raises(UserError, match=r"(?s)is damaged .* prepare the dataset again"):
        list(texts.batches(0))
    part.write_bytes(content[:100])
    refused(lambda: StreamedSplit.open(Dataset(str(damaged))), "train: is damaged")
