"""Trainings on a cluster whose processes are killed: `make chaos`.

A head and three nodes on this machine (nodes.py), a job of three workers through the real job server, and at random moments
`kill -9` of a worker, of a whole node (another comes some seconds later) or of the driver (the job is submitted again with
--resume), or of all workers while a checkpoint is being written. Each run is struck several times, a next time when it has
gone on and has written another checkpoint. It has to finish with the bits of one that nothing disturbs, and to go on from the
newest checkpoint that was whole when a blow fell: `lost` is the time from that checkpoint to the blow.

The kind and the moment of a blow follow from the seed and its number. With --out, the blows are added to a file of JSON lines
when their run has ended, and the next call goes on after its last number, so that a campaign may be of any length.
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
SECONDS_UNTIL_A_BLOW = 5.0  # at most, from the first new checkpoint
SECONDS_BETWEEN_BLOWS = 400.0
HAD_ENDED = "(had ended)"
MINUTES = 0.025  # between checkpoints inside an epoch
SETTINGS = [
    "--workers", "3", "--lr", "0.01", "--batch", "64", "--epochs", "16", "--device", "cpu", "--json",
    "--set", "tagger.embedding_dim=24", "--set", "tagger.keyword_hidden=24", "--set", "tagger.keyphrase_hidden=24",
    "--set", "training.patience=0", "--set", f"run.checkpoint_minutes={MINUTES}",
]  # fmt: skip


class Blow(NamedTuple):
    """One `kill -9`: a row of the table."""

    number: int
    kind: str
    after_s: float  # from the first new checkpoint to the blow
    newest: str  # checkpoint when the blow fell
    went_on_from: str
    lost_s: float
    finished: bool  # the run that was struck
    equal: bool  # that run to the undisturbed one, bit by bit
    cut: bool  # a checkpoint was being written when the blow fell
    remains: list[str]  # of unfinished checkpoints, after the run

    @property
    def too_far_back(self) -> bool:
        """Whether the run went on from an older checkpoint than it could have."""
        return self.went_on_from != HAD_ENDED and self.went_on_from < self.newest


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
        """Waits for a job's end, or for some seconds after the next checkpoint. Gives the time of each new checkpoint."""
        old, seen = set(self.checkpoints(run)), dict[str, float]()
        began = asked = time.monotonic()
        while time.monotonic() - began < SECONDS_BETWEEN_BLOWS:
            now = time.monotonic()
            for name in self.checkpoints(run):
                if name not in old:
                    seen.setdefault(name, now)
            if until is not None and seen and now - next(iter(seen.values())) >= until:
                return seen
            if now - asked > 2:
                asked = now
                if self.ended(job):
                    return seen
            time.sleep(0.02)
        raise TimeoutError(f"{job} did not end in {SECONDS_BETWEEN_BLOWS:.0f} s:\n{self.nodes.job_logs(job)}")

    def ended(self, job: str) -> bool:
        """Whether a job has, in one way or another."""
        return self.nodes.status(job) not in ("PENDING", "RUNNING")

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

    def places(self, jobs: list[str]) -> list[str]:
        """The checkpoints that the jobs of a run have gone on from, in order."""
        lines = [line for job in jobs for line in self.nodes.job_logs(job).splitlines()]
        return [line.split()[2] for line in lines if line.startswith("resuming from")]

    def blow(self, run: str, jobs: list[str], number: int, kind: str, draw: random.Random) -> Blow | None:
        """Strikes a run some seconds after its next checkpoint; None if it ends before. Adds the job that goes on to `jobs`."""
        after = draw.uniform(0, SECONDS_UNTIL_A_BLOW)
        self.follow(run, jobs[-1], until=after)
        if self.ended(jobs[-1]):
            return None
        if kind == "checkpoint":
            self.kill_while_writing(run)
        newest, cut = self.checkpoints(run)[-1], bool(self.unfinished(run))
        lost = time.time() - (self.runs / run / newest).stat().st_mtime
        before = len(self.places(jobs))
        if kind != "checkpoint":
            self.strike(kind, draw)
        if kind == "driver":
            self.follow(run, jobs[-1])
            jobs.append(f"{run}-{len(jobs)}")
            self.submit(run, jobs[-1])
        self.nodes.wait(lambda: len(self.places(jobs)) > before or self.ended(jobs[-1]), SECONDS_BETWEEN_BLOWS)
        place = [HAD_ENDED, *self.places(jobs)[before:]][-1]
        return Blow(number, kind, after, newest, place, lost, False, False, cut, [])

    def disturb(self, first: int, kinds: list[str], seed: int) -> list[Blow]:
        """A training that is struck once in each of the ways, as far as it lasts; `first` is the first blow's number."""
        run = f"run{first:03d}"
        jobs, blows = [f"{run}-0"], list[Blow]()
        self.submit(run, jobs[0])
        for number, kind in enumerate(kinds, first):
            if (blow := self.blow(run, jobs, number, kind, random.Random(f"{seed} {number}"))) is None:
                break
            blows.append(blow)
        self.follow(run, jobs[-1])
        result, remains = (self.runs / run / "result.json").exists(), self.unfinished(run)
        same = self.bits_of(run) == self.bits
        return [blow._replace(finished=result, equal=same, remains=remains) for blow in blows]


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


