"""One training on Ray Train, from a configuration to a bundle."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

from distributed.cluster.connection import connect, driver_queue, inspect_cluster
from distributed.cluster.preflight import check_storage, data_warnings
from distributed.cluster.ray_internals import START_TIMEOUT, TRAIN_ENVIRONMENT, environment
from distributed.cluster.resources import ClusterResources, WorkerRequest, plan_workers
from distributed.train.checkpoint import STOP, checkpoints
from distributed.train.events import EpochEnd, Event, EventHandler, Note, close_queues, drain
from distributed.train.failures import NoProgressLimit, WorkerLossCallback, to_user_error
from distributed.train.preflight import validate_run
from distributed.train.result import TrainResult, read_result, write_result
from distributed.train.runs import at_work, run_exists, run_folder
from distributed.train.tracking import WandbRun, wandb_settings
from model import storage
from model.config import Config, RunConfig
from model.data.dataset import Dataset
from model.errors import DivergedError

if TYPE_CHECKING:
    import ray.train

_FAILED_STARTS = 30  # of a worker group; an elastic group has one for each lost node


def train(config: Config, on_event: EventHandler) -> TrainResult:
    """Train, or resume a run that was cut off, and write its bundle.

    Args:
        config: from `new_run` or `resumed_run`.
        on_event: called in this thread with Progress, EpochEnd and Note.

    Raises:
        UserError: the configuration, the dataset or the cluster does not allow it.
        DivergedError: the loss is not finite.
        NotGrantedError: the cluster did not grant the workers in time.
        RunFailedError: it failed otherwise.
    """
    folder = run_folder(config)
    finished = read_result(folder)
    if finished:
        on_event(Note(f"{folder} is finished already; nothing to do"))
        return finished
    validate_run(config, inspect_cluster())  # a mistake is reported at once, not after Ray's start
    wandb_settings(config)
    cluster = connect()
    request = plan_workers(config.run, cluster)
    check_storage(config.run.storage, cluster)
    dataset = Dataset(config.data)
    config = config.model_copy(update={"data_digest": dataset.digest})
    for warning in data_warnings(config, dataset):
        on_event(Note(warning))
    with at_work(config), _saved(config, folder):
        return _train(config, request, cluster, folder, on_event)


@contextmanager
def _saved(config: Config, folder: str) -> Iterator[None]:
    """Save the configuration of a run, which marks its folder.

    A new run that fails before its first checkpoint is not kept, so that the same command can be given again.
    """
    place = storage.join(folder, "config.json")
    new = not run_exists(config)
    storage.write(place, json.dumps(config.model_dump(), indent=2).encode())
    try:
        yield
    except Exception:
        with suppress(OSError):  # of storage that fails, which is what ends the run
            if new and not checkpoints(folder):
                storage.remove(place)
        raise


def _train(
    config: Config, request: WorkerRequest, cluster: ClusterResources, folder: str, on_event: EventHandler
) -> TrainResult:
    """Train with tracking, and write the bundle and the result."""
    began = time.perf_counter()
    with WandbRun(config, folder) as tracker:
        on_event(Note(f"run {config.run.name}: {request} on {cluster.describe_count('node')}, {tracker.where}"))
        if request.note:
            on_event(Note(request.note))

        def handle(event: Event) -> None:
            if isinstance(event, EpochEnd):
                tracker.epoch(event.metrics)
            on_event(event)

        _fit(config, request, folder, handle)
        result = write_result(config, time.perf_counter() - began)
        tracker.finish(result.as_json())
    return result


def _fit(config: Config, request: WorkerRequest, folder: str, on_event: EventHandler) -> None:
    """Run the trainer in a background thread; this one passes events on and stays free for Ctrl-C."""
    import ray

    from distributed.cluster.background import run_in_background
    from distributed.cluster.wait import ResourceWait
    from distributed.train.shared_data import SharedData
    from distributed.train.trainer import make_trainer
    from distributed.train.worker import WorkerSettings, train_loop_per_worker

    events, control = driver_queue(may_lose_items=True), driver_queue(may_lose_items=True)
    data = ray.put(SharedData.load(config.data, config.tagger, config.training))
    settings = WorkerSettings(config.model_dump(), folder, data, request.cpus, request.gpu, events, control)
    limit = NoProgressLimit(config.run.retries, on_event)

    def fit() -> "ray.train.Result":
        try:
            with tempfile.TemporaryDirectory(prefix="tandem-train-") as scratch, _start_timeout(config.run):
                trainer = make_trainer(
                    train_loop_per_worker,
                    {"settings": settings},
                    name=str(config.run.name),
                    scratch=scratch,
                    workers=(config.run.min_workers, request.workers) if config.run.min_workers else request.workers,
                    cpus=request.cpus,
                    gpu=request.gpu,
                    failure_config=_failure_config(config.run),
                    callbacks=[WorkerLossCallback(folder, events, request.gpu)],
                )
                return trainer.fit()
        except Exception as error:
            raise to_user_error(error, folder, request.gpu) from error

    result = run_in_background(
        fit,
        lambda: drain(events, limit.handle),
        ResourceWait(str(request), config.run.wait_minutes, lambda text: on_event(Note(text))),
        stop=lambda: control.put_nowait(STOP),  # the workers save a checkpoint first
        cleanup=lambda: close_queues(events, control),
    )
    if result.return_value is not None:
        raise DivergedError(result.return_value)


def _failure_config(run: RunConfig) -> "ray.train.FailureConfig":
    """Return how often Ray restarts the workers: without retries never, else always, since NoProgressLimit is the limit.

    Ray counts preempted workers apart from failed ones.
    """
    import ray.train

    restarts = -1 if run.retries else 0
    return ray.train.FailureConfig(
        max_failures=restarts, max_preemption_failures=restarts, controller_failure_limit=_FAILED_STARTS
    )


def _start_timeout(run: RunConfig) -> AbstractContextManager[None]:
    """Set, for one run, the seconds after which Ray Train requests a group again that has not started.

    A group of fixed size is requested once: `ResourceWait` decides how long to wait.
    """
    fixed_size = str(60 * run.wait_minutes + 60)
    return environment({START_TIMEOUT: TRAIN_ENVIRONMENT[START_TIMEOUT] if run.min_workers else fixed_size})
