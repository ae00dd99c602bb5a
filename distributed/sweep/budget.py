"""What a sweep may spend on processors, and what it has spent: GPU hours, CPU hours or money."""

import re
from dataclasses import dataclass
from typing import NamedTuple

_FORM = re.compile(r"(?P<hours>\d+\.?\d*|\.\d+)\s*(?P<unit>gpuh|cpuh)|[$€£]?\s*(?P<money>\d+\.?\d*|\.\d+)")
_HOUR = 3600.0


@dataclass(frozen=True)
class Spent:
    """What a sweep has spent on processors.

    Attributes:
        cpu_hours, gpu_hours: of one processor.
        cost: in the currency of `--price`; None without a price.
    """

    cpu_hours: float
    gpu_hours: float
    cost: float | None


class TrialRate(NamedTuple):
    """The CPUs and GPUs that a running trial holds, all its workers together."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Spending:
    """What trials have held, in seconds of one processor, from their first training step to their last event.

    Attributes:
        cpu_seconds, gpu_seconds: of each kind.
        billed_seconds: what a price is for: of GPUs where a trial has one, else of CPUs.
    """

    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    billed_seconds: float = 0.0

    def after(self, seconds: float, trials: int, rate: TrialRate) -> "Spending":
        """Return it with what some trials, all at once, hold for some seconds."""
        held = seconds * trials
        return Spending(
            self.cpu_seconds + held * rate.cpus,
            self.gpu_seconds + held * rate.gpus,
            self.billed_seconds + held * (rate.gpus or rate.cpus),
        )

    def cost(self, price: float | None) -> float | None:
        """Return what it costs at a price for an hour; None without one."""
        return None if price is None else self.billed_seconds / _HOUR * price

    def as_result(self, price: float | None) -> Spent:
        """Return it in hours, with its cost."""
        cost = self.cost(price)
        return Spent(
            round(self.cpu_seconds / _HOUR, 6),
            round(self.gpu_seconds / _HOUR, 6),
            cost if cost is None else round(cost, 6),
        )

    def times(self, factor: float) -> "Spending":
        """Return a multiple of it."""
        return Spending(self.cpu_seconds * factor, self.gpu_seconds * factor, self.billed_seconds * factor)


class Budget(NamedTuple):
    """The most that a sweep may spend.

    Attributes:
        amount: in its unit.
        unit: `gpuh`, `cpuh` or `money`.
        price: of an hour of one processor; None where nobody gave it.
    """

    amount: float
    unit: str
    price: float | None

    @classmethod
    def parse(cls, text: str, price: float | None) -> "Budget":
        """Read `3gpuh`, `40cpuh` or `$20`. Raises ValueError."""
        form = _FORM.fullmatch(text.strip().lower())
        amount = float(form["hours"] or form["money"]) if form else 0.0
        if form is None or not amount:
            raise ValueError(f"--budget {text}: write it as 3gpuh, 40cpuh or '$20'")
        if form["money"] and price is None:
            raise ValueError(
                f"--budget {text}: give the price of an hour of one GPU (of one CPU without GPUs): --price"
            )
        return cls(amount, form["unit"] or "money", price)

    def of(self, spending: Spending) -> float:
        """Return a spending in the unit of the budget."""
        if self.unit == "money":
            assert self.price is not None
            return spending.cost(self.price) or 0.0
        return (spending.gpu_seconds if self.unit == "gpuh" else spending.cpu_seconds) / _HOUR

    def describe_forecast(self, forecast: Spending) -> str:
        """Return a line on what the whole sweep is likely to cost."""
        cost = self.of(forecast)
        verdict = "within" if cost <= self.amount else "more than"
        return f"forecast: {self.show(cost)} for the whole sweep, {verdict} the budget of {self.show(self.amount)}"

    def show(self, amount: float) -> str:
        """Return an amount with the unit, for the user."""
        names = {"gpuh": " GPU hours", "cpuh": " CPU hours", "money": ""}
        return f"{amount:.4g}{names[self.unit]}"
