"""What becomes of files that were cut off or changed: `make damage`.

Each round damages one file of a dataset, a bundle, a checkpoint, a run, a label folder or a sweep, and reads it in a process of
its own. Good ends are a UserError, the content as it was (of a file in which the change is of no account), and a journal
without its last events. Bad ends are another exception, another content, a crash, and more than 10 s. Files that people may read
and edit have no checksum: another content of these is counted apart.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import ROOT, SMALL, alone, generated_dataset

from distributed.sweep.journal import Journal, read_events
from distributed.sweep.state import read_sweep
from distributed.train.checkpoint import load_best, load_checkpoint, save_best, save_checkpoint
from distributed.train.result import TrainResult, read_history, read_result
from distributed.train.runs import resumed_run
from jobs.corpora.tweets import generate
from model.config import make_config
from model.data.dataset import Dataset
from model.distillation.label_files import TeacherLabels
from model.distillation.labeling import LabelConfig, label
from model.errors import UserError
from model.inference.bundle import save_bundle
from model.inference.extractor import Extractor

SECONDS = 10
PLAIN = ("config.json", "dataset.json", "labels.json", "metrics.json", "metrics.jsonl", "result.json", "sweep.json")
SAME, REFUSED, OTHER, RAISED = range(4)  # how a process ends
ENDS = {SAME: "as it was", REFUSED: "refused", OTHER: "OTHER CONTENT", RAISED: "TRACEBACK"}
TEXTS = [labeled.text for labeled in generate(2000)["test"][:50]]
Reader = Callable[[Path], Any]


def read_dataset(folder: Path) -> Any:
    dataset = Dataset(str(folder))
    splits = [dataset.load(split, word_features=True) for split in ("train", "valid", "test")]
    return [
        [each.ids.tobytes(), each.tags.tobytes(), each.begins.tobytes()] for each in splits
    ], dataset.tokenizer_bytes()


def read_bundle(folder: Path) -> Any:
    extractor = Extractor.load(str(folder))
    return [[tuple(each) for each in found] for found in extractor.pipe(TEXTS)]


def read_checkpoint(folder: Path) -> Any:
    state = load_checkpoint(str(folder))
    return [state["epoch"], {name: weight.numpy().tobytes() for name, weight in state["tagger"].items()}]


def read_best(folder: Path) -> Any:
    weights, counts = load_best(str(folder))
    return sorted((name, weight.numpy().tobytes()) for name, weight in weights.items()), counts.tobytes()


def read_labels(folder: Path) -> Any:
    return [
        [part.texts, part.keyword.tobytes(), part.keyphrase.tobytes()] for part in TeacherLabels(str(folder)).read()
    ]


def read_run(folder: Path) -> Any:
    config = resumed_run(folder.name, str(folder.parent), {}).model_dump(exclude={"run"})
    return config, read_history(str(folder)), read_result(str(folder))


def read_the_sweep(folder: Path) -> Any:
    return [read_sweep(str(folder)).plan.model_dump(), *read_events(str(folder))]


READERS: dict[str, Reader] = {
    "dataset": read_dataset,
    "bundle": read_bundle,
    "checkpoint": read_checkpoint,
    "best weights": read_best,
    "labels": read_labels,
    "run": read_run,
    "sweep": read_the_sweep,
}


def make_all(folder: Path) -> None:
    """Makes a folder of each kind."""
    generated_dataset(folder, 400)
    shutil.move(folder / "data", folder / "dataset")
    tree = {"data": str(folder / "dataset"), "tagger": SMALL, "training": {"epochs": 2, "lr": 0.01}}
    config = make_config(tree)
    training = alone(config)
    weights = training.tagger.state_dict()
    metrics = {name.removeprefix("valid/"): value for name, value in training.history[-1].items()}
    save_bundle(str(folder / "bundle"), config, Dataset(config.data).tokenizer_bytes(), weights, metrics)
    (folder / "checkpoint").mkdir()
    save_checkpoint(folder / "checkpoint", training.state())
    save_best(str(folder / "best weights"), 1, weights, training.counts)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    label(LabelConfig(str(folder / "bundle"), [str(folder / "texts.txt")], str(folder / "labels")))
    with tarfile.open(ROOT / "tests" / "format1.tar.xz") as archive:
        archive.extractall(folder / "format1", filter="data")
    runs = folder / "format1" / "runs"
    for kind, names in (
        ("run", ("cut/config.json", "cut/metrics.jsonl")),
        ("sweep", ("sweep/sweep.json", "sweep/journal.jsonl")),
    ):
        (folder / kind).mkdir()
        for name in names:
            shutil.copy(runs / name, folder / kind)
    events = list(read_events(str(folder / "sweep")))
    (folder / "sweep" / "journal.jsonl").unlink()
    journal = Journal(str(folder / "sweep"))  # writes checksums, which format 1 had not
    for event in events:
        journal.write(event)
    journal.close()
    result = TrainResult("run", str(folder / "bundle"), 2, 1, 1.5, 1000.0, metrics)
    (folder / "run" / "result.json").write_text(json.dumps(result.as_json()))


def damage(file: Path, draw: random.Random) -> str:
    """Changes a file and returns how."""
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    match draw.choice(("cut", "bit", "zeros", "more", "empty")):
        case "cut":
            how, content = f"cut at {at}", content[:at]
        case "bit":
            bit = draw.randrange(8)
            content[at] ^= 1 << bit
            how = f"bit {bit} of byte {at}"
        case "zeros":
            length = min(draw.choice((1, 16, 512, 4096)), len(content) - at)
            content[at : at + length] = bytes(length)
            how = f"{length} zeros at {at}"
        case "more":
            piece = content[at : at + draw.choice((1, 16, 512))]
            content[at:at] = piece
            how = f"{len(piece)} bytes twice at {at}"
        case _:
            how, content = "empty", bytearray()
    file.write_bytes(bytes(content))
    return how


def end_of(reader: Reader, folder: Path, wanted: set[bytes]) -> tuple[int | None, str]:
    """Reads in a process of its own; returns how it ended, None for a crash, and what it printed."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        code = RAISED
        try:
            code = SAME if digest_of(reader(folder)) in wanted else OTHER
        except UserError as error:
            code = REFUSED
            log.write_text(str(error))
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            said = log.read_text() if log.exists() else ""
            log.unlink(missing_ok=True)
            return (os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None), said
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None, "took too long"


