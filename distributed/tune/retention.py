"""Which weights of a sweep's trials stay on storage."""

from distributed.sweep.ablation import keep_counts
from distributed.sweep.journal import JournalEvent
from distributed.sweep.state import SweepState
from distributed.train.checkpoint import prune_checkpoints
from model import storage


class WeightRetention:
    """Keeps the weights of the leading trial, and removes what the others no longer need.

    Weights take room: of the searched trials that have ended, only those of the best one stay. Of an ablation the counts
    of the others stay, by which its rows are compared. Finalists keep theirs.

    Attributes:
        kept: names of ended trials that have their weights.
    """

    def __init__(self, sweep: SweepState) -> None:
        self.sweep = sweep
        self.kept = {trial.name for trial in sweep.searched if trial.state in ("finished", "stopped")}

    def on_event(self, event: JournalEvent) -> None:
        """Remove what a trial that ends with this event no longer needs. Raises OSError."""
        if event["event"] != "epoch" and event["event"] != "broken":
            return
        state = event.get("state")
        if state is None or state == "unfinished":
            return
        trial = self.sweep.trials[event["trial"]]
        prune_checkpoints(self.sweep.folder_of(trial))
        if trial.finalist_of is None:
            self._keep_leader(trial.name)

    def _keep_leader(self, ended: str) -> None:
        self.kept.add(ended)
        leader = next(trial.name for trial in self.sweep.ranked if trial.name in self.kept)
        for name in self.kept - {leader}:
            trial = self.sweep.trials[name]
            if self.sweep.plan.rows and trial.state == "finished":
                keep_counts(self.sweep, trial)
            storage.remove_directory(self.sweep.folder_of(trial))
        self.kept = {leader}
