"""A sweep on disk: its plan, and an append-only journal of all that happened.

A sweep's folder, `<storage>/<name>/`:

    sweep.json         the whole plan: configuration, space, sampler, budget of each trial
    journal.jsonl      an event a line: configurations proposed, metrics of each epoch, ends
    trials/t001/       a trial's checkpoint while it runs, and the weights of its best epoch while it leads
    finalists/         the same for the best configurations, trained again with several seeds
    counts/            of an ablation: a trial's counts on each validation text, kept when its weights are not
    bundle/            the tagger of the best trial, or of the winner of the finalists
    result.json        what `tune --json` prints; there when the sweep is finished
    report.html        what `report` writes
    ablation.md        the table of an ablation

The journal alone is the state: all that is known of a sweep follows from its events, in this process and after a restart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from distributed.sweep.budget import Spending, TrialRate
from distributed.sweep.journal import JournalEvent, read_events
from distributed.sweep.plan import SweepConfig, make_plan
from distributed.sweep.space import Values, apply_values
from model import storage
from model.aliases import FIELDS, current_keys
from model.config import Config, first_problem, make_config
from model.errors import UserError

# finished: all its epochs; stopped: by ASHA; unfinished: the time or the budget ended; diverged: its loss is no number;
# failed: its process failed more often than run.retries allows.
TERMINAL_STATES = ("finished", "stopped", "unfinished", "diverged", "failed")
_LAST = ("diverged", "failed")  # ranked behind all others
# What may change when a sweep is resumed: nothing that changes the metrics of its trials.
_MAY_CHANGE = (
    "trials", "max_concurrent", "time_budget", "budget", "price", "gpus_per_trial", "workers_per_trial", "finalists", "seeds",
)  # fmt: skip


@dataclass
class Trial:
    """One training of a sweep.

    Attributes:
        name: `t007`, or `t007-seed2` for a finalist.
        values: searched fields by dotted name.
        epochs: its budget.
        series: of the record, where it repeats one; the row's name in an ablation.
        finalist_of: the trial whose configuration it trains again.
        metrics: of each epoch.
        state: `running` or one of TERMINAL_STATES.
        error: why it diverged or failed.
        retries: how often it was restarted.
        proposed, started: seconds since the Unix epoch; `started` is the first step of its training.
    """

    name: str
    values: Values
    epochs: int
    series: str | None = None
    finalist_of: str | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)
    state: str = "running"
    error: str | None = None
    retries: int = 0
    proposed: float = 0.0
    started: float | None = None

    def best(self, metric: str) -> dict[str, float] | None:
        """Return the metrics of its best epoch, the first of equals; None without an epoch."""
        return max(self.metrics, key=lambda metrics: metrics[metric], default=None)

    def best_score(self, metric: str) -> float:
        """Return what trials are ranked by: its best value of the metric; -1 where it diverged, failed or has none."""
        best = self.best(metric)
        return -1.0 if best is None or self.state in _LAST else best[metric]


class SweepState:
    """The state of a sweep, which follows from its events.

    Attributes:
        trials: by name, in the order in which they were proposed; finalists too.
        seconds: that it ran, all sessions together.
        training: the names of the trials that train, as far as is known.
        spent: on processors until the last event.
    """

    def __init__(self, plan: SweepConfig) -> None:
        self.plan = plan
        self.trials: dict[str, Trial] = {}
        self.seconds = 0.0
        self.training: set[str] = set()
        self.spent = Spending()
        self._rate = TrialRate(0.0, 0.0)
        self._last: float | None = None

    def apply(self, event: JournalEvent) -> None:
        """Take in an event. An epoch that is known already changes nothing: a trial that resumes reports its past again."""
        self._count_time(event)
        if event["event"] == "session":
            self.training.clear()
            self._rate = TrialRate(event.get("cpus", 0.0), event.get("gpus", 0.0))
            return
        if event["event"] == "trial":
            values, budget = current_keys(event["values"], FIELDS), event["epochs"]
            trial = Trial(event["name"], values, budget, event["series"], event["finalist_of"], proposed=event["time"])
            self.trials[trial.name] = trial
            return
        trial = self.trials[event["trial"]]
        self.training.add(trial.name)
        if trial.state == "unfinished":
            trial.state = "running"  # resumed
        if event["event"] == "begun":
            trial.started = trial.started or event["time"]
        elif event["event"] == "epoch":
            if event["metrics"]["epoch"] == len(trial.metrics) + 1:
                trial.metrics.append(event["metrics"])
            trial.state = event.get("state", trial.state)
        elif event["event"] == "retry":
            trial.retries += 1
        else:
            trial.state, trial.error = event["state"], event["error"]
        if event["event"] == "retry" or trial.state != "running":
            self.training.discard(trial.name)

    def _count_time(self, event: JournalEvent) -> None:
        if event["event"] != "session" and self._last is not None:
            self.spent = self.spent_until(event["time"])
            self.seconds += max(0.0, event["time"] - self._last)
        self._last = event["time"]

    def spent_until(self, time: float) -> Spending:
        """Return what was spent until a time after the last event, in seconds since the Unix epoch."""
        seconds = max(0.0, time - self._last) if self._last is not None else 0.0
        return self.spent.after(seconds, len(self.training), self._rate)

    @property
    def epochs_trained(self) -> int:
        """Epochs of all trials, finalists too."""
        return sum(len(trial.metrics) for trial in self.all)

    @property
    def epochs_left_of_finalists(self) -> int:
        """Epochs of the planned finalists that are not trained yet."""
        return max(self.plan.epochs_of_finalists - sum(len(trial.metrics) for trial in self.finalists), 0)

    def kept_for_finalists(self, spent: Spending) -> float:
        """Return what is left of training the finalists, at the cost of an epoch so far; in the unit of the budget."""
        budget, epochs = self.plan.allowance, self.epochs_trained
        if budget is None or not epochs:
            return 0.0
        return budget.of(spent) / epochs * self.epochs_left_of_finalists

    def forecast(self) -> Spending | None:
        """Return what the whole plan will have cost, from the epochs so far; None before the first one."""
        epochs = self.epochs_trained
        if not epochs or not self.spent.cpu_seconds:
            return None
        expected = max(self.plan.epochs_expected, epochs)  # ASHA may have let more continue than it does on average
        return self.spent.times(expected / epochs)

    @property
    def all(self) -> list[Trial]:
        """The trials, as a copy: another thread may add some."""
        return list(self.trials.values())

    @property
    def searched(self) -> list[Trial]:
        """The trials without the finalists."""
        return [trial for trial in self.all if trial.finalist_of is None]

    @property
    def finalists(self) -> list[Trial]:
        """The trainings of the finalists."""
        return [trial for trial in self.all if trial.finalist_of is not None]

    @property
    def ranked(self) -> list[Trial]:
        """The searched trials, best first."""
        return sorted(self.searched, key=lambda trial: -trial.best_score(self.plan.metric))

    @property
    def best(self) -> Trial | None:
        """The best trial; None where none has finished an epoch."""
        ranked = self.ranked
        return ranked[0] if ranked and ranked[0].best_score(self.plan.metric) >= 0 else None

    def count(self, state: str) -> int:
        """Return how many of the searched trials are in a state."""
        return sum(trial.state == state for trial in self.searched)

    @property
    def epochs_spent(self) -> int:
        """Epochs of the searched trials."""
        return sum(len(trial.metrics) for trial in self.searched)

    @property
    def epochs_full(self) -> int:
        """Epochs that the same trials would have cost without stopping."""
        return sum(trial.epochs for trial in self.searched)

    def config_of(self, trial: Trial) -> Config:
        """Return the whole configuration of a trial."""
        return apply_values(self.plan.config, trial.values | {"training.epochs": trial.epochs})

    def folder_of(self, trial: Trial) -> str:
        """Return the folder of a trial's files."""
        kind = "finalists" if trial.finalist_of else "trials"
        return storage.join(self.plan.folder, kind, trial.name)


