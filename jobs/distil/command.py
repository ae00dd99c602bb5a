"""`python -m jobs distil`: dataset + unlabeled texts + teacher -> students, and how they compare with the teacher.

All is in one folder: the runs `teacher`, `student-SEED` and `best-SEED`, and the teacher's `labels`. With folds there are, for
each fold K, the run `teacher-fold-K`, which has not learned from it, the fold's texts `fold-K.jsonl`, and `labels-fold-K`. What
is finished there is not done again.
"""

import json as encoder
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import command, echo, print_result, progress_counter, using_ray
from jobs.distil.comparison import compare, comparison_table
from jobs.progress import TrainingProgress
from jobs.train import merge_sources, over_preset

if TYPE_CHECKING:
    from model.data.dataset import Dataset

_SETTINGS = "distil.json"
_OF_ALL = ("data", "run.name", "run.storage", "run.workers", "run.device")  # fields that the command sets itself
_OF_STUDENTS = (*_OF_ALL, "training.seed", "training.teacher")

EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", help="Instead of --teacher: a pretrained encoder to fine-tune as one."),
]
TeacherSetOption = Annotated[
    list[str] | None, typer.Option(help="With --encoder: a field of the teacher, as in training.epochs=6.")
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="With --encoder: train as many more teachers, each without one part of the training split, which it labels for "
        "the students.",
    ),
]


