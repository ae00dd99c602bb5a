"""Everything that needs a card, on the card of this machine: `make gpu`, in under ten minutes.

Each check of gpu_checks.py (one process), gpu_commands.py (commands, on a Ray of their own) and gpu_speed.py runs in a process of
its own with a time limit, so that one that fails, hangs or spoils its CUDA context loses nothing but itself. The data is
the built-in corpus. Exit code 1 if a check failed. Without a card it says so, and `make gpu-dry` runs instead.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_checks import CHECKS
from gpu_commands import COMMANDS
from gpu_setup import ROOT, Check, NotHereError, prepare
from gpu_speed import MEASUREMENTS

SECONDS = 590.0  # of all checks
SIDE_BY_SIDE = 3  # checks at a time, where the machine has two cores for each; what is measured runs alone
CPU_FACTOR = 4  # more time on a CPU, where this script itself is tried
MARK = "result of the check: "
OK, SKIPPED, FAILED = "ok", "-", "FAILED"


class Result(NamedTuple):
    """What came of a check."""

    name: str
    verdict: str
    detail: str
    seconds: float


def carry_out(check: Check, device: str, folder: Path, deadline: float) -> Result:
    """Run a check in a process of its own, and end that with all its children at the time limit."""
    began = time.monotonic()
    limit = min(check.limit_s * (1 if device.startswith("cuda") else CPU_FACTOR), deadline - began)
    if limit < 1:
        return Result(check.name, FAILED, f"not begun: {SECONDS:.0f} s are over", 0.0)
    command = [sys.executable, __file__, "--check", check.name, "--device", device, "--folder", str(folder)]
    environment = os.environ | {"WANDB_MODE": "disabled", "RAY_ADDRESS": "", "TANDEM_STORAGE": ""}
    for name in ("RAY_ADDRESS", "TANDEM_STORAGE"):
        environment.pop(name)
    log = folder / f"{check.name.replace(' ', '_').replace('/', '_')}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            process.wait(limit)
            verdict, detail = _read(log)
        except subprocess.TimeoutExpired:
            verdict, detail = FAILED, f"not done after {limit:.0f} s; its output: {_last_lines(log)}"
        finally:
            _end(process)
    return Result(check.name, verdict, detail, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a check has left behind: its session, and Ray's processes, which begin sessions of their own."""
    import psutil

    children: list[psutil.Process] = []
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
    for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), *(child.kill for child in children)):
        try:
            kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    process.wait()


def _read(log: Path) -> tuple[str, str]:
    for line in reversed(log.read_text("utf-8", "replace").splitlines()):
        if line.startswith(MARK):
            verdict, detail = json.loads(line.removeprefix(MARK))
            return verdict, detail
    return FAILED, f"its process ended: {_last_lines(log)}"


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text("utf-8", "replace").strip().splitlines()[-4:])


def one_check(name: str, device: str, folder: Path) -> int:
    """Run a check in this process and print its result as the last line. Return the exit code."""
    check = next(each for each in all_checks() if each.name == name)
    verdict = OK
    try:
        detail = check.run(torch.device(device), folder)
    except NotHereError as reason:
        verdict, detail = SKIPPED, str(reason)
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        verdict, detail = FAILED, f"{type(error).__name__}: {lines[0]}"
    print(f"{MARK}{json.dumps((verdict, detail))}", flush=True)
    return int(verdict == FAILED)


def all_checks() -> list[Check]:
    """Return all checks, in the order of the table."""
    return [Check("prepare", prepare, 240), *CHECKS, *COMMANDS, *MEASUREMENTS]


def campaign(chosen: list[Check], device: str, folder: Path, keep_going_until: float) -> list[Result]:
    """Run the checks: the datasets first, then side by side what is not measured, then the rest one by one."""
    results: dict[str, Result] = {}

    def run(check: Check) -> None:
        result = results[check.name] = carry_out(check, device, folder, keep_going_until)
        print(f"  {result.name:<34}{result.verdict:<8}{result.seconds:>5.0f} s", file=sys.stderr, flush=True)

    first = carry_out(all_checks()[0], device, folder, keep_going_until)
    if first.verdict != OK:
        return [first]
    with ThreadPoolExecutor(max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 1) // 2))) as lanes:
        list(lanes.map(run, [each for each in chosen if not each.alone]))
    for check in chosen:
        if check.alone:
            run(check)
    return [first, *(results[each.name] for each in chosen)]


def table(results: list[Result], device: str) -> str:
    """Return a line for each check; the lines of a detail that has several follow indented."""
    card = torch.cuda.get_device_name(0) if device.startswith("cuda") else "no card"
    lines = [f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}"]
    for each in results:
        first, *rest = each.detail.splitlines() or [""]
        lines.append(f"{each.name:<34}{each.verdict:<8}{each.seconds:>5.0f} s  {first}")
        lines += [f"    {line}" for line in rest]
    return "\n".join(lines)


def dry() -> int:
    """Run `make gpu-dry` and return its exit code."""
    return subprocess.run(["make", "gpu-dry"], cwd=ROOT, check=False).returncode


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the checks to run")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: to try this script itself
    parser.add_argument("--seconds", type=float, default=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.check:
        return one_check(asked.check, asked.device, asked.folder)
    if asked.device == "cuda" and not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds none on this machine"
        print(f"no GPU: torch {torch.__version__} {why}; make gpu-dry runs instead", flush=True)
        return dry()
    chosen = [each for each in all_checks()[1:] if asked.only in each.name]
    if not chosen:
        parser.error(f"--only {asked.only}: no check has that in its name")
    with tempfile.TemporaryDirectory(prefix="tandem-gpu-", ignore_cleanup_errors=True) as folder:
        began = time.monotonic()
        results = campaign(chosen, asked.device, Path(folder), began + asked.seconds)
    print(table(results, asked.device))
    failures = sum(each.verdict == FAILED for each in results)
    print(f"{len(results) - failures} of {len(results)} in {time.monotonic() - began:.0f} s; {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
