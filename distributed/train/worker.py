"""What each Ray Train worker runs."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import ray.train
import torch
from ray.exceptions import RayError

from distributed.cluster.ray_internals import preemption_notice
from distributed.train.checkpoint import (
    SAVE,
    STOP,
    CheckpointRequest,
    StoppedError,
    StorageCheckpointer,
    checkpoints,
    resume_training,
)
from distributed.train.events import EpochEnd, EventSender, Note, TrainingStarted
from distributed.train.process_group import TorchCommunicator
from distributed.train.runs import RUN_MARK, require_shared
from distributed.train.shared_data import SharedData
from distributed.train.trainer import worker_device
from model import storage
from model.config import make_config
from model.errors import DivergedError
from model.training.communicator import Communicator, SingleProcess
from model.training.loop import SELECTION_METRIC, Training

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.queue import Queue

_SECONDS_BEFORE_THE_DEADLINE = 10.0  # time for a poll, twenty steps and a checkpoint


@dataclass(frozen=True)
class WorkerSettings:
    """What each worker of a training is given.

    Attributes:
        config: the whole configuration as plain values.
        folder: location of the run's folder.
        data: reference to a SharedData, of which each node has one copy in memory.
        threads: number of torch's threads.
        gpu: whether each worker has a GPU.
        events: the queue to the driver.
        control: the queue from the driver; any item requests a stop.
    """

    config: dict[str, object]
    folder: str
    data: "ObjectRef[SharedData]"
    threads: int
    gpu: bool
    events: "Queue"
    control: "Queue"


def train_loop_per_worker(arguments: dict[str, WorkerSettings]) -> str | None:
    """Train on this worker, with the others of its group.

    Returns:
        None; or, where the training diverged, the message for the user. It is not raised, since Ray would retry an error.
    """
    settings = arguments["settings"]
    torch.set_num_threads(settings.threads)
    communicator: Communicator = (
        TorchCommunicator() if ray.train.get_context().get_world_size() > 1 else SingleProcess()
    )
    sender = EventSender(settings.events) if communicator.rank == 0 else None
    try:
        return _train(settings, communicator, sender)
    finally:
        if sender:
            sender.close()


def _train(settings: WorkerSettings, communicator: Communicator, sender: EventSender | None) -> str | None:
    config, folder = make_config(settings.config), settings.folder
    require_shared(folder, RUN_MARK)
    on_note = (lambda text: sender.send(Note(text))) if sender else (lambda text: None)
    checkpointer = StorageCheckpointer(
        folder,
        SELECTION_METRIC,
        communicator,
        config.run.checkpoint_minutes,
        on_note,
        _checkpoint_request(settings.control, on_note),
    )
    device = worker_device(settings.gpu)
    on_progress = sender.send if sender else None
    training = resume_training(config, ray.get(settings.data), communicator, device, checkpointer, on_progress)
    if sender:
        sender.send(TrainingStarted(training.epoch, training.step))
    try:
        for metrics in training.epochs():
            checkpointer.save(training)
            if sender:
                _write_metrics(folder, training)
                sender.send(EpochEnd(metrics))
    except StoppedError:
        return None
    except DivergedError as error:
        newest = next(iter(checkpoints(folder)), None)
        last = f"the last good checkpoint is {storage.join(folder, newest)}" if newest else "there is no checkpoint yet"
        return f"{error}; {last}"
    if sender:
        _write_metrics(folder, training)  # a kill may have come between the last checkpoint and its metrics
    return None


def _write_metrics(folder: str, training: Training) -> None:
    lines = "".join(json.dumps(metrics) + "\n" for metrics in training.history)
    storage.write(storage.join(folder, "metrics.jsonl"), lines.encode())


def _checkpoint_request(control: "Queue", on_note: Callable[[str], None]) -> Callable[[], CheckpointRequest | None]:
    """Make a function that returns STOP when the driver requests it, SAVE when a node is about to be preempted, else None."""
    preempted = _preemption_watch(on_note)

    def request() -> CheckpointRequest | None:
        try:
            if control.qsize() > 0:
                return STOP
        except RayError:  # the driver has ended, and its queue with it
            pass
        return SAVE if preempted() else None

    return request


def _preemption_watch(on_note: Callable[[str], None]) -> Callable[[], bool]:
    """Make a function that returns whether to save because a node of this training is about to be preempted.

    It returns True once when the notice arrives, and once shortly before the deadline, so that little of the work is lost.
    """
    saved: set[tuple[int, bool]] = set()

    def preempted() -> bool:
        notice = preemption_notice()
        if notice is None:
            return False
        deadline = notice.deadline_ms or 0
        left = deadline / 1000 - time.time()
        moment = (deadline, bool(deadline) and left < _SECONDS_BEFORE_THE_DEADLINE)
        if moment in saved:
            return False
        saved.add(moment)
        when = f"in {max(left, 0):.0f} s" if deadline else "soon"
        on_note(f"a node of this training will be taken away {when}: saving a checkpoint")
        return True

    return preempted
