"""The project's shape: imports point one way, and only one room knows each outside package."""

import ast
import tomllib

import pytest
from conftest import ROOT

MAY_IMPORT = {"model": {"model"}, "distributed": {"distributed", "model"}, "jobs": {"jobs", "distributed", "model"}}
NOT_IN_MODEL = {"ray", "wandb", "typer", "rich"}


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str):
    for path in (ROOT / room).glob("**/*.py"):
        found = imports(path)
        assert not (found & set(MAY_IMPORT)) - MAY_IMPORT[room], path
        if room == "model":
            assert not found & NOT_IN_MODEL, path


def test_the_project_is_never_installed_as_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["packages"] == []


def test_every_module_says_what_it_is():
    for room in MAY_IMPORT:
        for path in (ROOT / room).glob("**/*.py"):
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), f"{path} has no docstring"
