"""What Ray Tune is given: configurations to try, when to stop them, and whom to tell."""

import queue
import threading
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray import tune as raytune

from distributed.sweep.ablation import keep_counts
from distributed.sweep.journal import Journal, timestamp
from distributed.sweep.state import SweepState, Trial
from distributed.train.checkpoint import prune_checkpoints
from distributed.tune.tracking import WandbGroup
from distributed.tune.trial_run import EpochResult
from model import storage


class SweepRecorder:
    """Writes down what happens: in the journal, in the sweep, in W&B, and for those who watch.

    Attributes:
        over: whether the time budget is spent.
        stopped: nothing is written any more; what trials still tell after a Ctrl-C is lost, and told again on resume.
        failure: why something could not be written; Tune would tell of it with a traceback of its own.
    """

    def __init__(self, sweep: SweepState, journal: Journal, tracker: WandbGroup) -> None:
        self.sweep, self.journal, self.tracker = sweep, journal, tracker
        self.news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.over = self.stopped = False
        self.failure: OSError | None = None
        self.lock = threading.Lock()
        self.kept = {trial.name for trial in sweep.searched if trial.state in ("finished", "stopped")}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune takes snapshots of what it is given, and the journal is the state."""
        return {}

    def record(self, kind: str, **details: Any) -> None:
        """Takes an event."""
        event = {"event": kind, "time": timestamp(), **details}
        with self.lock:
            if self.stopped:
                return
            try:
                self.journal.write(event)
            except OSError as error:
                self.failure = error
                raise
            self.sweep.apply(event)
        self.tracker.take(self.sweep, event)
        self.news.put(("sweep", self.sweep))

    def note(self, text: str) -> None:
        """A line for those who watch."""
        self.news.put(("note", text))

    def propose(self, trial: Trial) -> None:
        """A trial is to be trained."""
        details = {name: getattr(trial, name) for name in ("name", "values", "epochs", "series", "finalist_of")}
        self.record("trial", **details)

    def epoch(self, name: str, metrics: dict[str, float], state: str | None) -> None:
        """A trial has finished an epoch, and with a state also itself."""
        self.record("epoch", trial=name, metrics=metrics, **({"state": state} if state else {}))
        if state:
            self._tidy(name, state)

    def broken(self, name: str, state: str, error: str) -> None:
        """A trial has ended without figures."""
        self.record("broken", trial=name, state=state, error=error)
        self.note(f"{name} {state}: {error}")
        self._tidy(name, state)

    def _tidy(self, name: str, state: str) -> None:
        """Removes what an ended trial no longer needs."""
        trial = self.sweep.trials[name]
        if self.stopped or state == "unfinished":
            return
        prune_checkpoints(self.sweep.folder_of(trial))
        if trial.finalist_of is None:
            self._keep_the_leader(name)

    def _keep_the_leader(self, ended: str) -> None:
        """Weights take room: of the searched trials that have ended, only those of the best one stay."""
        self.kept.add(ended)
        leader = next(trial.name for trial in self.sweep.ranked if trial.name in self.kept)
        for name in self.kept - {leader}:
            trial = self.sweep.trials[name]
            if self.sweep.plan.rows and trial.state == "finished":
                self._keep_counts(trial)
            storage.remove_directory(self.sweep.folder_of(trial))
        self.kept = {leader}

    def _keep_counts(self, trial: Trial) -> None:
        """Without the weights there would be nothing to compare rows by."""
        try:
            keep_counts(self.sweep, trial)
        except OSError as error:
            self.failure = error
            raise


class RecorderCallback(raytune.Callback):
    """Writes down what Tune sees."""

    def __init__(self, recorder: SweepRecorder) -> None:
        self.recorder = recorder

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """An epoch has ended, and perhaps the trial with it."""
        answer: EpochResult = result["answer"]
        if answer.error:
            self.recorder.broken(answer.trial, "diverged" if answer.diverged else "failed", answer.error)
            return
        state = None
        if answer.finished:
            state = "finished"
        elif result.get("done"):
            state = "unfinished" if self.recorder.over else "stopped"
        assert answer.metrics is not None
        self.recorder.epoch(answer.trial, answer.metrics, state)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial broke down and is begun again."""
        name, reason = name_of(trial), _reason(trial)
        self.recorder.record("retry", trial=name, error=reason)
        self.recorder.note(f"{name} failed ({reason}); restarting from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial broke down once too often."""
        self.recorder.broken(name_of(trial), "failed", _reason(trial))


def _reason(trial: Any) -> str:
    """Why a trial broke down, in a line."""
    place = trial.pickled_error_file
    if place is None or not Path(place).exists():
        return "its process failed"
    error = cloudpickle.loads(Path(place).read_bytes())
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"


def name_of(trial: Any) -> str:
    """Our name of a Tune trial."""
    return trial.config["trial"]
