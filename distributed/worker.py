"""What each Ray Train worker runs."""

import json
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from distributed.checkpoint import Keeper, StoppedError, checkpoints
from distributed.world import Group
from model import storage
from model.config import make_config
from model.dataset import Dataset
from model.errors import DivergedError, UserError
from model.loop import RANKED_BY, Progress, Training, new_tagger
from model.workers import Alone, Workers

Event = tuple[str, Any]  # ("progress", Progress), ("epoch", figures) or ("note", text)


def train_worker(settings: dict[str, Any]) -> str | None:
    """Trains this worker's share. Runs on the workers.

    Args:
        settings: `config` (the whole configuration as plain values), `run` (location of the run's folder), `threads`
            (of torch), `events` (the queue to the driver) and `orders` (the queue from it).

    Returns:
        None; or, where the training diverged, what to tell the user. To Ray that is no error, or it would try again.
    """
    torch.set_num_threads(settings["threads"])
    config = make_config(settings["config"])
    context = ray.train.get_context()
    workers: Workers = Group() if context.get_world_size() > 1 else Alone()
    speak = _speaker(settings["events"]) if workers.rank == 0 else None
    dataset = Dataset(config.data)
    vectors = dataset.vectors() if config.tagger.vectors else None
    tagger = new_tagger(
        config.tagger,
        dataset.info["words"],
        config.training.seed,
        None if vectors is None else torch.from_numpy(vectors),
    )
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    run = settings["run"]
    _check_that_all_see(run)
    note = (lambda text: speak(("note", text))) if speak else None
    keeper = Keeper(run, RANKED_BY, workers, config.run.checkpoint_minutes, note, _asker(settings["orders"]))
    training = Training(
        config.training,
        tagger,
        dataset.load("train"),
        dataset.load("valid"),
        workers,
        device,
        (lambda progress: speak(("progress", progress))) if speak else None,
        keeper,
    )
    keeper.restore(training)
    try:
        for figures in training.epochs():
            keeper.keep(training)
            if speak:
                _write_metrics(run, training)
                speak(("epoch", figures))
    except StoppedError:
        return None
    except DivergedError as error:
        last = next(iter(checkpoints(run)), None)
        good = f"the last good checkpoint is {storage.join(run, last)}" if last else "there is no checkpoint yet"
        return f"{error}; {good}"
    if speak:
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


def _asker(orders: Any) -> Callable[[], bool]:
    """Asks whether the driver wants the training kept and stopped; once the driver is gone, it does not."""

    def asked() -> bool:
        try:
            return orders.qsize() > 0
        except RayError:
            return False

    return asked


def _speaker(events: Any) -> Callable[[Event], None]:
    """Sends events to the driver; silent once the driver is gone, for the training does not depend on being watched."""

    def speak(event: Event) -> None:
        kind, value = event
        try:
            events.put_nowait((kind, value._asdict() if isinstance(value, Progress) else value))
        except RayError:
            return

    return speak
