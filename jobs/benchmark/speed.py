"""The speed benchmark: everything is timed in alternating rounds, and results are medians over the rounds.

Ratios are taken within a round, so that other load on the machine slows both sides of a ratio.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.util import get_node_ip_address
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.cluster.connection import force_local_cluster
from distributed.sweep.plan import make_plan, new_sweep
from distributed.tune.driver import tune
from jobs.benchmark.communication import ExchangeRow, exchange_table
from jobs.benchmark.process_groups import GroupSpec, ProcessGroupHandle, by_ray, by_torchrun
from jobs.benchmark.single_process import (
    CEILING,
    EXTRACT,
    HALF,
    PREPARE,
    REFERENCE,
    STEP,
    Measurements,
    Row,
    measure_in_process,
    measure_prepare,
)
from model.config import Config, RunConfig, TaggerConfig, TrainingConfig
from model.data.dataset import Dataset

# Names of groups, as the table shows them.
ONE, TORCHRUN, RAY = "one worker, all cores", "workers, torchrun", "workers, Ray Train"
WHOLE_TABLE, SIDE_BY_SIDE = "workers, whole table at each step", "trainings side by side"
BFLOAT16 = "workers, bfloat16 exchange"
_PAUSE = 0.3  # seconds between rounds, in which the threads of the previous group go to sleep
_TRIALS = 6
# A model so small that the start of a trial takes longer than its training.
_TINY = {"embedding_dim": 16, "keyword_hidden": 8, "keyphrase_hidden": 8}


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure.

    Attributes:
        data: a dataset directory.
        workers: processes of a group.
        repeats: number of rounds.
        texts: number of texts to prepare in a round.
    """

    data: str
    workers: int = 2
    repeats: int = 5
    texts: int = 200_000


