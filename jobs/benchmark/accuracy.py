"""Tandem's presets beside what one would pick instead, on the same texts, cores and figures.

Each system is trained and measured in a fresh process, one after the other, so that none has the settings, the threads or the
memory of another; see jobs/benchmark/contestant.py for what is done there.
"""

import multiprocessing
import os
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from jobs.benchmark.baselines import Note, check_installed
from jobs.benchmark.contestant import Outcome, measure
from model.data.dataset import Dataset
from model.errors import RunFailedError, UserError
from model.prepare.writers import SPLITS
from model.training.metrics import summarise_seeds

SYSTEMS = ("crf", "spacy", "record", "best")
_WITHOUT_SEED = ("crf",)  # nothing in it is random


@dataclass(frozen=True)
class Request:
    """Whom to compare, and on what.

    Attributes:
        data: a dataset directory with all three splits.
        systems: some of SYSTEMS.
        seeds: trainings of each system in which anything is random.
        repeats: times that the texts are gone over for the speed in use; what is told is the median.
    """

    data: str
    systems: tuple[str, ...] = SYSTEMS
    seeds: int = 1
    repeats: int = 5


def compare(request: Request, note: Note) -> dict[str, Any]:
    """Trains and measures the systems and gives what `benchmark --peers --json` prints.

    Args:
        request: whom to compare, and on what.
        note: a function of a module, for other processes call it too; is told what is going on.

    Raises:
        UserError: a system is unknown or its package is missing, or the dataset cannot be used.
        RunFailedError: the process of a system did not come to an end.
    """
    unknown = [system for system in request.systems if system not in SYSTEMS]
    if unknown or not request.systems:
        raise UserError(f"--systems {','.join(unknown)}: is unknown; choose some of {','.join(SYSTEMS)}")
    check_installed(request.systems)
    data = Dataset(request.data)
    for split in SPLITS:
        data.require(split)
    rows = []
    for number, system in enumerate(request.systems, 1):
        seeds = 1 if system in _WITHOUT_SEED else request.seeds
        note(f"{number} of {len(request.systems)}  {system}, {seeds} x")
        rows.append(row_of(system, [_in_a_process(request, system, seed, note) for seed in range(seeds)]))
    return {
        "systems": rows,
        "texts": {split: data.rows(split) for split in SPLITS},
        "cores": len(os.sched_getaffinity(0)),
    }


def row_of(system: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a system as means over its trainings.

    `spread` is the standard deviation of the keyphrase F1 over seeds, None where there is one training.
    """
    figures = summarise_seeds([each.counts for each in outcomes])
    single = [summarise_seeds([each.counts])["keyphrase_f1"] for each in outcomes]

    def mean(name: str, digits: int = 1) -> float:
        return round(statistics.fmean(getattr(each, name) for each in outcomes), digits)

    return {
        "system": system,
        "keyphrase_f1": figures["keyphrase_f1"],
        "low": figures["keyphrase_f1_low"],
        "high": figures["keyphrase_f1_high"],
        "precision": figures["keyphrase_precision"],
        "recall": figures["keyphrase_recall"],
        "seeds": len(outcomes),
        "spread": statistics.stdev(single) if len(single) > 1 else None,
        "train_s": mean("best_s"),
        "stopped_s": mean("stopped_s"),
        "train_cores": mean("train_cores", 2),
        "texts_per_s": mean("texts_per_s"),
        "use_cores": mean("use_cores", 2),
    }


def _in_a_process(request: Request, system: str, seed: int, note: Note) -> Outcome:
    """Trains and measures a system in a process of its own, which ends with the call however that ends."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(there, request, system, seed, note), daemon=True)
    process.start()
    there.close()
    try:
        result = here.recv()
    except (EOFError, OSError):  # the pipe's end, between results or within one
        process.join()
        raise RunFailedError(_ended(system, seed, process.exitcode or 0)) from None
    finally:
        process.terminate()
        process.join()
    if isinstance(result, UserError):
        raise result
    return result


def _ended(system: str, seed: int, code: int) -> str:
    how = (
        f"was killed by signal {-code}, by the system perhaps for its memory" if code < 0 else f"ended with code {code}"
    )
    return f"{system}, seed {seed}: its process {how}, without a result; what it said stands above"


def _child(result: Connection, request: Request, system: str, seed: int, note: Note) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # a job of Ray's has one otherwise
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    try:
        result.send(measure(Dataset(request.data), system, seed, request.repeats, note))
    except UserError as error:
        result.send(error)
