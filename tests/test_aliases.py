"""What earlier versions wrote is still read: a dataset, bundles, a run and a sweep of format 1, and the names of fields.

`format1.tar.xz` was made before the names changed, from 300 texts of the built-in corpus: `runs/best` and `runs/record` are
finished, `runs/cut` was killed in its last epoch, `runs/sweep` in its third trial of four. `@HERE@` stands for its folder.
"""

import json
import tarfile
from pathlib import Path

import pytest
from helpers import ROOT, refused

from distributed.report.page import write_report
from distributed.sweep.plan import make_plan
from distributed.sweep.state import read_sweep, resumed_sweep
from distributed.train.checkpoint import load_best, load_checkpoint
from distributed.train.events import EpochEnd, Event
from distributed.train.runs import resumed_run
from model.aliases import FIELDS, WEIGHTS, current_weights
from model.config import assign, fields, make_config, read_config
from model.data.dataset import Dataset
from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.inference.bundle import load_bundle
from model.inference.extractor import Extractor
from model.training.evaluation import evaluate
from model.training.metrics import summarize

TEXT = "Day two in bed! Had lunch with poor old Scarlet Rinyarska Disease. Good old Gritis Fever trial was stopped?"


@pytest.fixture
def format1(tmp_path: Path) -> Path:
    """The folder that the earlier version wrote."""
    with tarfile.open(ROOT / "tests" / "format1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("README.md")]:
        path.write_text(path.read_text("utf-8").replace("@HERE@", str(tmp_path)), "utf-8")
    return tmp_path


def test_every_present_name_exists():
    assert set(FIELDS.values()) <= set(fields()) and not set(FIELDS) & set(fields())


def test_fields_by_their_earlier_names(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("tagger: {hidden1: 7, transitions: true}\ntraining: {clip: 1.5}\n")
    tree = read_config(str(path))
    for assignment in ("tagger.hidden2=9", "training.batch=16", "run.project=mine", "tagger.keyword_hidden=8"):
        assign(tree, assignment)
    config = make_config(tree | {"data": "d"})
    assert (config.tagger.keyword_hidden, config.tagger.keyphrase_hidden, config.tagger.crf) == (8, 9, True)
    assert (config.training.max_grad_norm, config.training.global_batch_size) == (1.5, 16)
    assert config.run.wandb_project == "mine"
    twice = {"data": "d", "tagger": {"hidden1": 7, "keyword_hidden": 8}}
    refused(lambda: make_config(twice), "tagger.hidden1", "tagger.keyword_hidden", "leave one of the two out")


def test_a_search_space_by_earlier_names():
    asked = {"config": {"data": "d"}, "space": ["tagger.hidden1=6:10"], "fixed": ["training.batch"]}
    plan = make_plan(asked | {"rows": {"tagger.spelling=0": {"tagger.spelling": 0}}})
    assert plan.space == ("tagger.keyword_hidden=6:10",) and plan.fixed == ("training.global_batch_size",)
    assert plan.rows == {"tagger.spelling=0": {"tagger.word_feature_dim": 0}}


def test_weights_by_their_earlier_names():
    assert current_weights({"layer1.backwards.weight_ih_l0": 1, "embedding.weight": 2, "transitions.start": 3}) == {
        "keyword_rnn.backward_rnn.weight_ih_l0": 1,
        "embedding.weight": 2,
        "crf.start": 3,
    }


def test_a_tokenizer_of_format_1_keeps_its_rules(format1: Path):
    tokenizer = Dataset(str(format1 / "data")).tokenizer()
    text = "今日は key\xadphrase の日"
    [example] = examples([LabeledText(text, "a:1", keyphrases=("今日は",))], tokenizer, SkipCounts(), 1000)
    assert [text[start:end] for start, end in example.offsets] == ["今日は", "key", "\xad", "phrase", "の日"]
    assert example.spans == [(0, 1)]


@pytest.mark.parametrize("name", ["best", "record"])
def test_a_bundle_of_format_1_has_its_figures_on_a_dataset_of_format_1(format1: Path, name: str):
    bundle = load_bundle(str(format1 / "runs" / name / "bundle"))
    split = Dataset(str(format1 / "data")).load("valid", bundle.tagger.config.uses_word_features)
    found = summarize(evaluate(bundle.tagger, split, next(bundle.tagger.parameters()).device).counts)
    assert found == pytest.approx({key: value for key, value in bundle.metrics.items() if key != "split"})
    if name == "best":  # all modules whose names have changed
        names = {part for weight in bundle.tagger.state_dict() for part in weight.split(".")}
        assert set(WEIGHTS.values()) <= names and not set(WEIGHTS) & names


def test_a_bundle_of_format_1_finds_what_it_found(format1: Path):
    extractor = Extractor.load(str(format1 / "runs" / "best" / "bundle"))
    found = [(each.text, each.start, each.end, round(each.score, 3)) for each in extractor(TEXT)]
    assert found == [("Scarlet Rinyarska Disease", 40, 65, 0.957), ("Gritis Fever", 76, 88, 0.993)]


def test_a_run_of_format_1_is_read(format1: Path):
    folder = format1 / "runs" / "cut"
    config = resumed_run("cut", str(format1 / "runs"), {"training": {"batch": 32}, "run": {"project": "other"}})
    assert config.tagger.keyword_hidden == 8 and config.run.wandb_project == "other"
    assert set(load_best(str(folder))[0]) == set(
        current_weights(load_checkpoint(str(folder / "checkpoint_epoch_0039"))["tagger"])
    )
    assert Path(write_report(str(folder))).stat().st_size > 100_000


def test_a_sweep_of_format_1_is_read(format1: Path):
    sweep = read_sweep(str(format1 / "runs" / "sweep"))
    assert [trial.state for trial in sweep.all] == ["finished", "finished", "running"]
    assert all(sweep.config_of(trial).tagger.keyword_hidden == 7 for trial in sweep.all)
    plan = resumed_sweep("sweep", str(format1 / "runs"), {"trials": 5})
    assert plan.space == ("tagger.keyword_hidden=6:10",) and plan.trials == 5
    assert Path(write_report(str(format1 / "runs" / "sweep"))).stat().st_size > 100_000


@pytest.mark.ray
@pytest.mark.long
def test_a_run_and_a_sweep_of_format_1_go_on(format1: Path, cluster):
    from distributed.train.driver import train
    from distributed.tune.driver import tune

    storage = str(format1 / "runs")
    begun: list[float] = []

    def take(event: Event) -> None:
        if isinstance(event, EpochEnd):
            begun.append(event.metrics["epoch"])

    result = train(resumed_run("cut", storage, {}), take)
    assert begun == [40] and result.epochs == 40
    history = [json.loads(line) for line in (format1 / "runs/cut/metrics.jsonl").read_text("utf-8").splitlines()]
    assert history[-1]["train/loss"] == pytest.approx(0.024987, rel=0.02)  # as the earlier version had it
    swept = tune(resumed_sweep("sweep", storage, {"max_concurrent": 1}), lambda event: None).as_dict()
    assert swept["trials"] == 4 and set(swept["best"]["config"]) == {
        "training.lr", "training.alpha", "tagger.keyword_hidden"
    }  # fmt: skip
    assert Extractor.load(result.bundle)(TEXT) is not None and Extractor.load(swept["bundle"])(TEXT) is not None
