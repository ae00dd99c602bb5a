import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from helpers import HAS_BFLOAT16, SMALL, Half, needs_bfloat16, refused, without_measurements

from model.config import TaggerConfig, TrainingConfig
from model.data.batching import collate, epoch_batches
from model.data.dataset import Dataset, Split
from model.data.labels import IGNORED
from model.errors import DivergedError
from model.network.device import check_precision
from model.network.logits import EmbeddingRows
from model.network.tagger import new_tagger
from model.training.evaluation import evaluate
from model.training.loop import Training
from model.training.loss import dual_loss
from model.training.metrics import KEYPHRASE, Column, summarize
from model.training.optimizer import LazyAdam, clip_gradients, learning_rate, make_optimizers
from model.training.progress import Progress
from model.training.training_texts import GlobalBatch


@pytest.fixture(scope="module")
def splits(small_dataset: str) -> tuple[Split, Split, int]:
    dataset = Dataset(small_dataset)
    return dataset.load("train", word_features=True), dataset.load("valid", word_features=True), dataset.info["words"]


def train(splits: tuple[Split, Split, int], tagger: dict | None = None, **fields) -> Training:
    train, valid, words = splits
    config = TrainingConfig(**({"epochs": 2, "lr": 0.01} | fields))
    return Training(config, new_tagger(TaggerConfig(**SMALL, **(tagger or {})), words, config.seed), train, valid)


def weights(training: Training) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in training.tagger.parameters()])


def test_the_same_seed_gives_the_same_bits(splits: tuple[Split, Split, int]):
    runs = [train(splits, seed=seed) for seed in (3, 3, 4)]
    histories = [[without_measurements(metrics) for metrics in run.epochs()] for run in runs]
    assert torch.equal(weights(runs[0]), weights(runs[1])) and histories[0] == histories[1]
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_going_on_from_a_state_ends_as_if_never_stopped(splits: tuple[Split, Split, int], optimizer: str):
    whole = train(splits, epochs=3, optimizer=optimizer, schedule="cosine")
    list(whole.epochs())
    first = train(splits, epochs=3, optimizer=optimizer, schedule="cosine")
    first.run_epoch()
    second = train(splits, epochs=3, optimizer=optimizer, schedule="cosine")
    second.restore(first.state())
    list(second.epochs())
    assert torch.equal(weights(whole), weights(second)) and len(second.history) == 3


def test_training_learns(splits: tuple[Split, Split, int]):
    training = train(splits, {"dropout": 0.1}, epochs=6)
    *_, last = training.epochs()
    assert last["valid/keyphrase_f1"] > 0.4 and last["valid/keyword_f1"] > 0.4
    assert last["train/loss"] < training.history[0]["train/loss"] / 2
    wanted = 0.3 * last["train/keyword_loss"] + 0.7 * last["train/keyphrase_loss"]
    assert last["train/loss"] == pytest.approx(wanted)


@pytest.mark.skipif(HAS_BFLOAT16, reason="this processor has instructions for bfloat16")
def test_a_precision_that_would_be_imitated_is_refused(splits: tuple[Split, Split, int]):
    refused(lambda: train(splits, precision="bfloat16"), "training.precision is bfloat16", "use float32")


