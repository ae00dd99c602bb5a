"""What a training keeps: nothing half-written is read back as whole, and no more is lost than the cadence."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, refused, without_measurements
from safetensors.torch import save

from distributed.train.checkpoint import (
    StorageCheckpointer,
    checkpoints,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from model.config import make_config
from model.data.dataset import Dataset
from model.errors import RunFailedError, UserError
from model.network.tagger import new_tagger
from model.staging import staged_local_directory
from model.training import loop
from model.training.communicator import SingleProcess
from model.training.loop import SELECTION_METRIC, Training


class CutOffError(Exception):
    """Stands for a kill: nothing of the training runs after it."""


class Cut(StorageCheckpointer):
    """Keeps at every opportunity, and is cut off after some."""

    def __init__(self, folder: str, after: int, notes: list[str]) -> None:
        super().__init__(folder, SELECTION_METRIC, SingleProcess(), on_note=notes.append)
        self.after = after

    def should_save(self) -> bool:
        return True

    def save(self, training: Training) -> None:
        super().save(training)
        self.after -= 1
        if not self.after:
            raise CutOffError


@pytest.fixture(scope="module", autouse=True)
def more_opportunities() -> Iterator[None]:
    """Nine opportunities to save in the 44 steps of an epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_STEPS_BETWEEN_CHECKS", 5)
        yield


def resume(data: str, folder: Path, after: int = 0, notes: list[str] | None = None) -> tuple[Training, Cut]:
    """A training of two epochs as it begins or goes on."""
    dataset = Dataset(data)
    fields = {"epochs": 2, "lr": 0.01, "global_batch_size": 16}
    config = make_config({"data": data, "tagger": SMALL, "training": fields})
    tagger = new_tagger(config.tagger, dataset.info["words"], 0)
    checkpointer = Cut(str(folder), after, [] if notes is None else notes)
    training = Training(
        config.training, tagger, dataset.load("train"), dataset.load("valid"), checkpointer=checkpointer
    )
    checkpointer.restore(training)
    return training, checkpointer


def train(data: str, folder: Path, after: int = 0, notes: list[str] | None = None) -> Training:
    """Trains to the end, or until it is cut off."""
    training, checkpointer = resume(data, folder, after, notes)
    for _ in training.epochs():
        checkpointer.save(training)
    return training


