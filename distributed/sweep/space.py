"""What a sweep searches: ranges by dotted name, and how values are drawn from them.

training.lr=log:1e-4:1e-2       log-uniform               training.alpha=0.1:0.9    uniform
tagger.keyword_hidden=100:400          whole numbers, ends too   tagger.cell=rnn,gru,lstm  one of these
training.lr=log:1e-4:1e-2:5     one of five, evenly spaced (on the log scale)
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from model.config import Config, fields, make_config, parse_scalar, set_dotted
from model.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = Any  # of a field of the configuration
Values = dict[str, Value]  # by dotted name

_SHARED = {
    "tagger.encoder": "one encoder",
    "tagger.encoder_digest": "one encoder",
    "training.teacher": "one teacher's labels",
    "training.teacher_digest": "one teacher's labels",
    "training.held_out_fold": "their data",
    "training.data": "their data",
}  # fields that do not differ between the trials of a sweep
MAX_TRIALS = 10_000  # of a sweep
_SYNTAX = "write a range as low:high or log:low:high, choices as a,b,c"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.values))

    def draw(self, random: np.random.Generator) -> Value:
        """Draw one, each with the same probability."""
        return self.values[int(random.integers(len(self.values)))]

    @property
    def bounds(self) -> tuple[Value, ...]:
        """The values that have to be allowed for all to be."""
        return self.values


@dataclass(frozen=True)
class NumericRange:
    """Numbers between two ends."""

    low: float
    high: float
    log: bool
    whole: bool

    def __str__(self) -> str:
        return f"{'log:' if self.log else ''}{self.low:g}:{self.high:g}"

    def draw(self, random: np.random.Generator) -> float | int:
        """Draw uniformly, or uniformly in the logarithm; four significant digits, as one would type it."""
        if self.whole and not self.log:
            return int(random.integers(int(self.low), int(self.high), endpoint=True))
        value = self.at(float(random.random()))
        return round(value) if self.whole else float(f"{value:.4g}")

    def at(self, fraction: float) -> float:
        """Return the number at a fraction of the way from low to high."""
        if self.log:
            return math.exp(math.log(self.low) + fraction * (math.log(self.high) - math.log(self.low)))
        return self.low + fraction * (self.high - self.low)

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


Space = dict[str, Choice | NumericRange]


def parse_space(texts: Iterable[str], default: Mapping[str, str], fixed: set[str]) -> Space:
    """Read a search space.

    Args:
        texts: `dotted.name=range`; each is added to the default, or replaces its range.
        default: ranges by dotted name.
        fixed: dotted names that were given a value; the default does not search them.

    Raises:
        UserError: a range cannot be read, or a name is fixed and searched.
    """
    space = {name: _read_range(name, text, name) for name, text in default.items() if name not in fixed}
    for text in texts:
        name, sign, domain = text.partition("=")
        if not sign or not domain:
            raise UserError(f"--space {text}: write it as --space training.lr=log:1e-4:1e-2; {_SYNTAX}")
        if name in fixed:
            raise UserError(f"--space {text}: {name} is given a value as well; leave one of the two out")
        space[name] = _read_range(name, domain, f"--space {text}")
    return space


def check_space(space: Space, base: Config) -> None:
    """Check a search space. Raises UserError where a name is unknown or not searchable, or a value is not allowed."""
    known = [name for name in fields() if name.startswith(("training.", "tagger.")) and name != "training.epochs"]
    for name, domain in space.items():
        if name == "training.epochs":
            raise UserError("--space training.epochs: every trial's curve shows every epoch; use --max-epochs")
        if name in _SHARED:
            raise UserError(f"--space {name}: all trials of a sweep share {_SHARED[name]}; start a sweep for each")
        if name not in known:
            raise UserError(f"--space {name}: is unknown or does not change the result; known are {', '.join(known)}")
        for value in domain.bounds:
            apply_values(base, {name: value})


def apply_values(base: Config, values: Values, where: str = "--space") -> Config:
    """Return the configuration of a trial. Raises UserError where a value is not allowed."""
    tree = base.model_dump()
    for name, value in values.items():
        set_dotted(tree, name, value)
    return make_config(tree, where)


def sample(space: Space, seed: int, number: int) -> Values:
    """Draw the values of trial `number`, 0-based: a function of the space and the seed alone."""
    random = np.random.default_rng([seed, number])
    return {name: domain.draw(random) for name, domain in space.items()}


def grid(space: Space) -> list[Values]:
    """Return all combinations. Raises UserError where a range has no number of points, or where there are too many."""
    values = choices(space, "grid").values()
    count = math.prod(map(len, values))
    if count > MAX_TRIALS:
        raise UserError(
            f"--sampler grid: the space has {count:,} combinations, and a sweep has at most {MAX_TRIALS:,} trials; give fewer "
            f"values"
        )
    return [dict(zip(space, each, strict=True)) for each in itertools.product(*values)]


def choices(space: Space, sampler: str) -> dict[str, tuple[Value, ...]]:
    """Return the values of each name. Raises UserError where a range has no number of points."""
    for name, domain in space.items():
        if isinstance(domain, NumericRange):
            raise UserError(
                f"--sampler {sampler}: {name} is a range without a number of points; write for example log:a:b:5"
            )
    return {name: domain.values for name, domain in space.items() if isinstance(domain, Choice)}


def optuna_space(space: Space) -> "dict[str, BaseDistribution]":
    """Return the space as distributions of Optuna."""
    from optuna import distributions as optuna

    def translate(domain: Choice | NumericRange) -> "BaseDistribution":
        if isinstance(domain, Choice):
            return optuna.CategoricalDistribution(domain.values)
        if domain.whole:
            return optuna.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
        return optuna.FloatDistribution(domain.low, domain.high, log=domain.log)

    return {name: translate(domain) for name, domain in space.items()}


def _is_whole(annotation: object) -> bool:
    """Return whether a field holds whole numbers, or None."""
    return annotation is int or any(int in (each, *get_args(each)) for each in get_args(annotation))


def _read_range(name: str, text: str, where: str) -> Choice | NumericRange:
    if ":" not in text:
        return Choice(tuple(parse_scalar(value.strip(), where) for value in text.split(",")))
    log = text.startswith("log:")
    parts = text.removeprefix("log:").split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        points = int(parts[2]) if len(parts) > 2 else None
    except (ValueError, IndexError):
        raise UserError(f"{where}: cannot be read as a range; {_SYNTAX}") from None
    finite = math.isfinite(low) and math.isfinite(high)
    countable = points is None or 2 <= points <= MAX_TRIALS
    if len(parts) > 3 or not (finite and low < high) or (log and low <= 0) or not countable:
        raise UserError(
            f"{where}: a range needs low < high, with log also 0 < low, and 2 to {MAX_TRIALS:,} points where their number is "
            f"given"
        )
    field = fields().get(name)
    span = NumericRange(low, high, log, whole=field is not None and _is_whole(field.annotation))
    if points is None:
        return span
    values = [span.at(i / (points - 1)) for i in range(points)]
    rounded = (round(value) if span.whole else float(f"{value:.4g}") for value in values)
    return Choice(tuple(dict.fromkeys(rounded)))  # of few whole numbers, several points are one