def test_a_precision_that_a_gpu_would_imitate_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    refused(lambda: check_precision("bfloat16", torch.device("cuda", 0)), "bfloat16", "a Tesla T4", "use float32")
    check_precision("float32", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    check_precision("bfloat16", torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("tagger", "fields"),
    [
        ({"cpu_kernels": False}, {}),
        ({"cpu_dropout": False}, {}),
        ({}, {"sparse_embedding": False}),
        ({}, {"bucket_by_length": False}),
        ({}, {"sparse_embedding": False, "optimizer": "adamw"}),
        ({"word_feature_dim": 4}, {}),
        ({"word_feature_dim": 4, "window": 1, "cpu_kernels": False}, {"sparse_embedding": False}),
        ({"word_feature_dim": 4, "dropout": 0.0}, {}),
        ({"crf": True}, {}),
        ({"decoding": "spans"}, {}),
        pytest.param({}, {"precision": "bfloat16"}, marks=needs_bfloat16),
        pytest.param({"cell": "lstm"}, {"precision": "bfloat16"}, marks=needs_bfloat16),
    ],
)
def test_training_learns_with_each_part_exchanged(splits: tuple[Split, Split, int], tagger: dict, fields: dict):
    training = train(splits, {"dropout": 0.1, **tagger}, epochs=6, patience=0, **fields)
    *_, last = training.epochs()
    assert last["valid/keyphrase_f1"] > 0.2 and last["train/loss"] < training.history[0]["train/loss"]
    assert weights(training).dtype == torch.float32


def test_the_whole_table_is_updated_where_that_is_asked(splits: tuple[Split, Split, int]):
    training = train(splits, sparse_embedding=False)
    training.train_step(training.local_batches(GlobalBatch(training.train, np.arange(8)), 0), 100, 0, 1e-2)
    before = training.tagger.embedding.weight.detach().clone()
    training.train_step(training.local_batches(GlobalBatch(training.train, np.arange(8, 9)), 1), 100, 1, 1e-2)
    moved = (training.tagger.embedding.weight.detach() != before).any(1).nonzero()[:, 0]
    assert set(moved.tolist()) > set(collate(splits[0], np.arange(8)).ids.unique().tolist()) - {0}  # by their momentum


def test_embedding_tables_do_not_decay(splits: tuple[Split, Split, int]):
    training = train(splits, {"word_feature_dim": 4}, sparse_embedding=False, optimizer="adamw", weight_decay=0.5)
    rows = np.arange(8)
    unused = np.setdiff1d(np.arange(splits[2]), collate(splits[0], rows).ids)
    before = training.tagger.embedding.weight.detach()[unused].clone()
    training.train_step(training.local_batches(GlobalBatch(training.train, rows), 0), 100, 0, 1e-2)
    assert torch.equal(training.tagger.embedding.weight[unused], before)


def test_alpha_one_teaches_the_keyword_head_alone(splits: tuple[Split, Split, int]):
    training = train(splits, alpha=1.0, epochs=1)
    before = training.tagger.keyphrase_head.weight.clone()
    keyword = training.tagger.keyword_head.weight.clone()
    list(training.epochs())
    assert torch.equal(training.tagger.keyphrase_head.weight, before)
    assert not torch.equal(training.tagger.keyword_head.weight, keyword)


def test_the_sum_of_two_workers_gradients_is_that_of_one(splits: tuple[Split, Split, int]):
    train_split, valid, words = splits
    config = TrainingConfig(
        global_batch_size=33, max_grad_norm=0
    )  # an odd batch: the shares differ in texts and in tokens
    rows = epoch_batches(train_split.lengths, 33, 0, 0)[0]
    gradients = []
    for communicator in (None, Half(0), Half(1)):
        tagger = new_tagger(TaggerConfig(**SMALL, dropout=0), words, 0)
        training = Training(config, tagger, train_split, valid, communicator)
        for optimizer in training.optimizers:
            optimizer.step = optimizer.zero_grad = lambda: None
        training.train_step(
            training.local_batches(GlobalBatch(training.train, rows), 0), int(train_split.lengths[rows].sum()), 0, 1e-3
        )
        gradients.append(torch.cat([p.grad.to_dense().flatten() for p in tagger.parameters()]))
    assert torch.allclose(gradients[0], gradients[1] + gradients[2], atol=1e-7)
    assert not torch.allclose(gradients[1], gradients[2], atol=1e-4)


def test_evaluation_counts_every_text_once_and_in_order(splits: tuple[Split, Split, int]):
    _, valid, words = splits
    tagger, device = new_tagger(TaggerConfig(**SMALL), words, 0), torch.device("cpu")
    whole = evaluate(tagger, valid, device)
    shares = [evaluate(tagger, valid, device, Half(rank)) for rank in range(2)]
    assert np.array_equal(whole.counts, shares[0].counts + shares[1].counts)
    assert whole.keyword_loss == pytest.approx(shares[0].keyword_loss + shares[1].keyword_loss)
    assert (
        whole.counts[:, KEYPHRASE][:, Column.GOLD].sum() == (np.isin(valid.tags, (1, 4))).sum()
    )  # gold spans begin with B or S
    row = 7
    batch = collate(valid, np.array([row]))
    alone = dual_loss(tagger(batch.ids, batch.lengths), batch)
    assert evaluate(tagger, _one(valid, row), device).keyphrase_loss == pytest.approx(
        alone.keyphrase.item() / len(batch.ids[0])
    )
    assert (batch.keyword != IGNORED).all()


def test_the_threshold_is_settled_where_the_f1_is_best(splits: tuple[Split, Split, int]):
    training = train(splits, {"decoding": "spans"}, epochs=1)
    metrics, tagger, device = training.run_epoch(), training.tagger, training.device
    settled = tagger.threshold.item()
    assert np.array_equal(evaluate(tagger, splits[1], device).counts, training.counts)
    for other in (0.1, 0.3, 0.5):
        tagger.threshold.fill_(other)
        assert summarize(evaluate(tagger, splits[1], device).counts)["keyphrase_f1"] <= metrics["valid/keyphrase_f1"]
    evaluate(tagger, splits[1], device, tune_decoding=True)
    assert tagger.threshold.item() == settled


def _one(split: Split, row: int) -> Split:
    part = slice(split.begins[row], split.begins[row + 1])
    return Split(split.ids[part], split.tags[part], np.array([0, part.stop - part.start]))


def test_patience_ends_a_training_that_gets_no_better(splits: tuple[Split, Split, int]):
    training = train(splits, epochs=20, lr=1e-9, patience=2)
    assert len(list(training.epochs())) == 3 and training.best == 0
    assert len(list(train(splits, epochs=4, lr=1e-9, patience=0).epochs())) == 4


def test_a_loss_that_is_no_number_stops_the_run_and_is_named(splits: tuple[Split, Split, int]):
    training = train(splits, epochs=1, lr=1e38, optimizer="sgd", max_grad_norm=0)
    with pytest.raises(DivergedError, match=r"epoch 1, step \d+ of 11 \(lr 1e\+38\)"):
        list(training.epochs())


@pytest.mark.parametrize("decoding", ["sequence", "spans"])
def test_a_last_step_that_leaves_no_usable_weights_stops_the_run(splits: tuple[Split, Split, int], decoding: str):
    training = train(splits, {"crf": True, "decoding": decoding}, epochs=1, lr=1e30, global_batch_size=len(splits[0]))
    with pytest.raises(DivergedError, match=r"epoch 1, step 1 of 1 \(lr 1e\+30\)"):
        list(training.epochs())
    assert not training.history


def test_progress_tells_where_an_epoch_stands(splits: tuple[Split, Split, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("model.training.progress._SECONDS_BETWEEN_REPORTS", 0.0)
    seen: list[Progress] = []
    training = train(splits, epochs=1)
    training.on_progress = seen.append
    [metrics] = training.epochs()
    assert [at.step for at in seen] == list(range(1, 12)) and {at.steps for at in seen} == {11}
    assert seen[-1].keyphrase_loss == pytest.approx(metrics["train/keyphrase_loss"])


def test_schedules():
    step = TrainingConfig(lr=1.0, epochs=6, schedule="step", step_epochs=2, step_factor=0.5)
    assert [learning_rate(step, epoch * 10, 10) for epoch in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    cosine = TrainingConfig(lr=1.0, epochs=10, schedule="cosine", warmup=0.1)
    rates = [learning_rate(cosine, i, 10) for i in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert rates[55] == pytest.approx(0.5, abs=0.01) and rates[-1] < 0.001
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(TrainingConfig(lr=0.5), 999, 10) == 0.5
    assert all(
        math.isfinite(learning_rate(TrainingConfig(schedule="cosine", warmup=w, epochs=1), 0, 1)) for w in (0, 1)
    )


def test_clipping_bounds_the_common_norm(splits: tuple[Split, Split, int]):
    training = train(splits)
    [batch] = training.local_batches(GlobalBatch(training.train, np.arange(8)), 0)
    rows = training.tagger.gather_rows(batch.tables)
    lookups = [EmbeddingRows(each, table.indices) for each, table in zip(rows, batch.tables, strict=True)]
    (100 * dual_loss(training.tagger(batch.ids, batch.lengths, None, lookups), batch).total(0.3)).backward()
    training.tagger.scatter_gradients(batch.tables, rows)
    before = [p.grad.to_dense().clone() for p in training.tagger.parameters()]
    clip_gradients(training.tagger, 2.0)
    after = [p.grad.to_dense() for p in training.tagger.parameters()]
    norm = torch.cat([g.flatten() for g in before]).norm()
    assert norm > 2 and torch.cat([g.flatten() for g in after]).norm() == pytest.approx(2.0, rel=1e-4)
    assert all(torch.allclose(b * 2 / norm, a, atol=1e-6) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("tagger", [{}, {"word_feature_dim": 4, "crf": True, "cpu_kernels": False}])
@pytest.mark.parametrize("by_rows", [True, False])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(splits: tuple[Split, Split, int], tagger: dict, by_rows: bool):
    after = []
    for accumulate in (1, 3):
        training = train(
            splits, {"dropout": 0.0, **tagger}, accumulate=accumulate, sparse_embedding=by_rows, optimizer="sgd"
        )
        for step in range(3):
            losses = training.train_step(
                training.local_batches(GlobalBatch(training.train, np.arange(20)), step), 400, step, 1.0
            )
        after.append([losses.float(), *training.tagger.state_dict().values()])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*after, strict=True))


def test_a_loaded_state_of_lazy_adam_is_on_the_device_of_its_table():
    """Tensors without content stand in for those of a GPU: there the update fails where `step` is on the CPU."""
    table = torch.nn.Parameter(torch.zeros(6, 4))
    saved = LazyAdam([table], 0.1)
    table.grad = torch.sparse_coo_tensor([[2]], torch.ones(1, 4), (6, 4), check_invariants=True).coalesce()
    saved.step()
    elsewhere = torch.nn.Parameter(torch.zeros(6, 4, device="meta"))
    loaded = LazyAdam([elsewhere], 0.1)
    loaded.load_state_dict(saved.state_dict())
    rows = torch.zeros(1, 1, dtype=torch.long, device="meta"), torch.ones(1, 4, device="meta")
    elsewhere.grad = torch.sparse_coo_tensor(*rows, (6, 4), check_invariants=False, is_coalesced=True)
    with suppress(NotImplementedError, RuntimeError):  # of the fused update, which has no implementation for these
        loaded.step()
    assert {each.device.type for each in loaded.state[elsewhere].values()} == {"meta"}


def test_only_the_rows_that_a_step_touched_are_updated(splits: tuple[Split, Split, int]):
    training = train(splits)
    before = training.tagger.embedding.weight.detach().clone()
    rows = np.arange(8)
    training.train_step(training.local_batches(GlobalBatch(training.train, rows), 0), 100, 0, 1e-2)
    moved = (training.tagger.embedding.weight.detach() != before).any(1).nonzero()[:, 0]
    assert set(moved.tolist()) == set(collate(splits[0], rows).ids.unique().tolist()) - {0}


def test_lazy_adam_is_adam_on_rows_touched_at_every_step():
    tagger = new_tagger(TaggerConfig(embedding_dim=4, keyword_hidden=3, keyphrase_hidden=3), 6, 0)
    dense = torch.nn.Parameter(tagger.embedding.weight.detach().clone())
    [_, lazy], adam = make_optimizers(tagger, TrainingConfig(lr=0.1)), torch.optim.Adam([dense], 0.1)
    for step in range(5):
        gradient = torch.randn(2, 4, generator=torch.Generator().manual_seed(step))
        rows = torch.sparse_coo_tensor(torch.tensor([[2, 4]]), gradient, (6, 4), check_invariants=True)
        tagger.embedding.weight.grad = rows.coalesce()
        dense.grad = tagger.embedding.weight.grad.to_dense()
        lazy.step(), adam.step()
    assert torch.allclose(tagger.embedding.weight, dense, atol=1e-6)
