"""How fast everything is, side by side in one run: lanes take turns, again and again, and what is told are medians.

A ratio is taken within each round, so that a machine that others slow down slows both sides of it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ray.util import get_node_ip_address
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distributed.drill import Drill, Waiting, by_ray, by_torchrun
from distributed.plan import make_plan, new_sweep
from distributed.tune import tune
from model import yardstick
from model.batch import epoch_batches
from model.bundle import save_bundle
from model.config import Config, RunConfig, TaggerConfig, TrainingConfig
from model.dataset import Dataset, Split
from model.extractor import TEXTS_HELD, Extractor
from model.loop import Training, evaluate, new_tagger
from model.metrics import summarise
from model.prepare import Recipe, prepare
from model.yardstick import flops_per_token

CEILING, CEILING_HALF = "one matrix product, float32", "one matrix product, bfloat16"
OWNER, STEP, HALF = "the hand-made loop", "Tandem's step", "  bfloat16"
EXTRACT, PREPARE = "extract", "prepare, each second of a core"
ONE, TORCHRUN, RAY = "one worker, all cores", "workers, torchrun", "workers, Ray Train"
WHOLE, BESIDE = "workers, whole table at each step", "trainings side by side"
ROUNDED = "workers, bfloat16 exchange"
_REST = 0.3  # seconds between turns of groups: the threads of the one before fall asleep
_TRIALS = 6
_SMALL = {"embedding": 16, "hidden1": 8, "hidden2": 8}  # a trial whose start, not whose training, takes the time


@dataclass(frozen=True)
class Request:
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


class Row(NamedTuple):
    """A line of the table: the median over the rounds, the lowest and the highest."""

    name: str
    unit: str
    median: float
    low: float
    high: float


@dataclass
class Lanes:
    """What was measured: the rates of each lane, round by round."""

    units: dict[str, str] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, rate: float) -> None:
        """Adds a round's rate."""
        self.units[name] = unit
        self.rates.setdefault(name, []).append(rate)

    def ratio(self, above: str, below: str) -> float:
        """The median over the rounds of one lane's rate by another's."""
        pairs = zip(self.rates[above], self.rates[below], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(name, self.units[name], statistics.median(rates), min(rates), max(rates))
            for name, rates in self.rates.items()
        ]


