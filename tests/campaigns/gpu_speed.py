"""The measurements of `make gpu`: each runs alone."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_commands import result_of, run
from gpu_setup import PRESETS, ROOT, Check, large, small, training_of

from jobs.benchmark.reference import flops_per_token, training_steps
from model.config import TaggerConfig
from model.errors import UserError
from model.network.cells import CELLS
from model.training.loop import Training

BATCHES = (64, 256, 1024, 4096)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SECONDS = 2.0  # of a timing
ROWS = 2**16  # of the product that is the ceiling; on a CPU fewer
TRIALS = (1, 2, 4, 8)  # at a time
FULL = 1.1  # more trials fill the card no further where they gain less than this factor
FIELDS = ("owner_ratio", "ceiling_share_fp32", "ceiling_share_best", "ray_vs_torchrun", "workers2_vs_1")


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(work: Iterator[float], device: torch.device, seconds: float = SECONDS) -> float:
    """Return the amount of work per second; each item is the amount that was just begun."""
    for _ in range(3):
        next(work)
    synchronize(device)
    began, done = time.perf_counter(), 0.0
    while time.perf_counter() - began < seconds:
        done += next(work)
    synchronize(device)
    return done / (time.perf_counter() - began)


def steps_of(training: Training) -> Iterator[float]:
    """Take the steps of one epoch again and again, batches assembled as training does. Yield their tokens."""
    for tokens in training_steps(training):
        yield float(tokens)


def ceiling(config: TaggerConfig, dtype: torch.dtype, device: torch.device) -> float:
    """Return the tokens a second that the first layer's matrix product alone would allow: TF32 where dtype is float32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    rows = ROWS if device.type == "cuda" else 2048
    shape = (config.window * config.embedding_dim, CELLS[config.cell].gates * config.keyword_hidden)
    a, b = torch.randn(rows, shape[0], device=device).to(dtype), torch.randn(*shape, device=device).to(dtype)

    def products() -> Iterator[float]:
        while True:
            torch.mm(a, b)
            yield 2.0 * rows * shape[0] * shape[1] / flops_per_token(config)

    return rate(products(), device, 0.5)


def speed(preset: str, device: torch.device, folder: Path) -> str:
    """Time steps at several batch sizes in both precisions, as a share of the card's ceiling in that precision."""
    lines = []
    config = training_of(preset, large(folder), device).tagger.config
    for name, dtype in PRECISIONS.items():
        limit = ceiling(config, dtype, device)
        cells = []
        for batch in BATCHES if device.type == "cuda" else BATCHES[:2]:
            values = {"training.global_batch_size": batch, "training.precision": name}
            try:
                steps = steps_of(training_of(preset, large(folder), device, values))
            except UserError as error:
                cells.append(f"not offered: {str(error).splitlines()[0]}")
                break
            tokens = rate(steps, device)
            cells.append(f"{batch}: {tokens:,.0f} ({tokens / limit:.1%})")
        kind = "TF32" if name == "float32" and device.type == "cuda" else name
        lines.append(f"{kind:<9}ceiling {limit:,.0f}; batch {', '.join(cells)}")
    memory = f", at most {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if device.type == "cuda" else ""
    return "\n".join([f"tokens/s (share of the ceiling){memory}", *lines])


def trials(device: torch.device, folder: Path) -> str:
    """Train 1, 2, 4 and 8 taggers at a time on the card, each in its process, as trials of a sweep are."""
    totals: dict[int, float] = {}
    for count in TRIALS if device.type == "cuda" else TRIALS[:2]:
        command = [sys.executable, __file__, device.type, str(folder)]
        workers = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        totals[count] = sum(_together(workers))
        if count > 1 and totals[count] < FULL * totals[count // 2]:
            break
    best = max(totals, key=lambda count: totals[count])
    rates = ", ".join(f"{count}: {total:,.0f}" for count, total in totals.items())
    return (
        f"tokens/s of all trials by their number, batch 64: {rates}; {best} fill it ({totals[best] / totals[1]:.1f} x)"
    )


def _together(workers: "list[subprocess.Popen[str]]") -> list[float]:
    """Let processes that have warmed up measure at the same time. Return their rates."""
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", "a process did not start"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return [float(json.loads(worker.communicate()[0])) for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()


def _trial(device: torch.device, folder: Path) -> None:
    """Be one of the processes of `trials`."""
    torch.set_num_threads(1)
    steps = steps_of(training_of("record", large(folder), device))
    rate(steps, device, 0.5)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(rate(steps, device, 2 * SECONDS)), flush=True)


def benchmark(device: torch.device, folder: Path) -> str:
    """Run the benchmark once."""
    stdout, _ = run("benchmark", "--data", small(folder), "--repeats", "1", "--texts", "20000", "--json")
    result = result_of(stdout)
    return ", ".join(f"{name} {result[name]}" for name in FIELDS)


MEASUREMENTS = [
    *(Check(f"speed, {preset}", partial(speed, preset), 100, alone=True) for preset in PRESETS),
    Check("trials at a time", trials, 100, alone=True),
    Check("benchmark --repeats 1", benchmark, 200, alone=True),
]

if __name__ == "__main__":
    _trial(torch.device(sys.argv[1]), Path(sys.argv[2]))
