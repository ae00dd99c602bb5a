"""The report: what it shows, and that it opens offline in a real browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import browse, needs_a_browser
from helpers import SMALL, refused, without_digests
from typer.testing import CliRunner

from distributed.report.page import write_report
from distributed.report.samples import highlight
from distributed.sweep.journal import Journal
from distributed.sweep.plan import make_plan
from distributed.sweep.results import BestTrial, Finalist, TuneResult
from jobs.__main__ import app
from model import storage
from model.config import make_config
from model.data.dataset import Dataset
from model.inference.bundle import load_bundle
from model.network.tagger import new_tagger
from model.training.loop import Training

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def history(small_dataset: str) -> list[dict[str, float]]:
    """The figures of a training of three epochs."""
    dataset = Dataset(small_dataset)
    config = make_config({"data": small_dataset, "tagger": SMALL, "training": {"epochs": 3, "lr": 0.01}})
    tagger = new_tagger(config.tagger, dataset.info["words"], 0)
    return list(Training(config.training, tagger, dataset.load("train"), dataset.load("valid")).epochs())


@pytest.fixture
def sweep_folder(tmp_path: Path, small_dataset: str, small_bundle: str, history: list[dict[str, float]]) -> str:
    """A sweep's folder as `tune` leaves it, with a trial of every kind and finalists."""
    run = {"name": "shown", "storage": str(tmp_path)}
    plan = make_plan({"config": {"data": small_dataset, "run": run}, "trials": 4, "max_epochs": 3, "finalists": 2})
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())
    journal = Journal(plan.folder)
    for number, (epochs, state) in enumerate([(3, "finished"), (1, "stopped"), (0, "failed"), (2, "running")]):
        name, values = f"t{number + 1:03d}", {"training.lr": 1e-3 * (number + 1), "training.alpha": 0.3}
        about: dict[str, Any] = {"values": values, "epochs": 3, "series": None, "finalist_of": None}
        journal.write({"event": "trial", "time": number, "name": name, **about})
        for epoch in range(epochs):
            ends = {"state": state} if epoch == epochs - 1 and state != "running" else {}
            journal.write({"event": "epoch", "time": number + epoch, "trial": name, "metrics": history[epoch], **ends})
        if state == "failed":
            journal.write({"event": "broken", "time": number, "trial": name, "state": state, "error": EVIL})
    journal.close()
    shutil.copytree(small_bundle, Path(plan.folder) / "bundle")
    finalists = [
        Finalist(name, {"training.lr": 1e-3}, [1, 2], [mean, mean], mean, mean - 0.1, mean + 0.1)
        for name, mean in (("t001", 0.5), ("t004", 0.4))
    ]
    result = TuneResult(
        name="shown",
        trials=4,
        stopped=1,
        failed=1,
        unfinished=0,
        epochs_spent=6,
        epochs_full=12,
        seconds=3.0,
        best=BestTrial("t001", {"training.lr": 1e-3}, 3, 0.5, 0.4, 0.6),
        finalists=finalists,
        verdict="no difference is shown between t001 and t004",
        bundle=storage.join(plan.folder, "bundle"),
        report=storage.join(plan.folder, "report.html"),
        test={name: value for name, value in load_bundle(small_bundle).metrics.items() if name != "split"},
    )
    storage.write(storage.join(plan.folder, "result.json"), json.dumps(result.as_dict()).encode())
    return plan.folder


@pytest.fixture
def run_folder(tmp_path: Path, small_dataset: str, small_bundle: str, history: list[dict[str, float]]) -> str:
    """A run's folder as `train` leaves it."""
    folder = tmp_path / "run"
    shutil.copytree(small_bundle, folder / "bundle")
    config = make_config({"data": small_dataset, "tagger": SMALL, "run": {"name": "run", "storage": str(tmp_path)}})
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics) + "\n" for metrics in history))
    return str(folder)


@needs_a_browser
def test_a_sweeps_report_opens_offline_with_all_its_parts(sweep_folder: str, tmp_path: Path):
    page, console = browse(write_report(sweep_folder), tmp_path)
    assert not console  # its own policy forbids every request, and one that is tried would be told here
    assert page.count('class="main-svg"') >= 4
    for part in (
        "Learning curves",
        "What was searched",
        "Rungs",
        "Finalists",
        "Trials",
        "The record beside it",
        "Mistakes",
        "20 texts",
    ):
        assert part in page, part
    assert "no difference is shown between t001 and t004" in page and 'class="gold' in page
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page


@needs_a_browser
def test_a_runs_report_opens_offline(run_folder: str, tmp_path: Path):
    page, console = browse(write_report(run_folder, str(tmp_path / "out.html")), tmp_path)
    assert not console and page.count('class="main-svg"') >= 2
    for part in ("F1 on the validation split", "Losses", "Epochs", "The record beside it", "Mistakes", "20 texts"):
        assert part in page, part


def script_added(report: str, script: str) -> Path:
    page = Path(report)
    page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return page


@needs_a_browser
def test_the_trials_table_sorts_by_number(sweep_folder: str, tmp_path: Path):
    click = "document.querySelectorAll('.sortable th')[2].click();"
    page, console = browse(str(script_added(write_report(sweep_folder), click * 2)), tmp_path)
    body = page.split('class="sortable"')[1]
    places = [body.index(f">{name}<") for name in ("t004", "t003", "t002", "t001")]
    assert places == sorted(places) and not console
    emptied = "document.querySelector('.sortable tbody').rows[0].cells[2].textContent = '';"
    for clicks in (click, click * 2):  # a trial without a value is last in both directions
        page, console = browse(str(script_added(write_report(sweep_folder), emptied + clicks)), tmp_path)
        body = page.split('class="sortable"')[1]
        assert max(body.index(f">t00{number}<") for number in (1, 2, 3, 4)) == body.index(">t001<")


