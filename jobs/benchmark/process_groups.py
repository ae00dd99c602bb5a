"""Groups of processes that train in alternating rounds, launched by torchrun or by Ray Train.

Every group waits at a key-value store of torch for its next round. Several groups can so be kept ready and be timed one
after the other, while the others are idle.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.train.process_group import TorchCommunicator
from distributed.train.trainer import COLLECTIVE_TIMEOUT_S, GPU_BACKEND, make_trainer, worker_device
from jobs.benchmark.reference import reference_steps, training_steps
from jobs.benchmark.traffic import count_sent_bytes
from model.config import make_config
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.network.tagger import new_tagger
from model.training.communicator import SingleProcess
from model.training.loop import Training

_STORE_TIMEOUT = timedelta(minutes=5)
_START_LIMIT_S, _STOP_LIMIT_S = 300, 60
_RUN, _EXIT = "run", "exit"


class GroupSpec(NamedTuple):
    """What every process of a group needs to know; plain values, so that it travels as JSON.

    Attributes:
        name: name of the group, unique in the store.
        size: number of processes.
        store: host and port of the store.
        config: configuration of the training, as plain values.
        threads: threads of each process.
        shared_model: train one model together; otherwise each process trains its own.
        reference: train with `jobs.benchmark.reference.reference_steps`, each process for itself.
        steps: steps per round.
        gpu: whether each process trains on a GPU.
    """

    name: str
    size: int
    store: tuple[str, int]
    config: dict[str, object]
    threads: int
    shared_model: bool = True
    reference: bool = False
    steps: int = 30
    gpu: bool = False


class Measurement(NamedTuple):
    """The result of one round: tokens per second of the group, and bytes that its processes sent per step, together."""

    tokens_per_s: float
    bytes_per_step: float


def group_member(spec: GroupSpec, device: torch.device) -> None:
    """Train round by round until the group is closed; torch.distributed must be initialized."""
    torch.set_num_threads(spec.threads)
    store = TCPStore(*spec.store, is_master=False, timeout=_STORE_TIMEOUT)
    rank, steps = dist.get_rank(), _steps(spec, device)
    next(steps)
    store.add(f"{spec.name} ready", 1)
    for number in count():
        if store.get(f"{spec.name} round {number}").decode() == _EXIT:
            break
        store.set(f"{spec.name} result {number} {rank}", json.dumps(_timed_round(islice(steps, spec.steps), device)))
    resident = psutil.Process().memory_info().rss / 2**20
    store.set(f"{spec.name} memory {rank}", str(resident))


def _steps(spec: GroupSpec, device: torch.device) -> Iterator[int]:
    config = make_config(spec.config)
    data = Dataset(config.data)
    train, words = data.load("train", config.tagger.uses_word_features), data.info["words"]
    if spec.reference:
        return reference_steps(config.tagger, config.training, train, words, device)
    tagger = new_tagger(config.tagger, words, config.training.seed)
    communicator = TorchCommunicator() if spec.shared_model else SingleProcess()
    return training_steps(Training(config.training, tagger, train, train, communicator, device))


def _timed_round(steps: Iterator[int], device: torch.device) -> tuple[int, float, float]:
    """Run steps. Return the tokens, the seconds, and the bytes that this process sent."""
    dist.barrier()
    began = time.perf_counter()
    with count_sent_bytes() as sent:
        tokens = sum(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    dist.barrier()
    return tokens, seconds, sent.total


class ProcessGroupHandle:
    """A running group that waits for its next round.

    Attributes:
        startup_seconds: seconds from the launch until all processes finished their first step.
        memory: resident memory of each process in MB; set by `close`.
    """

    def __init__(self, spec: GroupSpec, store: TCPStore, alive: Callable[[], bool]) -> None:
        """Wait for a group that was just launched. Raises RunFailedError where it does not start in time."""
        self.spec, self.store, self._alive = spec, store, alive
        self.memory: list[float] = []
        self._rounds = 0
        began = time.perf_counter()
        while store.add(f"{spec.name} ready", 0) < spec.size:
            if not alive():
                raise RunFailedError(f"the group {spec.name} did not start")
            if time.perf_counter() - began > _START_LIMIT_S:
                raise RunFailedError(
                    f"the group {spec.name} did not start in {_START_LIMIT_S} s: {spec.size} processes need "
                    f"{spec.threads} CPU(s){' and a GPU' if spec.gpu else ''} each; use fewer --workers"
                )
            time.sleep(0.05)
        self.startup_seconds = time.perf_counter() - began

    def measure(self) -> Measurement:
        """Run one round. Raises RunFailedError where the group has died or takes too long."""
        self.store.set(f"{self.spec.name} round {self._rounds}", _RUN)
        results = [json.loads(self._wait_for(f"result {self._rounds} {rank}")) for rank in range(self.spec.size)]
        self._rounds += 1
        # Each process of a shared model counts the tokens of all.
        rate = sum(tokens / seconds for tokens, seconds, _ in (results[:1] if self.spec.shared_model else results))
        return Measurement(rate, sum(sent for _, _, sent in results) / self.spec.steps)

    def close(self) -> None:
        """Tell the processes to exit. Raises RunFailedError where the group has died."""
        self.store.set(f"{self.spec.name} round {self._rounds}", _EXIT)
        self.memory = [float(self._wait_for(f"memory {rank}")) for rank in range(self.spec.size)]

    def _wait_for(self, key: str) -> str:
        began = time.perf_counter()
        while not self.store.check([f"{self.spec.name} {key}"]):
            if not self._alive():
                raise RunFailedError(f"the group {self.spec.name} died")
            if time.perf_counter() - began > COLLECTIVE_TIMEOUT_S:
                raise RunFailedError(f"the group {self.spec.name} gave no {key} in {COLLECTIVE_TIMEOUT_S} s")
            time.sleep(0.1)  # poll rarely: the processes are being timed
        return str(self.store.get(f"{self.spec.name} {key}").decode())


@contextmanager
def by_torchrun(spec: GroupSpec, store: TCPStore) -> Iterator[ProcessGroupHandle]:
    """Launch a group on this machine with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={spec.size}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(spec.threads)}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*command, "-m", "jobs.benchmark.process_groups", json.dumps(spec)],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        group = ProcessGroupHandle(spec, store, lambda: process.poll() is None)
        yield group
        group.close()
        process.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"the group {spec.name} did not end in {_STOP_LIMIT_S} s") from None
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def by_ray(spec: GroupSpec, store: TCPStore) -> Iterator[ProcessGroupHandle]:
    """Launch a group with Ray Train, configured as by `train`, on the cluster of this process."""
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as scratch:
        trainer = make_trainer(
            _ray_member,
            {"spec": spec},
            name=spec.name,
            scratch=scratch,
            workers=spec.size,
            cpus=spec.threads,
            gpu=spec.gpu,
        )
        thread = threading.Thread(target=_ignoring_errors, args=(trainer.fit,), daemon=True)
        thread.start()
        group = ProcessGroupHandle(spec, store, thread.is_alive)
        try:
            yield group
        finally:
            group.close()
            thread.join(_STOP_LIMIT_S)


def _ignoring_errors(fit: Callable[[], object]) -> None:
    """Call `fit`; its handle notices a failed group by its dead thread."""
    with suppress(Exception):
        fit()


def _ray_member(settings: dict[str, GroupSpec]) -> None:
    group_member(settings["spec"], worker_device(settings["spec"].gpu))


def _torchrun_member(text: str) -> None:
    name, size, store, *others = json.loads(text)
    spec = GroupSpec(name, size, tuple(store), *others)
    device = torch.device("cpu")
    if spec.gpu:
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    backend = GPU_BACKEND if spec.gpu and spec.shared_model else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    group_member(spec, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    _torchrun_member(sys.argv[1])