def sweep_exists(folder: str) -> bool:
    """Return whether a folder holds a sweep that `read_sweep` reads."""
    return storage.exists(storage.join(folder, "sweep.json"))


def read_sweep(folder: str) -> SweepState:
    """Read a sweep from its folder.

    Raises:
        UserError: there is none, or a file of it is damaged.
    """
    place = storage.join(folder, "sweep.json")
    try:
        plan = SweepConfig.model_validate_json(storage.read(place))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{place}: no such sweep; see --storage, or start it with `tune --name`") from None
    except ValidationError as error:
        raise UserError(f"{place}: is damaged ({first_problem(error)}); copy it again, or start a new sweep") from None
    sweep = SweepState(plan)
    for event in read_events(folder):
        try:
            sweep.apply(event)
        except KeyError as error:
            raise UserError(f"{folder}: its journal has an event of {error}, of which it knows nothing") from None
    for trial in sweep.all:
        if not all(plan.metric in metrics for metrics in trial.metrics):
            raise UserError(f"{folder}: its journal has an epoch of {trial.name} without {plan.metric}; copy it again")
    return sweep


def require_same_sweep(plan: SweepConfig) -> None:
    """Check that a sweep's folder has not got another sweep, or more trials, while this process started.

    Raises:
        UserError: it has; what this process would write would mix two sweeps.
    """
    if not sweep_exists(plan.folder):
        return
    begun = read_sweep(plan.folder)
    changing: dict[str, Any] = dict.fromkeys((*_MAY_CHANGE, "rows", "left_out"), True)
    changing["config"] = {"run": True, "data_digest": True}
    if begun.plan.model_dump(exclude=changing) != plan.model_dump(exclude=changing):
        raise UserError(f"{plan.folder}: another sweep of this name has begun; choose another --name")
    if len(begun.searched) > plan.trials:
        raise UserError(f"{plan.folder}: another process has begun more trials of this sweep; resume it again")


