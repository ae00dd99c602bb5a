"""Ablations: which rows there are, what they show, and one sweep."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SMALL, counts_of, refused

from distributed.cluster.resources import ClusterResources
from distributed.report import ablation_table
from distributed.sweep import ablation
from distributed.sweep.ablation_rows import ablation_rows
from distributed.sweep.metric import Metric
from distributed.sweep.plan import SweepConfig, dry_run, make_plan, new_sweep, validate_plan
from distributed.sweep.space import apply_values, parse_space
from distributed.sweep.state import SweepState, read_sweep, resumed_sweep
from distributed.train.checkpoint import save_best
from distributed.tune.driver import tune
from model import storage
from model.config import SEEDS, Config, TaggerConfig, make_config
from model.errors import UserError
from model.inference.bundle import load_bundle
from model.network.tagger import new_tagger
from model.training.significance import bootstrap_means, paired_bootstrap_test

BEST = {"cell": "lstm", "bidirectional": True, "word_feature_dim": 8}
HERE = ClusterResources(4, 0, 1)


def rows(tagger: dict[str, Any], *space: str, training: dict[str, Any] | None = None, check: Any = lambda config: None):
    base = make_config({"data": "d", "tagger": tagger, "training": training or {}})
    return ablation_rows(base, parse_space(space, {}, set()), check)


def test_a_row_puts_one_field_back_and_the_last_one_all():
    found, left_out = rows(BEST, training={"lr": 0.002, "seed": 7, "patience": 0, "epochs": 5, "data": "stream"})
    back = {"tagger.cell": "rnn", "tagger.bidirectional": False, "tagger.word_feature_dim": 0, "training.lr": 0.001}
    assert found == {
        "whole": {},
        "tagger.cell=rnn": {"tagger.cell": "rnn"},
        "tagger.bidirectional=false": {"tagger.bidirectional": False},
        "tagger.word_feature_dim=0": {"tagger.word_feature_dim": 0},
        "training.lr=0.001": {"training.lr": 0.001},
        "record": back,  # the budget, the seed and the place of the data are those of all rows
    }
    assert [*found][:1] == ["whole"] and [*found][-1:] == ["record"] and not left_out


def test_values_that_are_asked_for_are_rows_unless_they_change_nothing_or_repeat_one():
    found, _ = rows({"cell": "lstm"}, "tagger.cell=gru,rnn,lstm", "training.alpha=0.1,0.3,0.5", "tagger.dropout=0")
    assert list(found) == [
        "whole", "tagger.cell=rnn", "tagger.cell=gru", "training.alpha=0.1", "training.alpha=0.5", "tagger.dropout=0",
    ]  # fmt: skip
    assert list(rows({}, "training.alpha=0.1:0.5:3")[0]) == ["whole", "training.alpha=0.1", "training.alpha=0.5"]


def test_what_cannot_be_compared_is_refused():
    refused(lambda: rows({}), "nothing differs from the defaults", "--preset best")
    refused(lambda: rows({}, "tagger.cell=rnn"), "nothing differs")
    refused(lambda: rows({}, "training.alpha=0.1:0.5"), "--sampler ablation", "training.alpha", "number of points")
    refused(lambda: rows({}, "training.seed=1,2"), "training.seed", "in common")
    refused(lambda: rows({}, "tagger.window=2"), "window", "odd")
    refused(lambda: make_plan({"config": {"data": "d"}, "sampler": "ablation", "finalists": 2}), "--finalists 2")


def test_a_field_that_cannot_be_put_back_alone_is_left_out_with_its_reason():
    def goes_with_vectors_of_200(config: Config) -> None:
        if config.tagger.pretrained_vectors and config.tagger.embedding_dim != 200:
            raise UserError("its word vectors have 200 values")

    found, left_out = rows({"cell": "gru", "embedding_dim": 200}, check=goes_with_vectors_of_200)
    assert list(found) == ["whole", "tagger.cell=rnn"]
    assert [line.split(":")[0] for line in left_out] == [
        "there is no row tagger.embedding_dim=300",
        "there is no row record",
    ]
    assert all("its word vectors have 200 values" in line for line in left_out)
    # What the user asks for is answered.
    refused(
        lambda: rows({"embedding_dim": 200}, "tagger.embedding_dim=100", check=goes_with_vectors_of_200), "200 values"
    )


def test_an_encoder_is_reset_with_all_that_stands_on_it():
    tagger = {"encoder": "e", "encoder_digest": "0" * 64, "cell": "none", "embedding_dim": 0, "pooling": "mean"}
    found, left_out = rows(tagger)
    assert set(found) == {"whole", "tagger.pooling=first", "tagger.cell=rnn", "tagger.embedding_dim=300", "record"}
    assert [line.split(":")[0] for line in left_out] == ["there is no row tagger.encoder=null"]


def plan_of(data: str, where: Path, tagger: dict[str, Any], **asked: Any) -> SweepConfig:
    config = {
        "data": data,
        "tagger": tagger,
        "training": {"patience": 0, "seed": 5},
        "run": {"name": "a", "storage": str(where), "device": "cpu"},
    }
    return new_sweep(make_plan({"config": config, "sampler": "ablation", **asked}))


def test_all_rows_are_trained_with_a_seed_before_the_next(small_dataset: str, tmp_path: Path):
    plan, space, _ = validate_plan(
        plan_of(small_dataset, tmp_path, {"cell": "gru"}, seeds=2, space=["training.lr=0.1"]), HERE
    )
    assert (plan.trials, plan.rungs, plan.epochs_planned) == (6, [], 6 * plan.max_epochs)
    assert [plan.strategy.propose(plan, space, number)[:2] for number in range(6)] == [
        (row, values | {"training.seed": seed})
        for seed in (5, 6)
        for row, values in (
            ("whole", {}),
            ("tagger.cell=rnn", {"tagger.cell": "rnn"}),
            ("training.lr=0.1", {"training.lr": 0.1}),
        )
    ]
    last = apply_values(plan.config, {"training.seed": SEEDS - 1})
    assert plan.strategy.propose(plan.model_copy(update={"config": last}), space, 3)[1] == {"training.seed": 0}
    looked_at = dry_run(plan).as_dict()
    assert looked_at["rows"] == plan.rows and looked_at["trainings"] == 6
    # A field that was given a value may be tried with others, and what the base is without stays as it is.
    fixed = plan_of(small_dataset, tmp_path, {"cell": "gru"}, fixed=["tagger.cell"], space=["tagger.cell=lstm"])
    assert list(validate_plan(fixed, HERE)[0].rows) == ["whole", "tagger.cell=rnn", "tagger.cell=lstm"]


counts = partial(counts_of, texts=400)
RATES = {"whole": 0.6, "tagger.cell=rnn": 0.4, "training.lr=0.1": 0.6}


@pytest.fixture
def trained(small_dataset: str, tmp_path: Path) -> SweepState:
    """A sweep of three rows with two seeds that has been trained."""
    plan = plan_of(small_dataset, tmp_path, {"cell": "gru"}, seeds=2, space=["training.lr=0.1"], max_epochs=2)
    plan, space, _ = validate_plan(plan, HERE)
    sweep = SweepState(plan)
    for number in range(plan.trials):
        name = f"t{number + 1:03d}"
        row, values, epochs = plan.strategy.propose(plan, space, number)
        about = {"name": name, "values": values, "epochs": epochs, "series": row, "finalist_of": None}
        sweep.apply({"event": "trial", "time": 0.0, **about})
        best = counts(RATES[row or ""], number)
        f1 = best[:, 0].sum() / len(best)
        for epoch, value, state in ((1, f1, {}), (2, f1 / 2, {"state": "finished"})):
            metrics = {"epoch": epoch, "valid/keyphrase_f1": value, "train/seconds": 3.0 * epoch}
            sweep.apply({"event": "epoch", "time": 1.0, "trial": name, "metrics": metrics, **state})
        save_best(sweep.folder_of(sweep.trials[name]), 1, {}, best)
    return sweep


def test_rows_are_compared_with_the_whole(trained: SweepState, small_dataset: str):
    found, verdict = ablation.compare_rows(trained)
    assert [row.row for row in found] == ["whole", "training.lr=0.1", "tagger.cell=rnn"]
    whole, same, worse = found
    assert whole.seeds == [5, 6] and whole.best_epochs == [1, 1] and whole.against_whole is None
    assert whole.scores == [counts(0.6, seed)[:, 0].mean() for seed in (0, 3)]
    assert whole.low < whole.mean == np.mean(whole.scores) < whole.high
    assert whole.seconds_per_epoch == 4.5 and whole.lost == [] and worse.values == {"tagger.cell": "rnn"}
    draws = bootstrap_means([[counts(0.6, 0), counts(0.6, 3)], [counts(0.4, 1), counts(0.4, 4)]], "keyphrase")
    expected = paired_bootstrap_test(draws[:, 1], draws[:, 0], worse.mean - whole.mean)
    assert worse.against_whole.difference == expected.difference < -0.1
    assert worse.against_whole.low == pytest.approx(expected.low, abs=0.02)
    assert worse.against_whole.p < 0.05 < same.against_whole.p
    differ, shown = verdict.split("; ")
    assert differ.startswith(f"tagger.cell=rnn ({expected.difference:+.4f}) differs from the whole, p < 0.05")
    assert shown == "no difference is shown for training.lr=0.1"


def test_an_ablation_goes_on_with_more_seeds_when_its_weights_are_gone(trained: SweepState, tmp_path: Path):
    before = ablation.compare_rows(trained)
    for trial in trained.searched:
        ablation.keep_counts(trained, trial)
        storage.remove_directory(trained.folder_of(trial))
        ablation.keep_counts(trained, trial)  # what is kept already is not looked for
    assert ablation.compare_rows(trained) == before
    storage.write(f"{trained.plan.folder}/sweep.json", trained.plan.model_dump_json().encode())
    refused(lambda: resumed_sweep("a", str(tmp_path), {"seeds": 1}), "--seeds 1", "begun with 2")
    plan, space, _ = validate_plan(resumed_sweep("a", str(tmp_path), {"seeds": 3}), HERE)
    assert plan.rows == trained.plan.rows and plan.trials == 9
    assert plan.strategy.propose(plan, space, 6)[:2] == ("whole", {"training.seed": 7})
    trained.plan = plan
    found, _ = ablation.compare_rows(trained)
    assert [row.lost for row in found] == [["a seed was not begun"]] * 3


def test_a_training_that_broke_down_is_told_of(trained: SweepState):
    trained.apply({"event": "broken", "time": 2.0, "trial": "t002", "state": "diverged", "error": "loss is nan"})
    found, verdict = ablation.compare_rows(trained)
    assert "there is one seed" in verdict and "there is one seed" in ablation_table.caption(found, trained.plan)
    worse = found[-1]
    assert worse.seeds == [6] and worse.mean == counts(0.4, 4)[:, 0].mean()
    assert worse.lost == ["t002 (seed 5) diverged: loss is nan"]
    text = ablation_table.as_text(found, Metric("keyphrase", "f1"))
    assert "1 of 2" in text and text.endswith("tagger.cell=rnn: t002 (seed 5) diverged: loss is nan")
    trained.apply({"event": "broken", "time": 2.0, "trial": "t005", "state": "failed", "error": "killed"})
    found, verdict = ablation.compare_rows(trained)
    assert found[-1].mean is None and found[-1].against_whole is None and len(found[-1].lost) == 2
    assert verdict.endswith("no metric is known for tagger.cell=rnn")
    for name in ("t001", "t004"):
        trained.apply({"event": "broken", "time": 2.0, "trial": name, "state": "failed", "error": "killed"})
    found, verdict = ablation.compare_rows(trained)
    assert "no row can be compared" in verdict and found[1].mean is not None
    assert ablation_table.as_text(found, Metric("keyphrase", "f1")).count("0 of 2") == 2


def test_the_table_is_the_same_as_text_and_as_markdown(trained: SweepState):
    found, verdict = ablation.compare_rows(trained)
    worse = found[-1]
    header, *lines = ablation_table.as_text(found, Metric("keyphrase", "f1")).splitlines()
    assert header.startswith("row ") and "keyphrase F1" in header and len(lines) == 3
    assert all(line.startswith(row.row) for line, row in zip(lines, found, strict=True))
    metrics = f"{worse.mean:.4f} ({worse.low:.4f} to {worse.high:.4f})"
    assert metrics in lines[2] and f"{worse.against_whole.difference:+.4f}" in lines[2]
    assert lines[2].index(metrics) == header.index("keyphrase F1")
    page = ablation_table.as_markdown(found, verdict, trained.plan).splitlines()
    assert [cell.strip() for cell in page[0].strip("|").split("|")] == re.split(r"\s{2,}", header)
    assert all(line.count("|") == page[0].count("|") for line in page[:5])
    assert page[2].startswith("| `whole` |") and metrics in page[4] and verdict in page[6]


@pytest.mark.parametrize("tagger", [{}, {"cell": "lstm", "bidirectional": True, "word_feature_dim": 8, "crf": True}])
def test_parameters_are_those_of_the_tagger_as_it_is_trained(tagger: dict[str, Any]):
    config = TaggerConfig(**SMALL, **tagger)
    size = ablation.count_parameters(config, words=500)
    whole = new_tagger(config, 500, 0)
    assert size.embedding + size.network == sum(each.numel() for each in whole.parameters())
    assert size.embedding == 500 * 24 + (
        whole.word_feature_embedding.weight.numel() if whole.word_feature_embedding else 0
    )


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_an_ablation_from_rows_to_a_table(cluster, small_dataset: str, tmp_path: Path):
    asked: dict[str, Any] = {"seeds": 2, "max_epochs": 1, "max_concurrent": 1}
    # The row that looks at how words are written is not the base.
    plan = plan_of(small_dataset, tmp_path, {}, space=["tagger.word_feature_dim=2"], **asked)
    notes: list[Any] = []
    result = tune(plan, notes.append).as_dict()
    assert result["trials"] == 4 and result["failed"] == result["stopped"] == 0
    whole, other = result["ablation"]
    assert (whole["row"], other["row"]) == ("whole", "tagger.word_feature_dim=2") and whole["seeds"] == other[
        "seeds"
    ] == [5, 6]
    assert whole["parameters"]["embedding"] < other["parameters"]["embedding"]
    trials = [trial for trial in read_sweep(plan.folder).searched if trial.series == "tagger.word_feature_dim=2"]
    assert other["scores"] == [trial.metrics[0]["valid/keyphrase_f1"] for trial in trials]
    folder = Path(plan.folder)
    # Of the weights those of the best trial are kept, of the others what rows are compared by.
    assert [path.name for path in (folder / "trials").iterdir()] == [result["best"]["trial"]]
    assert len(list((folder / "counts").iterdir())) == 3
    assert load_bundle(result["bundle"]).config.training.seed == result["best"]["config"]["training.seed"]
    page = (folder / "ablation.md").read_text()
    assert result["verdict"] in page and f"{other['mean']:.4f}" in page
    report = (folder / "report.html").read_text()
    assert "<h2>Ablation</h2>" in report and f"{other['mean']:.4f} (" in report and "What was searched" not in report
    assert json.loads((folder / "result.json").read_text()) == result