def accepted(kind: str, content: Any) -> set[bytes]:
    """The digests of what may be read: of a sweep also its plan with the first events alone."""
    return {digest_of(content[:end]) for end in range(1, len(content) + 1)} if kind == "sweep" else {digest_of(content)}


def digest_of(content: Any) -> bytes:
    return hashlib.sha256(pickle.dumps(content)).digest()


def main() -> None:
    """Runs the campaign; ends with 1 after a bad end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS, help="damage one kind only")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    draw, found, bad = random.Random(asked.seed), Counter[tuple[str, str]](), 0
    with tempfile.TemporaryDirectory(prefix="damage-") as scratch:
        place = Path(scratch)
        make_all(place)
        kinds = [asked.only] if asked.only else list(READERS)
        wanted = {kind: accepted(kind, READERS[kind](place / kind)) for kind in kinds}
        for number in range(asked.rounds):
            kind = kinds[number % len(kinds)]
            copy = Path(shutil.copytree(place / kind, place / "damaged" / kind))
            files = [file for file in sorted(copy.rglob("*")) if file.is_file() and file.stat().st_size]
            file = draw.choice(files)
            how = damage(file, draw)
            end, said = end_of(READERS[kind], copy, wanted[kind])
            words = "CRASH" if end is None else ENDS.get(end, "CRASH")
            if end == OTHER and file.name in PLAIN:
                end, words = SAME, "not noticed"
            found[kind, words] += 1
            if end not in (SAME, REFUSED):
                bad += 1
                print(f"round {number}: {kind}/{file.relative_to(copy)}, {how}: {words}\n{said}", flush=True)
            shutil.rmtree(place / "damaged")
    for (kind, words), count in sorted(found.items()):
        print(f"{kind:<14}{words:<14}{count:>6}")
    print(json.dumps({"rounds": asked.rounds, "seed": asked.seed, "bad": bad}))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