def forecast_of(plan: SweepConfig) -> Spending | None:
    """Return what a plan will have cost in the end, from the epochs of its sweep; None where there are none yet."""
    if not sweep_exists(plan.folder):
        return None
    sweep = read_sweep(plan.folder)
    sweep.plan = plan
    return sweep.forecast()


def resumed_sweep(
    name: str, location: str, changes: dict[str, Any], run: Mapping[str, Any] | None = None
) -> SweepConfig:
    """Return the plan of a sweep that is resumed.

    Args:
        name: of the sweep.
        location: the storage that its folder is in.
        changes: fields of the plan to change.
        run: fields of `run` to change.

    Raises:
        UserError: there is no such sweep, or a change would alter the metrics of its trials.
    """
    sweep = read_sweep(storage.join(storage.absolute(location), name))
    tree = sweep.plan.model_dump()
    # The folder may be a copy of the sweep's first one.
    tree["config"]["run"] |= {**(run or {}), "name": name, "storage": storage.absolute(location)}
    make_config(tree["config"], f"--resume {name}")  # reports unknown and invalid fields by name
    plan = make_plan(tree | changes)
    other = [key for key in changes if key not in _MAY_CHANGE and getattr(plan, key) != getattr(sweep.plan, key)]
    if other:
        raise UserError(
            f"--resume {name}: --{other[0].replace('_', '-')} would change a sweep that has begun; start a new one, or "
            f"change only {', '.join('--' + key.replace('_', '-') for key in _MAY_CHANGE)}"
        )
    if changes.get("trials", len(sweep.searched)) < len(sweep.searched):
        raise UserError(f"--resume {name}: --trials {changes['trials']}, but {len(sweep.searched)} trials have begun")
    if sweep.plan.rows and changes.get("seeds", sweep.plan.seeds) < sweep.plan.seeds:
        raise UserError(
            f"--resume {name}: --seeds {changes['seeds']}, but the ablation was begun with {sweep.plan.seeds}"
        )
    return plan
