"""Runs by name: starting and resuming them, and what may change in between.

A run's folder, `<storage>/<name>/`:

    config.json            the whole configuration
    metrics.jsonl          the metrics of each epoch
    checkpoint_epoch_*/    the two newest checkpoints, to resume from
    best_epoch_*           the weights of the best epoch so far
    bundle/                the finished tagger, with the weights of the best epoch
    result.json            what `train --json` prints; written when the run is finished
    wandb/                 W&B's own files (local storage only)
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model import storage
from model.config import Config, TrainingConfig, current_tree, make_config
from model.distillation.teacher_split import labels_digest, teacher_labels
from model.errors import UserError
from model.network.encoder_files import with_digest

RUN_MARK, SWEEP_MARK = "config.json", "sweep.json"  # one of them is in the folder of every run and sweep


def run_folder(config: Config) -> str:
    """Return the location of a run's folder. Its configuration has a name."""
    assert config.run.name is not None
    return storage.join(config.run.storage, config.run.name)


def run_exists(config: Config) -> bool:
    """Return whether a run has begun."""
    return storage.exists(storage.join(run_folder(config), "config.json"))


def new_run(config: Config, kind: str = "run") -> Config:
    """Return the configuration of a new run or sweep, with a name and with absolute locations.

    Args:
        config: as the user gave it.
        kind: `run` or `sweep`, with which a name made from the time begins.

    Raises:
        UserError: a run or sweep of this name exists, or the encoder or the teacher's labels cannot be read.
    """
    # Of commands that are started together, each has another name.
    name = config.run.name or time.strftime(f"{kind}-%Y%m%d-%H%M%S-{secrets.token_hex(2)}")
    run = config.run.model_copy(update={"name": name, "storage": storage.absolute(config.run.storage)})
    changes = {"tagger": with_digest(config.tagger), "training": _with_teacher(config.training), "run": run}
    config = config.model_copy(update={"data": storage.absolute(config.data), **changes})
    folder = run_folder(config)
    if is_run_or_sweep(folder):
        raise UserError(
            f"{folder}: a run or sweep of this name exists; resume it with --resume {name}, or choose another --name"
        )
    return config


def is_run_or_sweep(folder: str) -> bool:
    """Return whether a folder is that of a run or of a sweep."""
    return any(storage.exists(storage.join(folder, mark)) for mark in (RUN_MARK, SWEEP_MARK))


def require_shared(folder: str, mark: str) -> None:
    """Check that this process's node sees the folder of a run or sweep, which may be on another node's disk.

    Args:
        folder: of the run or sweep.
        mark: the file that the driver has written there.

    Raises:
        UserError: it does not.
    """
    if not storage.exists(storage.join(folder, mark)):
        raise UserError(
            f"{folder}: cannot be seen by a worker on another node; give --storage a path on a file system that every node "
            f"mounts, or a URI such as s3://bucket/runs"
        )


@contextmanager
def at_work(config: Config) -> Iterator[None]:
    """Keep other processes from working on a run, as far as the file system of its folder can.

    Raises:
        UserError: another process is at work on it, or has begun another run of this name in the meantime.
    """
    folder = run_folder(config)
    with _locked(folder):
        if run_exists(config):
            begun = make_config(_read_config(storage.join(folder, "config.json"), str(config.run.name)))
            if (begun.tagger, begun.training) != (config.tagger, config.training) or begun.data != config.data:
                raise UserError(f"{folder}: another run of this name has begun; choose another --name")
        yield


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Lock the folder of a run on this machine until the end of the block. Raises UserError where another process has it."""
    if storage.is_remote(folder):
        yield
        return
    path = Path(storage.absolute(folder))
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock(descriptor, folder, "run")
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: str, kind: str) -> None:
    """Lock an open file or folder on this machine until it is closed, unless its file system locks none.

    Raises:
        UserError: another process has it; `folder` and `kind` are for the message.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another process is at work on this {kind}; wait for it or stop it, or choose another --name"
        ) from None
    except OSError:  # Lustre locks nothing unless it is mounted for that, and NFS no folders
        pass


def _with_teacher(training: TrainingConfig) -> TrainingConfig:
    """Return the fields of a new run: the locations of its teachers' labels valid in every folder, and their digest."""
    if training.teacher is None:
        return training
    training = training.model_copy(update={"teacher": tuple(map(storage.absolute, training.teacher))})
    return training.model_copy(update={"teacher_digest": labels_digest(teacher_labels(training))})


def resumed_run(name: str, location: str, changes: Mapping[str, Any]) -> Config:
    """Return the configuration of a run to resume.

    Args:
        name: of the run.
        location: the storage that its folder is in.
        changes: fields of `run` to change; other changes would alter the numbers.

    Raises:
        UserError: there is no such run, it is given another name, or a change would alter the numbers.
    """
    given = current_tree(dict(changes))
    run = given.get("run", {})
    other = run.get("name", name)
    if other != name:
        raise UserError(f"--resume {name} with run.name {other}: a run keeps its name; leave --name out")
    place = storage.join(storage.absolute(location), name, "config.json")
    tree = _read_config(place, name)
    if "workers" in run:
        run = {"min_workers": None} | run  # the fewest go with the most
    asked = make_config({"data": tree["data"]} | given | {"run": tree["run"] | run})  # reports invalid fields by name
    if teacher := asked.training.teacher:  # as `new_run` saved it
        given["training"] = given["training"] | {"teacher": list(map(storage.absolute, teacher))}
    if isinstance(begun := tree["training"].get("teacher"), str):  # by an earlier version
        tree["training"]["teacher"] = [begun]
    _refuse_other_numbers(name, tree, given)
    tree["run"] |= run | {"name": name, "storage": storage.absolute(location)}
    return make_config(tree, place)


def _read_config(place: str, name: str) -> dict[str, Any]:
    try:
        tree = current_tree(json.loads(storage.read(place)))
        _ = [tree["data"] + "", tree["tagger"].keys(), tree["training"].keys(), tree["run"].keys()]
    except FileNotFoundError:
        raise UserError(f"{place}: no run of this name; see --storage, or start it with --name {name}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: is damaged ({error}); copy it again, or train again") from None
    return tree


def _refuse_other_numbers(name: str, tree: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    for part in ("tagger", "training"):
        other = [key for key, value in changes.get(part, {}).items() if tree[part].get(key) != value]
        if other:
            raise UserError(
                f"--resume {name}: {', '.join(f'{part}.{key}' for key in other)} would change the numbers of a run that has "
                f"started; start a new run with another --name"
            )
    data = changes.get("data")
    if data is not None and storage.absolute(data) != tree["data"]:
        raise UserError(f"--resume {name}: the run was started on {tree['data']}; leave --data out, or start a new run")
