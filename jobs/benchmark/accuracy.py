"""The accuracy benchmark: Tandem's presets beside a CRF, spaCy and a fine-tuned encoder, on the same texts, cores and metrics.

Each system is trained and measured in a fresh process, one after the other, so that none inherits the settings, threads or
memory of another.
"""

import json
import multiprocessing
import os
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch

from jobs.benchmark.baselines import Log, check_installed
from jobs.benchmark.systems import SystemResult, measure
from model import storage
from model.config import Precision
from model.data.dataset import SPLITS, Dataset
from model.errors import RunFailedError, UserError
from model.network.device import check_precision, resolve_device
from model.network.encoder_files import load_encoder
from model.training.metrics import summarize, summarize_seeds
from model.training.significance import Difference, SeedGroups

SYSTEMS = ("crf", "spacy", "record", "best", "transformers", "encoder")
WITH_ENCODER = ("transformers", "encoder")  # those that need a pretrained one
_DETERMINISTIC = ("crf",)


@dataclass(frozen=True)
class ComparisonConfig:
    """Which systems to compare, and on what.

    Attributes:
        data: a dataset directory with all three splits.
        systems: some of SYSTEMS.
        seeds: trainings of each system that is not deterministic.
        repeats: passes over the texts for the throughput, of which the median counts.
        encoder: pretrained, for the systems in WITH_ENCODER: path, URI, or name on the hub.
        device: of the presets and of the systems in WITH_ENCODER; the others use the CPU.
        precision: of matrix products in the training of these systems; all use float32 afterwards.
        out: file of finished trainings, which are not repeated; None keeps none.
    """

    data: str
    systems: tuple[str, ...]
    seeds: int = 1
    repeats: int = 5
    encoder: str | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    out: str | None = None


@dataclass(frozen=True)
class SystemRow:
    """The metrics of a system, as means over its trainings.

    Attributes:
        system: one of SYSTEMS.
        keyphrase_f1, precision, recall: of exact spans on the test split.
        low, high: 95 % bootstrap interval of `keyphrase_f1` over texts.
        seeds: number of trainings.
        spread: standard deviation of the keyphrase F1 over seeds; None for a single training.
        train_s, stopped_s, train_cores, texts_per_s, use_cores: as in `SystemResult`; `train_s` is its `best_s`.
        against: the difference of its `keyphrase_f1` to the highest one; None for the system that has it.
    """

    system: str
    keyphrase_f1: float
    low: float
    high: float
    precision: float
    recall: float
    seeds: int
    spread: float | None
    train_s: float
    stopped_s: float
    train_cores: float
    texts_per_s: float
    use_cores: float
    against: Difference | None = None


@dataclass(frozen=True)
class ComparisonResult:
    """What `benchmark --peers --json` prints: a row per system, texts per split, cores, and `--device` and `--precision`."""

    systems: list[SystemRow]
    texts: dict[str, int]
    cores: int
    device: str
    precision: str


def compare_systems(config: ComparisonConfig, log: Log) -> ComparisonResult:
    """Train and measure the systems.

    Args:
        config: which systems to compare, and on what.
        log: receives a line when a system or an epoch ends; a module's function, because other processes call it too.

    Raises:
        UserError: a system is unknown or its package is missing, or the dataset, the encoder, the device or the precision
            cannot be used.
        RunFailedError: the process of a system died.
        StorageError: `config.out` cannot be written.
    """
    unknown = [system for system in config.systems if system not in SYSTEMS]
    if unknown or not config.systems:
        raise UserError(f"--systems {','.join(unknown)}: is unknown; choose some of {','.join(SYSTEMS)}")
    check_installed(config.systems)
    check_precision(config.precision, resolve_device(config.device))
    encoder = _encoder_digest(config)
    data = Dataset(config.data)
    for split in SPLITS:
        data.require(split)
    finished, cores = FinishedTrainings(config.out), len(os.sched_getaffinity(0))
    results: dict[str, list[SystemResult]] = {system: [] for system in config.systems}
    for number, system in enumerate(config.systems, 1):
        seeds = 1 if system in _DETERMINISTIC else config.seeds
        log(f"{number} of {len(config.systems)}  {system}, {seeds} x")
        for seed in range(seeds):
            of_system = encoder if system in WITH_ENCODER else None
            key = TrainingKey(data.digest, system, seed, of_system, config.device, cores, config.precision)
            results[system].append(
                finished.get(key) or finished.add(key, _measure_in_process(config, system, seed, log))
            )
    texts = {split: data.rows(split) for split in SPLITS}
    return ComparisonResult(system_rows(results), texts, cores, config.device, config.precision)


class TrainingKey(NamedTuple):
    """What a training's result depends on, except for the code: another version of Tandem needs another file of results.

    Attributes:
        dataset: digest of its content.
        system, seed: one of SYSTEMS, and the seed of the training.
        encoder: digest of its weights, for the systems in WITH_ENCODER.
        device, cores, precision: where and how it was trained; older files have no precision.
    """

    dataset: str
    system: str
    seed: int
    encoder: str | None
    device: str
    cores: int
    precision: str = "float32"


