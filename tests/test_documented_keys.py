"""The JSON keys that docs/cli.md documents are those that the commands print."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from documents import CLI, first_cells, sections
from helpers import ROOT, call, last_json

from distributed.sweep.results import (
    AblationRow,
    BestTrial,
    DifferenceTo,
    DryRun,
    Finalist,
    ParameterCount,
    RecordRow,
    TuneResult,
)
from distributed.train.result import TrainResult
from jobs.benchmark.accuracy import ComparisonResult, SystemRow
from jobs.benchmark.communication import ExchangeRow
from jobs.benchmark.result import BenchmarkResult, Machine
from jobs.benchmark.serving.measure import ServingResult, ServingRow
from jobs.benchmark.single_process import Row
from jobs.distil.comparison import DistilResult, TaggerRow
from model.data.dataset import Dataset
from model.data.dataset_info import DatasetInfo, PrepareSettings, SourceInfo, SplitInfo, VectorsInfo
from model.distillation.label_files import LabelsInfo
from model.inference.batch_inference import ExtractionInfo, SourceLines
from model.inference.extractor import Keyphrase
from model.inference.mistakes import KindCounts, MistakeRecord
from model.training.metrics import summarize
from model.training.significance import Difference


def scores() -> set[str]:
    """Return the names of the scores of both heads."""
    return set(summarize(np.ones((2, 8), np.int64)))


def key_rows(command: str, part: int = 0) -> list[tuple[str, str]]:
    """Return the keys and values of a table of JSON keys in docs/cli.md; `part` counts the tables of a command."""
    tables = re.findall(r"^\| JSON key \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", sections(CLI, "##")[command], re.M)
    cells = [row.strip("| ").split(" | ") for row in tables[part].splitlines()]
    return [(keys, value) for keys, value in cells]


def documented_keys(command: str, part: int = 0) -> set[str]:
    """Return the JSON keys that docs/cli.md documents for a command."""
    cells = "\n".join(keys for keys, _ in key_rows(command, part))
    return set(re.findall(r"`(\w+)`", cells)) | (scores() if "[scores]" in cells else set())


def optional_keys(command: str, part: int = 0) -> set[str]:
    """Return the JSON keys that docs/cli.md documents with a condition."""
    return {key for keys, value in key_rows(command, part) if "only " in value for key in re.findall(r"`(\w+)`", keys)}


def test_scores_are_documented():
    table = first_cells(sections(CLI, "##")["Scores"], "keyphrase head")
    assert {key for name in re.findall(r"`(\w+)`", table) for key in (name, name.replace("phrase", "word"))} == scores()


def documented_parts(command: str, key: str, part: int = 0) -> list[str]:
    """Return the keys that docs/cli.md names inside the value of a JSON key, in order."""
    return re.findall(r"`(\w+)`", dict(key_rows(command, part))[f"`{key}`"])


def parts_in_text(command: str, subject: str) -> list[str]:
    """Return the keys in the clause of docs/cli.md that begins with a subject and `has` or `have`, in order."""
    line = re.search(rf"(?:^|; ){re.escape(subject)} ha(?:ve|s) ([^.;]+)[.;]", sections(CLI, "##")[command], re.M)
    assert line, subject
    return re.findall(r"`(\w+)`", line[1])


def names_of(result: Any) -> list[str]:
    """Return the fields of a dataclass, a TypedDict or a NamedTuple."""
    return list(result.__dataclass_fields__ if dataclasses.is_dataclass(result) else result.__annotations__)


def printed(result: Result) -> dict[str, Any]:
    """Return the JSON object that a command printed."""
    assert result.exit_code == 0, result.output
    return last_json(result.stdout)


@pytest.mark.parametrize(
    ("command", "part", "keys"),
    [
        ("prepare", 0, {"out", *names_of(DatasetInfo)}),
        ("train", 0, {*names_of(TrainResult), *scores()}),
        ("label", 0, {"out", *names_of(LabelsInfo)}),
        ("distil", 0, set(names_of(DistilResult))),
        ("tune", 0, set(names_of(TuneResult))),
        ("tune", 1, {"can_become", *names_of(DryRun)}),
        ("benchmark", 0, set(names_of(BenchmarkResult))),
        ("benchmark", 1, set(names_of(ComparisonResult))),
        ("benchmark", 2, set(names_of(ServingResult))),
    ],
)
def test_the_documented_keys_are_the_fields_of_results(command: str, part: int, keys: set[str]):
    assert documented_keys(command, part) == keys


@pytest.mark.parametrize(
    ("command", "part", "key", "result"),
    [
        ("prepare", 0, "splits", SplitInfo),
        ("prepare", 0, "vectors", VectorsInfo),
        ("prepare", 0, "sources", SourceInfo),
        ("prepare", 0, "recipe", PrepareSettings),
        ("label", 0, "sources", SourceLines),
        ("distil", 0, "taggers", TaggerRow),
        ("tune", 0, "best", BestTrial),
        ("tune", 0, "finalists", Finalist),
        ("tune", 0, "record", RecordRow),
        ("tune", 0, "ablation", AblationRow),
        ("benchmark", 0, "exchange", ExchangeRow),
        ("benchmark", 0, "machine", Machine),
        ("benchmark", 0, "table", Row),
        ("benchmark", 1, "systems", SystemRow),
        ("benchmark", 2, "rows", ServingRow),
    ],
)
def test_the_keys_documented_inside_a_key_are_the_fields_of_its_type(command: str, part: int, key: str, result: type):
    assert documented_parts(command, key, part) == names_of(result)


def test_the_keys_documented_inside_rows_are_the_fields_of_their_types():
    assert parts_in_text("tune", "`against` and `against_whole`") == names_of(Difference)
    assert parts_in_text("benchmark", "`against`") == names_of(Difference)
    assert parts_in_text("tune", "`parameters`") == names_of(ParameterCount)
    assert parts_in_text("tune", "`against` also") == [
        name for name in names_of(DifferenceTo) if name not in names_of(Difference)
    ]


def test_the_documented_keys_are_those_of_evaluate_and_extract_by_type():
    assert documented_parts("evaluate", "mistakes") == names_of(KindCounts)
    assert parts_in_text("evaluate", "A line of `--mistakes`") == names_of(MistakeRecord)
    assert documented_keys("extract") == {"out", *names_of(ExtractionInfo)}
    assert documented_parts("extract", "sources") == names_of(SourceLines)


@pytest.mark.parametrize(("result", "part"), [(TuneResult, 0), (DryRun, 1)])
def test_keys_that_may_be_missing_are_documented_as_such(result: type, part: int):
    missing = {field.name for field in dataclasses.fields(result) if field.default is not dataclasses.MISSING}
    assert optional_keys("tune", part) == missing


def test_the_documented_keys_are_those_of_prepare_evaluate_extract_and_report(
    small_bundle: str, small_dataset: str, tmp_path: Path
):
    source, texts = str(Path(small_dataset).parent / "valid.jsonl"), tmp_path / "texts.txt"
    texts.write_text("Keynote day! I installed the beta of Zephyrix <url>\n")
    prepared = printed(call("prepare", source, "--out", str(tmp_path / "d"), "--json"))
    evaluated = printed(call("evaluate", small_bundle, "--data", small_dataset, "--split", "valid", "--json"))
    extracted = printed(call("extract", small_bundle, str(texts), "--out", str(tmp_path / "found"), "--json"))
    for command, result in (("prepare", prepared), ("evaluate", evaluated), ("extract", extracted)):
        assert set(result) == documented_keys(command), command
    assert documented_keys("report") == {"report"}
    for kind in evaluated["mistakes"].values():
        assert list(kind) == documented_parts("evaluate", "mistakes")
    assert list(extracted["sources"][0]) == documented_parts("extract", "sources")


def test_the_documented_keys_are_those_of_each_text_of_extract(small_bundle: str):
    line = re.search(
        r"each text gives one object with (.+?); each keyphrase has (.+?)\.\n", sections(CLI, "##")["extract"], re.S
    )
    assert line
    found = printed(call("extract", small_bundle, "--json", stdin="a text\n"))
    assert re.findall(r"`(\w+)`", line[1]) == list(found)
    assert re.findall(r"`(\w+)`", line[2]) == names_of(Keyphrase)


def test_the_documented_keys_are_those_of_dry_runs(small_dataset: str, tmp_path: Path):
    given = ("--data", small_dataset, "--storage", str(tmp_path), "--dry-run")
    train, tune = printed(call("train", *given)), printed(call("tune", *given))
    assert set(train) == documented_keys("train", 1)
    assert set(tune) == documented_keys("tune", 1) - optional_keys("tune", 1)
    ablation = printed(call("tune", *given, "--preset", "best", "--sampler", "ablation"))
    assert set(ablation) == documented_keys("tune", 1) - {"forecast"}
    for command, result in (("train", train), ("tune", tune)):
        assert list(result["asks"]) == documented_parts(command, "asks", 1), command
    assert list(train["cluster"]) == documented_parts("train", "cluster", 1)


def test_the_documented_keys_are_those_of_the_demo(tmp_path: Path):
    made = printed(call("demo", "--data-only", "--json", "--texts", "2000", "--folder", f"file://{tmp_path}"))
    assert made["out"] == str(tmp_path / "dataset") and Dataset(made["out"]).texts("test")
    remote = call("demo", "--data-only", "--texts", "2000", "--folder", "memory://demo")
    assert remote.exit_code == 2 and "--folder memory://demo" in remote.stderr
    tree = ast.parse((ROOT / "jobs" / "demo.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print_json"]
    keys = [{ast.literal_eval(key) for key in node.args[0].keys} for node in calls]
    assert sorted(keys, key=len) == [set(made), documented_keys("demo")]
