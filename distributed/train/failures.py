"""Failures of a training's workers: reported to the driver, counted, and converted to errors that say what to do."""

from typing import TYPE_CHECKING

import ray.train
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from distributed.train.checkpoint import checkpoints
from distributed.train.events import Event, EventHandler, Note, TrainingStarted, WorkersLost, send
from distributed.train.trainer import COLLECTIVE_TIMEOUT_S
from model.errors import RunFailedError, UserError, first_line

if TYPE_CHECKING:
    from ray.util.queue import Queue

_NCCL_HINT = (
    f"; on GPUs, a worker whose exchange with another takes longer than {COLLECTIVE_TIMEOUT_S} s ends like this, and Ray's log "
    f"of it says 'Watchdog caught collective operation timeout'"
)


class WorkerLossCallback(ray.train.UserCallback):
    """Reports lost workers to the driver. Runs in Ray's controller."""

    def __init__(self, folder: str, events: "Queue", gpu: bool) -> None:
        self.folder, self.events, self.gpu = folder, events, gpu

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray before it restarts the workers."""
        error = worker_error(self.folder, worker_exceptions, self.gpu)
        send(self.events, WorkersLost(describe(worker_exceptions, self.gpu), error))


class NoProgressLimit:
    """Passes events on, and ends a training that is restarted repeatedly without progress.

    Ray counts every failure of a training against one limit. A healthy run of several days on preemptible machines has
    many failures, so only those without progress in between are counted.
    """

    def __init__(self, retries: int, on_event: EventHandler) -> None:
        self.retries, self.on_event = retries, on_event
        self.losses, self.position = 0, (0, 0)

    def handle(self, event: Event) -> None:
        """Handle an event. Raises UserError or RunFailedError where another attempt would not help."""
        match event:
            case TrainingStarted(epoch, step):
                if (epoch, step) > self.position:
                    self.losses = 0
                elif self.losses and (epoch, step) == (0, 0):
                    self.on_event(Note("starting again from the beginning: nothing was saved yet"))
                self.position = (epoch, step)
            case WorkersLost(reason, error):
                self.losses += 1
                if isinstance(error, UserError) or self.losses > self.retries:
                    raise error
                self.on_event(Note(f"lost {reason}"))
            case _:
                self.on_event(event)


def describe(failures: dict[int, Exception], gpu: bool) -> str:
    """Return the reasons why workers (rank: error) failed, in one line.

    Args:
        failures: of the workers, by rank.
        gpu: whether they trained on GPUs, where NCCL ends a process that has waited too long for another.
    """
    reasons = "; ".join(f"worker {rank}: {first_line(error)}" for rank, error in failures.items())
    died = any(isinstance(getattr(error, "health_check_failure", None), RayActorError) for error in failures.values())
    return reasons + _NCCL_HINT if gpu and died else reasons


def worker_error(folder: str, failures: dict[int, Exception], gpu: bool) -> UserError | RunFailedError:
    """Return the error that ends a training whose workers fail: a UserError where a retry would not help.

    The arguments are those of `describe`.
    """
    for rank, error in failures.items():
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and error.errno is not None:
            return UserError(
                f"{folder}: worker {rank} could not read or write: {error}; make room, then {_next(folder)}"
            )
    return _failed(folder, describe(failures, gpu))


def to_user_error(error: Exception, folder: str, gpu: bool) -> UserError | RunFailedError:
    """Return what Ray Train raised as an error that says what to do; `gpu` is whether the workers had GPUs."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return worker_error(folder, error.worker_failures, gpu)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    cause = getattr(cause, "cause", None) or cause  # a RayTaskError's own message does not give the cause
    return _failed(folder, first_line(cause, with_kind=True))


def _failed(folder: str, reason: str) -> RunFailedError:
    return RunFailedError(f"{folder}: the training failed: {reason}; {_next(folder)}")


def _next(folder: str) -> str:
    """Return how to go on after a failure; a run without a checkpoint is not kept."""
    try:
        saved = bool(checkpoints(folder))
    except OSError:  # the storage may be what failed
        saved = True
    return "resume from its last checkpoint with --resume" if saved else "start it again, since nothing was saved yet"
