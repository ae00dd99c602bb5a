"""How far a running epoch is: its losses, its seconds, and reports of both."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

_SECONDS_BETWEEN_REPORTS = 0.5


class Progress(NamedTuple):
    """How far a running epoch is; numbers begin at 1, losses are means per token since the beginning of the epoch."""

    epoch: int
    step: int
    steps: int
    tokens_per_s: float
    keyword_loss: float
    keyphrase_loss: float


class EpochLosses:
    """This worker's losses since the beginning of an epoch.

    Attributes:
        sums: (2,) of the keyword and the keyphrase head, float64, on the device.
        first_bad: scalar on the device, so that no step has to wait for it: the first step whose losses are not finite;
            -1 if all are finite.
    """

    def __init__(self, sums: torch.Tensor) -> None:
        self.sums = sums
        self.first_bad = torch.full((), -1, device=sums.device)

    def add(self, losses: torch.Tensor, step: int) -> None:
        """Add the loss sums (2,) of a step."""
        self.sums += losses
        self.first_bad = torch.where((self.first_bad < 0) & ~losses.isfinite().all(), step, self.first_bad)


class EpochTimer:
    """The seconds that an epoch has taken, in all processes that trained a part of it.

    Attributes:
        seconds: up to the last lap.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._began = time.perf_counter()

    def start(self) -> None:
        """Begin to count."""
        self._began = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the start or the last lap to `seconds`."""
        now = time.perf_counter()
        self.seconds, self._began = self.seconds + now - self._began, now


class ProgressReporter:
    """Reports an epoch about twice a second."""

    def __init__(
        self, report: Callable[[Progress], None] | None, epoch: int, steps: int, tokens_before: float, workers: int
    ) -> None:
        """
        Args:
            report: what to call; None for no reports.
            epoch: number of the epoch, from 1.
            steps: of the epoch.
            tokens_before: about as many tokens of the epoch were trained on by an earlier process.
            workers: that share each batch.
        """
        self._report, self._epoch, self._steps, self._workers = report, epoch, steps, workers
        self._began = self._reported = time.perf_counter()
        self._before, self._done = tokens_before, 0

    def update(self, step: int, tokens: int, losses: EpochLosses) -> None:
        """Report, if it is time to, after a step (from 0) of some tokens has been done.

        The losses are estimated from this worker's texts alone.
        """
        self._done += tokens
        now = time.perf_counter()
        if self._report and now - self._reported > _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            means = losses.sums / (self._before + self._done) * self._workers
            speed = self._done / (now - self._began)
            self._report(Progress(self._epoch, step + 1, self._steps, speed, *means.tolist()))
