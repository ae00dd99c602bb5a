"""Whether sweeps leave anything behind in Ray: `make leaks`.

Each setting gets a Ray of its own: dashboard off, dashboard on, and dashboard off with a second Ray on the same host. In
each, a sweep of one-worker trials and a sweep of two-worker trials are stopped early by ASHA, and ten seconds after their
end the placement groups, actors and processes that are left are counted. The longest silence is the longest time in which
a sweep told its user nothing. The memory is that of the driver and of the largest trial process, in MB, in the first and in
the last quarter of the sweep.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from helpers import OF_THE_CLUSTER, start_ray, title_of

ROOT = Path(__file__).parents[2]
SETTINGS = ("dashboard off", "dashboard on", "second Ray")
TRIAL = "ResourceTrainable"  # Tune's name for our TrialActor
OURS = (TRIAL, "RayTrainWorker", "TrainController", "_QueueActor", "PlacementGroupCleaner", "SynchronizationActor")
SECONDS_AFTER = 10


def left_behind() -> dict[str, Any]:
    """Placement groups, actors and processes that are alive in the Ray of this process."""
    import ray
    from ray._private.state import actors

    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    alive = Counter(actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD")
    for name in OF_THE_CLUSTER:
        del alive[name]
    titles = [title_of(process) for process in psutil.Process().children(recursive=True)]
    processes = Counter(kind for kind in OURS for title in titles if kind in title)
    return {"placement groups": len(groups), "actors": dict(alive), "processes": dict(processes)}


def wait_until_nothing_is_left() -> tuple[dict[str, Any], float]:
    """What is left after SECONDS_AFTER, or as soon as nothing is; and after how long that was."""
    began = time.monotonic()
    while any((left := left_behind()).values()) and time.monotonic() - began < SECONDS_AFTER:
        time.sleep(0.5)
    return left, round(time.monotonic() - began, 1)


def sweep(data: str, storage: str, workers: int, trials: int, **plan: Any) -> dict[str, Any]:
    """Carries a sweep out in the Ray of this process. Returns what it did and what it left."""
    from distributed.sweep.plan import make_plan, new_sweep

    config = {
        "data": data,
        "tagger": {"embedding_dim": 16, "keyword_hidden": 16, "keyphrase_hidden": 16},
        "training": {"patience": 0},
        "run": {"name": f"w{workers}", "storage": storage, "device": "cpu"},
    }
    asked = {"config": config, "trials": trials, "max_epochs": 9, "workers_per_trial": workers}
    result, seen = watch(new_sweep(make_plan(asked | plan)))
    names = ("trials", "stopped", "failed", "epochs_spent", "seconds", "trial_start_s")
    return {"workers": workers, **{name: result[name] for name in names}, **seen}


def watch(plan: Any, on_event: Callable[[Any], None] = lambda event: None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Carries a sweep out in the Ray of this process. Returns its result, and its longest silence and what it left."""
    from distributed.tune.driver import tune

    told, memory = [time.monotonic()], Memory()

    def take(event: Any) -> None:
        told.append(time.monotonic())
        memory.sample()
        on_event(event)

    result = tune(plan, take).as_dict()
    left, after = wait_until_nothing_is_left()
    silence = max(later - earlier for earlier, later in pairwise(told))
    return result, {"longest_silence_s": round(silence, 1), "left": left, "after_s": after, **memory.quarters()}


class Memory:
    """The resident memory of a sweep's driver, which is this process, and of its largest trial process, in MB."""

    def __init__(self) -> None:
        self.driver: list[float] = []
        self.trial: list[float] = []
        self._due = 0.0

    def sample(self) -> None:
        """Measures both, unless that was done less than two seconds ago."""
        if time.monotonic() < self._due:
            return
        this = psutil.Process()
        trials = [resident_mb(each) for each in this.children(recursive=True) if TRIAL in title_of(each)]
        if trials:
            self.driver.append(resident_mb(this))
            self.trial.append(max(trials))
        self._due = time.monotonic() + 2

    def quarters(self) -> dict[str, list[float]]:
        """The medians of the first and of the last quarter."""
        quarter = -(-len(self.driver) // 4)
        parts = {"driver_mb": self.driver, "trial_mb": self.trial}
        return {name: [median(each[:quarter]), median(each[-quarter:])] for name, each in parts.items() if each}


def resident_mb(process: psutil.Process) -> float:
    """Resident memory of a process; 0 where it is gone."""
    with suppress(psutil.NoSuchProcess):
        return round(process.memory_info().rss / 1e6, 1)
    return 0.0


def in_setting(setting: str, data: str, one: int, two: int) -> None:
    """Runs both sweeps in a Ray of one setting and prints a JSON line for each."""
    import ray

    from distributed.cluster.connection import connect

    with tempfile.TemporaryDirectory(prefix="leaks-") as storage:
        start_ray(4, dashboard=setting == "dashboard on")
        connect()
        for workers, trials in ((1, one), (2, two)):
            if trials:
                print(json.dumps({"setting": setting} | sweep(data, storage, workers, trials)), flush=True)
        ray.shutdown()


def campaign(data: str, settings: list[str], one: int, two: int) -> list[dict[str, Any]]:
    """The rows of all settings, each from a process of its own."""
    rows = []
    for setting in settings:
        command = [sys.executable, __file__, "--in", setting, "--data", data, "--one", str(one), "--two", str(two)]
        with second_ray() if setting == "second Ray" else nullcontext():
            environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{setting}: {done.stderr[-2000:]}")
        rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return rows


@contextmanager
def second_ray() -> Iterator[None]:
    """Another Ray on this host."""
    start = "ray.init(address='local', num_cpus=1, include_dashboard=False)"
    code = f"import ray, sys; {start}; print('up', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None
    while other.stdout.readline() not in (b"up\n", b""):
        pass
    try:
        yield
    finally:
        other.stdin.close()
        other.wait(60)


def good(row: dict[str, Any]) -> bool:
    """Whether a sweep did what it is to be looked at after, and left nothing behind."""
    return row["stopped"] > 0 and not row["failed"] and not any(row["left"].values())


def main() -> None:
    """Runs the campaign; ends with 1 where a trial failed, none was stopped, or something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, default=250, help="one-worker trials, of which about 200 are stopped early")
    parser.add_argument("--two", type=int, default=32, help="two-worker trials, of which about 20 are")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--data", help="dataset directory; a small one is made otherwise")
    parser.add_argument("--in", dest="inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        in_setting(asked.inside, asked.data, asked.one, asked.two)
        return
    with tempfile.TemporaryDirectory(prefix="leaks-") as folder:
        data = asked.data or _small(Path(folder))
        rows = campaign(data, asked.settings, asked.one, asked.two)
    for row in rows:
        print(json.dumps(row), flush=True)
    sys.exit(not all(map(good, rows)))


def _small(folder: Path) -> str:
    from jobs.corpora.generated import prepare_corpus, write_corpus
    from jobs.corpora.tweets import generate

    return prepare_corpus(write_corpus(folder / "corpus", generate(1000)), folder / "data")


if __name__ == "__main__":
    main()
