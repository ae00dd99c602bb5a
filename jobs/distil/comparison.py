"""Students beside their teacher and the same taggers without one: F1 on the test split, speed and size."""

import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.data.dataset import Dataset
    from model.training.metrics import Counts

_TEXTS_TIMED, _ROUNDS = 1000, 3


@dataclass(frozen=True)
class TaggerRow:
    """A tagger on the test split, or the mean of several that differ by their seeds.

    Attributes:
        tagger: `teacher`, `student`, or the student's preset: the same without a teacher.
        keyphrase_f1: of exact spans.
        low, high: 95 % bootstrap interval of `keyphrase_f1` over texts.
        texts_per_s: of extraction on all cores of this machine.
        megabytes: of a bundle.
    """

    tagger: str
    keyphrase_f1: float
    low: float
    high: float
    texts_per_s: float
    megabytes: float


@dataclass(frozen=True)
class DistilResult:
    """The result of the command.

    Attributes:
        out: the folder.
        labeled_texts: texts that teachers have labeled: the unlabeled ones, and with folds those of the training split.
        test_texts: texts of the test split.
        seeds: trainings with a teacher, and as many without.
        taggers: a row each.
        gain_kept: part of the teacher's gain that the student has; None where the teacher is no better than without one.
        difference: F1 of the student minus that of the same without a teacher.
        low, high, p: its 95 % interval and p-value by a paired bootstrap, see `model.training.significance.Difference`.
    """

    out: str
    labeled_texts: int
    test_texts: int
    seeds: int
    taggers: list[TaggerRow]
    gain_kept: float | None
    difference: float
    low: float
    high: float
    p: float


def compare(place: str, data: "Dataset", bundles: dict[str, list[str]], labels: list[str]) -> DistilResult:
    """Measure the bundles of each tagger.

    Args:
        place: the folder that all is in.
        data: has the test split.
        bundles: by tagger: of the teacher, then of the student, then of the same without a teacher.
        labels: folders that the student has learned from.
    """
    from model.distillation.label_files import TeacherLabels
    from model.training.metrics import summarize_seeds
    from model.training.significance import SeedGroups

    counts = {tagger: [measured_counts(bundle, data) for bundle in own] for tagger, own in bundles.items()}
    metrics = {tagger: summarize_seeds(own) for tagger, own in counts.items()}
    rates = _rates({tagger: own[0] for tagger, own in bundles.items()}, data)
    rows = [
        TaggerRow(
            tagger,
            keyphrase_f1=metrics[tagger]["keyphrase_f1"],
            low=metrics[tagger]["keyphrase_f1_low"],
            high=metrics[tagger]["keyphrase_f1_high"],
            texts_per_s=rates[tagger],
            megabytes=_megabytes(own[0]),
        )
        for tagger, own in bundles.items()
    ]
    teacher, student, alone = (row.keyphrase_f1 for row in rows)
    test = SeedGroups(counts).difference("student", rows[2].tagger)
    gain_kept = (student - alone) / (teacher - alone) if teacher > alone else None
    texts, seeds = len(counts["teacher"][0]), len(counts["student"])
    labeled_texts = sum(TeacherLabels(folder).info["texts"] for folder in labels)
    return DistilResult(place, labeled_texts, texts, seeds, rows, gain_kept, **asdict(test))


def measured_counts(bundle: str, data: "Dataset") -> "Counts":
    """Return the counts of a bundle on the test split; a teacher may have learned from another dataset, with other ids."""
    import torch

    from model.data.dataset import split_from_examples
    from model.data.examples import examples
    from model.data.labeled_text import SkipCounts
    from model.inference.bundle import load_bundle
    from model.training.evaluation import evaluate

    loaded = load_bundle(bundle)
    read = examples(data.texts("test"), loaded.tokenizer, SkipCounts(), sys.maxsize)
    test = split_from_examples(read, loaded.config.tagger.uses_word_features, loaded.subwords)
    return evaluate(loaded.tagger, test, torch.device("cpu")).counts


def _rates(bundles: dict[str, str], data: "Dataset") -> dict[str, float]:
    """Return texts per second of each bundle on all cores: medians over rounds, in which the bundles take turns."""
    import torch

    from model.inference.extractor import Extractor

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # Ray gives a job one thread
    texts = [labeled.text for labeled in islice(data.texts("test"), _TEXTS_TIMED)]
    extractors = {tagger: Extractor.load(bundle) for tagger, bundle in bundles.items()}
    found: dict[str, list[float]] = {tagger: [] for tagger in bundles}
    for number in range(1 + _ROUNDS):  # the first warms up
        for tagger, extractor in extractors.items():
            began = time.perf_counter()
            for _ in extractor.pipe(texts):
                pass
            if number:
                found[tagger].append(len(texts) / (time.perf_counter() - began))
    return {tagger: round(statistics.median(rates), 1) for tagger, rates in found.items()}


def _megabytes(bundle: str) -> float:
    from model import storage

    folders = [bundle, storage.join(bundle, "encoder")]  # which not every bundle has
    sizes = (storage.size(storage.join(folder, name)) for folder in folders for name in storage.list_directory(folder))
    return round(sum(sizes) / 1e6, 1)


def comparison_table(result: DistilResult) -> str:
    """Return the rows as text, and what they say of the student."""
    from model.training.significance import describe_test

    lines = ["tagger       test F1  95 % interval      texts/s      MB"]
    for row in result.taggers:
        scores = f"{row.keyphrase_f1:.4f}   {row.low:.4f} to {row.high:.4f}"
        lines.append(f"{row.tagger:<11}  {scores}  {row.texts_per_s:7,.0f}  {row.megabytes:6.1f}")
    kept = "" if result.gain_kept is None else f"{result.gain_kept:.0%} of the teacher's gain; "
    return "\n".join(
        [
            *lines,
            f"student: {kept}{result.difference:+.4f} ({result.low:+.4f} to {result.high:+.4f}), p = {result.p:.3f}, "
            f"{describe_test(result.seeds)}; {result.labeled_texts:,} labeled texts",
            f"the students are in {result.out}",
        ]
    )
