"""A trial in the process that trains it: epoch after epoch, with checkpoints on storage."""

from typing import TYPE_CHECKING, NamedTuple, TypedDict

from distributed.sweep.metric import Metric
from distributed.train.checkpoint import StorageCheckpointer, resume_training
from distributed.train.events import EventSender
from distributed.train.runs import SWEEP_MARK, require_shared
from distributed.train.shared_data import SharedData
from distributed.train.trainer import worker_device
from distributed.tune.events import TrialProgress, TrialStarted
from model import storage
from model.config import make_config
from model.errors import DivergedError, UserError
from model.training.communicator import Communicator
from model.training.loop import Metrics

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.queue import Queue

_TIE = 1e-6  # weight of the loss in what ASHA compares: far below any difference of an F1


class TrialSpec(NamedTuple):
    """A trial to train: its name, its configuration as plain values, and its folder."""

    trial: str
    config: dict[str, object]
    folder: str


class EpochResult(NamedTuple):
    """The result of an epoch of a trial.

    Attributes:
        metrics: None where it could not be trained; `error` is the reason.
        finished: whether the trial has ended with it.
    """

    trial: str
    epoch: int
    metrics: Metrics | None
    finished: bool
    error: str | None = None
    diverged: bool = False


class EpochReport(TypedDict, total=False):
    """What a trial reports to Ray Tune after an epoch.

    Attributes:
        score: that ASHA compares.
        done: whether the trial ends with this epoch; Ray Tune sets it too where it stops a trial.
    """

    epoch: int
    score: float
    result: EpochResult
    done: bool


class TrialSettings(NamedTuple):
    """What the processes of all trials of a sweep share.

    Attributes:
        data: reference to a SharedData in Ray's object store.
        events: queue to the driver.
        workers: of a trial.
        cpus, gpus: of each worker.
        metric: that trials are ranked by.
    """

    data: "ObjectRef"
    events: "Queue"
    workers: int
    cpus: int
    gpus: float
    metric: Metric


def asha_score(metrics: Metrics, metric: Metric) -> float:
    """Return what ASHA compares: the metric, with ties broken by its head's own loss, which does not depend on alpha.

    Early on many trials find nothing yet and are equal at 0. Without this, ASHA would let all of them continue.
    """
    return metrics[metric.key] - _TIE * min(metrics[metric.loss], 100.0)


class TrialRun:
    """A trial in this process: trains epoch after epoch, and saves checkpoints on storage."""

    def __init__(
        self,
        spec: TrialSpec,
        data: SharedData,
        settings: TrialSettings,
        communicator: Communicator,
        events: EventSender | None,
    ) -> None:
        """Begin the trial, or resume it from its newest complete checkpoint; rank 0 alone has `events`.

        Raises:
            UserError: this node does not see the sweep's folder, or the trial cannot be trained.
        """
        require_shared(storage.parent(storage.parent(spec.folder)), SWEEP_MARK)
        self.spec = spec
        config = make_config(spec.config)
        self.checkpointer = StorageCheckpointer(
            spec.folder, settings.metric.key, communicator, config.run.checkpoint_minutes
        )
        self.training = resume_training(
            config,
            data,
            communicator,
            worker_device(bool(settings.gpus)),
            self.checkpointer,
            (lambda progress: events.send(TrialProgress(spec.trial, progress))) if events else None,
        )
        if events:
            events.send(TrialStarted(spec.trial))

    def epoch(self, number: int) -> EpochResult:
        """Return the result of an epoch; train it where no checkpoint has it already."""
        training = self.training
        try:
            while training.epoch < number and not training.finished:
                training.run_epoch()
                self.checkpointer.save(training)
        except DivergedError as error:
            return EpochResult(self.spec.trial, number, None, True, str(error), diverged=True)
        except UserError as error:
            return EpochResult(self.spec.trial, number, None, True, str(error))
        number = min(number, training.epoch)
        return EpochResult(
            self.spec.trial, number, training.history[number - 1], training.finished and number == training.epoch
        )
