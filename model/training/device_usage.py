"""What a training uses of its device: peak memory and utilization, measured in each worker's process."""

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import TrainingConfig
from model.errors import UserError
from model.training.communicator import Communicator

_PEAK_MEMORY, _UTILIZATION = "device/peak_memory_mb", "device/utilization"
_RESET_PEAK = "5"  # to /proc/self/clear_refs; see man proc_pid_clear_refs


@dataclass(frozen=True)
class DeviceUsage:
    """What a training used of its devices.

    Attributes:
        peak_memory_mb: the most memory of a worker, in 2^20 bytes: what torch allocated on a GPU; of a CPU, that of the
            whole process.
        utilization: mean of the workers, 0 to 1: of a GPU, the share of time in which it computed anything, for any
            process; of a CPU, the share of the time of torch's threads.
    """

    peak_memory_mb: float
    utilization: float


class DeviceMeter:
    """Measures the usage of one worker's device since `start`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin to measure."""
        self._samples: list[float] = []
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # elsewhere than on Linux the peak is that of the process's whole life
                Path("/proc/self/clear_refs").write_text(_RESET_PEAK)

    def sample(self) -> None:
        """Look at a GPU's utilization, which its driver knows for the last moment only."""
        if self.device.type == "cuda":
            with suppress(Exception):  # without NVML, or of NVML: a GPU divided by MIG has no utilization
                self._samples.append(torch.cuda.utilization(self.device) / 100)

    def read(self) -> DeviceUsage:
        """Return the usage since `start`."""
        if self.device.type == "cuda":
            mean = sum(self._samples) / len(self._samples) if self._samples else 0.0
            return DeviceUsage(torch.cuda.max_memory_allocated(self.device) / 2**20, mean)
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return DeviceUsage(peak, min(cpu / (max(seconds, 1e-9) * torch.get_num_threads()), 1.0))


def usage_metrics(own: DeviceUsage, communicator: Communicator, device: torch.device) -> dict[str, float]:
    """Return the usage of all workers as metrics of an epoch; of several workers, that of each rank too."""
    usage = torch.zeros(communicator.size, 2, dtype=torch.float64, device=device)
    usage[communicator.rank] = torch.tensor([own.peak_memory_mb, own.utilization], dtype=torch.float64, device=device)
    ranks: list[list[float]] = communicator.all_reduce(usage).tolist()
    metrics = {
        _PEAK_MEMORY: max(memory for memory, _ in ranks),
        _UTILIZATION: sum(share for _, share in ranks) / len(ranks),
    }
    for rank, (memory, share) in enumerate(ranks if len(ranks) > 1 else ()):
        metrics |= {f"{_PEAK_MEMORY}_rank{rank}": memory, f"{_UTILIZATION}_rank{rank}": share}
    return metrics


def usage_of(history: Iterable[Mapping[str, float]]) -> DeviceUsage | None:
    """Return the usage over some epochs, given their metrics; None where none has it, as in runs of earlier versions."""
    measured = [metrics for metrics in history if _PEAK_MEMORY in metrics]
    if not measured:
        return None
    utilization = sum(metrics[_UTILIZATION] for metrics in measured) / len(measured)
    return DeviceUsage(round(max(metrics[_PEAK_MEMORY] for metrics in measured), 1), round(utilization, 3))


@contextmanager
def out_of_memory_as_user_error(config: TrainingConfig, workers: int, device: torch.device) -> Iterator[None]:
    """Raise UserError where torch cannot allocate memory: it says how much was asked for, and what to lower."""
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch has no error class of its own for this.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory on {device}: {_asked_for(str(error))}; a batch has {config.global_batch_size} texts on {workers} "
            f"worker(s), each of which computes its share in {config.accumulate} part(s): raise training.accumulate, which "
            f"does not change the result, or lower training.global_batch_size"
        ) from error


def _asked_for(message: str) -> str:
    """Return the sentence of torch's message that names the bytes."""
    sentences = message.replace("\n", " ").split(". ")
    named = [each for each in sentences if "tried to allocate" in each.lower()]
    return (named or sentences)[0].rpartition("] ")[2].rstrip(".").partition(" Error code")[0]
