"""How fast everything is, side by side in one run: lanes take turns, again and again, and what is told are medians.

A ratio is taken within each round, so that a machine that others slow down slows both sides of it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.util import get_node_ip_address
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.cluster.connection import force_local_cluster
from distributed.sweep.plan import make_plan, new_sweep
from distributed.tune.driver import tune
from jobs.benchmark.process_groups import GroupSpec, ProcessGroupHandle, by_ray, by_torchrun
from jobs.benchmark.reference import flops_per_token
from jobs.benchmark.single_process import (
    CEILING,
    EXTRACT,
    HALF,
    OWNER,
    PREPARE,
    STEP,
    Measurements,
    in_this_process,
    prepare_again,
)
from model.config import Config, RunConfig, TaggerConfig, TrainingConfig
from model.data.batching import epoch_batches
from model.data.dataset import Dataset, Split

ONE, TORCHRUN, RAY = "one worker, all cores", "workers, torchrun", "workers, Ray Train"
WHOLE, BESIDE = "workers, whole table at each step", "trainings side by side"
ROUNDED = "workers, bfloat16 exchange"
_REST = 0.3  # seconds between turns of groups: the threads of the one before fall asleep
_TRIALS = 6
_SMALL = {
    "embedding_dim": 16,
    "keyword_hidden": 8,
    "keyphrase_hidden": 8,
}  # a trial whose start, not whose training, takes the time


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure on.

    Attributes:
        data: a dataset directory.
        workers: processes of a group.
        repeats: rounds.
        texts: how many are prepared in a round.
    """

    data: str
    workers: int = 2
    repeats: int = 5
    texts: int = 200_000


