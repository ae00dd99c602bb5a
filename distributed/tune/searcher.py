"""What Ray Tune is given to try."""

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from distributed.sweep.space import Space, optuna_space
from distributed.sweep.state import Trial
from distributed.tune.recorder import SweepRecorder
from distributed.tune.trial_run import EpochReport
from model.errors import UserError

_INVALID_PROPOSALS = 100  # one after the other, until the space is given up


class JournalSearcher(Searcher):
    """Gives Tune first the trials of the journal that have not ended, then what the sampler proposes.

    Finalists and searched trials are trained one kind after the other: finalists are never stopped early, and what a budget
    keeps for them is not for searched trials that it has cut.

    Attributes:
        unfinished: trials of the journal that are still to be given out.
        new: how many trials are still to be proposed.
        suggested: Optuna's ids of what it proposed in this process, by Tune's ids.
    """

    def __init__(self, recorder: SweepRecorder, space: Space | None) -> None:
        """Begin where the journal ends; without a space there are no trials but the finalists of the journal."""
        super().__init__()
        self.recorder, self.space, self.plan = recorder, space, recorder.sweep.plan
        sweep = recorder.sweep
        trials = sweep.finalists if space is None else sweep.searched
        self.unfinished = [trial for trial in trials if trial.state in ("running", "unfinished")]
        self.new = self.plan.trials - len(sweep.searched) if space is not None else 0
        self.suggested: dict[str, str] = {}
        self.optuna = self._start_optuna(space) if space is not None and self.plan.strategy.adaptive else None

    def _start_optuna(self, space: Space) -> OptunaSearch:
        """Return Optuna's TPE, with the trials that have ended."""
        sweep, metric = self.recorder.sweep, self.plan.metric
        # A resumed sweep must not draw again what it drew first.
        seed = self.plan.config.training.seed + len(sweep.searched)
        search = OptunaSearch(optuna_space(space), metric, "max", seed=seed)
        for trial in sweep.searched:
            if trial not in self.unfinished:
                search.add_evaluated_point(trial.values, max(trial.best_score(metric), 0.0))
        return search

    @property
    def remaining(self) -> int:
        """How many trainings are still to be given out."""
        return len(self.unfinished) + self.new

    def suggest(self, trial_id: str) -> dict[str, object] | str:
        """Return the next training, or FINISHED."""
        if not self.remaining or self.recorder.must_stop():
            return Searcher.FINISHED
        sweep = self.recorder.sweep
        if self.unfinished:
            trial = self.unfinished.pop(0)
        else:
            self.new -= 1
            trial = self._propose(trial_id)
            self.recorder.propose(trial)
        config = sweep.config_of(trial).model_dump()
        return {"trial": trial.name, "config": config, "folder": sweep.folder_of(trial)}

    def _propose(self, trial_id: str) -> Trial:
        number = len(self.recorder.sweep.searched)
        name = f"t{number + 1:03d}"
        if self.optuna is not None:
            return self._propose_valid(name, trial_id)
        assert self.space is not None
        proposal = self.plan.strategy.propose(self.plan, self.space, number)
        return Trial(name, proposal.values, proposal.epochs, proposal.series)

    def _propose_valid(self, name: str, trial_id: str) -> Trial:
        """Return Optuna's next proposal that is a valid configuration. Raises UserError where many are not."""
        assert self.optuna is not None
        for attempt in range(_INVALID_PROPOSALS):
            drawn = f"{trial_id}-{attempt}"
            trial = Trial(name, self.optuna.suggest(drawn), self.plan.max_epochs)
            try:
                self.recorder.sweep.config_of(trial)
            except UserError as error:
                self.optuna.on_trial_complete(drawn, None, error=True)
                problem = error
            else:
                self.suggested[trial_id] = drawn
                return trial
        raise problem

    def on_trial_complete(self, trial_id: str, result: EpochReport | None = None, error: bool = False) -> None:
        """Report a trial's best epoch to Optuna."""
        if self.optuna is None or not result:
            return
        trial, metric = self.recorder.sweep.trials[result["result"].trial], self.plan.metric
        value = max(trial.best_score(metric), 0.0)
        if trial_id in self.suggested:
            self.optuna.on_trial_complete(self.suggested[trial_id], {metric: value}, error)
        else:  # proposed before a restart
            self.optuna.add_evaluated_point(trial.values, value)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the journal is the state."""
