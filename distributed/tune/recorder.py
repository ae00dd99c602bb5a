"""Records what happens in a sweep: Ray Tune calls it, and the journal, W&B and the person who watches get it."""

import queue
import threading
from pathlib import Path

from ray import cloudpickle
from ray import tune as raytune
from ray.tune.experiment import Trial as RayTrial

from distributed.sweep.journal import Journal, JournalEvent, timestamp
from distributed.sweep.state import SweepState, Trial
from distributed.train.events import Note
from distributed.tune.retention import WeightRetention
from distributed.tune.tracking import WandbGroup
from distributed.tune.trial_run import EpochReport
from model.errors import first_line


class SweepRecorder:
    """Writes each event to the journal and applies it to the state, then passes it on.

    Attributes:
        updates: for the thread that reports to the caller of `tune`.
        time_is_up: whether the time budget is spent.
        searching: the share of the budget that the finalists need is kept for them; without it all may be spent.
        cut: the trials that ended because the time or the budget was spent.
        stopped_by: `time_budget` or `budget`, where the sweep has ended before its plan.
        stopped: nothing is recorded any more; what trials report after a Ctrl-C is lost, and reported again on resume.
        failure: why something could not be written; Tune would report it with a traceback of its own.
    """

    def __init__(self, sweep: SweepState, journal: Journal, tracker: WandbGroup) -> None:
        self.sweep, self.journal, self.tracker = sweep, journal, tracker
        self.retention = WeightRetention(sweep)
        self.updates: queue.SimpleQueue[SweepState | Note] = queue.SimpleQueue()
        self.time_is_up = self.stopped = False
        self.searching = True
        self.cut: set[str] = set()
        self.stopped_by: str | None = None
        self.failure: OSError | None = None
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune takes snapshots of what it is given, and the journal is the state."""
        return {}

    def must_stop(self) -> bool:
        """Return whether no further epoch may begin; where one is left, the time or the budget has stopped the sweep."""
        if self.time_is_up:
            self.stopped_by = "time_budget"
        elif self._budget_is_spent():
            self.stopped_by = "budget"
        else:
            return False
        return True

    def _budget_is_spent(self) -> bool:
        budget = self.sweep.plan.allowance
        if budget is None:
            return False
        spent = self.sweep.spent_until(timestamp())
        kept = self.sweep.kept_for_finalists(spent) if self.searching else 0.0
        return budget.of(spent) + kept >= budget.amount

    def record(self, event: JournalEvent) -> None:
        """Record an event. Raises OSError."""
        try:
            with self.lock:
                if self.stopped:
                    return
                self.journal.write(event)
                self.sweep.apply(event)
            self.tracker.on_event(self.sweep, event)
            self.updates.put(self.sweep)
            if not self.stopped:
                self.retention.on_event(event)
        except OSError as error:
            self.failure = error
            raise

    def note(self, text: str) -> None:
        """Pass on a line for the user."""
        self.updates.put(Note(text))

    def propose(self, trial: Trial) -> None:
        """Record a trial that is to be trained."""
        self.record(
            {
                "event": "trial",
                "time": timestamp(),
                "name": trial.name,
                "values": trial.values,
                "epochs": trial.epochs,
                "series": trial.series,
                "finalist_of": trial.finalist_of,
            }
        )

    def epoch(self, name: str, metrics: dict[str, float], state: str | None) -> None:
        """Record an epoch of a trial, with its state where the trial ends with it."""
        if state is None:
            self.record({"event": "epoch", "time": timestamp(), "trial": name, "metrics": metrics})
        else:
            self.record({"event": "epoch", "time": timestamp(), "trial": name, "metrics": metrics, "state": state})

    def fail(self, name: str, state: str, error: str) -> None:
        """Record a trial that ends without metrics, `diverged` or `failed`."""
        self.note(f"{name} {state}: {error}")
        self.record({"event": "broken", "time": timestamp(), "trial": name, "state": state, "error": error})


class RecorderCallback(raytune.Callback):
    """Records what Tune reports."""

    def __init__(self, recorder: SweepRecorder) -> None:
        self.recorder = recorder

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: EpochReport, **info: object
    ) -> None:
        """Record an epoch, and the end of the trial where it ends with it."""
        epoch = result["result"]
        if epoch.error:
            self.recorder.fail(epoch.trial, "diverged" if epoch.diverged else "failed", epoch.error)
            return
        state = None
        if epoch.finished:
            state = "finished"
        elif result.get("done"):
            state = "unfinished" if epoch.trial in self.recorder.cut else "stopped"
        assert epoch.metrics is not None
        self.recorder.epoch(epoch.trial, epoch.metrics, state)

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object) -> None:
        """Record that a trial failed and is restarted."""
        name, reason = name_of(trial), _reason(trial)
        self.recorder.record({"event": "retry", "time": timestamp(), "trial": name, "error": reason})
        self.recorder.note(f"{name} failed ({reason}); restarting from its last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object) -> None:
        """Record that a trial failed more often than it may."""
        self.recorder.fail(name_of(trial), "failed", _reason(trial))


def _reason(trial: RayTrial) -> str:
    """Return why a trial failed, in a line."""
    location = trial.pickled_error_file  # local: Tune copies it to its storage later, where `get_pickled_error` looks
    if location is None or not Path(location).exists():
        return "its process failed"
    error = cloudpickle.loads(Path(location).read_bytes())
    if getattr(error, "actor_init_failed", False):  # its first line tells where, its last one why
        return str(error).strip().splitlines()[-1]
    return first_line(getattr(error, "cause", None) or error, with_kind=True)


def name_of(trial: RayTrial) -> str:
    """Return our name of a Tune trial."""
    return str(trial.config["trial"])
