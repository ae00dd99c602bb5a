"""Trainings on a cluster whose processes are killed: `make chaos`.

A head and three nodes on this machine (nodes.py), a job of three workers through the real job server, and at a random moment
`kill -9` of a worker, of a whole node (another comes some seconds later) or of the driver (the job is submitted again with
--resume), or of all workers while a checkpoint is being written. Each run has to finish with the bits of one that nothing
disturbs, and to go on from the newest checkpoint that was whole when the blow fell: `lost` is the time from that checkpoint
to the blow.

A run's kind and moment follow from the seed and its number. With --out, rows are added to a file of JSON lines, and the next
call goes on after its last number, so that a campaign may be of any length.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nodes import Nodes

KINDS = ("worker", "node", "driver", "checkpoint")
SECONDS_UNTIL_ANOTHER_NODE = 3.0
SECONDS_UNTIL_A_CHECKPOINT = 10.0
SECONDS_OF_A_RUN = 400.0
MINUTES = 0.025  # between checkpoints inside an epoch
SETTINGS = [
    "--workers", "3", "--lr", "0.01", "--batch", "64", "--epochs", "8", "--device", "cpu", "--json",
    "--set", "tagger.embedding_dim=24", "--set", "tagger.keyword_hidden=24", "--set", "tagger.keyphrase_hidden=24",
    "--set", "training.patience=0", "--set", f"run.checkpoint_minutes={MINUTES}",
]  # fmt: skip


class Run(NamedTuple):
    """One training: a row of the table."""

    number: int
    kind: str
    after_s: float  # from the first checkpoint to the blow
    newest: str  # checkpoint when the blow fell
    went_on_from: str
    lost_s: float
    seconds: float  # from the first submission to the end
    finished: bool
    equal: bool  # to the undisturbed run, bit by bit
    cut: bool  # a checkpoint was being written when the blow fell
    remains: list[str]  # of unfinished checkpoints, after the run


class Chaos:
    """A cluster, a dataset that all nodes see, and the undisturbed run."""

    def __init__(self, nodes: Nodes, texts: int, place: str) -> None:
        self.nodes, self.data, self.runs = nodes, nodes.shared / "data", nodes.shared / "runs"
        self.settings = [*SETTINGS, "--set", f"training.data={place}"]
        made = self.nodes.shared / "texts.jsonl"
        write_texts(made, texts)
        command = [sys.executable, "-m", "jobs", "prepare", str(made), "--out", str(self.data)]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        began = time.monotonic()
        self.submit("undisturbed", "undisturbed")
        self.seen = self.follow("undisturbed", "undisturbed")
        self.seconds = time.monotonic() - began
        self.bits = self.bits_of("undisturbed")
        times = list(self.seen.values())
        self.span = times[-1] - times[0]
        self.cadence = max(later - earlier for earlier, later in pairwise(times))

    def submit(self, run: str, job: str) -> None:
        """Begins a run, or goes on with it."""
        begun = (self.runs / run / "config.json").exists()
        how = ["--resume", run, "--json"] if begun else ["--data", str(self.data), "--name", run, *self.settings]
        done = self.nodes.submit("train", "--storage", str(self.runs), *how, job=job, wait=False)
        assert done.returncode == 0, done.stderr

    def checkpoints(self, run: str) -> list[str]:
        """Those that are whole, oldest first."""
        folder = self.runs / run
        found = folder.iterdir() if folder.exists() else []
        return sorted(path.name for path in found if path.name.startswith("checkpoint_"))

    def follow(self, run: str, job: str, until: float | None = None) -> dict[str, float]:
        """Waits for a job's end, or for some seconds after the run's first checkpoint. Gives each checkpoint's time."""
        seen: dict[str, float] = {}
        began = asked = time.monotonic()
        while time.monotonic() - began < SECONDS_OF_A_RUN:
            now = time.monotonic()
            for name in self.checkpoints(run):
                seen.setdefault(name, now)
            if until is not None and seen and now - next(iter(seen.values())) >= until:
                return seen
            if now - asked > 2:
                asked = now
                if self.nodes.status(job) not in ("PENDING", "RUNNING"):
                    return seen
            time.sleep(0.02)
        raise TimeoutError(f"{job} did not end in {SECONDS_OF_A_RUN:.0f} s:\n{self.nodes.job_logs(job)}")

    def bits_of(self, run: str) -> str:
        """Checksum of a finished run's weights; empty where there are none."""
        weights = self.runs / run / "bundle" / "weights.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else ""

    def unfinished(self, run: str) -> list[str]:
        """The hidden folders of checkpoints that are being written."""
        return [each.name for each in os.scandir(self.runs / run) if each.name.startswith(".checkpoint_")]

    def kill_while_writing(self, run: str) -> None:
        """Kills all workers as soon as a checkpoint is begun."""
        workers, began = self.nodes.running("ray::RayTrainWorker"), time.monotonic()
        while not self.unfinished(run) and time.monotonic() - began < SECONDS_UNTIL_A_CHECKPOINT:
            pass  # one is written in milliseconds
        for worker in workers:
            worker.kill()

    def strike(self, kind: str, draw: random.Random) -> None:
        """Kills a random process of a kind."""
        if kind == "node":
            self.nodes.kill(draw.choice(self.nodes.processes[1:]))
            time.sleep(SECONDS_UNTIL_ANOTHER_NODE)
            self.nodes.add()
            return
        title = "ray::RayTrainWorker" if kind == "worker" else "-m jobs train"
        victims = self.nodes.running(title)
        if kind == "driver":
            victims = [each for each in victims if each.name().startswith("python")]
        if victims:  # a training that has just ended has none left
            draw.choice(victims).kill()

    def disturb(self, number: int, kind: str, draw: random.Random) -> Run:
        """A training that is struck once."""
        run = f"run{number:02d}"
        began = time.monotonic()
        self.submit(run, f"{run}-a")
        after = draw.uniform(0, self.span)
        seen = self.follow(run, f"{run}-a", until=after)
        if kind == "checkpoint":
            self.kill_while_writing(run)
        struck = time.monotonic()
        newest = self.checkpoints(run)[-1]
        cut = bool(self.unfinished(run))
        if kind != "checkpoint":
            self.strike(kind, draw)
        job = f"{run}-a"
        self.follow(run, job)
        if kind == "driver":
            job = f"{run}-b"
            self.submit(run, job)
            self.follow(run, job)
        logs = self.nodes.job_logs(f"{run}-a") + (self.nodes.job_logs(job) if kind == "driver" else "")
        places = [line.split()[2] for line in logs.splitlines() if line.startswith("resuming from")]
        finished = (self.runs / run / "result.json").exists()
        lost = struck - seen[newest] if newest in seen else 0.0
        seconds = time.monotonic() - began
        place = places[-1] if places else "(had ended)"
        same = self.bits_of(run) == self.bits
        return Run(number, kind, after, newest, place, lost, seconds, finished, same, cut, self.unfinished(run))


