"""The main job: one training on Ray Train, from a configuration to a bundle.

A run's folder, `<storage>/<name>/`:

    config.json            the whole configuration
    metrics.jsonl          the figures of each epoch
    checkpoint_epoch_*/    the two newest checkpoints, to resume from
    best.safetensors       the weights of the best epoch so far
    bundle/                the finished tagger, with the weights of the best epoch
    result.json            what `train --json` prints; there when the run is finished
    wandb/                 what W&B keeps (local storage only)
"""

import json
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from distributed.cluster.connection import connect, driver_queue, inspect_cluster
from distributed.cluster.preflight import check_data, check_storage
from distributed.cluster.ray_internals import START_TIMEOUT
from distributed.cluster.resources import ClusterResources, WorkerRequest, describe_request, plan_workers
from distributed.train.checkpoint import STOP, load_best
from distributed.train.events import (
    EpochEnd,
    Event,
    EventHandler,
    Note,
    TrainingStarted,
    WorkersLost,
    close_queues,
    drain,
)
from distributed.train.failures import WorkerLossCallback, to_user_error
from distributed.train.tracking import WandbRun
from model import storage
from model.config import Config, current_tree, make_config
from model.data.dataset import Dataset
from model.errors import DivergedError, UserError
from model.inference.bundle import save_bundle
from model.training.loop import SELECTION_METRIC

if TYPE_CHECKING:
    import ray.train
    from ray.train.torch import TorchTrainer

_COLLECTIVE_TIMEOUT_S = 600
_FAILED_STARTS = 30  # of a worker group; an elastic one has one for each node that is lost


def new_run(config: Config) -> Config:
    """The configuration of a run that begins: with a name, and with locations that hold on every worker.

    Raises:
        UserError: a run of this name exists.
    """
    name = config.run.name or time.strftime("run-%Y%m%d-%H%M%S")
    settled = {"name": name, "storage": storage.absolute(config.run.storage)}
    config = config.model_copy(
        update={"data": storage.absolute(config.data), "run": config.run.model_copy(update=settled)}
    )
    if any(storage.exists(storage.join(run_folder(config), mark)) for mark in ("config.json", "sweep.json")):
        raise UserError(
            f"{run_folder(config)}: a run or sweep of this name exists; go on with --resume {name}, or choose another --name"
        )
    return config


def resumed_run(name: str, location: str, changes: dict[str, Any]) -> Config:
    """The configuration of a run that goes on.

    Args:
        name: of the run.
        location: the storage that its folder lies in.
        changes: fields of `run` to change; nothing else may, for the numbers would.

    Raises:
        UserError: there is no such run, or a change would alter the numbers.
    """
    changes, place = current_tree(changes), storage.join(storage.absolute(location), name, "config.json")
    try:
        tree = current_tree(json.loads(storage.read(place)))
    except FileNotFoundError:
        raise UserError(f"{place}: no run of this name; see --storage, or start it with --name {name}") from None
    except ValueError as error:
        raise UserError(f"{place}: is damaged: {error}") from None
    make_config({"data": tree["data"]} | changes)  # names what is unknown or not allowed
    for part in ("tagger", "training"):
        other = {key: value for key, value in changes.get(part, {}).items() if tree[part].get(key) != value}
        if other:
            raise UserError(
                f"--resume {name}: {', '.join(f'{part}.{key}' for key in other)} would change the numbers of a run that has "
                f"begun; start a new run with another --name"
            )
    data = changes.get("data")
    if data is not None and storage.absolute(data) != tree["data"]:
        raise UserError(f"--resume {name}: the run was begun on {tree['data']}; leave --data out, or start a new run")
    tree["run"] |= changes.get("run", {}) | {"name": name, "storage": storage.absolute(location)}
    return make_config(tree, place)


def run_folder(config: Config) -> str:
    """Where a run's files lie."""
    assert config.run.name is not None
    return storage.join(config.run.storage, config.run.name)


def validate_run(config: Config, cluster: ClusterResources) -> WorkerRequest:
    """All that can be known before any work is done: the dataset, the batch, the resources.

    Raises:
        UserError: the run could not be carried out.
    """
    check_data(config, Dataset(config.data))
    return plan_workers(config.run, cluster)


def dry_run(config: Config) -> dict[str, Any]:
    """The resolved configuration and what would be asked of the cluster; runs nothing."""
    cluster = inspect_cluster()
    share = validate_run(config, cluster)
    return {"name": config.run.name, "config": config.model_dump(), **describe_request(share, cluster)}


