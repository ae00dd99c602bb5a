"""When trials stop: ASHA over epochs, or never."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from distributed.tune.recorder import SweepRecorder, name_of
from distributed.tune.trial_run import asha_score


def _named(trial: Any) -> Any:
    """A Tune trial under our name, which it keeps when the sweep goes on after a restart."""
    return SimpleNamespace(trial_id=name_of(trial))


class ResumableASHA(ASHAScheduler):
    """ASHA over epochs, which stands where the journal says that it stood."""

    def __init__(self, recorder: SweepRecorder) -> None:
        sweep, plan = recorder.sweep, recorder.sweep.plan
        super().__init__(
            "epoch", "score", "max", max_t=plan.max_epochs, grace_period=plan.grace, reduction_factor=plan.eta
        )
        self.recorder = recorder
        for trial in sweep.searched:
            known = SimpleNamespace(trial_id=trial.name)
            super().on_trial_add(None, known)
            for metrics in trial.metrics:
                super().on_trial_result(None, known, metrics | {"score": asha_score(metrics, plan.metric)})

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


class FullBudgetScheduler(FIFOScheduler):
    """Every trial in full, unless the time is over."""

    def __init__(self, recorder: SweepRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Goes on, or stops because the time is over."""
        return TrialScheduler.STOP if self.recorder.over else TrialScheduler.CONTINUE
