"""`python -m jobs distil`: dataset + unlabeled texts + teacher -> students, and how they compare with the teacher.

All is in one folder: the runs `teacher`, `student-SEED` and `best-SEED`, and the teacher's `labels`. What is finished there is
not done again.
"""

import json as encoder
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import command, echo, print_json, progress_counter, using_ray
from jobs.progress import TrainingProgress
from jobs.train import merge_sources

if TYPE_CHECKING:
    from model.data.dataset import Dataset
    from model.training.metrics import Counts

_SETTINGS = "distil.json"
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
        labeled_texts: texts that the teacher has labeled.
        test_texts: texts of the test split.
        seeds: trainings with a teacher, and as many without.
        taggers: a row each.
        gain_kept: part of the teacher's gain that the student has; None where the teacher is no better than without one.
        difference: F1 of the student minus that of the same without a teacher.
        low, high, p: its 95 % interval and p-value by a paired bootstrap, see `model.training.significance.Comparison`.
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


@command
def distil(
    data: Annotated[str, typer.Option(help="Dataset directory with a validation and a test split.")],
    unlabeled: Annotated[list[str], typer.Option(help="Path, URI or glob of unlabeled texts; may be given again.")],
    teacher: Annotated[str | None, typer.Option(help="Bundle of a finished run.")] = None,
    pretrained: Annotated[
        str | None, typer.Option("--encoder", help="Instead of --teacher: a pretrained encoder to fine-tune as one.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder of runs and labels; what is missing there is made.")] = "runs/distil",
    preset: Annotated[str, typer.Option(help="Preset of the student.")] = "best",
    set: Annotated[list[str] | None, typer.Option(help="A field of the student, as in training.epochs=12.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings with the teacher, and as many without.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes of a training, and of labeling.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Let a teacher label texts, teach students with them, and compare both with the same trainings without a teacher.

    After a stop, the same command goes on.
    """
    from model import storage
    from model.config import make_config
    from model.data.dataset import Dataset
    from model.distillation.label_files import require_same_words, rules_digest
    from model.errors import UserError
    from model.inference.bundle import bundle_digest

    if (teacher is None) == (pretrained is None):
        raise UserError("give one of --teacher, a bundle, and --encoder, a pretrained encoder to fine-tune as one")
    dataset, place = Dataset(data), storage.absolute(out)
    for split in ("valid", "test"):
        dataset.require(split)
    if teacher is not None:  # before hours of labeling
        bundle_digest(teacher)  # which raises UserError where there is none
        rules = rules_digest(storage.read(storage.join(teacher, "tokenizer.json")))
        require_same_words(rules, teacher, dataset.tokenizer_bytes(), data)
    student = merge_sources(preset, None, set or [], {})
    make_config({"data": data} | student)
    settings = {"data": dataset.digest, "unlabeled": unlabeled, "teacher": teacher, "encoder": pretrained}
    _check_settings(place, {**settings, "student": student})
    run = {"data": data, "run.storage": place, "run.workers": workers, "run.device": device}
    with using_ray(lambda: echo("stopped; the same command goes on")):
        if teacher is None:
            fields = {**run, "run.name": "teacher", "tagger.encoder": pretrained}
            teacher = _bundle(merge_sources("encoder", None, [], fields))
        labels = storage.join(place, "labels")
        labeled_texts = _label(teacher, unlabeled, labels, workers, device)
        bundles: dict[str, list[str]] = {"teacher": [teacher], "student": [], preset: []}
        for seed in range(seeds):
            for system, targets in (("student", labels), (preset, None)):
                fields = {**run, "run.name": f"{system}-{seed}", "training.seed": seed, "training.teacher": targets}
                bundles[system].append(_bundle(merge_sources(preset, None, set or [], fields)))
    result = _compare(place, dataset, bundles, labeled_texts)
    echo(_table(result))
    if json:
        print_json(asdict(result))


def _check_settings(place: str, settings: Mapping[str, object]) -> None:
    """Save what a folder is made from. Raises UserError where it was begun with something else."""
    from model import storage
    from model.errors import UserError

    file = storage.join(place, _SETTINGS)
    if not storage.exists(file):
        storage.make_directory(place)
        storage.write(file, encoder.dumps(settings, indent=2, ensure_ascii=False).encode())
        return
    begun = encoder.loads(storage.read(file))
    others = [name for name, value in settings.items() if begun.get(name) != value]
    if others:
        raise UserError(f"{place}: was begun with another value of {others[0]}; choose another --out, or delete it")


def _bundle(tree: dict[str, Any]) -> str:
    """Return the bundle of a run, which is started or resumed where it is not finished."""
    from distributed.train.driver import train
    from distributed.train.result import read_result
    from distributed.train.runs import new_run, resumed_run, run_exists, run_folder
    from model.config import make_config

    config = make_config(tree)
    name, result = str(config.run.name), read_result(run_folder(config))
    echo(f"{name}: {'is there' if result else 'training'}")
    if result is None:
        resumed = run_exists(config)
        config = resumed_run(name, config.run.storage, {"run": tree["run"]}) if resumed else new_run(config)
        with TrainingProgress(config.training.epochs) as progress:
            result = train(config, progress.event)
    return result.bundle


def _label(teacher: str, files: list[str], out: str, workers: int, device: str) -> int:
    """Label texts, unless that is done, and return their number. Raises UserError where another teacher labeled them."""
    from distributed.cluster.connection import inspect_cluster
    from distributed.cluster.ray_data import parallel_map
    from model import storage
    from model.distillation.label_files import MANIFEST, TeacherLabels
    from model.distillation.labeling import LabelConfig, label
    from model.errors import UserError
    from model.inference.bundle import bundle_digest

    finished = storage.exists(storage.join(out, MANIFEST))
    echo(f"labels: {'are there' if finished else 'labeling'}")
    if not finished:
        gpu = device == "cuda" or (device == "auto" and inspect_cluster().maximum.gpus > 0)
        with progress_counter("texts") as show_progress:
            mapped = parallel_map(out, workers, actors=True, gpu=gpu)
            label(LabelConfig(teacher, files, out, "cuda" if gpu else "cpu"), mapped, show_progress, echo)
    info = TeacherLabels(out).info
    if info["teacher_digest"] != bundle_digest(teacher):
        raise UserError(f"{out}: was labeled by another teacher than {teacher}; delete it, or choose another --out")
    return info["texts"]


def _compare(place: str, data: "Dataset", bundles: dict[str, list[str]], labeled_texts: int) -> DistilResult:
    """Measure the bundles of each tagger; `bundles` has the teacher, then the student, then the same without a teacher."""
    from model.training.metrics import summarize_seeds
    from model.training.significance import bootstrap_means, paired_bootstrap_test

    echo("comparing on the test split")
    counts = {tagger: [_counts(bundle, data) for bundle in own] for tagger, own in bundles.items()}
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
    means = bootstrap_means([counts["student"], counts[rows[2].tagger]], "keyphrase")
    test = paired_bootstrap_test(means[:, 0], means[:, 1], student - alone)
    gain_kept = (student - alone) / (teacher - alone) if teacher > alone else None
    texts, seeds = len(counts["teacher"][0]), len(counts["student"])
    return DistilResult(place, labeled_texts, texts, seeds, rows, gain_kept, *test)


def _counts(bundle: str, data: "Dataset") -> "Counts":
    import torch

    from model.inference.bundle import load_bundle
    from model.training.evaluation import evaluate

    loaded = load_bundle(bundle)
    test = data.load("test", loaded.config.tagger.uses_word_features, loaded.subwords)
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

    sizes = (storage.size(storage.join(bundle, name)) for name in storage.list_directory(bundle))
    return round(sum(sizes) / 1e6, 1)


def _table(result: DistilResult) -> str:
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
