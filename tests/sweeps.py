"""Small sweeps that tests carry out, and what came of them."""

from pathlib import Path
from typing import Any

from helpers import SMALL, f1_curve

from distributed.cluster.resources import ClusterResources
from distributed.sweep.plan import make_plan, new_sweep, validate_plan
from distributed.sweep.state import read_sweep
from distributed.tune.driver import tune
from distributed.tune.events import SweepEvent

Events = list[SweepEvent]


def plan_of(data: str, where: Path, name: str, training: dict | None = None, run: dict | None = None, **asked: Any):
    config = {
        "data": data,
        "tagger": SMALL,
        "training": {"patience": 0} | (training or {}),
        "run": {"name": name, "storage": str(where), "device": "cpu"} | (run or {}),
    }
    space = asked.pop("space", ["training.lr=log:1e-3:3e-2"])
    return new_sweep(make_plan({"config": config, "space": space, **asked}))


def carry_out(plan: Any, events: Events | None = None) -> dict[str, Any]:
    return tune(plan, lambda event: events.append(event) if events is not None else None).as_dict()


def curves(folder: Path) -> dict[str, tuple[dict[str, Any], list[float], str]]:
    """Values, F1 of each epoch and state of each trial."""
    return {
        trial.name: (trial.values, [metrics["valid/keyphrase_f1"] for metrics in trial.metrics], trial.state)
        for trial in read_sweep(str(folder)).all
    }


def undisturbed(folder: Path) -> dict[str, tuple[dict[str, Any], list[float], str]]:
    """The same of a sweep of proposals, in their order, that were trained to the end without Ray."""
    sweep = read_sweep(str(folder))
    plan, space, _ = validate_plan(sweep.plan, ClusterResources(4, 0, 1))
    proposals = [plan.strategy.propose(plan, space, number).values for number in range(plan.trials)]
    return {
        trial.name: (values, f1_curve(sweep.config_of(trial)), "finished")
        for trial, values in zip(sweep.all, proposals, strict=True)
    }