def train(config: Config, on_event: EventHandler) -> dict[str, Any]:
    """Trains, or goes on with a run that was cut off, and writes its bundle.

    Args:
        config: from `new_run` or `resumed_run`.
        on_event: called in this thread with Progress, EpochEnd and Note.

    Returns:
        What `train --json` prints.

    Raises:
        UserError: it could not be carried out, or diverged.
        RunFailedError: it failed; NotGrantedError where the cluster did not grant the workers in time.
    """
    folder = run_folder(config)
    finished = storage.join(folder, "result.json")
    if storage.exists(finished):
        on_event(Note(f"{folder} is finished already; nothing to do"))
        return json.loads(storage.read(finished))
    validate_run(config, inspect_cluster())  # a mistake is answered at once, not after Ray's start
    cluster = connect()
    share = plan_workers(config.run, cluster)
    check_storage(config.run.storage, cluster)
    storage.write(storage.join(folder, "config.json"), json.dumps(config.model_dump(), indent=2).encode())
    began = time.perf_counter()
    with WandbRun(config, folder) as tracker:
        on_event(Note(f"run {config.run.name}: {share} on {cluster.describe_count('node')}, {tracker.where}"))

        def handle(event: Event) -> None:
            if isinstance(event, EpochEnd):
                tracker.epoch(event.metrics)
            on_event(event)

        _fit(config, share, folder, handle)
        result = _finish(config, folder, time.perf_counter() - began)
        storage.write(finished, json.dumps(result, indent=2).encode())
        tracker.finish(result)
    return result


def _fit(config: Config, share: WorkerRequest, folder: str, on_event: EventHandler) -> None:
    """Runs the trainer beside this thread, which passes events on and stays free for Ctrl-C."""
    import ray

    from distributed.cluster.background import run_in_background
    from distributed.cluster.wait import ResourceWait
    from distributed.train.shared_data import SharedData

    data = ray.put(SharedData.load(config.data, config.tagger.uses_word_features))
    events, orders = driver_queue(), driver_queue()
    limit = NoProgressLimit(config.run.retries, on_event)

    def fit() -> "ray.train.Result":
        try:
            with tempfile.TemporaryDirectory(prefix="tandem-train-") as scratch:
                return _trainer(config, share, folder, data, (events, orders), scratch).fit()
        except Exception as error:
            raise to_user_error(error, folder) from error

    result = run_in_background(
        fit,
        lambda: drain(events, limit.handle),
        ResourceWait(str(share), config.run.wait_minutes, lambda text: on_event(Note(text))),
        stop=lambda: orders.put_nowait(STOP),  # the workers save a checkpoint first
        cleanup=lambda: close_queues(events, orders),
    )
    if result.return_value is not None:
        raise DivergedError(result.return_value)


def _trainer(
    config: Config, share: WorkerRequest, folder: str, data: Any, queues: tuple[Any, Any], scratch: str
) -> "TorchTrainer":
    import ray.train

    from distributed.train.trainer import make_trainer
    from distributed.train.worker import train_loop_per_worker

    if not config.run.min_workers:  # how long a group of fixed size is waited for, distributed.cluster.wait decides
        os.environ[START_TIMEOUT] = str(60 * config.run.wait_minutes + 60)
    settings = {"config": config.model_dump(), "run": folder, "threads": share.cpus}
    settings |= {"data": data, "events": queues[0], "orders": queues[1]}
    assert config.run.name is not None
    return make_trainer(
        train_loop_per_worker,
        settings,
        name=config.run.name,
        scratch=scratch,
        workers=(config.run.min_workers, share.workers) if config.run.min_workers else share.workers,
        cpus=share.cpus,
        gpu=share.gpu,
        failure_config=ray.train.FailureConfig(
            max_failures=-1 if config.run.retries else 0,  # NoProgressLimit counts those without progress
            controller_failure_limit=_FAILED_STARTS,
        ),
        callbacks=[WorkerLossCallback(folder, queues[0])],
        collective_timeout_s=_COLLECTIVE_TIMEOUT_S,
    )


class NoProgressLimit:
    """Passes events on, and ends a training that is restarted again and again without progress.

    Ray counts every failure of a training against one limit. A healthy run of several days on machines that may be taken
    away has many, so only those without progress in between are counted.
    """

    def __init__(self, retries: int, on_event: EventHandler) -> None:
        self.retries, self.on_event = retries, on_event
        self.losses, self.position = 0, (0, 0)

    def handle(self, event: Event) -> None:
        """Raises UserError or RunFailedError where another try would not help."""
        match event:
            case TrainingStarted(epoch, step):
                if (epoch, step) > self.position:
                    self.losses = 0
                self.position = (epoch, step)
            case WorkersLost(reason, error):
                self.losses += 1
                if isinstance(error, UserError) or self.losses > self.retries:
                    raise error
                self.on_event(Note(f"lost {reason}"))
            case _:
                self.on_event(event)


def _finish(config: Config, folder: str, seconds: float) -> dict[str, Any]:
    """Writes the bundle from the best epoch and gives the run's result."""
    weights, _ = load_best(folder)
    lines = storage.read(storage.join(folder, "metrics.jsonl")).decode().splitlines()
    history = [json.loads(line) for line in lines]
    best = max(history, key=lambda metrics: metrics[SELECTION_METRIC])
    metrics = {
        name.removeprefix("valid/"): value
        for name, value in best.items()
        if name.startswith(("valid/keyphrase_", "valid/keyword_")) and not name.endswith("_loss")
    }
    bundle = storage.join(folder, "bundle")
    save_bundle(bundle, config, Dataset(config.data).tokenizer_bytes(), weights, {"split": "valid", **metrics})
    return {
        "name": config.run.name,
        "bundle": bundle,
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "seconds": round(seconds, 3),
        "tokens_per_s": round(statistics.median(epoch["train/tokens_per_s"] for epoch in history), 1),
        "valid": metrics,
        **metrics,
    }
