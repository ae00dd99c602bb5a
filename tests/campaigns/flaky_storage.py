"""What becomes of commands whose remote storage fails one call in ten: `make flaky`.

Everything is done on a local disk and on `flaky://`, an fsspec file system that keeps its files on that disk: prepare, train with
two workers, label, extract, tune and report. Half of the failed calls had their effect, and only their answer is lost.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from scale import content

ROOT = Path(__file__).parents[2]
SAME = re.compile(r"(data|keyphrases)/.*part-.*|.*/weights\.safetensors")  # what names no location
LOG = "FLAKY_LOG"  # names a file with a character a call: `x` of one that failed
_DRAW = random.Random(os.getpid())


class FlakyFileSystem(AbstractFileSystem):
    """Local files, of which a call fails now and then, as it begins or when its work is done."""

    protocol = "flaky"
    share = 0.1  # of the calls

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.local = LocalFileSystem()

    def info(self, path: str, **options: Any) -> Any:
        return flaky(self.local.info, path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return flaky(self.local.ls, path, detail=detail)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        flaky(self.local.mkdir, path, create_parents=create_parents)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        flaky(self.local.rm, path, recursive=recursive)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return FlakyFile(flaky(self.local.open, path, mode))


class FlakyFile:
    """An open file whose reads and writes fail now and then."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        return flaky(self._file.read, size)

    def write(self, content: bytes) -> int:
        return flaky(self._file.write, content)


def flaky(call: Any, *arguments: Any, **options: Any) -> Any:
    """Makes a call, or fails before or after it."""
    fails = _DRAW.random() < FlakyFileSystem.share
    if name := os.environ.get(LOG):
        with Path(name).open("a") as log:
            log.write("x" if fails else ".")
    if fails and _DRAW.random() < 0.5:
        raise ConnectionError("503 Slow Down")
    result = call(*arguments, **options)
    if fails:
        raise TimeoutError("the answer was lost")
    return result


def plug_in(folder: Path) -> None:
    """Makes `flaky://` known to every process with this folder in its PYTHONPATH, by the entry point of a package."""
    shutil.copy(__file__, folder / "flaky_storage.py")
    shutil.copy(Path(__file__).with_name("scale.py"), folder)
    package = folder / "flaky_storage-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: flaky_storage\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[fsspec.specs]\nflaky = flaky_storage.FlakyFileSystem\n")


class Campaign:
    """The commands, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        self.log.touch()
        plug_in(folder)

    def run(self, *arguments: str) -> dict[str, Any]:
        """Runs a command that has to succeed, and returns its JSON."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), LOG: str(self.log), "WANDB_MODE": "disabled"}
        command = [sys.executable, "-m", "jobs", *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}

    def outputs(self, place: str, sources: Path) -> dict[str, Any]:
        """Runs everything with its files at a place, and returns what must be the same at each place."""
        data, runs, texts = f"{place}/data", f"{place}/runs", str(sources / "test.jsonl")
        files = {split: str(sources / f"{split}.jsonl") for split in ("train", "valid", "test")}
        self.run("prepare", files["train"], "--valid", files["valid"], "--test", files["test"], "--out", data)
        small = [f"tagger.{name}=24" for name in ("embedding_dim", "keyword_hidden", "keyphrase_hidden")]
        fields = [part for field in (*small, "run.cpus_per_worker=1") for part in ("--set", field)]
        train = ["train", "--data", data, "--storage", runs, "--name", "run", "--workers", "2"]
        run = self.run(*train, "--lr", "0.01", "--set", "training.epochs=3", *fields)
        bundle = f"{runs}/run/bundle"
        self.run("label", bundle, texts, "--out", f"{place}/labels")
        self.run("extract", bundle, texts, "--out", f"{place}/keyphrases")
        tune = ["tune", "--data", data, "--storage", runs, "--name", "sweep", "--trials", "4", "--max-epochs", "3"]
        sweep = self.run(*tune, "--max-concurrent", "1", *fields)
        self.run("report", f"{runs}/sweep")
        folder = Path(place.removeprefix("flaky://"))
        # A part of labels names the teacher by its digest, which that of a dataset's location is in.
        labels = [pq.read_table(file).to_pylist() for file in sorted((folder / "labels").glob("part-*"))]
        files = {name: digest for name, digest in content(folder).items() if SAME.fullmatch(name)}
        return {"valid": run["valid"], "best": sweep["best"], "labels": str(labels), "files": files}


def main() -> None:
    """Runs the campaign; ends with 1 where the outputs differ, or where no call failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=2000, help="of the built-in corpus")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flaky-") as scratch:
        campaign = Campaign(Path(scratch))
        sources = campaign.folder / "sources" / "corpus"
        campaign.run("demo", "--data-only", "--texts", str(asked.texts), "--folder", str(sources.parent))
        found, seconds = [], []
        for scheme, place in (("", campaign.folder / "local"), ("flaky://", campaign.folder / "remote")):
            began = time.monotonic()
            found.append(campaign.outputs(f"{scheme}{place}", sources))
            seconds.append(time.monotonic() - began)
        calls = campaign.log.read_text()
    same = found[0] == found[1]
    print(
        f"{len(calls):,} calls of storage, of which {calls.count('x'):,} failed: {seconds[1]:.0f} s instead of {seconds[0]:.0f}"
    )
    print(
        f"the same metrics, labels and {len(found[0]['files'])} files" if same else f"THEY DIFFER: {json.dumps(found)}"
    )
    sys.exit(not (same and found[0]["files"] and "x" in calls))


if __name__ == "__main__":
    main()
