"""The documents: every link, file, command, flag, target, field and snippet that they name exists."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import distributions
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import CLI, first_cells, sections, text_of
from helpers import ROOT
from packaging.requirements import Requirement

from distributed.sweep.record_runs import record_size
from distributed.sweep.samplers import Sampler
from distributed.train.tracking import WandbRun
from distributed.tune.tracking import WandbGroup
from jobs.__main__ import app
from model.config import fields
from model.readers.formats import Format

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
SOURCES = ("model", "distributed", "jobs", "tests", "docs")
FILE = re.compile(rf"(?:(?:{'|'.join(SOURCES)})(?:/[\w.*-]+)*/?|[\w.-]+\.(?:yaml|toml|md)|Makefile|\.ci/run)")
# Files that a run, dataset, bundle or reader of the documents makes.
MADE = {"ablation.md", "README.md", "c.yaml"}
by_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_blocks(document: Path, language: str = "") -> list[str]:
    """Return the fenced blocks of a language, or the indented blocks where none is named."""
    if language:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text_of(document), re.M | re.S)
        return [block for name, block in fenced if name == language]
    return re.findall(r"(?:^    .*\n)+", text_of(document), re.M)


def code_spans(document: Path) -> list[str]:
    """Return what stands in backticks outside code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text_of(document), flags=re.M | re.S))


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(document: Path) -> list[list[str]]:
    """Return the arguments of every `python -m jobs` line, in blocks and in backticks."""
    blocks = "\n".join(code_blocks(document)).replace("\\\n", " ")
    lines = [line for line in [*blocks.splitlines(), *code_spans(document)] if "-m jobs " in line]
    parts = [re.split(r"-m jobs ", line, maxsplit=1)[1] for line in lines]
    found = [shlex.split(part, comments=True) for part in parts]
    ends = [next((i for i, word in enumerate(words) if word in ("|", ">", "&")), len(words)) for words in found]
    return [words[:end] for words, end in zip(found, ends, strict=True)]


def options(command: str) -> dict[str, Any]:
    """Return the parameter of each flag of a command."""
    parameters = [each for each in COMMANDS[command].params if each.param_type_name == "option"]
    return {flag: each for each in parameters for flag in (*each.opts, *each.secondary_opts)}


def test_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


@by_document
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(document)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists() and place.is_relative_to(ROOT), f"{document.name}: {target}: no such file"
        assert not anchor or anchor in anchors(place), f"{document.name}: {target}: no such heading"


def test_every_document_is_linked_from_the_readme():
    for document in DOCUMENTS[1:]:
        assert f"]({document.relative_to(ROOT)})" in text_of(DOCUMENTS[0]), document


@by_document
def test_files_that_are_named_exist(document: Path):
    for name in code_spans(document):
        if FILE.fullmatch(name) and name not in MADE and "<" not in name and name not in SOURCES:
            assert list(ROOT.glob(name.rstrip("/"))), f"{document.name}: `{name}`: no such file"


@by_document
def test_files_in_commands_exist(document: Path):
    for name in re.findall(r"\b(?:docs|tests)/[\w/-]+\.\w+", "\n".join(code_blocks(document))):
        assert (ROOT / name).exists(), f"{document.name}: {name}: no such file"


@by_document
def test_commands_and_flags_exist(document: Path):
    for name, *words in command_lines(document):
        if name == "COMMAND":
            continue
        assert name in COMMANDS, f"{document.name}: python -m jobs {name}"
        for word in words:
            flag = word.split("=")[0]
            assert not flag.startswith("--") or flag in options(name), f"{document.name}: {name} {flag}"


@by_document
def test_values_that_commands_give_to_fields_are_allowed(document: Path):
    for _, *words in command_lines(document):
        for flag, value in pairwise(words):
            if flag in ("--set", "--space") and "=" in value:
                assert value.split("=")[0] in fields(), f"{document.name}: {flag} {value}"