@dataclass(frozen=True)
class Machine:
    """The machine that was measured; `cpu` is torch's name of its instruction set."""

    cores: int
    threads: int
    cpu: str
    gpu: str | None
    torch: str


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark --json` prints; docs/cli.md describes the fields."""

    owner_ratio: float
    ceiling_share_fp32: float
    ceiling_share_best: float
    ray_vs_torchrun: float
    workers2_vs_1: float
    bytes_dense_vs_rows: float
    bytes_dense_vs_rows_bfloat16: float
    extract_vs_train: float
    prepare_texts_per_s: float
    trial_start_s: float
    started_s: dict[str, float]
    exchange: list[ExchangeRow]
    machine: Machine
    table: list[Row]


def benchmark(config: BenchmarkConfig, log: Callable[[str], None]) -> BenchmarkResult:
    """Measure everything on this machine.

    Args:
        config: what to measure.
        log: receives a line when a part begins.

    Raises:
        UserError: the dataset cannot be used.
        RunFailedError: a group of processes did not start.
    """
    os.environ["WANDB_MODE"] = "disabled"  # benchmark runs are not worth keeping
    force_local_cluster()  # measure this machine, not the cluster that it belongs to
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # Ray gives a job one thread
    measurements, store = Measurements(), TCPStore(get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as folder:
        log(f"1 of 4  one process, {torch.get_num_threads()} threads, {device}")
        with by_torchrun(_reference_spec(config, store), store) as reference_loop:
            measure_in_process(config.data, config.repeats, device, Path(folder), reference_loop, measurements)
        log("2 of 4  prepare")
        measure_prepare(config.data, config.texts, config.repeats, Path(folder), measurements)
        log("3 of 4  a sweep of short trials")
        trial_start = _trial_start(config, Path(folder))
        log(f"4 of 4  groups of {config.workers} processes, by torchrun and by Ray Train")
        started = _measure_groups(config, device, store, measurements)
    return _result(config, device, measurements, trial_start, started)


def _result(
    config: BenchmarkConfig,
    device: torch.device,
    measurements: Measurements,
    trial_start: float,
    started: dict[str, float],
) -> BenchmarkResult:
    train, ratio = Dataset(config.data).load("train"), measurements.ratio
    best = max(ratio(name, CEILING) for name in (STEP, HALF) if name in measurements.values)
    return BenchmarkResult(
        owner_ratio=_rounded(ratio(STEP, REFERENCE)),
        ceiling_share_fp32=_rounded(ratio(STEP, CEILING)),
        ceiling_share_best=_rounded(best),
        ray_vs_torchrun=_rounded(ratio(RAY, TORCHRUN)),
        workers2_vs_1=_rounded(ratio(RAY, ONE)),
        bytes_dense_vs_rows=_rounded(ratio(_sent(WHOLE_TABLE), _sent(TORCHRUN))),
        bytes_dense_vs_rows_bfloat16=_rounded(ratio(_sent(WHOLE_TABLE), _sent(BFLOAT16))),
        extract_vs_train=_rounded(ratio(EXTRACT, STEP) * len(train.ids) / len(train)),
        prepare_texts_per_s=_rounded(statistics.median(measurements.values[PREPARE])),
        trial_start_s=_rounded(trial_start),
        started_s=started,
        exchange=exchange_table(config.data),
        machine=_machine(device),
        table=measurements.rows(),
    )


def _sent(group: str) -> str:
    return f"  sent per step, {group}"


def _trial_start(config: BenchmarkConfig, folder: Path) -> float:
    """Return the median seconds from the proposal of a one-worker trial to its start."""
    trial = Config(
        data=config.data,
        tagger=TaggerConfig(**_TINY),
        training=TrainingConfig(patience=0, global_batch_size=1024),
        run=RunConfig(storage=str(folder), name="sweep"),
    )
    plan = new_sweep(make_plan({"config": trial, "fixed": [], "trials": _TRIALS, "max_epochs": 1}))
    return tune(plan, lambda event: None).trial_start_s or 0.0


def _reference_spec(config: BenchmarkConfig, store: TCPStore) -> GroupSpec:
    training, cores = Config(data=config.data).model_dump(), len(os.sched_getaffinity(0))
    return GroupSpec(
        REFERENCE, 1, (store.host, store.port), training, cores, shared_model=False, reference=True, steps=4
    )


def _group_specs(config: BenchmarkConfig, store: TCPStore) -> list[GroupSpec]:
    """Return the groups to measure; all but RAY are launched by torchrun."""
    cores, place = len(os.sched_getaffinity(0)), (store.host, store.port)
    threads, workers = max(1, cores // config.workers), config.workers
    default = Config(data=config.data).model_dump()
    whole_table = default | {"training": default["training"] | {"sparse_embedding": False}}
    bfloat16 = default | {"training": default["training"] | {"gradient_dtype": "bfloat16"}}
    return [
        GroupSpec(ONE, 1, place, default, cores, shared_model=False),
        GroupSpec(TORCHRUN, workers, place, default, threads),
        GroupSpec(BFLOAT16, workers, place, bfloat16, threads),
        GroupSpec(WHOLE_TABLE, workers, place, whole_table, threads),
        GroupSpec(SIDE_BY_SIDE, workers, place, default, threads, shared_model=False),
        GroupSpec(RAY, workers, place, default, threads),
    ]


def _measure_groups(
    config: BenchmarkConfig, device: torch.device, store: TCPStore, measurements: Measurements
) -> dict[str, float]:
    """Time groups in rounds. Return the seconds that each took to start."""
    groups: dict[str, ProcessGroupHandle] = {}
    with ExitStack() as stack:
        for spec in _group_specs(config, store):
            launched = by_ray(spec, store, device.type == "cuda") if spec.name == RAY else by_torchrun(spec, store)
            groups[spec.name] = stack.enter_context(launched)
        for round in range(-1, config.repeats):  # a first round warms up and is not counted
            for name, group in groups.items():
                time.sleep(_PAUSE)
                measured = group.measure()
                if round >= 0:
                    measurements.add(name, "tokens/s", measured.tokens_per_s)
                    if name in (TORCHRUN, BFLOAT16, WHOLE_TABLE):
                        measurements.add(_sent(name), "bytes", measured.bytes_per_step)
    for name, group in groups.items():
        measurements.add(f"  memory of a process, {name}", "MB", max(group.memory))
    return {name: _rounded(group.startup_seconds) for name, group in groups.items()}


def _machine(device: torch.device) -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        cpu=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        torch=str(torch.__version__),
    )


def _rounded(value: float) -> float:
    return round(value, 3)
