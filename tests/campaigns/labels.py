"""What labeling costs, and whether it writes the same bytes where it is killed and on several nodes: `make labels`.

The same texts are labeled in one process, in two processes whose driver is killed at random moments, and by a job on a cluster
of three nodes. Peak memory is that of the largest process.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from nodes import ROOT, Nodes
from scale import content, peak_mb


def watch(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    """Notes the peak memory of each process of a command, until it ends."""
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            tree = [process.pid, *(each.pid for each in psutil.Process(process.pid).children(recursive=True))]
            peaks += map(peak_mb, tree)
        time.sleep(0.5)


class Labeling:
    """A teacher and texts, in a folder that all nodes see."""

    def __init__(self, shared: Path, teacher: Path, texts: Path) -> None:
        self.folder = shared
        self.command = ["label", str(shared / "teacher"), str(shared / "texts.txt"), "--json"]
        shutil.copytree(teacher, shared / "teacher")
        shutil.copy(texts, shared / "texts.txt")

    def start(self, out: str, workers: int) -> subprocess.Popen[bytes]:
        """Starts the command."""
        command = [sys.executable, "-m", "jobs", *self.command, "--out", str(self.folder / out)]
        log = (self.folder / f"{out}.log").open("wb")
        return subprocess.Popen([*command, "--workers", str(workers)], cwd=ROOT, stdout=log, stderr=log)

    def whole(self, workers: int) -> dict[str, Any]:
        """Labels undisturbed, and measures."""
        out, peaks = f"whole-{workers}", [0]
        began, process = time.monotonic(), self.start(out, workers)
        threading.Thread(target=watch, args=(process, peaks), daemon=True).start()
        assert process.wait() == 0, (self.folder / f"{out}.log").read_text()
        seconds = time.monotonic() - began
        info = json.loads((self.folder / out / "labels.json").read_text())
        return {"seconds": seconds, "peak_mb": max(peaks), "texts": info["texts"], "files": content(self.folder / out)}

    def parts(self, out: str) -> int:
        """How many parts of a label folder are written."""
        return len(list((self.folder / out).glob("part-*.parquet")))

    def killed(self, kills: int, seconds: float, draw: random.Random) -> dict[str, Any]:
        """Kills the driver at a random moment after each next part, and lets the same command end at last."""
        moments: list[int] = []
        of_a_part = seconds / self.parts("whole-2")
        for _ in range(kills):
            process, before = self.start("killed", 2), self.parts("killed")
            while self.parts("killed") == before and process.poll() is None:
                time.sleep(0.1)
            time.sleep(draw.uniform(0, of_a_part))
            if process.poll() is not None:
                break
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            moments.append(self.parts("killed"))
            psutil.wait_procs(children, timeout=30)  # Ray's own end when their driver is gone
        else:
            process = self.start("killed", 2)
        assert process.wait() == 0, (self.folder / "killed.log").read_text()
        return {"kills": moments, "files": content(self.folder / "killed")}

    def on_nodes(self, nodes: Nodes) -> dict[str, Any]:
        """Labels by a job on a cluster."""
        began = time.monotonic()
        done = nodes.submit(*self.command, "--out", str(self.folder / "nodes"), job="label")
        assert done.returncode == 0, done.stdout + done.stderr
        return {"seconds": time.monotonic() - began, "files": content(self.folder / "nodes")}


def main() -> None:
    """Runs the campaign; ends with 1 where bytes differ, or where the texts are too few to kill anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="a bundle")
    parser.add_argument("--texts", type=Path, required=True, help="a file with a text a line")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster's processes are ended all the same
    with tempfile.TemporaryDirectory(prefix="labels-") as logs:
        nodes = Nodes(Path(logs))
        try:
            labeling = Labeling(nodes.shared, asked.teacher, asked.texts)
            one, two = labeling.whole(1), labeling.whole(2)
            for workers, row in ((1, one), (2, two)):
                print(
                    f"{workers} process(es): {row['texts']:,} texts, {row['texts'] / row['seconds']:,.0f} texts/s, "
                    f"peak {row['peak_mb']:,.0f} MB",
                    flush=True,
                )
            killed = labeling.killed(asked.kills, two["seconds"], random.Random(asked.seed))
            print(f"kill -9 with {killed['kills']} of {labeling.parts('killed')} parts written", flush=True)
            nodes.begin(3)
            cluster = labeling.on_nodes(nodes)
            print(
                f"three nodes of one CPU on this machine: {cluster['seconds']:.0f} s with the start of a job",
                flush=True,
            )
        finally:
            nodes.end()
    same = all(row["files"] == one["files"] for row in (two, killed, cluster))
    print("all wrote the same bytes" if same else "THE BYTES DIFFER")
    if not killed["kills"]:
        print("nothing was killed: give more texts")
    sys.exit(not (same and killed["kills"]))


if __name__ == "__main__":
    main()
