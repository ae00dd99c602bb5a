"""What a training uses of its device, and what it says where the memory does not suffice."""

import numpy as np
import pytest
import torch
from helpers import SMALL, refused

from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.network.tagger import Tagger, new_tagger
from model.training.communicator import SingleProcess
from model.training.device_usage import DeviceMeter, DeviceUsage, usage_metrics, usage_of
from model.training.loop import Training

CPU = torch.device("cpu")


class SecondOfThree(SingleProcess):
    """One of three workers, whose others have used 1,000 MB."""

    rank, size = 1, 3

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        assert not tensor[[0, 2]].any()
        return tensor + torch.tensor([[1000.0, 0.5], [0.0, 0.0], [1000.0, 0.7]], dtype=torch.float64)


def training_of(data: str) -> Training:
    dataset = Dataset(data)
    split = dataset.load("train")
    tagger = new_tagger(TaggerConfig(**SMALL), dataset.info["words"], 0)
    return Training(TrainingConfig(epochs=1, accumulate=2), tagger, split, dataset.load("valid"))


def test_the_peak_is_that_since_the_start():
    meter = DeviceMeter(CPU)
    before = meter.read().peak_memory_mb
    array = np.ones(2**25)  # 256 MB
    assert meter.read().peak_memory_mb > before + 200
    del array
    meter.start()
    assert meter.read().peak_memory_mb < before + 100


def test_computing_is_told_from_waiting(monkeypatch: pytest.MonkeyPatch):
    clock = {"perf_counter": 10.0, "process_time": 3.0}
    for name in clock:
        monkeypatch.setattr(f"model.training.device_usage.time.{name}", lambda name=name: clock[name])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meter = DeviceMeter(CPU)
    clock |= {"perf_counter": 14.0, "process_time": 5.0}
    assert meter.read().utilization == pytest.approx(2 / (4 * 2))
    meter.start()
    clock |= {"perf_counter": 15.0, "process_time": 6.5}
    assert meter.read().utilization == pytest.approx(1.5 / 2)


def test_a_gpu_that_tells_no_utilization_is_trained_on(monkeypatch: pytest.MonkeyPatch):
    class NVMLError(Exception):
        """pynvml's own, for one that MIG divides: Not Supported."""

    def utilization(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    meter = DeviceMeter(CPU)
    meter.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)
    meter.sample()
    assert meter.read() == DeviceUsage(1.0, 0.0)


def test_each_rank_has_its_own_metrics_and_the_run_those_of_all():
    metrics = usage_metrics(DeviceUsage(2000.0, 0.3), SecondOfThree(), CPU)
    assert metrics["device/peak_memory_mb"] == 2000 and metrics["device/utilization"] == pytest.approx(0.5)
    assert [metrics[f"device/peak_memory_mb_rank{rank}"] for rank in range(3)] == [1000, 2000, 1000]
    assert [metrics[f"device/utilization_rank{rank}"] for rank in range(3)] == [0.5, 0.3, 0.7]
    assert usage_of([metrics, {"epoch": 2.0}, {**metrics, "device/utilization": 0.7}]) == DeviceUsage(2000.0, 0.6)
    assert usage_of([{"epoch": 1.0}]) is None


def test_an_epoch_has_the_metrics_of_its_device(small_dataset: str):
    metrics = training_of(small_dataset).run_epoch()
    assert metrics["device/peak_memory_mb"] > 100 and 0 < metrics["device/utilization"] <= 1


@pytest.mark.parametrize(
    "error", [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79 GiB.")]
)
def test_a_batch_that_does_not_fit_is_refused_with_its_bytes(
    small_dataset: str, monkeypatch: pytest.MonkeyPatch, error: Exception | None
):
    def forward(*_: object) -> None:
        if error:
            raise error
        torch.empty(2**55)  # more than any address space: torch's own error on a CPU

    monkeypatch.setattr(Tagger, "forward", forward)
    asked = "Tried to allocate 20.00 GiB" if error else "you tried to allocate 144115188075855872 bytes"
    parts = (
        "out of memory on cpu",
        asked,
        "64 texts",
        "in 2 part(s)",
        "training.accumulate",
        "training.global_batch_size",
    )
    refused(training_of(small_dataset).run_epoch, *parts)


def test_other_errors_pass(small_dataset: str, monkeypatch: pytest.MonkeyPatch):
    def forward(*_: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(Tagger, "forward", forward)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        training_of(small_dataset).run_epoch()