@pytest.fixture(scope="module")
def whole(small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training that nothing disturbs."""
    return train(small_dataset, tmp_path_factory.mktemp("whole"))


def same(one: Training, other: Training) -> bool:
    """Equal to the last bit: weights, optimisers and figures, but for the clock."""
    weights = zip(one.tagger.state_dict().values(), other.tagger.state_dict().values(), strict=True)
    metrics = [[without_measurements(each) for each in history] for history in (one.history, other.history)]
    return all(torch.equal(a, b) for a, b in weights) and metrics[0] == metrics[1]


def equal(one: Any, other: Any) -> bool:
    """Whether two states, or parts of them, are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("after", [1, 3, 10, 11, 14])
def test_a_training_cut_off_inside_an_epoch_ends_as_if_it_had_not_been(
    small_dataset: str, tmp_path: Path, whole: Training, after: int
):
    notes: list[str] = []
    with pytest.raises(CutOffError):
        train(small_dataset, tmp_path, after)
    newest = checkpoints(str(tmp_path))[0]
    assert ("_step_" in newest) == (after != 10)  # nine inside an epoch, then its end
    assert same(train(small_dataset, tmp_path, notes=notes), whole)
    assert notes == [f"resuming from {newest} with 1 worker(s)"]


def best_files(folder: Path) -> list[str]:
    """Return the names of the files with weights of best epochs."""
    return sorted(path.name for path in folder.glob("best*"))


def test_two_checkpoints_and_the_best_weights_of_both_stay(small_dataset: str, tmp_path: Path):
    training = train(small_dataset, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert training.best == 1 and best_files(tmp_path) == ["best_epoch_0001.safetensors", "best_epoch_0002.safetensors"]
    assert len(checkpoints(str(tmp_path))) == 2 and names == {*checkpoints(str(tmp_path)), *best_files(tmp_path)}
    assert checkpoints(str(tmp_path))[0] == "checkpoint_epoch_0002"
    weights, counts = load_best(str(tmp_path))
    assert counts.shape == (100, 8)
    assert all(torch.equal(weights[name], value) for name, value in training.tagger.state_dict().items())


def test_the_best_weights_are_those_of_the_checkpoints_history(small_dataset: str, tmp_path: Path):
    with pytest.raises(CutOffError):
        train(small_dataset, tmp_path, 10)
    first, _ = load_best(str(tmp_path))
    no_counts = np.zeros((1, 8), np.int64)
    save_best(str(tmp_path), 2, {"lost": torch.zeros(1)}, no_counts)  # and killed before its checkpoint is written
    (tmp_path / "best_epoch_0003.safetensors.12345678.part").write_bytes(b"half")
    assert set(load_best(str(tmp_path))[0]) == {"lost"}
    training, checkpointer = resume(small_dataset, tmp_path)
    assert best_files(tmp_path) == ["best_epoch_0001.safetensors"] and equal(load_best(str(tmp_path))[0], first)
    for metrics in training.epochs():  # in which the second epoch turns out worse than the one that was lost
        metrics[SELECTION_METRIC] = -1.0
        checkpointer.save(training)
    assert best_files(tmp_path) == ["best_epoch_0001.safetensors"] and equal(load_best(str(tmp_path))[0], first)


def test_the_best_weights_of_a_run_of_an_earlier_version_stay_until_there_are_better_ones(
    small_dataset: str, tmp_path: Path
):
    with pytest.raises(CutOffError):
        train(small_dataset, tmp_path, 10)
    (tmp_path / "best_epoch_0001.safetensors").rename(tmp_path / "best.safetensors")
    training, checkpointer = resume(small_dataset, tmp_path)
    assert best_files(tmp_path) == ["best.safetensors"] and load_best(str(tmp_path))[1].shape == (100, 8)
    for _ in training.epochs():
        checkpointer.save(training)
    assert best_files(tmp_path) == ["best.safetensors", "best_epoch_0002.safetensors"]
    assert equal(load_best(str(tmp_path))[0], training.tagger.state_dict())


@pytest.mark.parametrize("content", [b"", b"\x86", b"PK\x03\x04 no archive", b"cos\nsystem\n(S'true'\ntR."])
def test_another_file_with_its_digest_is_no_state(tmp_path: Path, content: bytes):
    (tmp_path / "state.pt").write_bytes(content)
    digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "seal.json").write_text(json.dumps(digest))
    with pytest.raises(RunFailedError, match=r"state\.pt .* torch cannot read it"):
        load_checkpoint(str(tmp_path))


def test_the_newest_checkpoint_is_the_last_by_its_numbers(tmp_path: Path):
    steps = ["0000_step_990000", "0000_step_1000000", "0001", "0001_step_000020", "9999", "10000"]
    for name in steps:
        (tmp_path / f"checkpoint_epoch_{name}").mkdir()
    assert [name.removeprefix("checkpoint_epoch_") for name in checkpoints(str(tmp_path))] == steps[::-1]


def test_what_a_killed_worker_left_of_a_checkpoint_is_deleted(small_dataset: str, tmp_path: Path):
    with (
        pytest.raises(CutOffError),
        staged_local_directory(str(tmp_path / "checkpoint_epoch_0001"), "seal.json") as left,
    ):
        (left / "state.pt").write_bytes(b"half")
        shutil.copytree(left, tmp_path / f"{left.name}.killed")
        raise CutOffError
    assert [path.name for path in tmp_path.iterdir()] == [f"{left.name}.killed"] and not checkpoints(str(tmp_path))
    resume(small_dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_newest_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(
    small_dataset: str, tmp_path: Path, whole: Training
):
    with pytest.raises(CutOffError):
        train(small_dataset, tmp_path / "run", 12)
    newest, before = checkpoints(str(tmp_path / "run"))
    expected = load_checkpoint(str(tmp_path / "run" / before))
    draw = random.Random(0)
    for name in ("state.pt", "seal.json"):
        size = (tmp_path / "run" / newest / name).stat().st_size
        for length in [0, 1, size - 1, *(draw.randrange(size) for _ in range(2))]:
            folder = tmp_path / f"{name}-{length}"
            shutil.copytree(tmp_path / "run", folder, dirs_exist_ok=True)
            content = (folder / newest / name).read_bytes()
            (folder / newest / name).write_bytes(content[:length])
            notes: list[str] = []
            training, _ = resume(small_dataset, folder, notes=notes)
            assert equal(training.state(), expected)
            assert "is not a whole checkpoint" in notes[0] and "using the one before it" in notes[0]
            assert notes[1] == f"resuming from {before} with 1 worker(s)"
        assert same(train(small_dataset, folder), whole)


def test_checkpoints_that_are_not_whole_do_not_take_the_place_of_later_ones(small_dataset: str, tmp_path: Path):
    with pytest.raises(CutOffError):
        train(small_dataset, tmp_path, 12)
    for name in checkpoints(str(tmp_path)):
        (tmp_path / name / "seal.json").unlink()  # as a kill leaves an upload to an object store
    for _ in range(2):
        notes: list[str] = []
        with pytest.raises(CutOffError):
            train(small_dataset, tmp_path, 3, notes)
    assert notes == ["resuming from checkpoint_epoch_0000_step_000011 with 1 worker(s)"]
    assert len(checkpoints(str(tmp_path))) == 2


def test_a_checkpoint_cut_off_anywhere_is_never_taken_for_whole(tmp_path: Path):
    save_checkpoint(tmp_path, {"epoch": 3, "tagger": {"w": torch.arange(5.0)}})
    assert torch.equal(load_checkpoint(str(tmp_path))["tagger"]["w"], torch.arange(5.0))
    for name in ("state.pt", "seal.json"):
        content = (tmp_path / name).read_bytes()
        for size in range(len(content)):
            (tmp_path / name).write_bytes(content[:size])
            refused(lambda: load_checkpoint(str(tmp_path)), "not a whole checkpoint")
        (tmp_path / name).write_bytes(content)
    seal = (tmp_path / "seal.json").read_text()
    for damaged in (seal.replace("bytes", "bites"), seal.replace("sha256", "sha257"), "[]"):
        (tmp_path / "seal.json").write_text(damaged)
        refused(lambda: load_checkpoint(str(tmp_path)), "not a whole checkpoint")
    (tmp_path / "state.pt").unlink()
    refused(lambda: load_checkpoint(str(tmp_path)), "not a whole checkpoint")


def test_the_best_weights_are_read_as_they_were_saved_or_not_at_all(tmp_path: Path):
    weights, counts = {"head.weight": torch.arange(40.0)}, np.arange(16).reshape(2, 8)
    save_best(str(tmp_path), 7, weights, counts)
    file = tmp_path / "best_epoch_0007.safetensors"
    content = file.read_bytes()
    for at in range(0, len(content), 3):
        file.write_bytes(content[:at])
        refused(
            lambda: load_best(str(tmp_path)), "best_epoch_0007.safetensors: is damaged", "copy it again, or train again"
        )
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = load_best(str(tmp_path))  # the name of the digest was changed
            assert torch.equal(found[0]["head.weight"], weights["head.weight"]) and np.array_equal(found[1], counts)
        except UserError as error:
            assert "best_epoch_0007.safetensors: is damaged" in str(error)
    file.write_bytes(
        save(weights | {"counts": torch.from_numpy(counts)})
    )  # as an earlier version did, without a digest
    assert torch.equal(load_best(str(tmp_path))[0]["head.weight"], weights["head.weight"])


def test_a_checkpoint_inside_an_epoch_comes_with_the_minutes(tmp_path: Path):
    checkpointer = StorageCheckpointer(str(tmp_path), SELECTION_METRIC, SingleProcess(), minutes=1.0)
    assert not checkpointer.should_save()
    checkpointer.last_save -= 61
    assert checkpointer.should_save()
    never = StorageCheckpointer(str(tmp_path), SELECTION_METRIC, SingleProcess(), minutes=0.0)
    never.last_save -= 1e6
    assert not never.should_save()