@needs_a_browser
def test_the_browser_would_tell_of_requests_and_errors(sweep_folder: str, tmp_path: Path):
    location = Path(write_report(sweep_folder))
    bad = '<img src="http://example.invalid/x.png"><script>nothing()</script>'
    location.write_text(location.read_text().replace("</body>", f"{bad}</body>"))
    console = "\n".join(browse(str(location), tmp_path)[1])
    assert "http://example.invalid/x.png" in console and "nothing is not defined" in console


def test_a_report_needs_something_to_report(tmp_path: Path, run_folder: str):
    refused(lambda: write_report(str(tmp_path)), str(tmp_path), "neither a sweep nor a run")
    (Path(run_folder) / "metrics.jsonl").unlink()
    refused(lambda: write_report(run_folder), "has not finished an epoch")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"name": "shown"}', b'{"best": 5}', b"\xff"])
def test_a_damaged_result_of_a_sweep_is_named(sweep_folder: str, content: bytes):
    (Path(sweep_folder) / "result.json").write_bytes(content)
    refused(lambda: write_report(sweep_folder), "result.json: is damaged", "delete it", "tune --resume")


def test_a_name_is_looked_for_where_runs_are_stored(run_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(run_folder)
    monkeypatch.setenv("TANDEM_STORAGE", str(folder.parent))
    done = CliRunner().invoke(app, ["report", folder.name, "--out", str(tmp_path / "page.html"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {"report": str(tmp_path / "page.html")}
    (tmp_path / "here" / folder.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")  # where something else has that name
    arguments = ["report", folder.name, "--out", str(tmp_path / "page.html")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    monkeypatch.delenv("TANDEM_STORAGE")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and f"{folder.name} and runs/{folder.name}: neither" in done.stderr
    assert CliRunner().invoke(app, [*arguments, "--storage", str(folder.parent)]).exit_code == 0


def test_the_tiles_show_what_train_prints_and_what_stopping_saved(
    run_folder: str, sweep_folder: str, history: list[dict[str, float]]
):
    metrics = [
        json.dumps(epoch | {"train/tokens_per_s": speed}) for epoch, speed in zip(history, (100, 300), strict=False)
    ]
    (Path(run_folder) / "metrics.jsonl").write_text("".join(f"{line}\n" for line in metrics))
    assert "<b>200 tokens/s</b>" in Path(write_report(run_folder)).read_text("utf-8")
    # Of 12 epochs, the stopped trial spared 2; one that failed and one that runs have not trained 4 more.
    assert "<b>6 of 12, 17% saved</b>" in Path(write_report(sweep_folder)).read_text("utf-8")


def test_a_report_replaces_a_report_and_no_other_file(run_folder: str, tmp_path: Path):
    out = write_report(run_folder, str(tmp_path / "page.html"))
    assert write_report(run_folder, out) == out
    config = Path(run_folder) / "config.json"
    before = config.read_bytes()
    refused(lambda: write_report(run_folder, str(config)), str(config), "name another")
    assert config.read_bytes() == before


def test_texts_that_may_not_be_read_are_told_of(run_folder: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(location: str) -> Dataset:
        raise PermissionError(13, "Permission denied", location)

    monkeypatch.setattr("model.inference.training_stats.Dataset", refuse)
    page = Path(write_report(run_folder)).read_text("utf-8")
    assert "Permission denied" in page and "20 texts of the test split" in page


def test_a_report_lists_the_mistakes_by_kind(run_folder: str, sweep_folder: str):
    for folder in (run_folder, sweep_folder):
        page = Path(write_report(folder)).read_text("utf-8").split("<h2>Mistakes</h2>")[1].split("<h2>Texts</h2>")[0]
        assert "mistakes in 100 texts of the valid split" in page and "&middot; score 0." in page
        assert "<h3>ambiguous word</h3>" in page and "keyphrase in " in page
        assert '<span class="gold">' in page and '<span class="predicted">' in page


def test_a_report_says_why_it_has_no_texts(run_folder: str, small_dataset: str, tmp_path: Path):
    config = Path(run_folder) / "config.json"
    known, gone = config.read_text(), str(tmp_path / "gone")
    config.write_text(known.replace(small_dataset, gone))
    page = Path(write_report(run_folder)).read_text("utf-8")
    assert page.count("The texts cannot be shown") == 2 and f"{gone}: no such directory" in page
    assert "F1 on the validation split" in page and "<h3>" not in page
    config.write_text(known)
    other = Path(run_folder) / "bundle" / "tokenizer.json"
    without_digests(other.with_name("config.json"))
    other.write_text(other.read_text().replace("\n", "\n "))
    assert "mistakes in 100 texts" in Path(write_report(run_folder)).read_text("utf-8")
    other.write_text(other.read_text().replace('"giants"', '"gnomes"'))
    page = Path(write_report(run_folder)).read_text("utf-8")
    assert "has another vocabulary" in page and "20 texts of the test split" in page
    shutil.rmtree(Path(run_folder) / "bundle")
    assert "There is no bundle yet." in Path(write_report(run_folder)).read_text("utf-8")


def test_gold_and_predicted_characters_are_marked_apart():
    assert highlight("see <b> roger federer", [(8, 21)], [(14, 21)]) == (
        'see &lt;b&gt; <span class="gold">roger </span><span class="gold predicted">federer</span>'
    )
    assert highlight("a b", [(0, 1)], [(0, 1)]) == '<span class="gold predicted">a</span> b'
    assert highlight("", [], []) == ""
