"""A teacher, its students and their comparison in one command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from encoders import tiny_encoder
from helpers import SMALL, call, last_json

from jobs.corpora.tweets import generate
from jobs.distil.comparison import measured_counts
from model.data.dataset import Dataset
from model.distillation.label_files import TeacherLabels
from model.prepare.builder import PrepareConfig, prepare

FIELDS = [f"--set=tagger.{name}={value}" for name, value in SMALL.items()]


@pytest.fixture
def unlabeled(tmp_path: Path) -> str:
    path = tmp_path / "unlabeled.txt"
    path.write_text("".join(f"{text.text}\n" for text in generate(500, seed=1)["train"]), "utf-8")
    return str(path)


def test_what_does_not_fit_is_refused_before_anything_is_made(
    small_bundle: str, small_dataset: str, unlabeled: str, tmp_path: Path
):
    asked = ("distil", "--data", small_dataset, "--unlabeled", unlabeled, "--out", str(tmp_path / "out"))
    for more, message in (
        ((), "give one of --teacher, a bundle, and --encoder"),
        (("--teacher", small_bundle, "--encoder", "e"), "give one of --teacher, a bundle, and --encoder"),
        (("--teacher", str(tmp_path)), str(tmp_path)),
        (("--teacher", small_bundle, "--folds", "2"), "--folds and --teacher-set"),
        (("--teacher", small_bundle, "--teacher-set", "training.epochs=2"), "--folds and --teacher-set"),
        (("--encoder", "e", "--teacher-set", "training.lrr=1"), "training.lrr"),
        (("--teacher", small_bundle, "--set", "training.lrr=1"), "training.lrr"),
        (("--teacher", small_bundle, "--set", "training.seed=7"), "--set training.seed=7: distil sets this field"),
        (("--encoder", "e", "--teacher-set", "run.workers=2"), "--teacher-set run.workers=2: distil sets this field"),
        (("--teacher", small_bundle, "--unlabeled", "/no/texts.txt"), "/no/texts.txt: no such file"),
    ):
        done = call(*asked, *more)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_words_is_refused(small_bundle: str, small_dataset: str, unlabeled: str, tmp_path: Path):
    other = tmp_path / "teacher"
    shutil.copytree(small_bundle, other)
    tokenizer = json.loads((other / "tokenizer.json").read_bytes())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    done = call(
        "distil",
        "--data",
        small_dataset,
        "--unlabeled",
        unlabeled,
        "--teacher",
        str(other),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.exit_code == 2 and "into other words" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_dataset_is_measured_with_its_own_words(
    small_bundle: str, small_dataset: str, tmp_path: Path
):
    files = {split: [str(Path(small_dataset).parent / f"{split}.jsonl")] for split in ("train", "valid", "test")}
    other = str(tmp_path / "other")
    prepare(PrepareConfig(files["test"], other, files["valid"], files["test"]))
    expected = measured_counts(small_bundle, Dataset(small_dataset))
    assert (measured_counts(small_bundle, Dataset(other)) == expected).all() and expected.sum()


@pytest.mark.ray
@pytest.mark.long
def test_students_are_compared_with_their_teacher_and_what_is_there_is_kept(
    call_on_cluster: Any, small_bundle: str, small_dataset: str, unlabeled: str, tmp_path: Path
):
    out = tmp_path / "out"
    asked = ["distil", "--data", small_dataset, "--unlabeled", unlabeled, "--teacher", small_bundle, "--out", str(out)]
    asked += ["--preset", "record", "--seeds", "1", "--device", "cpu", *FIELDS, "--set", "training.epochs=3", "--json"]
    done = call_on_cluster(*asked)
    assert done.exit_code == 0, done.stderr
    result = last_json(done.stdout)
    assert [row["tagger"] for row in result["taggers"]] == ["teacher", "student", "record"]
    assert (result["seeds"], result["test_texts"]) == (1, Dataset(small_dataset).rows("test"))
    assert result["labeled_texts"] == 350
    for row in result["taggers"]:
        assert row["low"] <= row["keyphrase_f1"] <= row["high"] and row["texts_per_s"] > 0 and row["megabytes"] > 0
    assert result["difference"] == result["taggers"][1]["keyphrase_f1"] - result["taggers"][2]["keyphrase_f1"]
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    again = call_on_cluster(*asked)
    assert again.exit_code == 0 and "labels: are there" in again.stderr, again.stderr
    assert made == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    scores = [[row["keyphrase_f1"] for row in last_json(each.stdout)["taggers"]] for each in (done, again)]
    assert scores[0] == scores[1]

    for more, named in ((("--set", "training.lr=0.1"), "student"), (("--unlabeled", unlabeled), "unlabeled")):
        other = call_on_cluster(*asked, *more)
        assert other.exit_code == 2 and f"was begun with another value of {named}" in other.stderr, other.stderr


@pytest.mark.ray
@pytest.mark.long
def test_each_fold_of_the_gold_texts_is_labeled_by_a_teacher_that_has_not_seen_it(
    call_on_cluster: Any, small_dataset: str, unlabeled: str, tmp_path: Path
):
    out, dataset = tmp_path / "out", Dataset(small_dataset)
    encoder = tiny_encoder(tmp_path / "bert", "bert")
    asked = ["distil", "--data", small_dataset, "--unlabeled", unlabeled, "--encoder", encoder, "--out", str(out)]
    asked += [
        "--teacher-set",
        "training.epochs=1",
        "--folds",
        "2",
        "--preset",
        "record",
        "--seeds",
        "1",
        "--device",
        "cpu",
    ]
    done = call_on_cluster(*asked, *FIELDS, "--set", "training.epochs=1", "--json")
    assert done.exit_code == 0, done.stderr
    assert last_json(done.stdout)["labeled_texts"] == 350 + 700
    texts = [each.text for each in dataset.texts("train")]
    digests = []
    for fold in (1, 2):
        config = json.loads((out / f"teacher-fold-{fold}" / "config.json").read_bytes())
        assert (config["training"]["held_out_fold"], config["training"]["epochs"]) == (f"{fold}/2", 1)
        labels = TeacherLabels(str(out / f"labels-fold-{fold}"))
        assert [text for part in labels.read() for text in part.texts] == texts[fold - 1 :: 2]
        digests.append(labels.info["teacher_digest"])
    assert len({*digests, TeacherLabels(str(out / "labels")).info["teacher_digest"]}) == 3
    student = json.loads((out / "student-0" / "config.json").read_bytes())["training"]
    assert student["teacher"] == [str(out / name) for name in ("labels", "labels-fold-1", "labels-fold-2")]
    assert student["held_out_fold"] is None
