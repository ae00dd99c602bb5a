"""Runs on a disk that gets full, at any of their writes: `make full-disk`.

Each run trains on a small file system, whose size is drawn from the seed and the run's number, with W&B's offline log on it.
Where the disk gets full, the run has to end with code 2, a message of one line and no traceback, and to leave no bundle. Then
the disk grows, and what the message says, to resume the run or to start it again, has to give the bits of a run that always
had room. Mounting needs root.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers import SMALL, call, disk_of, generated_dataset, last_json, start_ray

ROOM = "64m"
SETTINGS = [
    "--epochs", "3", "--lr", "0.01", "--workers", "1", "--device", "cpu", "--json",
    "--set", "run.retries=0", "--set", "training.patience=0", "--set", "run.checkpoint_minutes=0.005",
    *(f"--set=tagger.{name}={size}" for name, size in SMALL.items()),
]  # fmt: skip


def used(folder: Path) -> int:
    """Bytes that a file system has given out."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def fill(data: str, place: Path, size: int, weights: bytes) -> dict[str, Any]:
    """Trains on a disk of a size, then gives it room and does what the message says."""
    with disk_of(str(size), place) as disk:
        begin = ["train", "--data", data, "--storage", str(disk), "--name", "full", *SETTINGS]
        first = call(*begin)
        row: dict[str, Any] = {
            "kb": size // 1024,
            "code": first.exit_code,
            "at": sorted(each.name for each in disk.glob("full/*")),
        }
        if first.exit_code:
            [message] = [line for line in first.stderr.splitlines() if "o space left" in line] or [""]
            resume = "--resume" in message
            row |= {
                "said": message.replace(str(disk), "DISK")[:200],
                "traceback": "Traceback" in first.stderr,
                "bundle": (disk / "full" / "bundle").exists(),
                "then": "resume" if resume else "again",
            }
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(disk)], check=True)
            second = call("train", "--resume", "full", "--storage", str(disk)) if resume else call(*begin)
            row["second"] = second.exit_code
            if second.exit_code:
                row["error"] = second.stderr[-600:]
        bundle = disk / "full" / "bundle" / "weights.safetensors"
        row["equal"] = bundle.exists() and bundle.read_bytes() == weights
        return row


def main() -> None:
    """Runs the campaign; ends with 1 where a run did not end as it should, or where no disk got full."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    import ray

    from distributed.cluster.connection import connect

    start_ray(2)
    connect()
    shutdown, ray.shutdown = ray.shutdown, lambda *_: None  # the commands share this Ray
    rows = []
    with tempfile.TemporaryDirectory(prefix="full-disk-") as folder:
        data = generated_dataset(Path(folder), 1000)
        with disk_of(ROOM, Path(folder) / "whole") as disk:
            done = call("train", "--data", data, "--storage", str(disk), "--name", "full", *SETTINGS)
            assert done.exit_code == 0, done.stderr
            weights, needed = (Path(last_json(done.stdout)["bundle"]) / "weights.safetensors").read_bytes(), used(disk)
        most = int(1.25 * needed)  # while a checkpoint is written, it needs more than in the end
        print(json.dumps({"needed_kb": needed // 1024}), flush=True)
        for number in range(asked.runs):
            size = 4096 * random.Random(f"{asked.seed} {number}").randint(1, most // 4096)
            rows.append(fill(data, Path(folder) / f"disk{number}", size, weights))
            print(json.dumps(rows[-1]), flush=True)
    shutdown()
    full = [row for row in rows if row["code"]]
    good = (
        bool(full)
        and all(row["equal"] for row in rows)
        and all(row["code"] == 2 and row["said"] and not row["traceback"] and not row["bundle"] for row in full)
    )
    print(json.dumps({"runs": len(rows), "full": len(full), "good": good}))
    sys.exit(not good)


if __name__ == "__main__":
    main()