class FinishedTrainings:
    """The results of finished trainings, in a file of JSON lines: a key and a result each.

    Args:
        location: path or URI of the file, which is created if it does not exist; None keeps the results in memory only.

    Raises:
        UserError: the file holds something else.
        StorageError: it cannot be written.
    """

    def __init__(self, location: str | None) -> None:
        self._location = location
        self._results: dict[TrainingKey, SystemResult] = {}
        if location is not None and not storage.exists(location):
            storage.write(location, b"")  # what cannot be written is found out before a training of hours
        self._read()

    def _read(self) -> None:
        """Add what the file has."""
        if self._location is None or not storage.exists(self._location):
            return
        lines = storage.read(self._location).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                result = SystemResult(**values["result"])
                result = result._replace(counts=np.array(result.counts, np.int64))
                self._results[TrainingKey(**values["key"])] = result
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{self._location}:{number}: is no result of benchmark --peers; name another file with --out"
                ) from None

    def get(self, key: TrainingKey) -> SystemResult | None:
        """Return the result of a training, or None if it has not finished."""
        return self._results.get(key)

    def add(self, key: TrainingKey, result: SystemResult) -> SystemResult:
        """Add a result, write the file anew, and return the result. Raises StorageError."""
        self._read()  # another benchmark may have added some meanwhile
        self._results[key] = result
        if self._location is not None:
            lines = [
                json.dumps({"key": each._asdict(), "result": values._replace(counts=values.counts.tolist())._asdict()})
                for each, values in self._results.items()
            ]
            storage.write(self._location, "".join(f"{line}\n" for line in lines).encode())
        return result


def _encoder_digest(config: ComparisonConfig) -> str | None:
    """Check the encoder before other systems train for minutes, and return its digest. Raises UserError."""
    systems = ",".join(system for system in config.systems if system in WITH_ENCODER)
    if systems and config.encoder is None:
        raise UserError(f"--systems {systems}: needs a pretrained encoder; add --encoder PATH-or-NAME, or leave it out")
    if config.encoder is not None and not systems:
        raise UserError(f"--encoder: only {' and '.join(WITH_ENCODER)} use it; add one to --systems, or leave it out")
    return None if config.encoder is None else load_encoder(config.encoder).digest


def system_rows(results: dict[str, list[SystemResult]]) -> list[SystemRow]:
    """Return the metrics of each system, compared with the one that has the highest keyphrase F1."""
    groups = SeedGroups({system: [each.counts for each in trainings] for system, trainings in results.items()})
    highest = max(groups.means, key=lambda system: groups.means[system])
    return [
        replace(
            _system_row(system, trainings),
            against=None if system == highest else groups.difference(system, highest),
        )
        for system, trainings in results.items()
    ]


def _system_row(system: str, trainings: Sequence[SystemResult]) -> SystemRow:
    metrics = summarize_seeds([each.counts for each in trainings])
    single = [summarize(each.counts)["keyphrase_f1"] for each in trainings]

    def mean(name: str, digits: int = 1) -> float:
        return round(statistics.fmean(getattr(each, name) for each in trainings), digits)

    return SystemRow(
        system=system,
        keyphrase_f1=metrics["keyphrase_f1"],
        low=metrics["keyphrase_f1_low"],
        high=metrics["keyphrase_f1_high"],
        precision=metrics["keyphrase_precision"],
        recall=metrics["keyphrase_recall"],
        seeds=len(trainings),
        spread=statistics.stdev(single) if len(single) > 1 else None,
        train_s=mean("best_s"),
        stopped_s=mean("stopped_s"),
        train_cores=mean("train_cores", 2),
        texts_per_s=mean("texts_per_s"),
        use_cores=mean("use_cores", 2),
    )


def _measure_in_process(config: ComparisonConfig, system: str, seed: int, log: Log) -> SystemResult:
    """Train and measure a system in a process of its own, which ends with this call in any case."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(sender, config, system, seed, log), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except (EOFError, OSError):  # the end of the pipe, between results or within one
        process.join()
        raise RunFailedError(_exit_message(system, seed, process.exitcode or 0)) from None
    finally:
        process.terminate()
        process.join()
    if isinstance(result, UserError):
        raise result
    return result


def _exit_message(system: str, seed: int, code: int) -> str:
    how = f"was killed by signal {-code}, perhaps for lack of memory" if code < 0 else f"ended with code {code}"
    return f"{system}, seed {seed}: its process {how} without a result; see its output above"


def _child(result: Connection, config: ComparisonConfig, system: str, seed: int, log: Log) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # Ray gives a job one thread
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which ends this process
    try:
        trained_with = config.encoder, config.device, config.precision
        result.send(measure(Dataset(config.data), system, seed, config.repeats, log, *trained_with))
    except UserError as error:
        result.send(error)
