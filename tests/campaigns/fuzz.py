"""What becomes of input that a fuzzer makes up: `make fuzz`.

Atheris changes examples of what people and programs give Tandem, and keeps what reaches new lines of its code. Each kind of input
has a process of its own and some minutes. Good ends are a result, a UserError, a RunFailedError and, of a server, a
ProblemError. Other exceptions and more than SECONDS are findings, printed once for each place in the code, with the input that
leads there. With --keep, the next call goes on from the inputs of this one that reached new lines.
"""

import argparse
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 10
MEMORY_MB = 4000
EXAMPLES = Path(os.environ.get("EXAMPLES", ""))  # set for the processes that fuzz
KEPT = os.environ.get("KEPT", "")
Target = Callable[[bytes, Path], Any]


def config(content: bytes, place: Path) -> None:
    from model.config import make_config, merge, read_config

    (place / "c.yaml").write_bytes(content)
    tree: dict[str, Any] = {"data": "d"}
    merge(tree, read_config(str(place / "c.yaml")))
    make_config(tree)


def assignments(content: bytes, place: Path) -> None:
    """Values of --set, --space and the like, a line each."""
    from distributed.cluster.resources import ClusterResources
    from distributed.sweep.plan import make_plan, validate_plan
    from model.config import assign, make_config

    space, tree = [], {"data": "d"}
    asked: dict[str, Any] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        if line.startswith("--"):
            name, _, value = line[2:].partition(" ")
            asked[name.replace("-", "_")] = value
        elif line.startswith("+"):
            space.append(line[1:])
        else:
            assign(tree, line)
    make_config(tree)
    plan = make_plan({"config": tree, "space": space, **asked})
    validate_plan(plan, ClusterResources(8, 2, 2))


def labeled(content: bytes, place: Path) -> None:
    """A labeled file; the first byte chooses the format that is said of it."""
    from model.prepare.preview import preview
    from model.readers.formats import FORMATS
    from model.readers.options import ReadOptions

    names = ["auto", "auto", *FORMATS]
    chosen = names[content[0] % len(names)] if content else "auto"
    (place / "labeled").write_bytes(content[1:])
    preview([str(place / "labeled")], ReadOptions(chosen), 1000, skip_bad_lines=bool(content[:1] > b"\x80"))


def vectors(content: bytes, place: Path) -> None:
    from model.data.labeled_text import SkipCounts
    from model.prepare.vectors import read_vectors

    (place / "v.txt").write_bytes(content)
    read_vectors(str(place / "v.txt"), SkipCounts())


def sweep(content: bytes, place: Path) -> None:
    """A plan and a journal, between which a zero stands."""
    from distributed.sweep.state import read_sweep

    plan, _, journal = content.partition(b"\0")
    (place / "sweep.json").write_bytes(plan or (EXAMPLES / "sweep" / "sweep.json").read_bytes())
    (place / "journal.jsonl").write_bytes(journal)
    _ = read_sweep(str(place)).ranked


def run(content: bytes, place: Path) -> None:
    """A run's config.json, metrics.jsonl and result.json, with zeros in between."""
    from distributed.train.result import read_history, read_result
    from distributed.train.runs import resumed_run

    for name, part in zip(("config.json", "metrics.jsonl", "result.json"), content.split(b"\0", 2), strict=False):
        (place / name).write_bytes(part)
    read_history(str(place))
    read_result(str(place))
    resumed_run(place.name, str(place.parent), {})


def bundle(content: bytes, place: Path) -> None:
    """A bundle's config.json."""
    from model.inference.bundle import load_bundle

    shutil.copytree(EXAMPLES / "bundle", place, dirs_exist_ok=True)
    (place / "config.json").write_bytes(content)
    load_bundle(str(place))


def dataset(content: bytes, place: Path) -> None:
    """A dataset's dataset.json, or with a zero before it a file of its training split."""
    from model.data.dataset import Dataset

    shutil.copytree(EXAMPLES / "data", place, dirs_exist_ok=True)
    name = "train/part-00000.parquet" if content[:1] == b"\0" else "dataset.json"
    (place / name).write_bytes(content.removeprefix(b"\0"))
    Dataset(str(place)).load("train", word_features=True)


def checkpoint(content: bytes, place: Path) -> None:
    """A state whose digest is right."""
    import hashlib

    from distributed.train.checkpoint import load_checkpoint

    (place / "state.pt").write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (place / "seal.json").write_text(json.dumps(seal))
    load_checkpoint(str(place))


def request(content: bytes, place: Path) -> None:
    """The body of a request to a server."""
    from model.serving.contract import ProblemError, parse_request
    from model.serving.settings import ServeSettings

    try:
        parse_request(content, ServeSettings(bundle="bundle"))
    except ProblemError:
        return


TARGETS: dict[str, Target] = {
    each.__name__: each
    for each in (config, assignments, labeled, vectors, sweep, run, bundle, dataset, checkpoint, request)
}
MODULES = (
    "distributed.sweep.plan", "distributed.sweep.state", "distributed.train.checkpoint", "distributed.train.result",
    "distributed.train.runs", "model.config", "model.data.dataset", "model.inference.bundle", "model.prepare.preview",
    "model.prepare.vectors", "model.serving.contract", "model.serving.settings",
)  # fmt: skip
LABELED = (
    "what a match by Roger Federer tonight\tRoger Federer\nrain in Bern\tBern;rain\n",
    '{"text": "rain in Bern", "keyphrases": ["Bern"]}\n{"text": "a b", "spans": [[0, 1]]}\n',
    "rain O\nin O\nBern B-LOC\n\nno O\nnews O\n",
    "1-1\t0-4\train\t_\n#Text=rain in Bern\n",
    "text,keyphrases\nrain in Bern,Bern\n",
    '[{"data": {"text": "rain in Bern"}, "annotations": [{"result": []}]}]',
    '{"data": [{"paragraphs": [{"context": "rain", "entities": [[0, 4, "X"]]}]}]}',
)
VALUES = (
    "training.lr=0.01\n+training.alpha=0.1,0.3\n+training.lr=log:1e-4:1e-2\n--trials 4\n--max_epochs 9",
    "tagger.cell=gru\n--sampler grid\n+tagger.cell=rnn,gru\n--budget 3gpuh\n--time_budget 2h",
    "--sampler ablation\ntagger.crf=true\n--metric valid/keyphrase_f1\n--eta 2\n--finalists 2",
)


