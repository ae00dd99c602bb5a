"""Whether sweeps keep to their budgets, and how good the forecast is: `make budgets`.

Each sweep draws a budget, a number of trials at once and finalists from its seed. It is carried out with the budget, then
resumed without one until it is finished, which tells what the forecast should have said.
"""

import argparse
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers import generated_dataset, start_ray
from sweeps import plan_of

TRIALS, EPOCHS = 8, 9


def spend(data: str, folder: str, seed: int) -> dict[str, Any]:
    """Carries out the sweep of a seed. Returns what it was allowed, what it spent, and the forecast beside the truth."""
    from distributed.sweep.state import read_sweep, resumed_sweep
    from distributed.train.events import Note
    from distributed.tune.driver import tune

    draw, name = random.Random(seed), f"seed{seed}"
    seconds, at_once, finalists, stopping = (
        draw.uniform(1, 9),
        draw.choice([1, 2, 4]),
        draw.choice([0, 1]),
        draw.random() < 0.5,
    )
    budget = f"{seconds / 3600:.6f}cpuh"
    asked = {
        "trials": TRIALS,
        "max_epochs": EPOCHS,
        "max_concurrent": at_once,
        "finalists": finalists,
        "seeds": 2,
        "stopping": stopping,
    }
    notes: list[str] = []
    plan = plan_of(data, Path(folder), name, {"seed": seed}, budget=budget, **asked)
    result = tune(plan, lambda event: notes.append(event.text) if isinstance(event, Note) else None).as_dict()
    sweep = read_sweep(plan.folder)
    late = trials_after_the_search(plan.folder)
    spent, epoch = sweep.spent.cpu_seconds, sweep.spent.cpu_seconds / max(sweep.epochs_trained, 1)
    [forecast] = [float(found[1]) * 3600 for note in notes if (found := re.search(r"forecast: ([\d.e-]+)", note))] or [
        None
    ]
    tune(resumed_sweep(name, folder, {"budget": None}), lambda event: None)
    return {
        "seed": seed,
        "at_once": at_once,
        "finalists": finalists,
        "stopping": stopping,
        "budget_s": round(seconds, 1),
        "spent_s": round(spent, 1),
        "epoch_s": round(epoch, 2),
        "over_epochs": round(max(spent - seconds, 0) / epoch, 2),
        "late_trials": late,
        "stopped_by": result.get("stopped_by"),
        "forecast_s": forecast and round(forecast, 1),
        "whole_s": round(read_sweep(plan.folder).spent.cpu_seconds, 1),
    }


def trials_after_the_search(folder: str) -> int:
    """How many searched trials were begun, or resumed, after the finalists were chosen, for whom the budget was kept."""
    from distributed.sweep.journal import read_events

    finalists: set[str] = set()
    trials = 0
    for event in read_events(folder):
        if event["event"] == "trial" and event["finalist_of"]:
            finalists.add(event["name"])
        elif event["event"] == "begun":
            trials += bool(finalists) and event["trial"] not in finalists
    return trials


def main() -> None:
    """Runs the campaign; ends with 1 where a sweep spent too much, or searched while its finalists waited."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    options = parser.parse_args()
    import ray

    from distributed.cluster.connection import connect

    with tempfile.TemporaryDirectory(prefix="budgets-") as folder:
        data = generated_dataset(Path(folder), 1000)
        start_ray(4)
        connect()
        rows = []
        for seed in range(options.first, options.first + options.seeds):
            rows.append(spend(data, folder, seed))
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
        ray.shutdown()
    kept = all(row["over_epochs"] <= row["at_once"] and not row["late_trials"] for row in rows)
    print(f"{len(rows)} sweeps; all within the budget and an epoch of each running trial, finalists first: {kept}")
    sys.exit(int(not kept))


if __name__ == "__main__":
    main()