def benchmark(request: Request, note: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything and gives what `benchmark --json` prints.

    Args:
        request: what to measure on.
        note: is told what is being measured.

    Raises:
        UserError: the dataset cannot be used.
        RunFailedError: a group of processes did not start.
    """
    os.environ["WANDB_MODE"] = "disabled"  # what is trained here is nobody's run
    lanes = Lanes()
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as folder:
        note(f"1 of 4  one process, {torch.get_num_threads()} threads, {place}")
        _in_this_process(request, place, Path(folder), lanes)
        note("2 of 4  prepare")
        _prepare(request, Path(folder), lanes)
        note("3 of 4  a sweep of short trials")
        trial_start = _trials(request, Path(folder))
        note(f"4 of 4  groups of {request.workers} processes, by torchrun and by Ray Train")
        started = _groups(request, place, lanes)
    train = Dataset(request.data).load("train")
    ratios = {
        "owner_ratio": lanes.ratio(STEP, OWNER),
        "ceiling_share_fp32": lanes.ratio(STEP, CEILING),
        "ceiling_share_best": max(lanes.ratio(name, CEILING) for name in (STEP, HALF)),
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


def _variants(device: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Lanes of the step: changes of the tagger's and of the training's configuration."""
    off: tuple[dict[str, Any], dict[str, Any]] = (
        {"fast_rnn": False, "fast_dropout": False},
        {"row_updates": False, "bucketed": False},
    )
    batches = (256, 1024, 4096) if device == "cuda" else (256,)
    return {
        STEP: ({}, {}),
        "  torch's recurrence": ({"fast_rnn": False}, {}),
        "  torch's dropout": ({"fast_dropout": False}, {}),
        "  the whole table at each step": ({}, {"row_updates": False}),
        "  batches at random": ({}, {"bucketed": False}),
        "  all of these": off,
        HALF: ({}, {"precision": "bfloat16"}),
        "  gru": ({"cell": "gru"}, {}),
        "  lstm": ({"cell": "lstm"}, {}),
        **{f"  batches of {size}": ({}, {"batch": size}) for size in batches},
    }


def _in_this_process(request: Request, place: torch.device, folder: Path, lanes: Lanes) -> None:
    data, tagger = Dataset(request.data), TaggerConfig()
    train, valid, words = data.load("train"), data.load("valid"), data.info["words"]
    steps: dict[str, Iterator[float]] = {}
    for name, (of_tagger, changed) in _variants(place.type).items():
        fresh = new_tagger(TaggerConfig(**of_tagger), words, 0)
        training = Training(TrainingConfig(**changed), fresh, train, valid, device=place)
        steps[name] = yardstick.training_steps(training)
        if name == STEP:
            steps[OWNER] = yardstick.hand_made_steps(tagger, TrainingConfig(), train, words, place)
            steps["batches alone"] = _batches(training)
            texts = {"evaluate": _evaluated(training), EXTRACT: _extracted(data, training, folder)}
    for precision, name in ((torch.float32, CEILING), (torch.bfloat16, CEILING_HALF)):
        steps[name] = yardstick.products(tagger, precision, place)
    for round in range(-1, request.repeats):  # the first warms up
        for unit, lane in (("tokens/s", steps), ("texts/s", texts)):
            for name, work in lane.items():
                rate = yardstick.timed(work, place)
                if round >= 0:
                    lanes.add(name, unit, rate)


def _batches(training: Training) -> Iterator[float]:
    lengths = training.train.lengths
    while True:
        for rows in epoch_batches(lengths, training.config.batch, 0, 0):
            yield float(training._share(rows).lengths.sum())


def _evaluated(training: Training) -> Iterator[float]:
    while True:
        evaluate(training.tagger, training.valid, training.device)
        yield len(training.valid)
        training.tagger.train()


def _extracted(data: Dataset, training: Training, folder: Path) -> Iterator[float]:
    """From a bundle, as anybody has it, of a tagger that has trained for a moment."""
    steps = yardstick.training_steps(training)
    for _ in range(100):
        next(steps)
    figures = summarise(evaluate(training.tagger, training.valid, training.device).counts)
    bundle = str(folder / "bundle")
    weights = training.tagger.state_dict()
    save_bundle(bundle, Config(data=data.location), data.tokenizer_bytes(), weights, {"split": "valid", **figures})
    extractor = Extractor.load(bundle, training.device.type)
    texts = [labelled.text for labelled in data.texts("train")]
    while True:
        for begin in range(0, len(texts), TEXTS_HELD):
            some = texts[begin : begin + TEXTS_HELD]
            list(extractor.many(some))
            yield len(some)


def _prepare(request: Request, folder: Path, lanes: Lanes) -> None:
    """Labelled texts as TSV, repeated; what is told is texts for each second of one core."""
    data = Dataset(request.data)
    lines = []
    for labelled in data.texts("train"):
        phrases = (labelled.text[start:end] for start, end in labelled.spans or ())
        lines.append(f"{labelled.text}\t{';'.join(phrases)}".replace("\n", " "))
    source = folder / "texts.tsv"
    source.write_text("".join(f"{line}\n" for line, _ in zip(cycle(lines), range(request.texts))), "utf-8")
    for _ in range(request.repeats):
        began = time.process_time()
        info = prepare(Recipe([str(source)], str(folder / "prepared"), skip_bad_lines=True, overwrite=True))
        rows = sum(split["rows"] for split in info["splits"].values())
        lanes.add(PREPARE, "texts/s", rows / (time.process_time() - began))


def _trials(request: Request, folder: Path) -> float:
    """Seconds from a one-worker trial's proposal to its beginning: the median of a sweep."""
    config = Config(
        data=request.data,
        tagger=TaggerConfig(**_SMALL),
        training=TrainingConfig(patience=0, batch=1024),
        run=RunConfig(storage=str(folder), name="sweep"),
    )
    plan = new_sweep(make_plan({"config": config, "fixed": [], "trials": _TRIALS, "max_epochs": 1}))
    return float(tune(plan, lambda kind, value: None)["trial_start_s"])


def _groups(request: Request, place: torch.device, lanes: Lanes) -> dict[str, float]:
    """Times groups in turns. Returns the seconds that each took to start."""
    gpu = place.type == "cuda"
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // request.workers)
    store = TCPStore(get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    address = (get_node_ip_address(), store.port)
    config = Config(data=request.data).model_dump()
    whole_table = config | {"training": config["training"] | {"row_updates": False}}
    rounded = config | {"training": config["training"] | {"exchange": "bfloat16"}}
    many = request.workers
    with ExitStack() as stack:
        groups: dict[str, Waiting] = {}
        for name, size, settings, each, together in (
            (ONE, 1, config, cores, False),
            (TORCHRUN, many, config, threads, True),
            (ROUNDED, many, rounded, threads, True),
            (WHOLE, many, whole_table, threads, True),
            (BESIDE, many, config, threads, False),
        ):
            drill = Drill(name, size, address, settings, each, together)
            groups[name] = stack.enter_context(by_torchrun(drill, store))
        drill = Drill(RAY, many, address, config, threads)
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


def exchange(request: Request) -> list[dict[str, float]]:
    """Computed: megabytes that each worker sends in a step, the whole table or its rows.

    All-reduce sends 2 (N - 1) / N of what it sums, all-gather N - 1 times a worker's own. How many rows a worker's share
    of a batch touches is counted in the dataset's own batches, for every vocabulary.
    """
    split, config = Dataset(request.data).load("train"), Config(data=request.data)
    size = config.tagger.embedding
    network = flops_per_token(config.tagger) / 6 + 2 * 2 * (config.tagger.hidden1 + config.tagger.hidden2) + 7
    found = []
    for workers in (2, 4, 8, 16, 32, 64):
        rows = _rows_of_a_share(split, config.training.batch, workers)
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
