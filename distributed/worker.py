"""What each Ray Train worker runs."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from distributed.checkpoint import load_checkpoint, save_checkpoint
from distributed.world import Group
from model import storage
from model.config import make_config
from model.dataset import Dataset
from model.errors import DivergedError
from model.loop import Progress, Training, new_tagger
from model.workers import Alone, Workers

Event = tuple[str, Any]  # ("progress", Progress), ("epoch", figures) or ("note", text)


def train_worker(settings: dict[str, Any]) -> str | None:
    """Trains this worker's share. Runs on the workers.

    Args:
        settings: `config` (the whole configuration as plain values), `run` (location of the run's folder), `threads`
            (of torch) and `events` (the queue to the driver).

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
    training = Training(
        config.training,
        tagger,
        dataset.load("train"),
        dataset.load("valid"),
        workers,
        device,
        (lambda progress: speak(("progress", progress))) if speak else None,
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            training.restore(load_checkpoint(folder))
        if speak:
            speak(("note", f"going on from the checkpoint of epoch {training.epoch}"))
    try:
        for figures in training.epochs():
            _report(training, figures, settings["run"], workers.rank)
            if speak:
                speak(("epoch", figures))
    except DivergedError as error:
        return f"{error}; {_last_good(training, settings['run'])}"
    return None


def _report(training: Training, figures: dict[str, float], run: str, rank: int) -> None:
    """Keeps the checkpoint of a finished epoch; every rank waits here for the others."""
    if rank != 0:
        ray.train.report(figures, checkpoint_dir_name=_name(training.epoch))
        return
    lines = "".join(json.dumps(each) + "\n" for each in training.history)
    storage.write(storage.join(run, "metrics.jsonl"), lines.encode())
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        save_checkpoint(Path(folder), training.state())
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(figures, checkpoint, checkpoint_dir_name=_name(training.epoch))


def _name(epoch: int) -> str:
    return f"checkpoint_epoch_{epoch:04d}"


def _last_good(training: Training, run: str) -> str:
    if not training.epoch:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is epoch {training.epoch}, {storage.join(run, _name(training.epoch))}"


def _speaker(events: Any) -> Callable[[Event], None]:
    """Sends events to the driver; silent once the driver is gone, for the training does not depend on being watched."""

    def speak(event: Event) -> None:
        kind, value = event
        try:
            events.put_nowait((kind, value._asdict() if isinstance(value, Progress) else value))
        except RayError:
            return

    return speak
