"""What a sweep results in: what `tune --json` prints and result.json holds, and what `tune --dry-run` prints."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distributed.cluster.resources import ClusterResources
from distributed.sweep.budget import Spent
from distributed.sweep.space import Values
from model import storage
from model.aliases import RESULTS, current_keys
from model.config import first_problem
from model.errors import UserError, first_line
from model.training.device_usage import DeviceUsage
from model.training.significance import Difference

Number = int | float
# Keys that are left out where they have no value; others are null.
_OPTIONAL = {
    "against",
    "trial_start_s",
    "record",
    "conclusions",
    "ablation",
    "test",
    "rows",
    "left_out",
    "trainings",
    "usage",
    "forecast",
    "spent",
    "stopped_by",
}


def _without_missing(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {key: value for key, value in pairs if value is not None or key not in _OPTIONAL}


@dataclass(frozen=True)
class DifferenceTo(Difference):
    """A difference, with the trial that the first is compared with."""

    trial: str


@dataclass(frozen=True)
class BestTrial:
    """The best trial of the search.

    Attributes:
        config: searched fields by dotted name.
        epoch: its best one.
        keyphrase_f1, low, high: of that epoch on the validation split, with its 95 % interval.
    """

    trial: str
    config: Values
    epoch: Number
    keyphrase_f1: float
    low: float
    high: float


@dataclass(frozen=True)
class Finalist:
    """A configuration that was trained again with fresh seeds.

    Attributes:
        scores: of each seed.
        mean, low, high: of the scores, with its 95 % interval.
        against: of the first finalist, its difference to the second.
    """

    trial: str
    config: Values
    seeds: list[int]
    scores: list[float]
    mean: float
    low: float
    high: float
    against: DifferenceTo | None = None


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a tagger learns: in its embedding tables, of which a step touches few rows, and elsewhere."""

    embedding: int
    network: int


@dataclass(frozen=True)
class AblationRow:
    """A row of an ablation.

    Attributes:
        row: its name.
        values: the fields that differ from the whole.
        seeds: those that were trained in full, each with its score and its best epoch.
        mean, low, high: of the scores, with its 95 % interval; None where no seed was trained in full.
        against_whole: None where there is nothing to compare.
        seconds_per_epoch: None where no epoch was trained.
        parameters: None where no training began.
        lost: a line for each seed that is missing.
    """

    row: str
    values: Values
    seeds: list[int]
    scores: list[float]
    mean: float | None
    low: float | None
    high: float | None
    against_whole: Difference | None
    best_epochs: list[int]
    seconds_per_epoch: float | None
    parameters: ParameterCount | None
    lost: list[str]


@dataclass(frozen=True)
class RecordRow:
    """A run of the owner's record and what repeats it.

    Attributes:
        record: the record's metrics.
        repeated: ours by the record's definitions.
        keyphrase_f1, low, high: ours by our definitions; None where the run is not repeated yet.
    """

    series: str
    lr: float
    alpha: float
    epochs: int
    record: dict[str, float | None]
    repeated: dict[str, Number]
    keyphrase_f1: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TuneResult:
    """What a finished sweep results in.

    Attributes:
        trials: that were searched, of which `stopped`, `failed` and `unfinished` did not train in full.
        epochs_spent, epochs_full: of the trials, and what they would have cost without stopping.
        seconds: that the sweep took, all its sessions together.
        verdict: what the sweep shows, in a sentence.
        trial_start_s: median seconds from a proposal to the first training step.
        record, conclusions: where the owner's record is repeated.
        ablation: the rows of an ablation.
        test: metrics of the winner of the finalists on the test split.
        usage: what each trial used of its workers' devices.
        spent: on processors, by all trainings.
        stopped_by: `budget` or `time_budget`, where it ended the sweep before its plan.
    """

    name: str | None
    trials: int
    stopped: int
    failed: int
    unfinished: int
    epochs_spent: int
    epochs_full: int
    seconds: float
    best: BestTrial
    finalists: list[Finalist]
    verdict: str
    bundle: str
    report: str
    trial_start_s: float | None = None
    record: list[RecordRow] | None = None
    conclusions: list[str] | None = None
    ablation: list[AblationRow] | None = None
    test: dict[str, Number] | None = None
    usage: dict[str, DeviceUsage] | None = None
    spent: Spent | None = None
    stopped_by: str | None = None

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "TuneResult":
        """Read what `as_dict` gives; keys of earlier versions too. Raises ValueError."""
        rows = {key: [current_keys(row, RESULTS) for row in tree.get(key) or ()] for key in ("finalists", "ablation")}
        return TypeAdapter(cls).validate_python({**tree, **{key: found for key, found in rows.items() if found}})

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        return asdict(self, dict_factory=_without_missing)


def read_result(folder: str) -> TuneResult | None:
    """Return the result of a sweep; None where it is not finished. Raises UserError where the file is damaged."""
    place = storage.join(folder, "result.json")
    if not storage.exists(place):
        return None
    try:
        return TuneResult.from_dict(json.loads(storage.read(place)))
    except (ValueError, TypeError, AttributeError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else first_line(error)
        raise UserError(
            f"{place}: is damaged ({problem}); delete it, and finish the sweep with `tune --resume`"
        ) from None


@dataclass(frozen=True)
class TrialRequest:
    """What a trial asks of the cluster."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float


@dataclass(frozen=True)
class DryRun:
    """A sweep before it runs.

    Attributes:
        plan: the resolved plan.
        space: the searched ranges by dotted name.
        first: the first configurations, where results do not decide them.
        rungs: epochs at which ASHA stops trials.
        asks: of each trial.
        at_once: trials at the same time.
        rows, left_out, trainings: of an ablation.
        forecast: what the whole sweep will have spent, where epochs of it have been trained.
    """

    name: str | None
    plan: Values
    space: dict[str, str]
    first: list[Values]
    rungs: list[int]
    asks: TrialRequest
    at_once: int
    cluster: ClusterResources
    rows: dict[str, Values] | None = None
    left_out: tuple[str, ...] | None = None
    trainings: int | None = None
    forecast: Spent | None = None

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self, dict_factory=_without_missing) | self.cluster.as_dict()
