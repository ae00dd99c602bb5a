"""What the speed benchmark does on GPUs, shown without one."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import SMALL

from jobs.benchmark import process_groups, reference, single_process, speed
from jobs.benchmark.process_groups import GroupSpec, Measurement
from jobs.benchmark.reference import gemm_roofline, timed, training_steps
from jobs.benchmark.single_process import CEILING, CEILING_TF32, STEP, Measurements, _variants
from jobs.benchmark.traffic import count_sent_bytes
from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.network.tagger import new_tagger
from model.training.loop import Training

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


def test_what_changes_nothing_on_a_gpu_is_not_measured_there():
    on_cpu, on_gpu = _variants(CPU), _variants(torch.device("cuda:0"))
    assert {"  torch's recurrence", "  torch's dropout"} <= set(on_cpu) and STEP in on_gpu
    assert not {"  torch's recurrence", "  torch's dropout"} & set(on_gpu)


def test_a_gpu_is_waited_for_once_after_many_items(monkeypatch: pytest.MonkeyPatch):
    syncs: list[float] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: syncs.append(time.perf_counter()))
    monkeypatch.setattr(reference, "_SECONDS", 0.05)
    done = []
    rate = timed((done.append(time.sleep(0.0005)) or 1.0 for _ in count()), torch.device("cuda:0"))
    assert 0 < len(syncs) <= len(done) / 10 and rate < 2000


def test_the_ceiling_of_a_gpu_is_one_large_product_also_in_tf32(monkeypatch: pytest.MonkeyPatch):
    products = []
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.empty(*size, device="meta"))
    monkeypatch.setattr(
        torch, "mm", lambda a, b: products.append((len(a), a.dtype, torch.get_float32_matmul_precision()))
    )
    for tf32 in (False, True):
        next(gemm_roofline(TaggerConfig(), torch.float32, GPU, tf32=tf32))
    assert products == [(65_536, torch.float32, "highest"), (65_536, torch.float32, "high")]
    assert torch.get_float32_matmul_precision() == "highest"


def test_both_ceilings_of_a_gpu_are_measured(small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("Training", "new_tagger"):
        monkeypatch.setattr(single_process, name, lambda *_, **__: None)
    monkeypatch.setattr(reference, "timed", lambda *_: 1.0)
    loop = SimpleNamespace(measure=lambda: Measurement(1.0, 0.0))
    for device in (CPU, GPU):
        measurements = Measurements()
        single_process.measure_in_process(small_dataset, 1, device, tmp_path, loop, measurements)
        assert CEILING in measurements.values
        assert (CEILING_TF32 in measurements.values) == (device == GPU)


def test_batches_are_assembled_while_a_gpu_computes(small_dataset: str, monkeypatch: pytest.MonkeyPatch):
    data = Dataset(small_dataset)
    train = data.load("train")
    training = Training(TrainingConfig(), new_tagger(TaggerConfig(**SMALL), data.info["words"], 0), train, train)
    assembled = [threading.Event() for _ in range(4)]
    in_time = []
    monkeypatch.setattr(training, "device", GPU)
    monkeypatch.setattr(training, "local_batches", lambda rows, step: assembled[step].set())
    monkeypatch.setattr(training, "train_step", lambda _, tokens, step, lr: in_time.append(assembled[step + 1].wait(5)))
    steps = training_steps(training)
    next(steps)
    steps.close()
    assert in_time == [True]  # the second batch was ready before the first step had ended


@pytest.mark.parametrize(("gpus", "device", "found"), [(1, "cuda", "cpu"), (2, "cuda", "cuda"), (0, "cpu", "cpu")])
def test_groups_without_a_gpu_for_each_worker_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, found: str
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    where, reason = speed._groups_device(2, torch.device(device))
    assert where.type == found and (gpus != 1 or "there is 1" in reason)


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_benchmark_on_one_gpu_has_its_groups_on_the_cpu(
    small_dataset: str, monkeypatch: pytest.MonkeyPatch, gpus: int
):
    launched: list[tuple[str, bool]] = []

    @contextmanager
    def launch(spec: GroupSpec, *_: object) -> Iterator[Any]:
        launched.append((spec.name, spec.gpu))
        yield SimpleNamespace(startup_seconds=1.0, memory=[1.0], measure=lambda: Measurement(1.0, 1.0))

    for name in ("by_torchrun", "by_ray"):
        monkeypatch.setattr(speed, name, launch)
    for name in ("measure_in_process", "measure_prepare", "force_local_cluster"):
        monkeypatch.setattr(speed, name, lambda *_: None)
    monkeypatch.setattr(speed, "_trial_start", lambda *_: 1.0)
    monkeypatch.setattr(speed, "_PAUSE", 0.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = {"is_available": True, "device_count": gpus, "get_device_name": "a GPU"}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    result = speed.benchmark(speed.BenchmarkConfig(small_dataset), lambda line: None)
    assert launched[0] == (speed.REFERENCE, True) and len(launched) == 7
    assert {gpu for _, gpu in launched[1:]} == {gpus == 2}
    assert result.groups_on == ("cuda" if gpus == 2 else "cpu") and not result.failed


@pytest.mark.parametrize(
    ("gpu", "shared", "backend", "device"),
    [(False, True, "gloo", "cpu"), (True, True, "cpu:gloo,cuda:nccl", "cuda:1"), (True, False, "gloo", "cuda:1")],
)
def test_a_process_of_torchrun_has_the_gpu_of_its_rank_or_none(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, shared: bool, backend: str, device: str
):
    made: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    monkeypatch.setattr(dist, "get_node_local_rank", lambda: 1)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: made.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(process_groups, "group_member", lambda spec, device: made.append(device))
    spec = GroupSpec("group", 2, ("127.0.0.1", 1), {}, 1, shared_model=shared, gpu=gpu)
    process_groups._torchrun_member(json.dumps(spec))
    where = torch.device(device)
    assert made == ([where] if gpu else []) + [backend, where]


def test_bytes_are_counted_where_collectives_are_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    before = dist.all_reduce, dist.all_gather
    with count_sent_bytes() as sent:
        dist.all_reduce(torch.zeros(10), async_op=True)
        assert sent.total == 2 * 3 / 4 * 40
        dist.all_gather([], torch.zeros(10, dtype=torch.bfloat16))
    assert sent.total == 60 + 3 * 20 and (dist.all_reduce, dist.all_gather) == before


def test_a_round_has_the_bytes_of_its_collectives_whatever_passes_the_network_interface(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: None)

    def steps() -> Iterator[int]:
        for _ in range(3):
            dist.all_reduce(torch.zeros(10))
            yield 7

    tokens, seconds, sent = process_groups._timed_round(steps(), CPU)
    assert (tokens, sent) == (21, 3 * 40) and seconds > 0