def write_texts(path: Path, count: int) -> None:
    """Labeled texts of the built-in corpus."""
    from jobs.corpora.tweets import generate

    with path.open("w") as file:
        for texts in generate(count).values():
            file.writelines(json.dumps({"text": each.text, "spans": each.spans}) + "\n" for each in texts)


def short(name: str) -> str:
    """`3+040` for checkpoint_epoch_0003_step_000040."""
    parts = name.split("_")
    return name if len(parts) < 3 else f"{int(parts[2])}" + (f"+{int(parts[4]):03d}" if len(parts) > 4 else "")


def campaign(asked: argparse.Namespace, earlier: list[Run], add: Callable[[Run], None]) -> dict[str, Any]:
    """Prints a line for each run, adds it to the earlier ones, and gives the summary of all."""
    table, until = list(earlier), time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory(prefix="chaos-") as logs:
        nodes = Nodes(Path(logs))
        try:
            nodes.begin(3)
            chaos = Chaos(nodes, asked.texts, asked.data)
            print(
                f"undisturbed: {chaos.seconds:.0f} s, {len(chaos.seen)} checkpoints over {chaos.span:.0f} s, "
                f"at most {chaos.cadence:.1f} s apart",
                flush=True,
            )
            print("run  kill -9     after s  newest  went on from  lost s  seconds  finished  same bits  while writing")
            while len(table) < asked.runs and time.monotonic() < until:
                number = len(table) + 1
                draw, kind = random.Random(f"{asked.seed} {number}"), asked.kinds[len(table) % len(asked.kinds)]
                table.append(row := chaos.disturb(number, kind, draw))
                add(row)
                print(
                    f"{row.number:>3}  {row.kind:<10}  {row.after_s:>7.1f}  {short(row.newest):>6}  "
                    f"{short(row.went_on_from):>12}  {row.lost_s:>6.1f}  {row.seconds:>7.0f}  "
                    f"{'yes' if row.finished else 'NO':>8}  {'yes' if row.equal else 'NO':>9}  {'yes' if row.cut else '':>13}",
                    flush=True,
                )
            left = wait_for_nothing(nodes)
        finally:
            nodes.end()
    return {
        "runs": len(table),
        "kinds": dict(Counter(row.kind for row in table)),
        "finished": sum(row.finished for row in table),
        "equal": sum(row.equal for row in table),
        "while_writing": sum(row.cut for row in table),
        "remains": sum(len(row.remains) for row in table),
        "lost_s_max": round(max(row.lost_s for row in table), 2),
        "cadence_s": round(chaos.cadence, 2),
        "undisturbed_s": round(chaos.seconds, 1),
        "left": left,
    }


def wait_for_nothing(nodes: Nodes) -> dict[str, list[str]]:
    """What the jobs have left behind 30 seconds after the last one, at the latest."""
    began = time.monotonic()
    while any((left := nodes.left()).values()) and time.monotonic() - began < 30:
        time.sleep(1)
    return left


def main() -> None:
    """Runs the campaign; ends with 1 where a run did not finish, differs, lost more than twice the cadence or left something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="with those that --out has already")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    parser.add_argument("--out", type=Path, help="file of JSON lines to which runs are added")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=3_500)
    parser.add_argument("--data", choices=("memory", "stream"), default="memory", help="where the training split is")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster's processes are ended all the same
    lines = asked.out.read_text().splitlines() if asked.out and asked.out.exists() else []

    def add(row: Run) -> None:
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps(row._asdict()) + "\n")

    summary = campaign(asked, [Run(**json.loads(line)) for line in lines], add)
    print(json.dumps(summary))
    whole = summary["finished"] == summary["equal"] == summary["runs"] and not summary["remains"]
    # No run has the pace of the undisturbed one exactly.
    sys.exit(not (whole and summary["lost_s_max"] <= 2 * summary["cadence_s"] and not any(summary["left"].values())))


if __name__ == "__main__":
    main()
