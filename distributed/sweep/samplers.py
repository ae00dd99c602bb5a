"""How a sweep chooses the configurations of its trials.

To add a sampler, write a subclass of `Sampler` and list it in `SAMPLERS`. The command line takes the names for its help
from there, so that this module loads quickly: what takes long to import is imported where it is used.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from model.errors import UserError

if TYPE_CHECKING:
    from distributed.sweep.plan import SweepConfig
    from distributed.sweep.space import Space, Values
    from model.config import Config


class Proposal(NamedTuple):
    """A configuration to train.

    Attributes:
        series: the record's series that it repeats, or the row of an ablation; None otherwise.
        values: fields by dotted name.
        epochs: its budget.
    """

    series: str | None
    values: "Values"
    epochs: int


class Sampler:
    """How the configurations of a sweep's trials are chosen.

    Attributes:
        name: as `--sampler` takes it.
        default_space: ranges by dotted name that are searched unless others are given.
        settles: fields of the plan that follow from others, and cannot be given.
        stops: whether ASHA may end its trials early.
        adaptive: whether what it proposes depends on the results of earlier trials; Optuna then proposes.
        repeats_record: whether its trials are compared with the owner's record instead of being ranked.
    """

    name = ""
    default_space: Mapping[str, str] = {"training.lr": "log:1e-4:1e-2", "training.alpha": "0.1:0.9"}
    settles: tuple[str, ...] = ()
    stops = True
    adaptive = False
    repeats_record = False

    def validate(self, plan: "SweepConfig") -> None:
        """Raise ValueError where other flags of the plan contradict the sampler."""

    def space(self, plan: "SweepConfig") -> "Space":
        """Return what is searched. Raises UserError where a range is wrong or nothing is left to search."""
        from distributed.sweep.space import check_space, parse_space

        space = parse_space(plan.space, self.default_space, set(plan.fixed))
        if not space:
            raise UserError(
                "nothing is left to search: every field of the space has a value; add --space, or use train"
            )
        check_space(space, plan.config)
        return space

    def trials(self, plan: "SweepConfig", space: "Space", check: Callable[["Config"], None]) -> "SweepConfig":
        """Return the plan with the number of its trials settled.

        Args:
            plan: as it was given.
            space: from `space`.
            check: raises UserError where a configuration does not fit the dataset.
        """
        return plan

    def configurations(self, plan: "SweepConfig", space: "Space") -> list["Values"]:
        """Return configurations that show whether the trials fit the dataset: the bounds of each range."""
        return [{name: value} for name, domain in space.items() for value in domain.bounds]

    def propose(self, plan: "SweepConfig", space: "Space", number: int) -> Proposal:
        """Return trial `number`, 0-based: a function of the plan alone. An adaptive sampler has none."""
        raise NotImplementedError(f"what {self.name} proposes depends on results")

    def epochs(self, plan: "SweepConfig") -> int:
        """Return what all trials cost without stopping."""
        return plan.trials * plan.max_epochs


class RandomSampler(Sampler):
    """Each configuration drawn by itself."""

    name = "random"

    def configurations(self, plan: "SweepConfig", space: "Space") -> list["Values"]:
        """Return the bounds of each range, and all that will be drawn."""
        drawn = [self.propose(plan, space, number).values for number in range(plan.trials)]
        return super().configurations(plan, space) + drawn

    def propose(self, plan: "SweepConfig", space: "Space", number: int) -> Proposal:
        """Draw a configuration."""
        from distributed.sweep.space import sample

        return Proposal(None, sample(space, plan.config.training.seed, number), plan.max_epochs)


class GridSampler(Sampler):
    """Every combination of the values."""

    name = "grid"
    # The values of the owner's record.
    default_space: Mapping[str, str] = {
        "training.lr": "1e-3,2e-3,1e-4,2e-4,1e-5",
        "training.alpha": "0.3,0.4,0.5,0.6,0.7",
    }

    def trials(self, plan: "SweepConfig", space: "Space", check: Callable[["Config"], None]) -> "SweepConfig":
        """Return the plan with a trial for each combination."""
        return plan.model_copy(update={"trials": len(self.configurations(plan, space))})

    def configurations(self, plan: "SweepConfig", space: "Space") -> list["Values"]:
        """Return all combinations. Raises UserError where a range has no number of points."""
        from distributed.sweep.space import grid

        return grid(space)

    def propose(self, plan: "SweepConfig", space: "Space", number: int) -> Proposal:
        """Return a combination."""
        return Proposal(None, self.configurations(plan, space)[number], plan.max_epochs)


class TpeSampler(Sampler):
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NIPS 2011)."""

    name = "tpe"
    adaptive = True


