import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.batching import Batch
from model.data.labels import IGNORED, B, E, I, O, S
from model.network.logits import Logits
from model.training.legacy_metrics import batch_sums, evaluation_metrics, training_metrics
from model.training.metrics import KEYPHRASE, KEYWORD, Column, count, precision_recall_f1, summarize

X = IGNORED


def logits_of(keyword: list[list[int]], keyphrase: list[list[int]]) -> Logits:
    """Heads that are sure of these tags; X stands for any in the padding, where they say something wrong."""
    return Logits(
        F.one_hot(torch.tensor(keyword) % 2, 2).float() * 20,
        F.one_hot(torch.tensor(keyphrase).clamp(min=0), 5).float() * 20,
    )


def batch_of(keyphrase: list[list[int]]) -> Batch:
    tags = torch.tensor(keyphrase)
    keyword = torch.where(tags == X, X, (tags > 0).long())
    return Batch(tags.clamp(min=0), (tags != X).sum(1), keyword, tags)


def test_counts_of_both_heads():
    gold = [[S, O, B, E], [B, I, E, X], [O, O, O, X]]
    found = count(
        logits_of([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], [[S, O, S, O], [B, I, E, S], [O, O, S, S]]),
        batch_of(gold),
    )
    assert found.tolist() == [
        [
            1,
            2,
            2,
            0,
            2,
            2,
            3,
            0,
        ],  # one span right of two found and two gold; two keywords right of two found, three gold
        [1, 1, 1, 1, 3, 3, 3, 1],  # what stands in the padding counts for nothing
        [0, 1, 0, 0, 0, 0, 0, 1],
    ]


def test_a_span_counts_only_in_its_own_text():
    found = count(logits_of([[0, 0], [1, 0]], [[O, O], [S, O]]), batch_of([[S, O], [O, O]]))
    assert found[:, KEYPHRASE][:, Column.CORRECT].tolist() == [0, 0]


def test_score_and_its_empty_cases():
    assert precision_recall_f1(2, 4, 3) == (0.5, pytest.approx(2 / 3), pytest.approx(4 / 7))
    assert (
        precision_recall_f1(0, 0, 5) == (0, 0, 0)
        and precision_recall_f1(0, 5, 0) == (0, 0, 0)
        and precision_recall_f1(0, 0, 0) == (0, 0, 0)
    )


def test_figures_are_micro_averages_not_means_of_texts():
    counts = np.array([[9, 10, 10, 0, 1, 1, 1, 1], [0, 0, 1, 0, 0, 1, 1, 0]])
    metrics = summarize(counts)
    assert metrics["keyphrase_precision"] == pytest.approx(0.9)
    assert metrics["keyphrase_recall"] == pytest.approx(9 / 11)
    assert metrics["keyphrase_f1"] == pytest.approx(18 / 21)
    assert metrics["keyword_exact_match"] == 0.5
    assert set(metrics) == {
        f"{head}_{name}"
        for head in ("keyphrase", "keyword")
        for name in ("f1", "precision", "recall", "f1_low", "f1_high", "exact_match")
    }


def test_the_interval_is_that_of_resampled_texts():
    draw = np.random.default_rng(3)
    counts = np.zeros((400, 8), int)
    keyphrase = counts[:, KEYPHRASE]
    keyphrase[:, Column.CORRECT], keyphrase[:, Column.PREDICTED] = draw.integers(0, 2, 400), 1
    keyphrase[:, Column.GOLD] = draw.integers(1, 3, 400)
    metrics = summarize(counts)
    again = [precision_recall_f1(*counts[draw.integers(0, 400, 400)].sum(0)[:3]).f1 for _ in range(4000)]
    low, high = np.percentile(again, [2.5, 97.5])
    assert metrics["keyphrase_f1_low"] == pytest.approx(low, abs=0.01)
    assert metrics["keyphrase_f1_high"] == pytest.approx(high, abs=0.01)
    assert metrics["keyphrase_f1_low"] < metrics["keyphrase_f1"] < metrics["keyphrase_f1_high"]


def test_figures_do_not_depend_on_the_order_of_the_texts():
    counts = np.random.default_rng(0).integers(0, 4, (50, 8))
    assert summarize(counts) == summarize(counts[::-1])


def test_the_records_figures_by_its_own_definitions():
    gold = [[S, O, O, O], [B, E, O, X]]
    logits = logits_of([[1, 0, 0, 0], [0, 1, 0, 0]], [[S, O, O, O], [B, E, O, O]])
    sums = torch.cat([batch_sums(logits, batch_of(gold)), torch.tensor([0.5, 1.5]).double()])
    metrics = training_metrics(sums, 2, alpha=0.3, lr=0.01)
    assert metrics["train_sentence_precision"] == 0.5  # the share of texts on which the keyword head is wholly right
    assert metrics["train_sequence_precision"] == 1.0
    assert metrics["train_sentence_recall"] == metrics["train_sequence_recall"] == pytest.approx(2 / 3)
    assert metrics["train_sequence_f1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3 + 1e-3))
    assert metrics["train_loss1"] == pytest.approx(0.5 / (2 * 128))
    assert metrics["train_total_loss"] == pytest.approx((0.3 * 0.5 + 0.7 * 1.5) / (2 * 128))
    counts = np.zeros((100, 8), int)
    counts[:36], counts[-16:, KEYPHRASE][:, Column.EXACT], counts[-32:, KEYWORD][:, Column.EXACT] = (
        1,
        1,
        1,
    )  # only the last 64 texts count
    evaluation = evaluation_metrics(counts)
    assert evaluation == {"eval_sentence_precision": 0.5, "eval_sequence_precision": 0.25}
    assert len(metrics | evaluation) == 12


def test_the_records_f1_is_reproduced_from_its_precision_and_recall():
    # Run 1 of the record: P 0.46875 and R 0.69231 were logged with F1 0.55853.
    exact, found, gold = 30, 90, 130
    metrics = training_metrics(torch.tensor([32, exact, found, gold, 0, 0]).double(), 64, 0.3, 1e-3)
    assert metrics["train_sentence_f1"] == pytest.approx(0.55853, abs=1e-5)
    assert metrics["train_sequence_f1"] == pytest.approx(0.58016, abs=1e-4)


class OperationNames(TorchDispatchMode):
    """Notes the names of operations; those that index by a mask are called `mask`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket is torch.ops.aten.index else ()
        self.names.add("mask" if any(i is not None and i.dtype == torch.bool for i in indices) else func.__name__)
        return func(*args, **kwargs or {})


def test_on_a_gpu_counting_waits_for_the_spans_alone():
    gold = [[S, O, B, E], [B, I, E, X], [O, O, O, X]]
    logits, batch = logits_of([[1, 0, 1, 0]] * 3, [[S, O, S, O], [B, I, E, O], [O, O, S, S]]), batch_of(gold)
    with OperationNames() as operations:
        count(logits, batch)
    waiting = {"bincount.default", "mask", "_unique2.default", "_local_scalar_dense.default"}
    assert not operations.names & waiting
    assert "nonzero.default" in operations.names