def benchmark(request: BenchmarkConfig, note: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything and gives what `benchmark --json` prints.

    Args:
        request: what to measure on.
        note: is told what is being measured.

    Raises:
        UserError: the dataset cannot be used.
        RunFailedError: a group of processes did not start.
    """
    os.environ["WANDB_MODE"] = "disabled"  # what is trained here is nobody's run
    force_local_cluster()  # which is measured, not a cluster that it belongs to
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # a job of Ray's has one otherwise
    lanes, store = Measurements(), TCPStore(get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as folder:
        note(f"1 of 4  one process, {torch.get_num_threads()} threads, {place}")
        with by_torchrun(_hand_made(request, store), store) as hand_made:
            in_this_process(request.data, request.repeats, place, Path(folder), hand_made, lanes)
        note("2 of 4  prepare")
        prepare_again(request.data, request.texts, request.repeats, Path(folder), lanes)
        note("3 of 4  a sweep of short trials")
        trial_start = _trials(request, Path(folder))
        note(f"4 of 4  groups of {request.workers} processes, by torchrun and by Ray Train")
        started = _groups(request, place, store, lanes)
    train = Dataset(request.data).load("train")
    ratios = {
        "owner_ratio": lanes.ratio(STEP, OWNER),
        "ceiling_share_fp32": lanes.ratio(STEP, CEILING),
        "ceiling_share_best": max(lanes.ratio(name, CEILING) for name in (STEP, HALF) if name in lanes.rates),
        "ray_vs_torchrun": lanes.ratio(RAY, TORCHRUN),
        "workers2_vs_1": lanes.ratio(RAY, ONE),
        "bytes_dense_vs_rows": lanes.ratio(_sent(WHOLE), _sent(TORCHRUN)),
        "bytes_dense_vs_rows_bfloat16": lanes.ratio(_sent(WHOLE), _sent(ROUNDED)),
        "extract_vs_train": lanes.ratio(EXTRACT, STEP) * len(train.ids) / len(train),
        "prepare_texts_per_s": statistics.median(lanes.rates[PREPARE]),
        "trial_start_s": trial_start,
    }
    return {
        **{name: round_(value) for name, value in ratios.items()},
        "started_s": started,
        "exchange": exchange(request),
        "machine": _machine(place),
        "table": [row._asdict() for row in lanes.rows()],
    }


def _sent(group: str) -> str:
    return f"  sent in a step, {group}"


def _trials(request: BenchmarkConfig, folder: Path) -> float:
    """Seconds from a one-worker trial's proposal to its beginning: the median of a sweep."""
    config = Config(
        data=request.data,
        tagger=TaggerConfig(**_SMALL),
        training=TrainingConfig(patience=0, global_batch_size=1024),
        run=RunConfig(storage=str(folder), name="sweep"),
    )
    plan = new_sweep(make_plan({"config": config, "fixed": [], "trials": _TRIALS, "max_epochs": 1}))
    return float(tune(plan, lambda kind, value: None)["trial_start_s"])


def _hand_made(request: BenchmarkConfig, store: TCPStore) -> GroupSpec:
    config, cores = Config(data=request.data).model_dump(), len(os.sched_getaffinity(0))
    return GroupSpec(OWNER, 1, (store.host, store.port), config, cores, together=False, hand_made=True, steps=4)


def _groups(request: BenchmarkConfig, place: torch.device, store: TCPStore, lanes: Measurements) -> dict[str, float]:
    """Times groups in turns. Returns the seconds that each took to start."""
    gpu = place.type == "cuda"
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // request.workers)
    config = Config(data=request.data).model_dump()
    whole_table = config | {"training": config["training"] | {"sparse_embedding": False}}
    rounded = config | {"training": config["training"] | {"gradient_dtype": "bfloat16"}}
    many = request.workers
    with ExitStack() as stack:
        groups: dict[str, ProcessGroupHandle] = {}
        for name, size, settings, each, together in (
            (ONE, 1, config, cores, False),
            (TORCHRUN, many, config, threads, True),
            (ROUNDED, many, rounded, threads, True),
            (WHOLE, many, whole_table, threads, True),
            (BESIDE, many, config, threads, False),
        ):
            drill = GroupSpec(name, size, (store.host, store.port), settings, each, together)
            groups[name] = stack.enter_context(by_torchrun(drill, store))
        drill = GroupSpec(RAY, many, (store.host, store.port), config, threads)
        groups[RAY] = stack.enter_context(by_ray(drill, store, gpu))
        for round in range(-1, request.repeats):
            for name, group in groups.items():
                time.sleep(_REST)
                turn = group.turn()
                if round >= 0:
                    lanes.add(name, "tokens/s", turn.tokens_per_s)
                    if name in (TORCHRUN, ROUNDED, WHOLE):
                        lanes.add(_sent(name), "bytes", turn.bytes_per_step)
    for name, group in groups.items():
        lanes.add(f"  memory of a process, {name}", "MB", max(group.memory))
    return {name: round_(group.started) for name, group in groups.items()}


def exchange(request: BenchmarkConfig) -> list[dict[str, float]]:
    """Computed: megabytes that each worker sends in a step, the whole table or its rows.

    All-reduce sends 2 (N - 1) / N of what it sums, all-gather N - 1 times a worker's own. How many rows a worker's share
    of a batch touches is counted in the dataset's own batches, for every vocabulary.
    """
    split, config = Dataset(request.data).load("train"), Config(data=request.data)
    size = config.tagger.embedding_dim
    network = (
        flops_per_token(config.tagger) / 6 + 2 * 2 * (config.tagger.keyword_hidden + config.tagger.keyphrase_hidden) + 7
    )
    found = []
    for workers in (2, 4, 8, 16, 32, 64):
        rows = _rows_of_a_share(split, config.training.global_batch_size, workers)
        reduced = 2 * (workers - 1) / workers * 4 / 1e6
        by_rows = reduced * network + (workers - 1) * rows * (size + 1) * 4 / 1e6
        for words in (30_000, 300_000, 3_000_000):
            whole = reduced * (network + words * size)
            found.append({"workers": workers, "words": words, "whole_mb": whole, "rows_mb": by_rows})
    return [{name: round_(value) for name, value in row.items()} for row in found]


def _rows_of_a_share(split: Split, batch: int, workers: int) -> float:
    counts = []
    for rows in epoch_batches(split.lengths, batch, 0, 0)[:20]:
        tokens = [split.ids[split.begins[row] : split.begins[row + 1]] for row in rows[::workers]]
        counts.append(len(np.unique(np.concatenate(tokens))))
    return float(np.mean(counts))


def _machine(place: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(place) if place.type == "cuda" else None
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    return {"cores": cores, "threads": threads, "cpu": kind, "gpu": gpu, "torch": torch.__version__}


def round_(value: float) -> float:
    """Three decimals."""
    return round(value, 3)
