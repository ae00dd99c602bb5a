"""Small sweeps that tests carry out, and what came of them."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers import ROOT, SMALL, f1_curve

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


def begin_sweep(data: str, name: str) -> list[str]:
    """The arguments that begin a small sweep; those of its trials are missing."""
    sizes = [f"--set=tagger.{field}={size}" for field, size in SMALL.items()]
    return ["--data", data, "--name", name, *sizes]


def start_sweep(where: Path, *arguments: str, address: str = "") -> "subprocess.Popen[str]":
    """`python -m jobs tune` as a process of its own, on a Ray of its own or on that of an address."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", "tune", *arguments, "--storage", str(where)],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline", "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(folder: Path, more: int, driver: "subprocess.Popen[str] | None" = None) -> None:
    """Until the journal of a sweep holds some epochs more than now, or its driver has ended."""
    deadline = time.monotonic() + 180
    journal = folder / "journal.jsonl"

    def known() -> int:
        return journal.read_text().count('"event": "epoch"') if journal.exists() else 0

    until = known() + more
    while known() < until and (driver is None or driver.poll() is None):
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.05)