def campaign(asked: argparse.Namespace, earlier: list[Blow], add: Callable[[list[Blow]], None]) -> dict[str, Any]:
    """Prints a line for each blow, adds them to the earlier ones, and gives the summary of all."""
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
            print(" no  kill -9     after s  newest  went on from  lost s  finished  same bits  while writing")
            while len(table) < asked.kills and time.monotonic() < until:
                first, more = len(table) + 1, min(asked.kills_a_run, asked.kills - len(table))
                kinds = [asked.kinds[number % len(asked.kinds)] for number in range(first - 1, first - 1 + more)]
                blows = chaos.disturb(first, kinds, asked.seed)
                add(blows)
                table += blows
                for blow in blows:
                    print(line_of(blow), flush=True)
            left = wait_for_nothing(nodes)
        finally:
            nodes.end()
    return {
        "kills": len(table),
        "kinds": dict(Counter(blow.kind for blow in table)),
        "finished": sum(blow.finished for blow in table),
        "equal": sum(blow.equal for blow in table),
        "went_on": dict(Counter(blow.kind for blow in table if blow.went_on_from != HAD_ENDED)),
        "too_far_back": sum(blow.too_far_back for blow in table),
        "while_writing": sum(blow.cut for blow in table),
        "remains": sum(len(blow.remains) for blow in table),
        "lost_s_max": round(max(blow.lost_s for blow in table), 2),
        "cadence_s": round(chaos.cadence, 2),
        "undisturbed_s": round(chaos.seconds, 1),
        "left": left,
    }


def line_of(blow: Blow) -> str:
    """A row of the table that is printed."""
    return (
        f"{blow.number:>3}  {blow.kind:<10}  {blow.after_s:>7.1f}  {short(blow.newest):>6}  {short(blow.went_on_from):>12}  "
        f"{blow.lost_s:>6.1f}  {'yes' if blow.finished else 'NO':>8}  "
        f"{'yes' if blow.equal else 'NO':>9}  {'yes' if blow.cut else '':>13}"
    )


def wait_for_nothing(nodes: Nodes) -> dict[str, list[str]]:
    """What the jobs have left behind 30 seconds after the last one, at the latest."""
    began = time.monotonic()
    while any((left := nodes.left()).values()) and time.monotonic() - began < 30:
        time.sleep(1)
    return left


def main() -> None:
    """Runs the campaign; ends with 1 where a run did not finish, differs, lost more than it had to, or left something.

    So it does where no run had to go on after a kind of blow: it hit nothing.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="with those that --out has already")
    parser.add_argument("--kills-a-run", type=int, default=4, help="at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    parser.add_argument("--out", type=Path, help="file of JSON lines to which the kills are added")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=3_500)
    parser.add_argument("--data", choices=("memory", "stream"), default="memory", help="where the training split is")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster's processes are ended all the same
    lines = asked.out.read_text().splitlines() if asked.out and asked.out.exists() else []

    def add(blows: list[Blow]) -> None:
        if asked.out:
            with asked.out.open("a") as file:
                file.writelines(json.dumps(blow._asdict()) + "\n" for blow in blows)

    summary = campaign(asked, [Blow(**json.loads(line)) for line in lines], add)
    print(json.dumps(summary))
    whole = summary["finished"] == summary["equal"] == summary["kills"]
    whole = whole and not summary["remains"] and not summary["too_far_back"]
    whole = whole and summary["went_on"].keys() == summary["kinds"].keys()
    # No run has the pace of the undisturbed one exactly.
    sys.exit(not (whole and summary["lost_s_max"] <= 2 * summary["cadence_s"] and not any(summary["left"].values())))


if __name__ == "__main__":
    main()
