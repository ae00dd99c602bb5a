"""The checks of `make gpu` that run commands, most of them on a Ray of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_setup import PRESETS, ROOT, Check, NotHereError, large, small
from helpers import title_of

EPOCHS = 3
LEAST_F1 = 0.3  # of a training of so many epochs that has learned anything
CLOSE = 1e-3  # metrics on two devices
WORKER = "RayTrainWorker"
# Texts in a batch, so few that an epoch takes seconds and can be interrupted; on a CPU it takes seconds anyway.
BATCH = {"record": 4, "best": 8}
BATCH_ON_CPU = 32
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}  # which would change which of two almost equal tags is chosen


class Command:
    """A running command; what it says on stderr is copied to that of this process, where a time limit leaves it readable."""

    def __init__(self, arguments: Sequence[str], **variables: str) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "jobs", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, **pipes)
        self.said: list[str] = []
        self._copier = threading.Thread(target=self._copy, daemon=True)
        self._copier.start()

    def _copy(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            print(line, end="", file=sys.stderr, flush=True)

    def end(self) -> str:
        """Wait for the end, and return what was printed on stdout."""
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        self.process.wait()
        self._copier.join(5)
        return stdout

    @property
    def stderr(self) -> str:
        """Return what it has said on stderr so far."""
        return "".join(self.said)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until something is true."""
        while not condition():
            if self.process.poll() is not None:
                self.end()
                raise AssertionError(f"it ended first, with {self.process.returncode}: {_end_of(self.stderr)}")
            time.sleep(0.05)


@contextmanager
def begun(*arguments: str, **variables: str) -> Iterator[Command]:
    """Start a command with some environment variables; it is killed at the end where it still runs."""
    command = Command(arguments, **variables)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


def run(*arguments: str, expected: int = 0, **variables: str) -> tuple[str, str]:
    """Run a command to its end, check its exit code, and return what it printed on stdout and stderr."""
    with begun(*arguments, **variables) as command:
        stdout = command.end()
    if command.process.returncode != expected:
        raise AssertionError(f"{arguments[0]} exits with {command.process.returncode}: {_end_of(command.stderr)}")
    return stdout, command.stderr


def result_of(stdout: str) -> dict[str, Any]:
    """Return the JSON object that a command has printed last."""
    found: dict[str, Any] = json.loads(stdout.strip().splitlines()[-1])
    return found


def _end_of(text: str) -> str:
    return " | ".join(line for line in text.strip().splitlines()[-3:] if line.strip())


def _training(name: str, preset: str, device: torch.device, folder: Path) -> list[str]:
    """Return the command of a training whose epochs are long enough to be interrupted."""
    batch = str(BATCH[preset] if device.type == "cuda" else BATCH_ON_CPU)
    values = ["--preset", preset, "--epochs", str(EPOCHS), "--batch-size", batch, "--device", device.type, "--json"]
    return ["train", "--data", large(folder), "--name", name, "--storage", str(folder / "runs"), *values]


def _has_checkpoint(name: str, folder: Path) -> bool:
    return any((folder / "runs" / name).glob("checkpoint_epoch_*/seal.json"))


def _finished(stdout: str) -> str:
    result = result_of(stdout)
    assert result["epochs"] == EPOCHS, f"{result['epochs']} epochs instead of {EPOCHS}"
    assert result["keyphrase_f1"] > LEAST_F1, f"F1 is {result['keyphrase_f1']:.3f}"
    return f"{EPOCHS} epochs, F1 {result['keyphrase_f1']:.3f}"


def interrupted(preset: str, device: torch.device, folder: Path) -> str:
    """Train, interrupt after the first checkpoint, resume to the end."""
    name = f"interrupted-{preset}"
    with begun(*_training(name, preset, device, folder)) as command:
        command.wait_for(partial(_has_checkpoint, name, folder))
        command.process.send_signal(signal.SIGINT)
        command.end()
    assert command.process.returncode, "the training had ended before it was interrupted"
    stdout, stderr = run("train", "--resume", name, "--storage", str(folder / "runs"), "--json")
    assert "resuming from" in stderr, f"did not resume: {_end_of(stderr)}"
    return f"interrupted and resumed: {_finished(stdout)}"


