"""Groups of processes whose training is timed in turns: started by torchrun, or by Ray Train, and doing the same.

Every group waits at a key-value store of torch for its turn, so that several are kept ready and timed one after the other,
again and again, while the others rest.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.train.process_group import TorchCommunicator
from jobs.benchmark.reference import reference_steps, training_steps
from model.config import make_config
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.network.tagger import new_tagger
from model.training.communicator import SingleProcess
from model.training.loop import Training

_PATIENCE = timedelta(minutes=5)
_GO, _END = "go", "end"


class GroupSpec(NamedTuple):
    """What the members of a group have to know.

    Attributes:
        name: of the group.
        size: how many members it has.
        store: host and port of the store.
        config: of the training, as plain values.
        threads: of each member.
        together: they train one tagger; else each one of its own, beside the others.
        hand_made: they train by the loop of `jobs.benchmark.reference.HandMade`, each for itself.
        steps: of a turn.
    """

    name: str
    size: int
    store: tuple[str, int]
    config: dict[str, Any]
    threads: int
    together: bool = True
    hand_made: bool = False
    steps: int = 30


class Measurement(NamedTuple):
    """What came of a turn: tokens per second of all members, and bytes that they sent in a step."""

    tokens_per_s: float
    bytes_per_step: float


def group_member(drill: GroupSpec, device: torch.device) -> None:
    """Trains in turns. Runs in each process of a group, in which torch.distributed is ready."""
    torch.set_num_threads(drill.threads)
    store = TCPStore(*drill.store, is_master=False, timeout=_PATIENCE)
    rank, steps = dist.get_rank(), _steps(drill, device)
    next(steps)
    store.add(f"{drill.name} ready", 1)
    for number in count():
        if store.get(f"{drill.name} turn {number}").decode() == _END:
            break
        told = json.dumps(_turn(islice(steps, drill.steps), device))
        store.set(f"{drill.name} result {number} {rank}", told)
    resident = psutil.Process().memory_info().rss / 2**20
    store.set(f"{drill.name} memory {rank}", str(resident))


def _steps(drill: GroupSpec, device: torch.device) -> Iterator[int]:
    config = make_config(drill.config)
    data = Dataset(config.data)
    train, words = data.load("train", config.tagger.uses_word_features), data.info["words"]
    if drill.hand_made:
        return reference_steps(config.tagger, config.training, train, words, device)
    tagger = new_tagger(config.tagger, words, config.training.seed)
    return training_steps(
        Training(
            config.training, tagger, train, train, TorchCommunicator() if drill.together else SingleProcess(), device
        )
    )


def _turn(steps: Iterator[int], device: torch.device) -> tuple[int, float, int]:
    """Tokens, seconds, and bytes that this machine sent meanwhile."""
    dist.barrier()
    sent, began = psutil.net_io_counters().bytes_sent, time.perf_counter()
    tokens = sum(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    dist.barrier()
    return tokens, seconds, psutil.net_io_counters().bytes_sent - sent


class ProcessGroupHandle:
    """A group that waits for its turns.

    Attributes:
        started: seconds from its launch until all members had made their first step.
        memory: megabytes of each member, resident; known when it is closed.
    """

    def __init__(self, drill: GroupSpec, store: TCPStore, alive: Any) -> None:
        self.drill, self.store, self._alive = drill, store, alive
        self.memory: list[float] = []
        self._turns = 0
        began = time.perf_counter()
        while store.add(f"{drill.name} ready", 0) < drill.size:
            if not alive():
                raise RunFailedError(f"the group {drill.name} did not start")
            time.sleep(0.05)
        self.started = time.perf_counter() - began

    def turn(self) -> Measurement:
        """Has the group train for a moment."""
        self.store.set(f"{self.drill.name} turn {self._turns}", _GO)
        told = [json.loads(self._told(f"result {self._turns} {rank}")) for rank in range(self.drill.size)]
        self._turns += 1
        shares = told[:1] if self.drill.together else told  # together, each counts the tokens of all
        rate = sum(tokens / seconds for tokens, seconds, _ in shares)
        return Measurement(rate, told[0][2] / self.drill.steps)

    def close(self) -> None:
        """Sends the members home."""
        self.store.set(f"{self.drill.name} turn {self._turns}", _END)
        self.memory = [float(self._told(f"memory {rank}")) for rank in range(self.drill.size)]

    def _told(self, what: str) -> str:
        while not self.store.check([f"{self.drill.name} {what}"]):
            if not self._alive():
                raise RunFailedError(f"the group {self.drill.name} is lost")
            time.sleep(0.1)  # seldom, for the members are at work
        return str(self.store.get(f"{self.drill.name} {what}").decode())


@contextmanager
def by_torchrun(drill: GroupSpec, store: TCPStore) -> Iterator[ProcessGroupHandle]:
    """A group on this machine, as torch's own launcher starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={drill.size}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(drill.threads)}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*command, "-m", "jobs.benchmark.process_groups", json.dumps(drill)],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        group = ProcessGroupHandle(drill, store, lambda: process.poll() is None)
        yield group
        group.close()
        process.wait()
    finally:
        process.terminate()
        process.wait()


@contextmanager
def by_ray(drill: GroupSpec, store: TCPStore, gpu: bool) -> Iterator[ProcessGroupHandle]:
    """A group on the cluster that this process has joined, as `train` starts it."""
    import tempfile

    from distributed.train.trainer import make_trainer

    with tempfile.TemporaryDirectory(prefix="tandem-drill-") as scratch:
        trainer = make_trainer(
            _on_ray,
            {"drill": drill},
            name=drill.name,
            scratch=scratch,
            workers=drill.size,
            cpus=drill.threads,
            gpu=gpu,
        )
        thread = threading.Thread(target=_quietly, args=(trainer.fit,), daemon=True)
        thread.start()
        group = ProcessGroupHandle(drill, store, thread.is_alive)
        try:
            yield group
        finally:
            group.close()
            thread.join()


def _quietly(fit: Any) -> None:
    """The failure of a group is told by its silence."""
    with suppress(Exception):
        fit()


def _on_ray(settings: dict[str, Any]) -> None:
    import ray.train.torch

    gpu = torch.cuda.is_available()
    group_member(settings["drill"], ray.train.torch.get_device() if gpu else torch.device("cpu"))


def _on_torchrun(text: str) -> None:
    name, size, store, *others = json.loads(text)
    drill = GroupSpec(name, size, tuple(store), *others)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", dist.get_node_local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" and drill.together else "gloo")
    group_member(drill, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    _on_torchrun(sys.argv[1])
