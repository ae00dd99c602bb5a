"""What each Ray Train worker runs."""

import json
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from distributed.cluster.ray_internals import preemption_notice
from distributed.train.checkpoint import KEEP, STOP, StoppedError, StorageCheckpointer, checkpoints
from distributed.train.events import EpochEnd, EventSender, Note, TrainingStarted
from distributed.train.process_group import TorchCommunicator
from distributed.train.shared_data import SharedData
from model import storage
from model.config import Config, make_config
from model.errors import DivergedError, UserError
from model.network.tagger import new_tagger
from model.training.communicator import Communicator, SingleProcess
from model.training.loop import SELECTION_METRIC, Training

_SECONDS_BEFORE_THE_DEADLINE = 10.0  # room for a look, twenty steps and a checkpoint


def train_loop_per_worker(settings: dict[str, Any]) -> str | None:
    """Trains this worker's share. Runs on the workers.

    Args:
        settings: `config` (the whole configuration as plain values), `run` (location of the run's folder), `data`
            (reference to a Data, which lies once in the memory of each node), `threads` (of torch), `events` (the queue to
            the driver) and `orders` (the queue from it).

    Returns:
        None; or, where the training diverged, what to tell the user. To Ray that is no error, or it would try again.
    """
    torch.set_num_threads(settings["threads"])
    config = make_config(settings["config"])
    context = ray.train.get_context()
    communicator: Communicator = TorchCommunicator() if context.get_world_size() > 1 else SingleProcess()
    sender = EventSender(settings["events"]) if communicator.rank == 0 else None
    try:
        return _train(config, settings, communicator, sender)
    finally:
        if sender:
            sender.close()


def _train(
    config: Config, settings: dict[str, Any], communicator: Communicator, sender: EventSender | None
) -> str | None:
    data: SharedData = ray.get(settings["data"])
    tagger = new_tagger(config.tagger, data.words, config.training.seed, data.vectors_for(config.tagger))
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    run = settings["run"]
    _check_that_all_see(run)
    note = (lambda text: sender.send(Note(text))) if sender else (lambda text: None)
    asked = _stop_or_save_request(settings["orders"], note)
    checkpointer = StorageCheckpointer(run, SELECTION_METRIC, communicator, config.run.checkpoint_minutes, note, asked)
    training = Training(
        config.training,
        tagger,
        data.train,
        data.valid,
        communicator,
        device,
        sender.send if sender else None,
        checkpointer,
    )
    checkpointer.restore(training)
    if sender:
        sender.send(TrainingStarted(training.epoch, training.step))
    try:
        for metrics in training.epochs():
            checkpointer.save(training)
            if sender:
                _write_metrics(run, training)
                sender.send(EpochEnd(metrics))
    except StoppedError:
        return None
    except DivergedError as error:
        last = next(iter(checkpoints(run)), None)
        good = f"the last good checkpoint is {storage.join(run, last)}" if last else "there is no checkpoint yet"
        return f"{error}; {good}"
    if sender:
        _write_metrics(run, training)  # a kill may have come between the last checkpoint and its line
    return None


def _write_metrics(run: str, training: Training) -> None:
    lines = "".join(json.dumps(each) + "\n" for each in training.history)
    storage.write(storage.join(run, "metrics.jsonl"), lines.encode())


def _check_that_all_see(run: str) -> None:
    """Raises UserError where this worker's node does not see the run's folder: it lies on another node's disk."""
    if not storage.exists(storage.join(run, "config.json")):
        raise UserError(
            f"{run}: is not seen by a worker on another node; give --storage a path on a file system that every node "
            f"mounts, or a URI such as s3://bucket/runs"
        )


def _stop_or_save_request(orders: Any, note: Callable[[str], None]) -> Callable[[], str | None]:
    """Asks whether the driver wants the training stopped, or a node's notice calls for a checkpoint."""
    warned = _preemption_notice(note)

    def asked() -> str | None:
        try:
            if orders.qsize() > 0:
                return STOP
        except RayError:  # the driver is gone, and so is its queue
            pass
        return KEEP if warned() else None

    return asked


def _preemption_notice(note: Callable[[str], None]) -> Callable[[], bool]:
    """Asks whether it is time for a checkpoint because a node of this training is about to be taken away.

    It is when the notice comes, and again shortly before the deadline, so that little is lost of what was done between.
    """
    told: set[tuple[int, bool]] = set()

    def warned() -> bool:
        info = preemption_notice()
        if info is None:
            return False
        deadline = info.deadline_ms or 0
        left = deadline / 1000 - time.time()
        moment = (deadline, bool(deadline) and left < _SECONDS_BEFORE_THE_DEADLINE)
        if moment in told:
            return False
        told.add(moment)
        when = f"in {max(left, 0):.0f} s" if deadline else "soon"
        note(f"a node of this training will be taken away {when}: keeping a checkpoint")
        return True

    return warned
