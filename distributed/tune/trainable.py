"""The actors that carry trials out, one trial after the other.

A trial of one worker is trained in the actor's own process (`Bench`); for a trial of several workers the actor gives orders
to a Ray Train worker group (`Crew`). Both outlive their trial: the actor is handed the next one, so that no process starts
and nothing is imported again, and nothing has to be torn down while a sweep runs.
"""

import tempfile
import threading
import time
from queue import Empty
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray import tune

from distributed.cluster.connection import driver_queue
from distributed.cluster.ray_internals import set_train_defaults
from distributed.train.events import send_event
from distributed.train.process_group import TorchCommunicator
from distributed.train.trainer import make_trainer
from distributed.tune.trial_run import EpochResult, TrialRun, TrialSettings, TrialSpec, asha_score
from model.training.communicator import SingleProcess

SECONDS_BETWEEN_BEATS = 5.0
_SECONDS_TO_CLOSE = 8.0
_SECONDS_BEFORE_NOTE = 30.0


class InProcessRunner:
    """Trains trials of one worker, one after the other, in this process."""

    def __init__(self, settings: TrialSettings) -> None:
        torch.set_num_threads(settings.cpus)
        self.settings, self.data = settings, ray.get(settings.data)
        self.run: TrialRun | None = None

    def epoch(self, order: TrialSpec, number: int) -> EpochResult:
        """An epoch of a trial."""
        if self.run is None or self.run.order != order:
            self.run = None  # its memory first
            self.run = TrialRun(order, self.data, self.settings, SingleProcess())
        return self.run.epoch(number)

    def close(self) -> None:
        """Nothing is left behind."""


class WorkerGroupRunner:
    """Has trials trained, one after the other, by a Ray Train worker group that lives as long as this actor."""

    def __init__(self, settings: TrialSettings) -> None:
        set_train_defaults()  # this process may run on another node than the driver
        self.settings = settings
        self.orders, self.answers = driver_queue(), driver_queue()
        self.failure: Exception | None = None
        self.scratch = tempfile.TemporaryDirectory(prefix="tandem-crew-")
        self.thread = threading.Thread(target=self._fit, name="trainer", daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        trainer = make_trainer(
            worker_group_loop,
            {"settings": self.settings, "orders": self.orders, "answers": self.answers},
            name="crew",
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
        except Exception as error:  # carried over to the thread that waits for answers
            self.failure = error

    def epoch(self, order: TrialSpec, number: int) -> EpochResult:
        """An epoch of a trial.

        Raises:
            RuntimeError: the group is lost. Tune begins the trial again with a new one.
        """
        self.orders.put((order, number))
        waited = 0.0
        while self.thread.is_alive():
            try:
                answer = self.answers.get(timeout=1.0)
            except Empty:
                waited += 1.0
                if waited % _SECONDS_BEFORE_NOTE == 0:
                    self._say_what_it_waits_for(order, waited)
                continue
            if (answer.trial, answer.epoch) == (order.trial, number) or answer.finished:
                return answer
        raise RuntimeError(f"the worker group is lost: {self.failure}")

    def _say_what_it_waits_for(self, order: TrialSpec, waited: float) -> None:
        text = f"{order.trial} has waited {waited:.0f} s for an epoch of its {self.settings.workers} workers"
        send_event(self.settings.events, "waiting", text)

    def close(self) -> None:
        """Sends the workers home, so that Ray Train takes its group down itself."""
        self.orders.put_nowait((None, 0))
        self.thread.join(_SECONDS_TO_CLOSE)
        self.scratch.cleanup()


def worker_group_loop(settings: dict[str, Any]) -> None:
    """Trains the trials that a crew is given. Runs on each worker of its group; rank 0 takes the orders."""
    shared: TrialSettings = settings["settings"]
    torch.set_num_threads(shared.cpus)
    if shared.gpus:
        torch.cuda.set_device(ray.train.torch.get_device())
    group, data = TorchCommunicator(), ray.get(shared.data)
    run: TrialRun | None = None
    if group.rank == 0:
        threading.Thread(target=_heartbeat, args=(shared.events,), daemon=True).start()
    while True:
        taken = [_take(settings["orders"]) if group.rank == 0 else None]
        dist.broadcast_object_list(taken)
        if taken[0] is None:
            continue
        order, number = taken[0]
        if order is None:
            return
        if run is None or run.order != order:
            run = None
            run = TrialRun(order, data, shared, group)
        answer = run.epoch(number)
        if group.rank == 0:
            settings["answers"].put(answer)


def _take(orders: Any) -> Any:
    """The next order; None after a second without one, so that no rank waits in a collective for long."""
    try:
        return orders.get(timeout=1.0)
    except Empty:
        return None


def _heartbeat(events: Any) -> None:
    """Tells the driver that this worker's placement group is in use, for as long as this process lives."""
    group = ray.util.get_current_placement_group()
    while True:
        send_event(events, "beat", group.id.hex())
        time.sleep(SECONDS_BETWEEN_BEATS)


class TrialTrainable(tune.Trainable):
    """A trial as Ray Tune sees it: one step is one epoch."""

    def setup(self, config: dict[str, Any], settings: TrialSettings | None = None) -> None:
        """Runs once in the life of the process."""
        assert settings is not None
        self.settings = settings
        self.host: InProcessRunner | WorkerGroupRunner = (
            InProcessRunner(settings) if settings.workers == 1 else WorkerGroupRunner(settings)
        )
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Hands the process the next trial."""
        self.order = TrialSpec(new_config["trial"], new_config["config"], new_config["folder"])
        self.epoch = 0
        return True

    def step(self) -> dict[str, Any]:
        """An epoch. One that a checkpoint already has is told again, which costs nothing."""
        self.epoch += 1
        answer = self.host.epoch(self.order, self.epoch)
        score = asha_score(answer.metrics, self.settings.metric) if answer.metrics else -1.0
        return {"epoch": self.epoch, "score": score, "answer": answer, "done": answer.finished}

    def cleanup(self) -> None:
        """Runs when the process is no longer needed."""
        self.host.close()