class RecordSampler(Sampler):
    """The settings of the owner's record, each with the budget that it had there."""

    name = "record"
    settles = ("trials", "max_epochs")
    stops = False
    repeats_record = True

    def space(self, plan: "SweepConfig") -> "Space":
        """Return nothing: the settings are given."""
        if plan.space or {"training.lr", "training.alpha", "training.epochs"} & set(plan.fixed):
            raise UserError(
                "--space record: repeats the record's own settings; leave out other --space, --lr and --alpha"
            )
        return {}

    def trials(self, plan: "SweepConfig", space: "Space", check: Callable[["Config"], None]) -> "SweepConfig":
        """Return the plan with a trial for each setting."""
        epochs = [proposal.epochs for proposal in _record()]
        return plan.model_copy(update={"trials": len(epochs), "max_epochs": max(epochs)})

    def configurations(self, plan: "SweepConfig", space: "Space") -> list["Values"]:
        """Return all settings."""
        return [proposal.values for proposal in _record()]

    def propose(self, plan: "SweepConfig", space: "Space", number: int) -> Proposal:
        """Return a setting."""
        return _record()[number]

    def epochs(self, plan: "SweepConfig") -> int:
        """Return the sum of the settings' budgets."""
        return sum(proposal.epochs for proposal in _record())


class AblationSampler(Sampler):
    """A configuration, and rows that differ from it by one field, each with several seeds."""

    name = "ablation"
    default_space: Mapping[str, str] = {}
    settles = ("trials",)
    stops = False

    def validate(self, plan: "SweepConfig") -> None:
        """Raise ValueError where finalists are asked for."""
        if plan.finalists:
            raise ValueError(
                f"--finalists {plan.finalists} with --sampler ablation: every row is trained with several seeds already; "
                f"leave --finalists out"
            )

    def space(self, plan: "SweepConfig") -> "Space":
        """Return the values that are tried beside the one that the configuration has."""
        from distributed.sweep.space import check_space, parse_space

        space = parse_space(plan.space, self.default_space, set())
        check_space(space, plan.config)
        return space

    def trials(self, plan: "SweepConfig", space: "Space", check: Callable[["Config"], None]) -> "SweepConfig":
        """Return the plan with its rows, of which a resumed one keeps those that it has."""
        from distributed.sweep.ablation_rows import ablation_rows

        if not plan.rows:
            rows, left_out = ablation_rows(plan.config, space, check)
            plan = plan.model_copy(update={"rows": rows, "left_out": tuple(left_out)})
        return plan.model_copy(update={"trials": len(plan.rows) * plan.seeds})

    def configurations(self, plan: "SweepConfig", space: "Space") -> list["Values"]:
        """Return the rows."""
        return list(plan.rows.values())

    def propose(self, plan: "SweepConfig", space: "Space", number: int) -> Proposal:
        """Return a row with a seed: all rows with one seed before the next, so that a sweep cut off compares them all."""
        from model.config import SEEDS

        seed, row = divmod(number, len(plan.rows))
        name, values = list(plan.rows.items())[row]
        return Proposal(name, values | {"training.seed": (plan.config.training.seed + seed) % SEEDS}, plan.max_epochs)


SAMPLERS: dict[str, Sampler] = {
    each.name: each for each in (RandomSampler(), GridSampler(), TpeSampler(), RecordSampler(), AblationSampler())
}


def _record() -> list[Proposal]:
    from distributed.sweep.record_runs import record_settings

    return [Proposal(*setting) for setting in record_settings()]