def make_examples(folder: Path) -> None:
    """Write what the fuzzer begins with: a folder of inputs for each target, and the files around them."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "campaigns")]
    import damage
    import torch

    torch.set_num_threads(1)
    damage.make_all(folder)
    (folder / "dataset").rename(folder / "data")
    files = {name: (folder / name / "config.json").read_bytes() for name in ("run", "bundle")}
    parts = [(folder / "run" / name).read_bytes() for name in ("metrics.jsonl", "result.json")]
    state = io.BytesIO()
    torch.save({"epoch": 1, "tagger": {"a": torch.zeros(2)}, "optimizers": [], "history": [{}]}, state)
    inputs: dict[str, list[bytes]] = {
        "config": [b"training: {lr: 0.01, epochs: 3}\ntagger:\n  cell: gru\n", files["run"]],
        "assignments": [each.encode() for each in VALUES],
        "labeled": [b"\0" + each.encode() for each in LABELED],
        "vectors": [fasttext(folder / "fasttext.bin"), b"2 3\nrain 1 2 3\nsnow 1 2 3\n", b"rain 1 2\nsnow 2 3\n"],
        "sweep": [b"\0".join((folder / "sweep" / name).read_bytes() for name in ("sweep.json", "journal.jsonl"))],
        "run": [b"\0".join([files["run"], *parts])],
        "bundle": [files["bundle"]],
        "dataset": [
            (folder / "data" / "dataset.json").read_bytes(),
            b"\0" + (folder / "data" / "train" / "part-00000.parquet").read_bytes(),
        ],
        "checkpoint": [state.getvalue()],
        "request": [b'{"texts": ["rain in Bern"], "min_score": 0.5, "offsets": "utf16"}', b'{"text": "a"}'],
    }
    for name, contents in inputs.items():
        (folder / "inputs" / name).mkdir(parents=True)
        for number, content in enumerate(contents):
            (folder / "inputs" / name / str(number)).write_bytes(content)


def fasttext(path: Path) -> bytes:
    """A small model in fastText's binary format."""
    from gensim.models.fasttext import FastText, save_facebook_model

    model = FastText([["rain", "in", "bern"], ["no", "rain"]], vector_size=2, min_count=1, bucket=10, epochs=1)
    save_facebook_model(model, str(path))
    return path.read_bytes()


def fuzz(name: str, seconds: float) -> None:
    """Fuzz one target in this process, which atheris ends; print its findings as JSON lines."""
    import atheris  # type: ignore[import-not-found]

    sys.path[:0] = [str(ROOT)]
    with atheris.instrument_imports(include=["model", "distributed"], enable_loader_override=False):
        for module in MODULES:
            importlib.import_module(module)
    from model.errors import RunFailedError, UserError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    seen: set[str] = set()

    def tell(problem: str, where: str, content: bytes) -> None:
        if where not in seen:
            seen.add(where)
            finding = {"target": name, "problem": problem[:300], "where": where, "input": repr(content)[:600]}
            print(json.dumps(finding), flush=True)

    def one(content: bytes) -> None:
        place = EXAMPLES / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            TARGETS[name](content, place)
        except (UserError, RunFailedError):
            pass
        except BaseException as error:
            tell(f"{type(error).__name__}: {error}", place_of(error), content)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGVTALRM, stop)
    options = (f"-max_total_time={seconds:.0f}", "-max_len=20000", "-verbosity=0", "-print_final_stats=1")
    inputs = [str(Path(folder) / name) for folder in (KEPT, EXAMPLES / "inputs") if folder]
    Path(inputs[0]).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={EXAMPLES}/", *inputs], one)
    atheris.Fuzz()


def place_of(error: BaseException) -> str:
    """The kind of an error, and the line of the product's code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if each.filename.startswith(str(ROOT)) and "site-packages" not in each.filename]
    return f"{type(error).__name__} {(own or frames)[-1].filename}:{(own or frames)[-1].lineno}"


def in_process(name: str, minutes: float, examples: str, kept: str) -> int:
    """Fuzz a target in a process of its own; print and count its findings."""
    command = [sys.executable, __file__, "--in", name, "--minutes", str(minutes)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "EXAMPLES": examples, "KEPT": kept}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    counted = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    print(
        "\n".join([*found, f"{name:<12} {counted[1] if counted else '?':>9} inputs  {len(found)} findings"]), flush=True
    )
    if counted is None or done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return len(found)


def main() -> None:
    """Runs the campaign; ends with 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="for each target")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--keep", type=Path, help="folder of the inputs that reached new lines, of earlier calls and this one"
    )
    parser.add_argument("--in", dest="inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz(asked.inside, 60 * asked.minutes)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm") as folder:
        make_examples(Path(folder))
        kept = str(asked.keep.resolve()) if asked.keep else ""
        findings = sum([in_process(name, asked.minutes, folder, kept) for name in asked.only])
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
