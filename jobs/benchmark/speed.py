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
from functools import partial
from pathlib import Path

import torch
from ray.util import get_node_ip_address
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.cluster.connection import force_local_cluster
from distributed.sweep.plan import make_plan, new_sweep
from distributed.tune.driver import tune
from jobs.benchmark.communication import exchange_table
from jobs.benchmark.process_groups import GroupSpec, ProcessGroupHandle, by_ray, by_torchrun
from jobs.benchmark.result import BenchmarkResult, Machine
from jobs.benchmark.single_process import (
    CEILING,
    CEILING_TF32,
    ENCODER_HALF,
    ENCODER_STEP,
    EXTRACT,
    HALF,
    PREPARE,
    REFERENCE,
    STEP,
    Measurements,
    measure_encoder,
    measure_in_process,
    measure_prepare,
)
from model.config import Config, RunConfig, TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.network.encoder_files import load_encoder

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
        encoder: pretrained, whose fine-tuning is measured as well: path, URI, or name on the hub.
    """

    data: str
    workers: int = 2
    repeats: int = 5
    texts: int = 200_000
    encoder: str | None = None


def benchmark(config: BenchmarkConfig, log: Callable[[str], None]) -> BenchmarkResult:
    """Measure everything on this machine.

    Args:
        config: what to measure.
        log: receives a line when a part begins.

    A part that fails is listed in the result, which keeps what the others have measured.

    Raises:
        UserError: the dataset or the encoder cannot be used.
    """
    data = Dataset(config.data)
    for split in ("train", "valid"):
        data.require(split)
    if config.encoder is not None:
        load_encoder(config.encoder)  # one that cannot be used is told of before minutes of measurements
    os.environ["WANDB_MODE"] = "disabled"  # benchmark runs are not worth keeping
    force_local_cluster()  # measure this machine, not the cluster that it belongs to
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # Ray gives a job one thread
    measurements, store = Measurements(), TCPStore(get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trial_start: list[float] = []
    started: dict[str, float] = {}
    failed: list[str] = []
    groups, reason = _groups_device(config.workers, device)
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as folder:

        def in_process() -> None:
            with by_torchrun(_reference_spec(config, device, store), store) as reference_loop:
                measure_in_process(config.data, config.repeats, device, Path(folder), reference_loop, measurements)

        parts: list[tuple[str, Callable[[], None]]] = [
            (f"one process, {torch.get_num_threads()} threads, {device}", in_process),
            ("prepare", lambda: measure_prepare(config.data, config.texts, config.repeats, Path(folder), measurements)),
            ("a sweep of short trials", lambda: trial_start.append(_trial_start(config, Path(folder)))),
            (
                f"groups of {config.workers} processes, by torchrun and by Ray Train, on the {reason}",
                lambda: _measure_groups(config, groups, store, measurements, started),
            ),
        ]
        if config.encoder is not None:
            fine_tuning = partial(measure_encoder, config.data, config.encoder, config.repeats, device, measurements)
            parts.insert(1, (f"a pretrained encoder, on {device}", fine_tuning))
        for number, (title, part) in enumerate(parts, 1):
            log(f"{number} of {len(parts)}  {title}")
            try:
                part()
            except RunFailedError as error:
                failed.append(str(error))
                log(f"part {number} failed: {error}")
    return _result(config, device, measurements, trial_start, started, groups.type, failed)


def _groups_device(workers: int, device: torch.device) -> tuple[torch.device, str]:
    """Return where groups train, and a description of it.

    NCCL refuses two processes on one GPU, and Ray Train gives each worker its own: with fewer GPUs all groups use the CPU.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus and gpus < workers:
        return torch.device("cpu"), f"CPU, over gloo: each of {workers} needs a GPU of its own, and there is {gpus}"
    return (device, "GPUs, over NCCL") if gpus else (device, "CPU, over gloo")


