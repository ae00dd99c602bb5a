"""The checks of `make gpu` that need no command and no Ray."""

import tempfile
import warnings
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gpu_setup import NO_DROPOUT, PRESETS, Check, NotHereError, small, training_of

from distributed.train.checkpoint import load_checkpoint, save_checkpoint
from distributed.train.process_group import TorchCommunicator
from jobs.benchmark.reference import training_steps
from model.training.loop import Training

TOLERANCE = 1e-4  # relative
# A step subtracts the gradient, so many times that the weights it is subtracted from do not round it.
PLAIN = {"training.optimizer": "sgd", "training.lr": 1e4}
AFTER_ADAM = 1e-3  # likewise, of weights: Adam enlarges what is left of gradients that are almost 0
STEPS = 3


def rnn_dtype(device: torch.device, folder: Path) -> str:
    """Return the dtype in which a recurrent layer computes under bfloat16 autocast."""
    layer, inputs = torch.nn.RNN(8, 8).to(device), torch.randn(4, 2, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        output = layer(inputs)[0]
    return f"nn.RNN gives {output.dtype}"


def host_syncs(preset: str, device: torch.device, folder: Path) -> str:
    """Take three steps in which torch warns of each wait for the device."""
    if device.type != "cuda":
        raise NotHereError("torch warns of syncs on CUDA only")
    steps = training_steps(training_of(preset, small(folder), device))
    for _ in islice(steps, 3):
        continue
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in islice(steps, STEPS):
                continue
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in found)
    if found:
        where = ", ".join(f"{place} {times / STEPS:g}" for place, times in places.most_common(6))
        raise AssertionError(f"{len(found) / STEPS:g} syncs a step, by place: {where}")
    return "no sync in a step"


def weights(training: Training) -> dict[str, torch.Tensor]:
    """Return a copy of the weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in training.tagger.named_parameters()}


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Return the largest relative difference of a tensor, in the 2-norm, and its name."""
    norms = {name: (found[name] - each).norm() / each.norm().clamp(min=1e-12) for name, each in wanted.items()}
    worst = max(norms, key=lambda name: float(norms[name]))
    return float(norms[worst]), worst


def _gradients(preset: str, data: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, without dropout."""
    training = training_of(preset, data, device, NO_DROPOUT | PLAIN)
    before = weights(training)
    next(training_steps(training))
    return {name: before[name] - after for name, after in weights(training).items()}


def same_as_cpu(preset: str, device: torch.device, folder: Path) -> str:
    """Take one step on the CPU and one on the device, without dropout and TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    wanted = _gradients(preset, small(folder), torch.device("cpu"))
    error, name = difference(_gradients(preset, small(folder), device), wanted)
    assert error < TOLERANCE, f"the gradient of {name} differs by {error:.1e} (relative)"
    return f"largest relative difference of a gradient {error:.1e} ({name})"


def resume(preset: str, device: torch.device, folder: Path) -> str:
    """Save after a step, load, and take another: as without the interruption."""
    training = training_of(preset, small(folder), device)
    steps = training_steps(training)
    next(steps)
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place), training.state())
        resumed = training_of(preset, small(folder), device)
        resumed.restore(load_checkpoint(place))
    for each in (training, resumed):
        next(training_steps(each))
    error, name = difference(weights(resumed), weights(training))
    assert error < AFTER_ADAM, f"{name} differs by {error:.1e} (relative)"
    return f"largest relative difference of a weight {error:.1e}"


def _rank(rank: int, device: torch.device, preset: str, folder: str, place: str) -> None:
    """Take a step as one of two processes, and save its weights."""
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    training = training_of(preset, small(Path(folder)), device, NO_DROPOUT | PLAIN, TorchCommunicator())
    before = weights(training)
    next(training_steps(training))
    torch.save({name: before[name] - after for name, after in weights(training).items()}, f"{place}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def two_processes(preset: str, device: torch.device, folder: Path) -> str:
    """Take one step in two processes that share the device, through gloo: the gradients are those of one process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    wanted = _gradients(preset, small(folder), device)
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(
            _rank, (torch.device(device.type, 0 if device.type == "cuda" else None), preset, str(folder), place), 2
        )
        first, second = (torch.load(f"{place}/{rank}.pt") for rank in (0, 1))
    assert all(first[name].equal(second[name]) for name in first), "the two processes have different weights"
    error, name = difference(first, wanted)
    assert error < TOLERANCE, f"the gradient of {name} differs by {error:.1e} (relative) from that of one process"
    return f"weights equal on both; against one process {error:.1e}"


CHECKS = [
    Check("rnn under bfloat16 autocast", rnn_dtype, 60),
    *(Check(f"no host sync, {preset}", partial(host_syncs, preset), 60) for preset in PRESETS),
    *(Check(f"same as the CPU, {preset}", partial(same_as_cpu, preset), 90) for preset in PRESETS),
    *(Check(f"save, load, step, {preset}", partial(resume, preset), 60) for preset in PRESETS),
    *(Check(f"two processes by gloo, {preset}", partial(two_processes, preset), 120) for preset in PRESETS),
]
