"""The progress of a training or a sweep: live on a terminal, else plain lines."""

import sys
import time
from typing import TYPE_CHECKING

from jobs.console import echo, format_duration

if TYPE_CHECKING:
    from rich.live import Live

    from distributed.sweep.state import SweepState, Trial
    from distributed.train.events import Event
    from distributed.tune.events import SweepEvent
    from model.training.progress import Progress


class TrainingProgress:
    """Shows a training: one updated line on a terminal, else a plain line every 10 s."""

    PLAIN_SECONDS = 10.0

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.f1: float | None = None
        self.began = time.monotonic()
        self.first: float | None = None  # fraction of the work that was done at the first progress
        self.printed = 0.0
        self.live: Live | None = None

    def __enter__(self) -> "TrainingProgress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                "starting the workers ...", console=Console(stderr=True), refresh_per_second=4, transient=True
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def event(self, event: "Event") -> None:
        """Show an event of `distributed.train.driver.train`."""
        from distributed.train.events import EpochEnd, Note
        from model.training.progress import Progress

        match event:
            case Progress():
                self._progress(event)
            case EpochEnd(metrics):
                self._epoch(metrics)
            case Note(text):
                self._line(text)

    def _progress(self, at: "Progress") -> None:
        text = (
            f"epoch {at.epoch}/{self.epochs}  step {at.step}/{at.steps}  left {self._left(at)}  "
            f"valid F1 {'-' if self.f1 is None else format(self.f1, '.4f')}  {at.tokens_per_s:,.0f} tokens/s  "
            f"loss: keyword {at.keyword_loss:.4f}, keyphrase {at.keyphrase_loss:.4f}"
        )
        if self.live:
            from rich.text import Text

            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))  # one line, whatever the width
        elif time.monotonic() - self.printed > self.PLAIN_SECONDS:
            self.printed = time.monotonic()
            echo(text)

    def _left(self, at: "Progress") -> str:
        done = (at.epoch - 1 + at.step / at.steps) / self.epochs
        if self.first is None:
            self.first, self.began = done, time.monotonic()
        trained = done - self.first
        return format_duration((time.monotonic() - self.began) / trained * (1 - done)) if trained > 0 else "-"

    def _epoch(self, metrics: dict[str, float]) -> None:
        self.f1 = metrics["valid/keyphrase_f1"]
        self._line(
            f"epoch {metrics['epoch']:.0f}/{self.epochs}  loss {metrics['train/loss']:.4f}  valid: "
            f"keyphrase F1 {self.f1:.4f} ({metrics['valid/keyphrase_f1_low']:.4f} to "
            f"{metrics['valid/keyphrase_f1_high']:.4f})  keyword F1 {metrics['valid/keyword_f1']:.4f}  "
            f"{metrics['train/tokens_per_s']:,.0f} tokens/s"
        )

    def _line(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            echo(text)


class SweepProgress:
    """Shows a sweep: a table on a terminal, else a plain line for each epoch."""

    ROWS = 20

    def __init__(self) -> None:
        self.live: Live | None = None
        self.sweep: SweepState | None = None
        self.at: dict[str, Progress] = {}  # newest progress of each trial
        self.printed: dict[str, tuple[int, str]] = {}  # epochs and state of each trial when its last line was printed
        self.drawn = 0.0

    def __enter__(self) -> "SweepProgress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live("starting ...", console=Console(stderr=True), auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._draw()
            self.live.stop()

    def event(self, event: "SweepEvent") -> None:
        """Show an event of `distributed.tune.driver.tune`."""
        from distributed.train.events import Note
        from distributed.tune.events import TrialProgress

        if isinstance(event, TrialProgress):
            self.at[event.trial] = event.progress
            if not self.live and time.monotonic() - self.drawn > TrainingProgress.PLAIN_SECONDS:
                self._print_progress()
        elif not isinstance(event, Note):
            resumed, self.sweep = self.sweep is None, event
            if not self.live:
                self._print_changes(event, resumed)
        elif self.live:
            self.live.console.print(event.text, highlight=False, markup=False)
        else:
            echo(event.text)
        if self.live and time.monotonic() - self.drawn > 0.5:
            self._draw()

    def _print_progress(self) -> None:
        if self.sweep is None:
            return
        self.drawn = time.monotonic()
        running = [trial.name for trial in self.sweep.all if trial.state == "running"]
        parts = [
            f"{name} epoch {self.at[name].epoch} step {self.at[name].step}/{self.at[name].steps}"
            for name in running
            if name in self.at
        ]
        echo(f"  {'; '.join(parts)}  left {self._left(self.sweep)}")

    def _print_changes(self, sweep: "SweepState", resumed: bool) -> None:
        """Print a line for each new epoch, also of several since the last event; of a resumed sweep's past the last alone."""
        for trial in sweep.all:
            now = (len(trial.metrics), trial.state)
            before = self.printed.get(trial.name, (0, "running"))
            if before == now:
                continue
            self.printed[trial.name] = now
            self.drawn = time.monotonic()
            values = " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in _shown_values(trial).items())
            # The last epoch has a line again where its state alone is new.
            first = now[0] if resumed else min(before[0] + 1, now[0])
            for epoch in range(first, now[0] + 1):
                f1 = f"{trial.metrics[epoch - 1][sweep.plan.metric]:.4f}" if epoch else "-"
                state = now[1] if epoch == now[0] else "running"
                echo(f"{trial.name}  {values}  epoch {epoch}/{trial.epochs}  {f1}  {state}  [{self._summary(sweep)}]")

    def _summary(self, sweep: "SweepState") -> str:
        best = sweep.best
        shown = f"best {best.name} {best.best_score(sweep.plan.metric):.4f}" if best else "no metric yet"
        return f"{shown}, {sweep.epochs_spent} of {sweep.plan.epochs_planned} epochs, left {self._left(sweep)}"

    def _left(self, sweep: "SweepState") -> str:
        """Return an estimate from the time and the epochs of the trials so far; finalists train in full."""
        ended = [trial for trial in sweep.searched if trial.state != "running"]
        spent = sweep.epochs_trained
        if not ended or not spent:
            return "-"
        each = sum(len(trial.metrics) for trial in ended) / len(ended)
        searching = (sweep.plan.trials - len(ended)) * each
        running = sum(len(trial.metrics) for trial in sweep.searched if trial.state == "running")
        return format_duration(sweep.seconds / spent * (max(searching - running, 0) + sweep.epochs_left_of_finalists))

    def _draw(self) -> None:
        """Draw the running and the best trials, and below them the rungs and the spent epochs."""
        if self.sweep is None or self.live is None:
            return
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        self.drawn = time.monotonic()
        sweep, metric = self.sweep, self.sweep.plan.metric
        names = list(dict.fromkeys(name for trial in sweep.all for name in _shown_values(trial)))
        grid = Table(box=None, padding=(0, 1), header_style="bold")
        for column in ("trial", *(name.rpartition(".")[2] for name in names), "epoch", "F1 now", "best", "state"):
            grid.add_column(column, no_wrap=True)
        running = [trial for trial in sweep.all if trial.state == "running"]
        others = sorted(
            (trial for trial in sweep.all if trial.state != "running"),
            key=lambda trial: -trial.best_score(metric),
        )
        for trial in (running + others)[: self.ROWS]:
            now = f"{trial.metrics[-1][metric]:.4f}" if trial.metrics else "-"
            best_epoch = trial.best(metric)
            best = f"{best_epoch[metric]:.4f}" if best_epoch else "-"
            shown = _shown_values(trial)
            values = [
                f"{shown[name]:.4g}" if isinstance(shown.get(name), float) else str(shown.get(name, ""))
                for name in names
            ]
            at = self.at.get(trial.name)
            inside = f" +{at.step / at.steps:.0%}" if at and trial.state == "running" else ""
            cells = (trial.name, *values, f"{len(trial.metrics)}/{trial.epochs}{inside}", now, best, trial.state)
            grid.add_row(*map(Text, cells))  # no markup, which brackets of a value would be
        left_out = len(sweep.trials) - self.ROWS
        lines = [f"... and {left_out} more"] if left_out > 0 else []
        rungs = [
            f"{sum(trial.state == 'stopped' and len(trial.metrics) == rung for trial in sweep.searched)} at epoch {rung}"
            for rung in sweep.plan.rungs
        ]
        ended = sum(trial.state != "running" for trial in sweep.searched)
        lines.append(f"{ended} of {sweep.plan.trials} trials ended; stopped: {', '.join(rungs) or 'none'}")
        lines.append(f"{self._summary(sweep)}, elapsed {format_duration(sweep.seconds)}")
        self.live.update(Group(grid, Text("\n".join(lines))), refresh=True)


def _shown_values(trial: "Trial") -> dict[str, object]:
    """Return the searched fields of a trial; of an ablation, whose rows have many fields, the row and the seed."""
    seed = trial.values.get("training.seed")
    return trial.values if trial.series is None or seed is None else {"row": trial.series, "seed": seed}
