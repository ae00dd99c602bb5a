"""The plan of a sweep: what was asked for, and whether it can be carried out."""

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from distributed.cluster.connection import inspect_cluster
from distributed.cluster.preflight import check_data
from distributed.cluster.resources import ClusterResources
from distributed.sweep.budget import Budget, Spending, TrialRate
from distributed.sweep.metric import METRICS, Metric
from distributed.sweep.results import DryRun, TrialRequest
from distributed.sweep.samplers import SAMPLERS, Sampler
from distributed.sweep.space import MAX_TRIALS, Space, Values, apply_values
from distributed.train.runs import new_run, run_folder
from model.aliases import FIELDS, current_field, current_keys
from model.config import Config
from model.data.dataset import Dataset
from model.errors import UserError
from model.training.loop import SELECTION_METRIC


class SweepConfig(BaseModel):
    """The plan of a sweep: all that was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    config: Config = Field(description="what all trials have in common; its run names the sweep and its storage")
    space: tuple[str, ...] = ()
    fixed: tuple[str, ...] = Field((), description="dotted names that were given a value")
    sampler: str = "random"
    trials: int = Field(16, ge=1, le=MAX_TRIALS)
    max_epochs: int = Field(9, ge=1)
    grace: int = Field(1, ge=1, description="epochs before which no trial is stopped: the first rung")
    eta: float = Field(
        3, ge=2, description="a rung lets about 1 in eta trials continue; rungs are grace * eta^k epochs"
    )
    stopping: bool = Field(True, description="false: every trial is trained in full")
    metric: str = SELECTION_METRIC
    max_concurrent: int | None = Field(None, ge=1)
    time_budget: float | None = Field(None, gt=0, description="seconds after which no epoch begins")
    budget: str | None = Field(None, description="the most that the trials may spend on processors; see `Budget.parse`")
    price: float | None = Field(None, gt=0, description="of an hour of one GPU; of one CPU where trials have no GPU")
    gpus_per_trial: float | None = Field(None, ge=0)
    workers_per_trial: int = Field(1, ge=1)
    finalists: int = Field(0, ge=0, description="best configurations that are trained again with fresh seeds")
    seeds: int = Field(3, ge=1, le=MAX_TRIALS, description="of each finalist; of an ablation: of each row")
    rows: dict[str, Values] = Field(
        {}, description="of an ablation, set by `validate_plan`: the changed fields of each row"
    )
    left_out: tuple[str, ...] = Field((), description="a line for each row that an ablation cannot have")

    @field_validator("sampler", mode="after")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        if name not in SAMPLERS:
            raise ValueError(f"does not exist; choose {', '.join(SAMPLERS)}")
        return name

    @field_validator("space", mode="after")
    @classmethod
    def _space_under_present_names(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parts = (text.partition("=") for text in texts)
        return tuple(current_field(name.strip()) + sign + domain for name, sign, domain in parts)

    @field_validator("fixed", mode="after")
    @classmethod
    def _fixed_under_present_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(current_field, names))

    @field_validator("rows", mode="after")
    @classmethod
    def _rows_under_present_names(cls, rows: dict[str, Values]) -> dict[str, Values]:
        return {name: current_keys(values, FIELDS) for name, values in rows.items()}

    @model_validator(mode="after")
    def _sound(self) -> "SweepConfig":
        if self.grace > self.max_epochs:
            raise ValueError(
                f"--grace {self.grace} is more than --max-epochs {self.max_epochs}: no trial could be stopped"
            )
        if self.metric not in METRICS:
            raise ValueError(f"--metric {self.metric} does not exist; trials can be ranked by {', '.join(METRICS)}")
        if self.budget is not None:
            Budget.parse(self.budget, self.price)
        self.strategy.validate(self)
        return self

    @property
    def ranking(self) -> Metric:
        """The metric that trials are ranked by."""
        return Metric.parse(self.metric)

    @property
    def folder(self) -> str:
        """The folder of the sweep's files."""
        return run_folder(self.config)

    @property
    def strategy(self) -> Sampler:
        """How configurations are chosen."""
        return SAMPLERS[self.sampler]

    @property
    def stops(self) -> bool:
        """Whether ASHA ends trials early."""
        return self.stopping and self.strategy.stops

    @property
    def rungs(self) -> list[int]:
        """The epochs at which ASHA decides."""
        rungs, at = [], float(self.grace)
        while self.stops and at < self.max_epochs:
            rungs.append(int(-(-at // 1)))  # a rung between two epochs is decided at the later one
            at *= self.eta
        return rungs

    @property
    def allowance(self) -> Budget | None:
        """The most that the trials may spend on processors."""
        return None if self.budget is None else Budget.parse(self.budget, self.price)

    @property
    def epochs_of_finalists(self) -> int:
        """What training the finalists costs."""
        return self.finalists * self.seeds * self.max_epochs

    @property
    def epochs_expected(self) -> float:
        """What all trainings of the plan cost on average; with ASHA, if trials come to a rung in random order."""
        if not self.stops:
            return self.epochs_planned + self.epochs_of_finalists
        epochs, trials, begin = float(self.epochs_of_finalists), float(self.trials), 0
        for end in [*self.rungs, self.max_epochs]:
            epochs += trials * (end - begin)
            trials, begin = continuing(trials, self.eta), end
        return epochs

    @property
    def epochs_planned(self) -> int:
        """What all trials of the plan would cost without stopping."""
        return self.strategy.epochs(self)


class TrialResources(NamedTuple):
    """What each worker of a trial gets, and how many trials run at the same time."""

    cpus: int
    gpus: float
    concurrent: int

    def rate(self, workers: int) -> TrialRate:
        """Return what a running trial of `workers` workers holds."""
        return TrialRate(self.cpus * workers, self.gpus * workers)

    def describe(self, workers: int) -> str:
        """Return the request of a trial of `workers` workers, as in `2 x (1 CPU, 0 GPU)`."""
        return f"{workers} x ({self.cpus} CPU, {self.gpus:g} GPU)"


def continuing(trials: float, eta: float) -> float:
    """Return how many of some trials ASHA lets continue at a rung, on average over the orders in which they come to it.

    It decides as each comes: with m trials before it, one continues if it reaches their quantile 1 - 1 / eta, interpolated
    linearly. Among m + 1 equally likely ranks that is a chance of (1 + (m - 1) / eta) / (m + 1), and 1 for the first: more
    than 1 in eta in a small sweep.
    """
    whole = int(trials)
    chances = [1.0, *((1 + (m - 1) / eta) / (m + 1) for m in range(1, whole + 1))]
    return sum(chances[:whole]) + (trials - whole) * chances[whole]


def make_plan(tree: Mapping[str, object]) -> SweepConfig:
    """Return a plan from plain values.

    Raises:
        UserError: a value is not allowed; the flag is named.
    """
    try:
        return SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(each) for each in error.errors())) from None


def _explain(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    return f"--{str(error['loc'][0]).replace('_', '-')} {error['input']}: {message}"


def new_sweep(plan: SweepConfig) -> SweepConfig:
    """Return the plan of a new sweep: with a name, and with absolute locations, which hold on every node.

    Raises:
        UserError: a sweep or run of this name exists.
    """
    return plan.model_copy(update={"config": new_run(plan.config, "sweep")})


def validate_plan(plan: SweepConfig, cluster: ClusterResources) -> tuple[SweepConfig, Space, TrialResources]:
    """Check all that can be known before any work is done.

    Returns:
        the plan with the number of its trials settled, the space, and what a trial gets.

    Raises:
        UserError: the sweep could not be carried out.
    """
    sampler = plan.strategy
    space = sampler.space(plan)
    dataset = Dataset(plan.config.data)

    def check(config: Config) -> None:
        check_data(apply_values(config, {"run.workers": plan.workers_per_trial}), dataset)

    plan = sampler.trials(plan, space, check)
    if plan.finalists > plan.trials:
        raise UserError(f"--finalists {plan.finalists}: there are only {plan.trials} trials; lower it")
    for values in sampler.configurations(plan, space):
        check(apply_values(plan.config, values))
    resources = _trial_resources(plan, cluster)
    if plan.allowance is not None and plan.allowance.unit == "gpuh" and not resources.gpus:
        raise UserError(
            f"--budget {plan.budget}: the trials use no GPU; give CPU hours, as in 40cpuh, or --device cuda"
        )
    return plan, space, resources


def _trial_resources(plan: SweepConfig, cluster: ClusterResources) -> TrialResources:
    """Return what a trial gets. Raises UserError with the arithmetic where no trial could ever start."""
    run, workers = plan.config.run, plan.workers_per_trial
    cpus = run.cpus_per_worker or 1
    gpus = plan.gpus_per_trial
    if gpus is None:
        gpus = 1 if run.device == "cuda" or (run.device == "auto" and cluster.maximum.gpus) else 0
    elif workers > 1:
        raise UserError(
            f"--gpus-per-trial {gpus:g} with --workers-per-trial {workers}: each worker of a trial gets a GPU of its own; "
            f"leave --gpus-per-trial out, or use --device cpu"
        )
    elif gpus and run.device == "cpu":
        raise UserError(f"--gpus-per-trial {gpus:g} with --device cpu: leave one of the two out")
    if gpus > 1:
        raise UserError(f"--gpus-per-trial {gpus:g}: a worker uses one GPU; for more, use --workers-per-trial")
    slots = cluster.maximum.worker_slots(cpus, gpus)
    resources = TrialResources(
        cpus, gpus, min(slots // workers, plan.max_concurrent or slots, max(plan.trials, plan.finalists * plan.seeds))
    )
    if slots < workers:
        raise UserError(
            f"a trial asks for {resources.describe(workers)}, and the cluster ({cluster.maximum}) has room for "
            f"{resources.describe(slots)}; lower --workers-per-trial, --gpus-per-trial or run.cpus_per_worker, or join a "
            f"larger cluster with RAY_ADDRESS"
        )
    return resources


def dry_run(plan: SweepConfig, forecast: Spending | None = None) -> DryRun:
    """Return the resolved plan, the first configurations, what would be asked of the cluster, and the forecast given."""
    cluster = inspect_cluster()
    plan, space, resources = validate_plan(plan, cluster)
    known = 0 if plan.strategy.adaptive else min(plan.trials, 5)
    return DryRun(
        name=plan.config.run.name,
        plan=plan.model_dump(exclude={"rows", "left_out"}),
        space={name: str(domain) for name, domain in space.items()},
        first=[plan.strategy.propose(plan, space, number).values for number in range(known)],
        rungs=plan.rungs,
        asks=TrialRequest(plan.workers_per_trial, resources.cpus, resources.gpus),
        at_once=resources.concurrent,
        cluster=cluster,
        rows=plan.rows or None,
        left_out=plan.left_out if plan.rows else None,
        trainings=plan.trials if plan.rows else None,
        forecast=forecast.as_result(plan.price) if forecast else None,
    )
