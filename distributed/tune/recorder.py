"""What Ray Tune is given: configurations to try, when to stop them, and whom to tell."""

import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle
from ray import tune as raytune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from distributed.sweep.ablation import keep_counts
from distributed.sweep.plan import proposal
from distributed.sweep.space import Space, optuna_space
from distributed.sweep.state import Journal, Sweep, Trial, now
from distributed.train.checkpoint import forget_checkpoints
from distributed.train.tracking import SweepTracker
from distributed.tune.trial_run import Answer, score_of
from model import storage


class Recorder:
    """Writes down what happens: in the journal, in the sweep, in W&B, and for those who watch.

    Attributes:
        over: whether the time budget is spent.
        stopped: nothing is written any more; what trials still tell after a Ctrl-C is lost, and told again on resume.
        failure: why something could not be written; Tune would tell of it with a traceback of its own.
    """

    def __init__(self, sweep: Sweep, journal: Journal, tracker: SweepTracker) -> None:
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
        event = {"event": kind, "time": now(), **details}
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

    def epoch(self, name: str, figures: dict[str, float], state: str | None) -> None:
        """A trial has finished an epoch, and with a state also itself."""
        self.record("epoch", trial=name, figures=figures, **({"state": state} if state else {}))
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
        forget_checkpoints(self.sweep.folder_of(trial))
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


class Proposals(Searcher):
    """Tells Tune what to train: first what is known and not at its end, then what the sampler draws."""

    def __init__(self, recorder: Recorder, space: Space) -> None:
        """With an empty space nothing new is drawn."""
        super().__init__()
        self.recorder, self.space, self.plan = recorder, space, recorder.sweep.plan
        sweep = recorder.sweep
        self.again = [trial for trial in sweep.all if trial.state in ("running", "unfinished")]
        drawing = bool(space) or self.plan.sampler in ("record", "ablation")
        self.new = self.plan.trials - len(sweep.searched) if drawing else 0
        self.drawn: set[str] = set()  # Tune's ids of what Optuna proposed here
        self.optuna = self._begin_optuna() if self.plan.sampler == "tpe" and space else None

    def _begin_optuna(self) -> OptunaSearch:
        """Optuna's TPE, which is told of the trials that have ended."""
        sweep, metric = self.recorder.sweep, self.plan.metric
        # A sweep that goes on must not draw again what it drew first.
        seed = self.plan.config.training.seed + len(sweep.searched)
        search = OptunaSearch(optuna_space(self.space), metric, "max", seed=seed)
        for trial in sweep.searched:
            if trial not in self.again:
                search.add_evaluated_point(trial.values, max(trial.rank(metric), 0.0))
        return search

    @property
    def left(self) -> int:
        """How many trainings are still to be handed out."""
        return len(self.again) + self.new

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next training, or FINISHED."""
        if not self.left or self.recorder.over:
            return Searcher.FINISHED
        sweep = self.recorder.sweep
        if self.again:
            trial = self.again.pop(0)
        else:
            self.new -= 1
            trial = self._draw(trial_id)
            self.recorder.propose(trial)
        config = sweep.config_of(trial).model_dump()
        return {"trial": trial.name, "config": config, "folder": sweep.folder_of(trial)}

    def _draw(self, trial_id: str) -> Trial:
        number = len(self.recorder.sweep.searched)
        name = f"t{number + 1:03d}"
        if self.optuna is not None:
            self.drawn.add(trial_id)
            return Trial(name, self.optuna.suggest(trial_id), self.plan.max_epochs)
        series, values, epochs = proposal(self.plan, self.space, number)
        return Trial(name, values, epochs, series)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna of a trial's best epoch."""
        if self.optuna is None or not result:
            return
        trial, metric = self.recorder.sweep.trials[result["answer"].trial], self.plan.metric
        value = max(trial.rank(metric), 0.0)
        if trial_id in self.drawn:
            self.optuna.on_trial_complete(trial_id, {metric: value}, error)
        else:  # proposed before a restart
            self.optuna.add_evaluated_point(trial.values, value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


def name_of(trial: Any) -> str:
    """Our name of a Tune trial."""
    return trial.config["trial"]


def _named(trial: Any) -> Any:
    """A Tune trial under our name, which it keeps when the sweep goes on after a restart."""
    return SimpleNamespace(trial_id=name_of(trial))


class Rungs(ASHAScheduler):
    """ASHA over epochs, which stands where the journal says that it stood."""

    def __init__(self, recorder: Recorder) -> None:
        sweep, plan = recorder.sweep, recorder.sweep.plan
        super().__init__(
            "epoch", "score", "max", max_t=plan.max_epochs, grace_period=plan.grace, reduction_factor=plan.eta
        )
        self.recorder = recorder
        for trial in sweep.searched:
            known = SimpleNamespace(trial_id=trial.name)
            super().on_trial_add(None, known)
            for figures in trial.figures:
                super().on_trial_result(None, known, figures | {"score": score_of(figures, plan.metric)})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Goes on, stops for being among the worse at a rung, or stops because the time is over."""
        decision = super().on_trial_result(tune_controller, _named(trial), result)
        return TrialScheduler.STOP if self.recorder.over else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial has ended; its rungs are known from its results."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that never began is dropped."""
        super().on_trial_remove(tune_controller, _named(trial))


class Whole(FIFOScheduler):
    """Every trial in full, unless the time is over."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Goes on, or stops because the time is over."""
        return TrialScheduler.STOP if self.recorder.over else TrialScheduler.CONTINUE


class Watch(raytune.Callback):
    """Writes down what Tune sees."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """An epoch has ended, and perhaps the trial with it."""
        answer: Answer = result["answer"]
        if answer.error:
            self.recorder.broken(answer.trial, "diverged" if answer.diverged else "failed", answer.error)
            return
        state = None
        if answer.finished:
            state = "finished"
        elif result.get("done"):
            state = "unfinished" if self.recorder.over else "stopped"
        assert answer.figures is not None
        self.recorder.epoch(answer.trial, answer.figures, state)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial broke down and is begun again."""
        name, reason = name_of(trial), _reason(trial)
        self.recorder.record("retry", trial=name, error=reason)
        self.recorder.note(f"{name} broke down ({reason}) and goes on from its last checkpoint")

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
