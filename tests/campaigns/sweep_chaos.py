"""Sweeps whose driver is killed again and again: `make sweep-chaos`.

Each sweep, of its own seed, is first carried out undisturbed. The second time its driver gets `kill -9` after a random number
of epochs and is started again with --resume, until the sweep has ended. Some drivers have a Ray of their own, which ends with
them; the others join a cluster, which stays. With one trial at a time the epochs arrive in a fixed order, so ASHA has to stop
the same trials after the same epochs, and every epoch has to have the same F1. Also, no journal may propose a trial twice,
and the cluster has to be as empty as before.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import leaks
from helpers import generated_dataset, start_ray
from sweeps import begin_sweep, curves, start_sweep, wait_for_epochs

TRIALS, EPOCHS = 10, 9
SECONDS_OF_A_SWEEP = 900.0


def begin(data: str, name: str, seed: int) -> list[str]:
    """The arguments of the sweep of a seed."""
    space = ("--space", "training.lr=log:1e-3:3e-2", "--set", f"training.seed={seed}")
    sizes = ("--trials", str(TRIALS), "--max-epochs", str(EPOCHS), "--max-concurrent", "1")
    return [*begin_sweep(data, name), *space, *sizes]


def disturb(data: str, storage: Path, seed: int, here: str) -> dict[str, Any]:
    """Carries the sweep of a seed out twice, and returns how often its driver was killed and whether the two are the same."""
    draw, whole, name = random.Random(seed), f"whole{seed}", f"killed{seed}"
    driver = start_sweep(storage, *begin(data, whole, seed), address=here)
    _, errors = driver.communicate(timeout=SECONDS_OF_A_SWEEP)
    assert driver.returncode == 0, errors
    arguments, kills, began = begin(data, name, seed), 0, time.monotonic()
    while not (storage / name / "result.json").exists():
        assert time.monotonic() - began < SECONDS_OF_A_SWEEP, "the sweep does not end"
        driver = start_sweep(storage, *arguments, address=draw.choice([here, ""]))
        wait_for_epochs(storage / name, draw.randint(1, 4), driver)
        time.sleep(draw.random() / 4)
        kills += driver.poll() is None
        driver.kill()
        driver.communicate()
        assert driver.returncode in (0, -9), driver.returncode
        arguments = ["--resume", name, "--max-concurrent", "1"]
    journal = (storage / name / "journal.jsonl").read_text().splitlines()
    results = [json.loads((storage / each / "result.json").read_text()) for each in (whole, name)]
    return {
        "seed": seed,
        "kills": kills,
        "seconds": round(time.monotonic() - began),
        "stopped": results[0]["stopped"],
        "same_curves": curves(storage / whole) == curves(storage / name),
        "same_best": len({json.dumps(each["best"], sort_keys=True) for each in results}) == 1,
        "proposals": sum('"event": "trial"' in line for line in journal),
        "left": {kind: left for kind, left in leaks.wait_until_nothing_is_left()[0].items() if left},
    }


def main() -> None:
    """Runs the campaign; ends with 1 where a sweep differs or leaves something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="at least")
    parser.add_argument("--seed", type=int, default=0, help="of the first sweep")
    asked = parser.parse_args()
    import ray

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sweep-chaos-") as folder:
        data = generated_dataset(Path(folder), 1000)
        start_ray(4)
        here = ray.get_runtime_context().gcs_address
        while sum(row["kills"] for row in rows) < asked.kills:
            rows.append(disturb(data, Path(folder), asked.seed + len(rows), here))
            print(json.dumps(rows[-1]), flush=True)
        ray.shutdown()
    same = all(row["same_curves"] and row["same_best"] and row["proposals"] == TRIALS for row in rows)
    print(json.dumps({"kills": sum(row["kills"] for row in rows), "sweeps": len(rows), "same": same}))
    sys.exit(not same or any(row["left"] for row in rows))


if __name__ == "__main__":
    main()
