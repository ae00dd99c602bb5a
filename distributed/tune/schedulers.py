"""When trials stop: ASHA over epochs, or never."""

from types import SimpleNamespace

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from distributed.tune.recorder import SweepRecorder, name_of
from distributed.tune.trial_run import EpochReport, asha_score


def _named(name: str) -> SimpleNamespace:
    """Return a trial for ASHA, which reads nothing but its id: our name, which a resumed sweep's trial keeps."""
    return SimpleNamespace(trial_id=name)


def _continue_or_cut(recorder: SweepRecorder, trial: RayTrial) -> str:
    if not recorder.must_stop():
        return TrialScheduler.CONTINUE
    recorder.cut.add(name_of(trial))
    return TrialScheduler.STOP


class ResumableASHA(ASHAScheduler):
    """ASHA over epochs (Li et al., MLSys 2020), which begins with the rungs that follow from the journal."""

    def __init__(self, recorder: SweepRecorder) -> None:
        sweep, plan = recorder.sweep, recorder.sweep.plan
        super().__init__(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=plan.max_epochs,
            grace_period=plan.grace,
            reduction_factor=plan.eta,
        )
        self.recorder = recorder
        for trial in sweep.searched:
            known = _named(trial.name)
            super().on_trial_add(None, known)
            for metrics in trial.metrics:
                super().on_trial_result(None, known, metrics | {"score": asha_score(metrics, plan.ranking)})

    def on_trial_add(self, tune_controller: object, trial: RayTrial) -> None:
        """Take in a new trial."""
        super().on_trial_add(tune_controller, _named(name_of(trial)))

    def on_trial_result(self, tune_controller: object, trial: RayTrial, result: EpochReport) -> str:
        """Continue, or stop: among the worse at a rung, or the time or the budget is spent."""
        decision = super().on_trial_result(tune_controller, _named(name_of(trial)), result)
        return decision if decision == TrialScheduler.STOP else _continue_or_cut(self.recorder, trial)

    def on_trial_complete(self, tune_controller: object, trial: RayTrial, result: EpochReport) -> None:
        """Take in the last epoch of a trial that ended by itself, about which Tune does not ask."""
        last = result.get("result")
        if last is not None and last.metrics:
            super().on_trial_result(tune_controller, _named(name_of(trial)), result)

    def on_trial_remove(self, tune_controller: object, trial: RayTrial) -> None:
        """Forget a trial that never began."""
        super().on_trial_remove(tune_controller, _named(name_of(trial)))


class FullBudgetScheduler(FIFOScheduler):
    """Trains every trial in full, unless the time or the budget is spent."""

    def __init__(self, recorder: SweepRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def on_trial_result(self, tune_controller: object, trial: RayTrial, result: EpochReport) -> str:
        """Continue, or stop because the time or the budget is spent."""
        return _continue_or_cut(self.recorder, trial)
