"""The project's structure: which room may import which, and which packages each may know."""

import ast
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT, sources

GROUND = {
    "model.aliases",
    "model.config",
    "model.errors",
    "model.filesystems",
    "model.presets",
    "model.shards",
    "model.staging",
    "model.storage",
}
MODEL = GROUND | {
    f"model.{room}" for room in ("data", "readers", "prepare", "network", "training", "inference", "distillation")
}
DISTRIBUTED = {f"distributed.{room}" for room in ("cluster", "train", "sweep", "report", "tune", "serve")}

# A row a room, from the ground up: what it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "model.errors": set(),
    "model.filesystems": {"model.errors"},
    "model.storage": {"model.errors", "model.filesystems"},
    "model.staging": {"model.errors", "model.storage"},
    "model.shards": {"model.errors", "model.storage"},
    "model.aliases": {"model.errors"},
    "model.config": {"model.aliases", "model.errors"},
    "model.presets": {"model.config", "model.errors"},
    "model.data": GROUND,
    "model.readers": GROUND | {"model.data"},
    "model.prepare": GROUND | {"model.data", "model.readers"},
    "model.network": GROUND | {"model.data"},
    "model.training": GROUND | {"model.data", "model.network"},
    "model.inference": MODEL - {"model.distillation"},
    "model.distillation": MODEL,
    "model.serving": MODEL - {"model.distillation"},
    "distributed.cluster": MODEL,
    "distributed.train": MODEL | {"distributed.cluster"},
    "distributed.sweep": MODEL | {"distributed.cluster", "distributed.train"},
    "distributed.report": MODEL | {"distributed.cluster", "distributed.train", "distributed.sweep"},
    "distributed.serve": MODEL | {"model.serving", "distributed.cluster"},
    "distributed.tune": MODEL | DISTRIBUTED - {"distributed.serve"},
    "jobs": MODEL | DISTRIBUTED | {"model.serving"},
    "jobs.benchmark": MODEL | DISTRIBUTED | {"model.serving", "jobs"},
}
# The command line names its commands, and so the benchmark's; nothing else of the product does.
EXCEPTIONS = {("jobs/__main__.py", "jobs.benchmark")}
NOT_IN_MODEL = {"ray", "wandb", "typer", "rich"}
# What each of these packages is for, one room alone knows.
ONLY_IN = {
    "typer": {"jobs", "jobs.benchmark"},
    "rich": {"jobs", "jobs.benchmark"},
    "plotly": {"distributed.report"},
    "fastapi": {"model.serving"},
    "starlette": {"model.serving"},
    "uvicorn": {"model.serving"},
    "prometheus_client": {"model.serving"},
}


def room_of(dotted: str) -> str | None:
    """The room of a module of ours, by its dotted name; None for another's."""
    parts = dotted.split(".")
    if parts[0] not in ("model", "distributed", "jobs"):
        return None
    room = ".".join(parts[:2])
    return room if room in MAY_IMPORT else parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, root: Path = ROOT) -> list[str]:
    """What a file imports and may not."""
    name = str(path.relative_to(root))
    room = room_of(name.removesuffix(".py").replace("/", "."))
    assert room is not None
    wrong = []
    for dotted in imports(path):
        package, other = dotted.split(".")[0], room_of(dotted)
        if other and other != room and other not in MAY_IMPORT.get(room, set()) and (name, other) not in EXCEPTIONS:
            wrong.append(f"{name} ({room}) imports {dotted} ({other})")
        if room.startswith("model") and package in NOT_IN_MODEL:
            wrong.append(f"{name} ({room}) imports {package}")
        if package in ONLY_IN and room not in ONLY_IN[package]:
            wrong.append(f"{name} ({room}) imports {package}, which belongs to {', '.join(ONLY_IN[package])}")
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    assert not violations(path)


def test_every_file_is_in_a_room():
    for path in sources():
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        assert name in ("model", "distributed") or room_of(name) in MAY_IMPORT, f"{path} is in no room of the table"


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("model/network/deep/under.py", "import ray"),
        ("model/data/labels.py", "from model.network.tagger import Tagger"),
        ("model/readers/readers.py", "def f():\n    from model.network import tagger"),
        ("distributed/train/worker.py", "from distributed.tune.trial_run import Data"),
        ("distributed/sweep/plan.py", "from distributed import tune"),
        ("model/inference/extractor.py", "from model.serving.app import build_app"),
        ("distributed/serve/run.py", "import fastapi"),
        ("jobs/train.py", "from jobs.benchmark.speed import benchmark"),
        ("model/config.py", "import jobs.console"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, place: str, line: str):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(path, tmp_path)


def test_sweep_and_report_know_no_ray():
    for room in ("sweep", "report"):
        for path in (ROOT / "distributed" / room).rglob("*.py"):
            assert not {dotted for dotted in imports(path) if dotted.split(".")[0] == "ray"}, path


def test_the_project_is_never_installed_as_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["packages"] == []


def test_every_module_says_what_it_is():
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path} has no docstring"


def test_folders_stay_small():
    for top in ("model", "distributed", "jobs"):
        for folder in [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]:
            files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= 12, f"{folder} has {len(files)} files"