@command
def distil(
    data: Annotated[str, typer.Option(help="Dataset directory with a validation and a test split.")],
    unlabeled: Annotated[list[str], typer.Option(help="Path, URI or glob of unlabeled texts; may be given again.")],
    teacher: Annotated[str | None, typer.Option(help="Bundle of a finished run.")] = None,
    pretrained: EncoderOption = None,
    teacher_set: TeacherSetOption = None,
    folds: FoldsOption = None,
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
    from model.errors import UserError
    from model.inference.batch_inference import input_files

    if (teacher is None) == (pretrained is None):
        raise UserError("give one of --teacher, a bundle, and --encoder, a pretrained encoder to fine-tune as one")
    if teacher is not None and (folds or teacher_set):
        raise UserError(
            "--folds and --teacher-set: are of teachers that are trained here; give --encoder, or leave them out"
        )
    _refuse_fields("--set", set or [], _OF_STUDENTS)
    _refuse_fields("--teacher-set", teacher_set or [], _OF_ALL)
    dataset, place = Dataset(data), storage.absolute(out)
    for split in ("valid", "test"):
        dataset.require(split)
    if teacher is not None:
        _check_teacher(teacher, dataset)
    given = merge_sources(None, set or [], {})
    student, alone = over_preset(preset, given, None), over_preset(preset, given, data)
    given_teacher = merge_sources(None, teacher_set or [], {"tagger.encoder": pretrained})
    of_teacher = over_preset("encoder", given_teacher, data)
    for tree in (student, of_teacher) if pretrained else (student,):
        make_config({"data": data} | tree)
    input_files(unlabeled, lambda note: None)  # told of when they are labeled
    settings = {"data": dataset.digest, "unlabeled": unlabeled, "teacher": teacher, "encoder": pretrained}
    _check_settings(place, {**settings, "teacher_set": teacher_set or None, "folds": folds, "student": student})
    folder = _Folder(place, dataset, {"data": data, "run.storage": place, "run.workers": workers, "run.device": device})
    with using_ray(lambda: echo("stopped; the same command goes on")):
        teacher = teacher or folder.bundle("teacher", of_teacher, {})
        labels = [folder.labels("labels", teacher, unlabeled)]
        labels += [folder.cross_fitted(of_teacher, number, folds) for number in range(1, folds + 1)] if folds else []
        bundles: dict[str, list[str]] = {"teacher": [teacher], "student": [], preset: []}
        for seed in range(seeds):
            for system, tree, targets in (("student", student, labels), (preset, alone, None)):
                changes = {"training.seed": seed, "training.teacher": targets}
                bundles[system].append(folder.bundle(f"{system}-{seed}", tree, changes))
    echo("comparing on the test split")
    result = compare(place, dataset, bundles, labels)
    print_result(comparison_table(result), asdict(result), json)


def _refuse_fields(flag: str, assignments: list[str], fields: tuple[str, ...]) -> None:
    """Raise UserError where a flag assigns a value to one of some fields."""
    from model.aliases import current_field
    from model.errors import UserError

    for assignment in assignments:
        if current_field(assignment.partition("=")[0]) in fields:
            raise UserError(
                f"{flag} {assignment}: distil sets this field itself; use --data, --out, --workers, --device, --seeds or "
                f"--teacher, or leave it out"
            )


def _check_teacher(teacher: str, dataset: "Dataset") -> None:
    """Raise UserError, before hours of labeling, where a teacher is no bundle or has other words than a dataset."""
    from model import storage
    from model.distillation.label_files import require_same_words, rules_digest
    from model.inference.bundle import bundle_digest

    bundle_digest(teacher)
    rules = rules_digest(storage.read(storage.join(teacher, "tokenizer.json")))
    require_same_words(rules, teacher, dataset.tokenizer_bytes(), dataset.location)


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


@dataclass(frozen=True)
class _Folder:
    """Where runs and labels are, and how they are made.

    Attributes:
        place: path or URI.
        dataset: to train on.
        run: the fields that all runs have, by dotted name.
    """

    place: str
    dataset: "Dataset"
    run: Mapping[str, Any]

    def bundle(self, name: str, tree: Mapping[str, Any], changes: Mapping[str, object]) -> str:
        """Return the bundle of a run, which is started or resumed where it is not finished.

        Args:
            name: of the run.
            tree: its configuration.
            changes: fields in which it differs from that, by dotted name.
        """
        from distributed.train.driver import train
        from distributed.train.result import read_result
        from distributed.train.runs import new_run, resumed_run, run_exists, run_folder
        from model.config import make_config, set_dotted

        whole = deepcopy(dict(tree))
        for dotted, value in {**self.run, "run.name": name, **changes}.items():
            set_dotted(whole, dotted, value)
        config = make_config(whole)
        result = read_result(run_folder(config))
        echo(f"{name}: {'is there' if result else 'training'}")
        if result is None:
            resumed = run_exists(config)
            config = resumed_run(name, self.place, {"run": whole["run"]}) if resumed else new_run(config)
            with TrainingProgress(config.training.epochs) as progress:
                result = train(config, progress.event)
        return result.bundle

    def labels(self, name: str, teacher: str, files: list[str]) -> str:
        """Let a teacher label texts, unless that is done, and return the folder of the labels.

        Raises:
            UserError: they are those of another teacher.
        """
        from distributed.cluster.connection import connect, inspect_cluster
        from distributed.cluster.ray_data import parallel_map
        from model import storage
        from model.distillation.label_files import MANIFEST, TeacherLabels
        from model.distillation.labeling import LabelConfig, label
        from model.errors import UserError
        from model.inference.bundle import bundle_digest

        out, device = storage.join(self.place, name), self.run["run.device"]
        finished = storage.exists(storage.join(out, MANIFEST))
        echo(f"{name}: {'are there' if finished else 'labeling'}")
        if not finished:
            connect()  # to a Ray with all cores of this machine, which the trainings need too
            if device == "auto":
                device = "cuda" if inspect_cluster().maximum.gpus > 0 else "cpu"
            with progress_counter("texts") as show_progress:
                mapped = parallel_map(out, self.run["run.workers"], actors=True, device=device)
                label(LabelConfig(teacher, files, out, device), mapped, show_progress, echo)
        if TeacherLabels(out).info["teacher_digest"] != bundle_digest(teacher):
            raise UserError(f"{out}: was labeled by another teacher than {teacher}; delete it, or choose another --out")
        return out

    def cross_fitted(self, tree: Mapping[str, Any], number: int, folds: int) -> str:
        """Train a teacher without a fold of the training split, let it label that fold, and return the folder of the labels."""
        import numpy as np

        from model import storage
        from model.training.training_texts import in_fold

        fold = f"{number}/{folds}"
        teacher = self.bundle(f"teacher-fold-{number}", tree, {"training.held_out_fold": fold})
        file = storage.join(self.place, f"fold-{number}.jsonl")
        if not storage.exists(file):
            own = in_fold(np.arange(self.dataset.rows("train")), fold)
            lines = (encoder.dumps({"text": each.text}) for each in compress(self.dataset.texts("train"), own))
            storage.write(file, "".join(f"{line}\n" for line in lines).encode())
        return self.labels(f"labels-fold-{number}", teacher, [file])
