"""The GPU path without a card: `make gpu-dry`.

Trains an epoch of each preset, evaluates, resumes from a checkpoint inside the epoch and extracts, with tensors that claim to
be on a GPU (gpu_dry_tensor.py). A tensor on a wrong device is an error; what the host would wait for in a step is counted and
must not exceed what the scenario states: nothing but one question of transformers in each pass of an encoder. With dropout off,
losses must be those of the CPU. Nothing here measures time.

It needs torch's CUDA build, which chooses kernels and autograd nodes as on a GPU, and a C compiler: gpu_dry.c answers the
questions that autograd asks the driver. Where torch itself needs more than that, gpu_dry_card.py replaces it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from encoders import tiny_encoder
from gpu_dry_card import pretended_card
from gpu_dry_scenarios import COLUMNS, REFUSED, Attempt, Outcome, Scenario, scenarios
from helpers import generated_dataset

TEXTS = 440  # 308 training texts: 26 steps, so that a check comes inside the epoch
PRELOADED = "TANDEM_GPU_DRY"
FAILS = "fails"


def waited(outcome: Outcome) -> float:
    """Return the syncs of a step and its batch."""
    return sum(sum(outcome.syncs.get(phase, {}).values()) for phase in ("step", "batch"))


def _verdict(cell: str) -> str:
    """Return what the table says of a cell: it is "ok", "-", "refused: why" or what went wrong."""
    if cell in ("ok", "-"):
        return cell
    return REFUSED if cell.startswith(REFUSED) else FAILS


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as text: a line each, what went wrong, and the syncs of a step by place."""
    head = "".join(f"{name:>10}" for name in (*COLUMNS, "syncs", "kernels"))
    lines = [f"{'':<26}{head}", f"{'':<26}{'':>{10 * len(COLUMNS)}}{'a step':>10}{'a step':>10}"]
    for outcome in outcomes:
        cells = [_verdict(each) for each in outcome.columns.values()]
        cells += (
            [f"{waited(outcome):.2f}", f"{outcome.kernels:.0f}"] if outcome.columns["train"] == "ok" else ["-", "-"]
        )
        lines.append(f"{outcome.name:<26}" + "".join(f"{cell:>10}" for cell in cells))
    for outcome in outcomes:
        wrong = {name: each for name, each in outcome.columns.items() if each not in ("ok", "-")}
        lines += [f"{outcome.name}: {name}: {each}" for name, each in wrong.items()]
    return "\n".join(lines)


def sync_table(outcomes: list[Outcome], every: bool) -> str:
    """Return where the host waits: for a step, a batch and a check; elsewhere for all that was done, only where asked for."""
    shown = [each for each in outcomes if every or "," not in each.name or each.name.endswith((", ddp", ", flat"))]
    lines = []
    for outcome in shown:
        lines.append(f"{outcome.name}: host syncs")
        for phase, places in outcome.syncs.items():
            unit = "a step" if phase in ("step", "batch", "pageable") else "in all"
            if unit == "a step" or every or phase == "evaluate":
                lines += [f"  {phase:<9}{times:>8.2f} {unit}  {place}" for place, times in sorted(places.items())]
    return "\n".join(lines)


def failed(outcome: Outcome) -> bool:
    """Return whether a part failed, or a step waits more often than it may; the check every 20 steps is apart."""
    return any(_verdict(each) == FAILS for each in outcome.columns.values()) or waited(outcome) > outcome.may_wait


def _try_all(chosen: list[Scenario]) -> list[Outcome]:
    outcomes = []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gpu-dry-") as folder, pretended_card():
        data = generated_dataset(Path(folder), TEXTS)
        encoder, still = (
            tiny_encoder(Path(folder) / name, "bert", dropout=name == "encoder") for name in ("encoder", "still")
        )
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        (Path(folder) / "sweep.json").touch()  # without which a trial is not trained
        for number, scenario in enumerate(chosen):
            place = Path(folder) / "trials" / str(number)
            place.mkdir(parents=True)
            own = still if "no dropout" in scenario.name else encoder
            outcomes.append(Attempt(scenario, data, own, place).run())
            print(table(outcomes[-1:]).splitlines()[2], file=sys.stderr, flush=True)
        torch.distributed.destroy_process_group()
    return outcomes


def _preload() -> int:
    """Run this file again with gpu_dry.c in place of the driver. Return its exit code."""
    with tempfile.TemporaryDirectory(prefix="gpu-dry-") as folder:
        library = Path(folder) / "libcuda.so.1"
        source = Path(__file__).with_suffix(".c")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), PRELOADED: "1", "WANDB_MODE": "disabled"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the scenarios to try")
    parser.add_argument(
        "--all", action="store_true", help="show for all scenarios where the host waits, and in all phases"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON line for each scenario too")
    asked = parser.parse_args()
    if torch.version.cuda is None:
        print("this is torch without CUDA; `make gpu-dry` installs torch's CUDA build beside it", file=sys.stderr)
        return 2
    if PRELOADED not in os.environ:
        return _preload()
    warnings.simplefilter("ignore")
    outcomes = _try_all([each for each in scenarios() if asked.only in each.name])
    print(f"\n{sync_table(outcomes, asked.all)}\n\n{table(outcomes)}")
    for outcome in outcomes if asked.json else ():
        print(json.dumps(outcome._asdict()))
    bad = sum(map(failed, outcomes))
    print(f"{len(outcomes) - bad} of {len(outcomes)} pass")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