def killed(device: torch.device, folder: Path) -> str:
    """Train, kill the worker after the first checkpoint: Ray restarts it, and it resumes."""
    with begun(*_training("killed", "record", device, folder)) as command:
        command.wait_for(partial(_has_checkpoint, "killed", folder))
        children = psutil.Process(command.process.pid).children(recursive=True)
        workers = [each for each in children if WORKER in title_of(each)]
        assert workers, "there is no worker to kill"
        workers[0].kill()
        stdout = command.end()
    assert command.process.returncode == 0, f"exits with {command.process.returncode}: {_end_of(command.stderr)}"
    assert "resuming from" in command.stderr, "the worker was not restarted"
    return f"killed and restarted: {_finished(stdout)}"


def sweep(device: torch.device, folder: Path) -> str:
    """Run eight trials, five at a time on a card."""
    asks = ["--gpus-per-trial", "0.2"] if device.type == "cuda" else []
    values = ["--trials", "8", "--max-epochs", "2", "--device", device.type, "--name", "sweep", "--json"]
    stdout, _ = run("tune", "--data", small(folder), "--storage", str(folder / "sweeps"), *values, *asks)
    result = result_of(stdout)
    assert result["trials"] == 8 and not result["failed"], f"{result['failed']} of {result['trials']} trials failed"
    return f"8 trials in {result['seconds']:.0f} s, the next began {result.get('trial_start_s') or 0:.1f} s after a proposal"


def refused(device: torch.device, folder: Path) -> str:
    """Ask for trials of two GPU workers on a machine with one card."""
    if device.type != "cuda" or torch.cuda.device_count() > 1:
        raise NotHereError("not a machine with exactly one card")
    values = ["--workers-per-trial", "2", "--device", "cuda", "--dry-run"]
    return _end_of(run("tune", "--data", small(folder), *values, expected=2)[1])


def evaluated(preset: str, device: torch.device, folder: Path) -> str:
    """Evaluate a bundle on the device and on the CPU."""
    arguments = ["evaluate", str(folder / preset), "--data", large(folder), "--json"]
    here, there = (result_of(run(*arguments, "--device", each, **NO_TF32)[0]) for each in (device.type, "cpu"))
    names = [name for name, value in there.items() if isinstance(value, float)]
    worst = max(names, key=lambda name: abs(here[name] - there[name]))
    error = abs(here[worst] - there[worst])
    assert error <= CLOSE, f"{worst} is {here[worst]:.4f}, and {there[worst]:.4f} on the CPU"
    return f"metrics as on the CPU to {error:.1e}"


def extracted(preset: str, device: torch.device, folder: Path) -> str:
    """Extract to parts on the device and on the CPU."""
    counts = []
    for each in (device.type, "cpu"):
        out = str(folder / f"extracted-{preset}-{each}")
        arguments = ["extract", str(folder / preset), str(folder / "texts.txt"), "--out", out, "--overwrite"]
        counts.append(result_of(run(*arguments, "--device", each, "--json", **NO_TF32)[0]))
    here, there = (each["keyphrases"] for each in counts)
    assert abs(here - there) <= CLOSE * there, f"{here} keyphrases, and {there} on the CPU"
    return f"{counts[0]['texts']:,} texts, {here:,} keyphrases ({there:,} on the CPU)"


COMMANDS = [
    *(Check(f"train, interrupt, resume, {preset}", partial(interrupted, preset), 180) for preset in PRESETS),
    Check("kill -9 of a worker", killed, 150),
    Check("tune, 0.2 GPUs a trial", sweep, 150),
    Check("two GPU workers a trial", refused, 40),
    *(Check(f"evaluate, {preset}", partial(evaluated, preset), 60) for preset in PRESETS),
    *(Check(f"extract, {preset}", partial(extracted, preset), 90) for preset in PRESETS),
]
