"""How `prepare` grows: `make scale`.

Texts are made of those of the built-in corpus and a tail of fresh words, as many as tweets have. Each number of texts is
prepared in a fresh process on one core; the largest also on a Ray of one node and on one of three nodes. Peak memory is
that of the driver, and of the largest worker. All datasets of the same texts must be the same, byte for byte.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PLACE = "/dev/shm"  # a file system that the nodes of a cluster on this machine mount
SHARES = (0.4, 0.2, 0.15, 0.1, 0.1, 0.05)  # of the texts, a file each; the last is compressed
FRESH, GROWTH = 0.2, 0.85  # share of words drawn from an endless list, of which n draws find about n^GROWTH
SYLLABLES = [first + second for first in "bdfghklmnprstvz" for second in "aeiou"]
NODES: dict[str, tuple[int, ...]] = {"one core": (), "Ray, 1 node": (2,), "Ray, 3 nodes": (1, 1, 1)}  # CPUs of each


def lines(texts: int) -> Iterator[str]:
    """Labeled texts as TSV; those of a small number begin those of a large one."""
    from jobs.corpora.tweets import generate

    rng = random.Random(0)
    known = [labeled for split in generate(20_000).values() for labeled in split]
    for number in range(texts):
        text, spans = rng.choice(known)
        words, at = [], 0
        for word in text.split(" "):
            outside = all(at + len(word) <= start or at >= end for start, end in spans)
            words.append(fresh(rng) if outside and rng.random() < FRESH else word)
            at += len(word) + 1
        link = f" https://t.co/{number:x}" if rng.random() < 0.3 else ""
        yield f"{' '.join(words)}{link}\t{';'.join(text[start:end] for start, end in spans)}\n"


def fresh(rng: random.Random) -> str:
    """A made-up word; the later ones of the list are rare."""
    rank, word = int(rng.paretovariate(1 / GROWTH - 1)), ""
    while rank:
        rank, syllable = divmod(rank, len(SYLLABLES))
        word += SYLLABLES[syllable]
    return word


def write(folder: Path, texts: int) -> list[str]:
    """Writes the texts to several files and gives their paths."""
    folder.mkdir()
    made, paths = lines(texts), []
    for i, share in enumerate(SHARES):
        path = folder / f"{i}.tsv{'.gz' if i == len(SHARES) - 1 else ''}"
        with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
            file.writelines(next(made) for _ in range(round(texts * share)))
        paths.append(str(path))
    return paths


def measure(where: str, paths: list[str], out: str) -> dict[str, Any]:
    """Prepares a dataset here, or from here on a Ray. Returns its rows, its times and the peak of memory."""
    from distributed.cluster.ray_data import parallel_map
    from model.prepare.builder import PrepareConfig, prepare

    if not NODES[where]:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with cluster(NODES[where]), largest_worker() as worker:
        began, cpu = time.monotonic(), time.process_time()
        info = prepare(PrepareConfig(paths, out), parallel_map(out))
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    rows = sum(facts["rows"] for facts in info["splits"].values())
    return {
        "where": where,
        "rows": rows,
        "tokens": sum(facts["tokens"] for facts in info["splits"].values()),
        "words": info["words"],
        "parts": info["splits"]["train"]["parts"],
        "seconds": round(seconds, 1),
        "rows_per_s": round(rows / seconds),
        "rows_per_cpu_s": 0 if worker else round(rows / cpu),
        "driver_peak_mb": peak_mb(os.getpid()),
        "worker_peak_mb": max(worker.values(), default=0),
        "workers": len(worker),
    }


@contextmanager
def cluster(cpus: tuple[int, ...]) -> Iterator[None]:
    """A Ray of nodes with so many CPUs each, or none."""
    if not cpus:
        yield
        return
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    for count in cpus[1:]:
        nodes.add_node(num_cpus=count)
    nodes.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def largest_worker() -> Iterator[dict[int, int]]:
    """The peak memory of each of Ray's workers that did something, by process, in MB."""
    peaks: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                if title.startswith("ray::") and ("Map" in title or process.pid in peaks):
                    peaks[process.pid] = max(peak_mb(process.pid), peaks.get(process.pid, 0))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peaks
    finally:
        done.set()
        watching.join()


def peak_mb(pid: int) -> int:
    """The most memory that a process ever had resident; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def content(folder: Path) -> dict[str, str]:
    """The checksum of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def campaign(numbers: list[int], folder: Path) -> list[dict[str, Any]]:
    """All measurements, each from a process of its own."""
    rows = []
    for texts in numbers:
        paths = write(folder / f"texts-{texts}", texts)
        size = sum(len(Path(path).read_bytes()) for path in paths)
        first = None
        for where in NODES if texts == max(numbers) else ["one core"]:
            out = folder / "data"
            asked = json.dumps({"where": where, "paths": paths, "out": str(out)})
            done = subprocess.run([sys.executable, __file__, "--in", asked], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{where}: {done.stderr[-2000:]}")
            found = content(out)
            first = first or found
            row = json.loads(done.stdout.splitlines()[-1]) | {
                "texts": texts,
                "input_mb": round(size / 2**20, 1),
                "dataset_mb": round(sum(path.stat().st_size for path in out.rglob("*")) / 2**20, 1),
                "same_bytes": found == first,
            }
            subprocess.run(["rm", "-r", str(out)], check=True)
            print(table([row], heading=not rows), file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], heading: bool) -> str:
    """The measurements as lines."""
    shown = ["where", "texts", "rows", "words", "parts", "seconds", "rows_per_s", "rows_per_cpu_s"]
    shown += ["driver_peak_mb", "worker_peak_mb", "workers", "same_bytes"]
    told = [shown] if heading else []
    told += [[str(row[name]) for name in shown] for row in rows]
    return "\n".join("  ".join(f"{cell:>14}" for cell in line) for line in told)


def main() -> None:
    """Runs the campaign; ends with 1 where datasets of the same texts differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--in", dest="inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(measure(**json.loads(asked.inside))))
        return
    with tempfile.TemporaryDirectory(prefix="scale-", dir=PLACE) as folder:
        rows = campaign(asked.texts, Path(folder))
    peaks = [row["driver_peak_mb"] for row in rows if row["where"] == "one core"]
    same = all(
        row["same_bytes"] and row["rows"] == rows[-1]["rows"] for row in rows if row["texts"] == max(asked.texts)
    )
    print(json.dumps({"rows": rows, "peak_grows_by": round(peaks[-1] / peaks[0] - 1, 3), "same": same}))
    sys.exit(not same)


if __name__ == "__main__":
    main()