def _result(
    config: BenchmarkConfig,
    device: torch.device,
    measurements: Measurements,
    trial_start: list[float],
    started: dict[str, float],
    groups_on: str,
    failed: list[str],
) -> BenchmarkResult:
    train, ratio = Dataset(config.data).load("train"), measurements.ratio
    shares = [share for name in (STEP, HALF) if (share := ratio(name, CEILING)) is not None]
    extract, prepare = ratio(EXTRACT, STEP), measurements.values.get(PREPARE)
    return BenchmarkResult(
        owner_ratio=_rounded(ratio(STEP, REFERENCE)),
        ceiling_share_fp32=_rounded(ratio(STEP, CEILING)),
        ceiling_share_tf32=_rounded(ratio(STEP, CEILING_TF32)),
        ceiling_share_best=_rounded(max(shares, default=None)),
        ray_vs_torchrun=_rounded(ratio(RAY, TORCHRUN)),
        workers2_vs_1=_rounded(ratio(RAY, ONE)),
        bytes_dense_vs_rows=_rounded(ratio(_sent(WHOLE_TABLE), _sent(TORCHRUN))),
        bytes_dense_vs_rows_bfloat16=_rounded(ratio(_sent(WHOLE_TABLE), _sent(BFLOAT16))),
        encoder_bfloat16_vs_float32=_rounded(ratio(ENCODER_HALF, ENCODER_STEP)),
        extract_vs_train=_rounded(extract and extract * len(train.ids) / len(train)),
        prepare_texts_per_s=_rounded(statistics.median(prepare) if prepare else None),
        trial_start_s=_rounded(trial_start[0] if trial_start else None),
        started_s=started,
        groups_on=groups_on,
        failed=failed,
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


def _reference_spec(config: BenchmarkConfig, device: torch.device, store: TCPStore) -> GroupSpec:
    training, cores = Config(data=config.data).model_dump(), len(os.sched_getaffinity(0))
    place, gpu = (store.host, store.port), device.type == "cuda"
    return GroupSpec(REFERENCE, 1, place, training, cores, shared_model=False, reference=True, steps=4, gpu=gpu)


def _group_specs(config: BenchmarkConfig, device: torch.device, store: TCPStore) -> list[GroupSpec]:
    """Return the groups to measure; all but RAY are launched by torchrun."""
    cores, place = len(os.sched_getaffinity(0)), (store.host, store.port)
    threads, workers = max(1, cores // config.workers), config.workers
    default = Config(data=config.data).model_dump()
    whole_table = default | {"training": default["training"] | {"sparse_embedding": False}}
    bfloat16 = default | {"training": default["training"] | {"gradient_dtype": "bfloat16"}}
    specs = [
        GroupSpec(ONE, 1, place, default, cores, shared_model=False),
        GroupSpec(TORCHRUN, workers, place, default, threads),
        GroupSpec(BFLOAT16, workers, place, bfloat16, threads),
        GroupSpec(WHOLE_TABLE, workers, place, whole_table, threads),
        GroupSpec(SIDE_BY_SIDE, workers, place, default, threads, shared_model=False),
        GroupSpec(RAY, workers, place, default, threads),
    ]
    return [spec._replace(gpu=device.type == "cuda") for spec in specs]


def _measure_groups(
    config: BenchmarkConfig,
    device: torch.device,
    store: TCPStore,
    measurements: Measurements,
    started: dict[str, float],
) -> None:
    """Time groups in rounds; `started` receives the seconds that each took to start."""
    groups: dict[str, ProcessGroupHandle] = {}
    with ExitStack() as stack:
        for spec in _group_specs(config, device, store):
            launched = by_ray(spec, store) if spec.name == RAY else by_torchrun(spec, store)
            groups[spec.name] = stack.enter_context(launched)
            started[spec.name] = round(groups[spec.name].startup_seconds, 3)
        for round_number in range(-1, config.repeats):  # a first round warms up and is not counted
            for name, group in groups.items():
                time.sleep(_PAUSE)
                measured = group.measure()
                if round_number >= 0:
                    measurements.add(name, "tokens/s", measured.tokens_per_s)
                    if name in (TORCHRUN, BFLOAT16, WHOLE_TABLE):
                        measurements.add(_sent(name), "bytes", measured.bytes_per_step)
    for name, group in groups.items():
        measurements.add(f"  memory of a process, {name}", "MB", max(group.memory))


def _machine(device: torch.device) -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        cpu=torch.backends.cpu.get_cpu_capability(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        torch=str(torch.__version__),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
