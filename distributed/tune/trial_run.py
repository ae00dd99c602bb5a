"""A trial in the process that trains it: epoch after epoch, with what a restart needs kept on storage."""

from typing import Any, NamedTuple

import torch

from distributed.train.checkpoint import StorageCheckpointer
from distributed.train.events import send_event
from distributed.train.shared_data import SharedData
from model.config import make_config
from model.errors import DivergedError, UserError
from model.network.tagger import new_tagger
from model.training.communicator import Communicator
from model.training.loop import Metrics, Training

_TIE = 1e-6  # weight of the loss in what ASHA compares: far below any difference of an F1


class TrialSpec(NamedTuple):
    """A trial to train: its name, its configuration as plain values, and its folder."""

    trial: str
    config: dict[str, Any]
    folder: str


class EpochResult(NamedTuple):
    """What came of an epoch of a trial. `figures` are None where it could not be trained: `error` says why."""

    trial: str
    epoch: int
    metrics: Metrics | None
    finished: bool
    error: str | None = None
    diverged: bool = False


class TrialSettings(NamedTuple):
    """What the processes of all trials of a sweep share.

    Attributes:
        data: reference to a Data in Ray's object store.
        events: queue to the driver.
        workers, cpus, gpus: of a trial; cpus and gpus of each worker.
        metric: that ranks trials.
    """

    data: Any
    events: Any
    workers: int
    cpus: int
    gpus: float
    metric: str


def asha_score(metrics: Metrics, metric: str) -> float:
    """What ASHA compares: the metric; its head's own loss, which has no alpha in it, parts equals.

    Early on many trials still find nothing and are equal at 0. Without this, ASHA lets all of them go on.
    """
    head = metric.split("_")[0]
    return metrics[metric] - _TIE * min(metrics[f"{head}_loss"], 100.0)


class TrialRun:
    """A trial in this process: trains epoch after epoch, and keeps on storage what a restart needs."""

    def __init__(self, order: TrialSpec, data: SharedData, settings: TrialSettings, communicator: Communicator) -> None:
        """Begins the trial, or goes on from its newest whole checkpoint."""
        self.order = order
        config = make_config(order.config)
        self.checkpointer = StorageCheckpointer(
            order.folder, settings.metric, communicator, config.run.checkpoint_minutes
        )
        self.training = Training(
            config.training,
            new_tagger(config.tagger, data.words, config.training.seed, data.vectors_for(config.tagger)),
            data.train,
            data.valid,
            communicator,
            torch.device("cuda" if settings.gpus else "cpu"),
            (lambda progress: send_event(settings.events, "progress", {"trial": order.trial, **progress._asdict()}))
            if communicator.rank == 0
            else None,
            self.checkpointer,
        )
        self.checkpointer.restore(self.training)
        if communicator.rank == 0:
            send_event(settings.events, "begun", {"trial": order.trial})

    def epoch(self, number: int) -> EpochResult:
        """The figures of an epoch, which is trained where it is not already."""
        training = self.training
        try:
            while training.epoch < number and not training.finished:
                training.run_epoch()
                self.checkpointer.save(training)
        except DivergedError as error:
            return EpochResult(self.order.trial, number, None, True, str(error), diverged=True)
        except UserError as error:
            return EpochResult(self.order.trial, number, None, True, str(error))
        number = min(number, training.epoch)
        return EpochResult(
            self.order.trial, number, training.history[number - 1], training.finished and number == training.epoch
        )