@by_document
def test_make_targets_exist(document: Path):
    text = "\n".join([*code_blocks(document), *code_spans(document)])
    for target in re.findall(r"\bmake ([a-z][a-z-]*)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), f"{document.name}: make {target}"


@by_document
def test_configuration_fields_exist(document: Path):
    text = "\n".join(code_spans(document))
    if document.name == "training.md":  # which shows an earlier name as such
        text = text.replace("tagger.hidden1", "")
    for name in re.findall(r"(?<![\w/.])(?:tagger|training|run)\.[a-z]\w*", text):
        assert name in fields() or name.endswith(".py"), f"{document.name}: {name}"


@by_document
def test_python_snippets_compile_and_import_what_exists(document: Path):
    for snippet in code_blocks(document, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert all(importlib.import_module(each.name) for each in node.names)


def test_every_package_is_named_in_the_layout_of_the_code():
    packages = {
        path.parent.relative_to(ROOT) for top in ("model", "distributed", "jobs") for path in ROOT.glob(f"{top}/*/*.py")
    }
    for document in (ROOT / "README.md", ROOT / "docs" / "architecture.md"):
        missing = [
            str(package) for package in packages if not re.search(rf"^ +.*\b{package}\b", text_of(document), re.M)
        ]
        assert not missing, f"{document.name}: {missing}"


def test_every_function_of_rays_internals_is_explained_and_no_other():
    table = first_cells(sections(ROOT / "docs" / "architecture.md", "##")["Ray internals"], "function")
    tree = ast.parse((ROOT / "distributed" / "cluster" / "ray_internals.py").read_text("utf-8"))
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert set(re.findall(r"`(\w+)`", table)) == public - {"set_train_defaults", "environment"}


@pytest.mark.parametrize(
    ("heading", "classes"),
    [
        ("Add a file format", [Format]),
        ("Add a sampler", [Sampler]),
        ("Add a tracker", [WandbRun, WandbGroup]),
    ],
)
def test_the_methods_to_write_for_an_extension_exist(heading: str, classes: list[type]):
    text = sections(ROOT / "docs" / "architecture.md", "###")[heading]
    names = re.findall(r"^- `(\w+)`|`(\w+)\(", text, re.M)
    known = {name for each in classes for name in (*vars(each), *getattr(each, "__annotations__", {}))}
    assert names and {first or second for first, second in names} <= known


@by_document
def test_the_size_of_the_record_is_the_same_everywhere(document: Path):
    text = " ".join(text_of(document).split())
    runs = re.findall(r"\b(\d+) (?:hand-made )?training runs (?:made by hand|that the project)|of its (\d+) runs", text)
    epochs = re.findall(r"made by hand, (\d+) epochs|the (\d+) epochs of its", text)
    count, total = record_size()
    assert {int(first or second) for first, second in runs} <= {count}
    assert {int(first or second) for first, second in epochs} <= {total}


def test_make_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M)
    assert phony
    for target in set(phony[1].split()) - {"help"}:
        assert re.search(rf'^\t@echo "make {target} ', MAKEFILE, re.M), f"make help: {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_takes_paths_with_spaces_and_says_which_variable_it_needs():
    installed = [part for name in (".ready", ".peers", ".encoder") for part in ("-o", f".venv/{name}")]
    values = [f"{name}=/a b/{name}" for name in ("DATA", "UNLABELED", "TEACHER", "TEXTS", "BUNDLE")]
    for target in ("benchmark", "peers", "encoder", "distil", "labels", "serve-load"):
        command = ["make", "-n", *installed, target]
        shown = subprocess.run([*command, *values], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert shown.count("/a b/") == len(re.findall(r'"/a b/[A-Z]+"', shown)) > 0, shown
        if target in ("distil", "labels", "serve-load"):
            refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert refused.returncode == 2 and f"make {target}: needs " in refused.stderr


def test_every_command_and_each_of_its_flags_is_documented_and_no_other():
    for command in COMMANDS:
        cells = first_cells(sections(CLI, "##")[command], "flag")
        assert set(re.findall(r"--[a-z][\w-]*", cells)) == set(options(command)), command
    names = re.findall(r"\[(\w+)\]\(#\1\)", text_of(CLI).split("## Scores")[0])
    assert names == list(COMMANDS)


def test_the_tests_run_with_the_versions_that_are_pinned():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = "".join((ROOT / ".ci" / name).read_text("utf-8") for name in ("requirements.txt", "requirements-peers.txt"))
    pinned = {normal(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", pins, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = chain(project["dependencies"], *project["optional-dependencies"].values())
    missing = {normal(Requirement(each).name) for each in needed} - set(pinned) - {"torch"}
    assert not missing, f"renew the pins: make lock; {missing}"
    installed = {normal(each.name): each.version for each in distributions()}
    assert {"ray", "wandb", "pyarrow", "typer"} <= set(pinned) & set(installed) and "torch" not in pinned
    other = {name: installed[name] for name in pinned if installed.get(name, pinned[name]) != pinned[name]}
    assert not other, f"install them anew: rm -rf .venv, or renew the pins: make lock; {other}"
