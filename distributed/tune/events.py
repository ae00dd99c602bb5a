"""Events of a sweep: from the processes of its trials to the driver, and from the driver to the caller of `tune`."""

from collections.abc import Callable
from dataclasses import dataclass

from distributed.sweep.state import SweepState
from distributed.train.events import Note
from model.training.progress import Progress


@dataclass(frozen=True)
class TrialStarted:
    """A trial's first training step begins."""

    trial: str


@dataclass(frozen=True)
class TrialProgress:
    """Where the training of a trial is."""

    trial: str
    progress: Progress


@dataclass(frozen=True)
class Heartbeat:
    """A placement group, by its hexadecimal id, is in use."""

    group: str


TrialEvent = TrialStarted | TrialProgress | Heartbeat | Note
SweepEvent = SweepState | TrialProgress | Note  # the state after each change of it
SweepEventHandler = Callable[[SweepEvent], None]
