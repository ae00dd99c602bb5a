"""The actors that train trials, one trial after the other.

A trial of one worker is trained in the actor's own process (`InProcessRunner`); for a trial of several workers the actor
sends requests to a Ray Train worker group (`WorkerGroupRunner`). Both outlive their trial: the actor gets the next one, so
that no process starts, nothing is imported again, and nothing has to be torn down while a sweep runs.
"""

import tempfile
import threading
import time
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import ray.train
import torch
import torch.distributed as dist
from ray import tune

from distributed.cluster.connection import driver_queue
from distributed.cluster.ray_internals import set_train_defaults
from distributed.train.events import EventSender, Note
from distributed.train.process_group import TorchCommunicator
from distributed.train.trainer import make_trainer
from distributed.tune.events import Heartbeat
from distributed.tune.trial_run import EpochReport, EpochResult, TrialRun, TrialSettings, TrialSpec, asha_score
from model.errors import UserError
from model.training.communicator import SingleProcess

if TYPE_CHECKING:
    from ray.util.queue import Queue

HEARTBEAT_SECONDS = 5.0
_SECONDS_TO_CLOSE = 8.0
_SECONDS_BEFORE_NOTE = 30.0


class InProcessRunner:
    """Trains trials of one worker, one after the other, in this process."""

    def __init__(self, settings: TrialSettings) -> None:
        torch.set_num_threads(settings.cpus)
        self.settings, self.data = settings, ray.get(settings.data)
        self.events = EventSender(settings.events)
        self.run: TrialRun | None = None

    def epoch(self, spec: TrialSpec, number: int) -> EpochResult:
        """Train an epoch of a trial."""
        if self.run is None or self.run.spec != spec:
            self.run = None  # its memory first
            if 0 < self.settings.gpus < 1:
                torch.cuda.empty_cache()  # the other trials on this GPU may need what torch has kept
            try:
                self.run = TrialRun(spec, self.data, self.settings, SingleProcess(), self.events)
            except UserError as error:  # which another attempt would not mend
                return EpochResult(spec.trial, number, None, True, str(error))
        return self.run.epoch(number)

    def close(self) -> None:
        """Send the events that are left."""
        self.events.close()


class EpochRequest(NamedTuple):
    """A request to a worker group: an epoch of a trial, or with no trial the end of the group."""

    spec: TrialSpec | None
    epoch: int


class WorkerGroupRunner:
    """Has trials trained, one after the other, by a Ray Train worker group that lives as long as this actor."""

    def __init__(self, settings: TrialSettings) -> None:
        set_train_defaults()  # this process may run on another node than the driver
        self.settings = settings
        self.requests, self.results = driver_queue(), driver_queue()
        self.events = EventSender(settings.events)
        self.failure: Exception | None = None
        self.scratch = tempfile.TemporaryDirectory(prefix="tandem-trials-")
        self.thread = threading.Thread(target=self._fit, name="trainer", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        trainer = make_trainer(
            worker_group_loop,
            {"settings": self.settings, "requests": self.requests, "results": self.results},
            name="trials",
            scratch=self.scratch.name,
            workers=self.settings.workers,
            cpus=self.settings.cpus,
            gpu=self.settings.gpus > 0,
            # A lost worker ends the group, and Tune restarts the trial with a new one. Ray counts preemptions apart
            # and would restart the group itself: its new rank 0 would wait for a request that the old one took. A
            # group that does not get its resources waits for them, for they are there in principle.
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=-1
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # carried over to the thread that waits for results
            self.failure = error

    def epoch(self, spec: TrialSpec, number: int) -> EpochResult:
        """Have an epoch of a trial trained.

        Raises:
            RuntimeError: the group is lost. Tune restarts the trial with a new one.
        """
        self.requests.put(EpochRequest(spec, number))
        waited = 0.0
        while self.thread.is_alive():
            try:
                result: EpochResult = self.results.get(timeout=1.0)
            except Empty:
                waited += 1.0
                if waited % _SECONDS_BEFORE_NOTE == 0:
                    self._report_wait(spec, waited)
                continue
            if (result.trial, result.epoch) == (spec.trial, number) or result.finished:
                return result
        raise RuntimeError(f"the worker group is lost: {self.failure}")

    def _report_wait(self, spec: TrialSpec, waited: float) -> None:
        text = f"{spec.trial} has waited {waited:.0f} s for an epoch of its {self.settings.workers} workers"
        self.events.send(Note(text))

    def close(self) -> None:
        """End the workers' loop, so that Ray Train removes its group itself."""
        self.requests.put_nowait(EpochRequest(None, 0))
        self.thread.join(_SECONDS_TO_CLOSE)
        self.scratch.cleanup()


def worker_group_loop(config: dict[str, Any]) -> None:
    """Train the requested epochs. Runs on each worker of the group; rank 0 takes the requests."""
    settings: TrialSettings = config["settings"]
    torch.set_num_threads(settings.cpus)
    group, data = TorchCommunicator(), ray.get(settings.data)
    run: TrialRun | None = None
    events = EventSender(settings.events) if group.rank == 0 else None
    if events:
        threading.Thread(target=_heartbeat, args=(events,), daemon=True).start()
    while True:
        taken = [_next_request(config["requests"]) if events else None]
        dist.broadcast_object_list(taken, device=torch.device("cpu"))  # through gloo: NCCL would keep the GPU busy
        if taken[0] is None:
            continue
        spec, number = taken[0]
        if spec is None:
            return
        if run is None or run.spec != spec:
            run = None
            run = TrialRun(spec, data, settings, group, events)
        result = run.epoch(number)
        if events:
            config["results"].put(result)


def _next_request(requests: "Queue") -> EpochRequest | None:
    """Return the next request; None after a second without one, so that no rank waits in a collective for long."""
    try:
        return requests.get(timeout=1.0)
    except Empty:
        return None


def _heartbeat(events: EventSender) -> None:
    """Report to the driver that this worker's placement group is in use, for as long as this process lives."""
    group = ray.util.get_current_placement_group()
    while True:
        events.send(Heartbeat(group.id.hex()))
        time.sleep(HEARTBEAT_SECONDS)


class TrialTrainable(tune.Trainable):
    """A trial as Ray Tune sees it: one step is one epoch."""

    def setup(self, config: dict[str, Any], settings: TrialSettings | None = None) -> None:
        """Run once in the life of the process."""
        assert settings is not None
        self.settings = settings
        self.runner: InProcessRunner | WorkerGroupRunner = (
            InProcessRunner(settings) if settings.workers == 1 else WorkerGroupRunner(settings)
        )
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Give the process the next trial."""
        self.spec = TrialSpec(new_config["trial"], new_config["config"], new_config["folder"])
        self.epoch = 0
        return True

    def step(self) -> EpochReport:
        """Train an epoch. One that a checkpoint already has is reported again, which costs nothing."""
        self.epoch += 1
        result = self.runner.epoch(self.spec, self.epoch)
        score = asha_score(result.metrics, self.settings.metric) if result.metrics else -1.0
        return {"epoch": self.epoch, "score": score, "result": result, "done": result.finished}

    def cleanup(self) -> None:
        """Run when the process is no longer needed."""
        self.runner.close()
