"""Tandem's presets beside what one would pick instead, on the same texts, cores and figures.

Each system is trained and measured in a fresh process, one after the other, so that none has the settings, the threads or the
memory of another; see jobs/benchmark/contestant.py for what is done there.
"""

import copy
import importlib
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from jobs.benchmark.baselines import PACKAGES, Log, Stopwatch, Tag, check_installed, fit_crf, fit_spacy
from model.config import make_config, preset_values, set_dotted
from model.data.dataset import SPLITS, Dataset
from model.data.examples import Example, Span, examples
from model.data.labelled_text import SkipCounts
from model.data.tokenizer import UNKNOWN, CachedTokenizer
from model.errors import RunFailedError, UserError
from model.inference.extractor import TEXTS_HELD, Extractor
from model.network.tagger import new_tagger
from model.training.loop import SELECTION_METRIC, Training
from model.training.metrics import Counts, counts_of_spans, summarize_seeds

_PEERS = {"crf": fit_crf, "spacy": fit_spacy}
_TEXTS_TIMED = 10_000
Find = Callable[[list[str]], list[list[Span]]]  # the keyphrases of raw texts, as their characters


SYSTEMS = ("crf", "spacy", "record", "best")
_WITHOUT_SEED = ("crf",)  # nothing in it is random


class Trained(NamedTuple):
    """A system that has been trained.

    Attributes:
        start: makes it ready for use, its tokenizer without a memory of words that it has cut before.
        best_s: seconds from the texts in memory to the end of the pass that is used, its validation included.
        stopped_s: seconds until the training was over.
        cores: cores that were busy until then, on average.
    """

    start: Callable[[], Find]
    best_s: float
    stopped_s: float
    cores: float


class SystemResult(NamedTuple):
    """What came of one training.

    Attributes:
        counts: (texts, 8) of the test split; of keywords none.
        best_s, stopped_s, train_cores: of `Trained`.
        texts_per_s: of the system in use, from raw texts to the characters of keyphrases.
        use_cores: cores that were busy then.
    """

    counts: Counts
    best_s: float
    stopped_s: float
    train_cores: float
    texts_per_s: float
    use_cores: float


@dataclass(frozen=True)
class ComparisonConfig:
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


def compare_systems(request: ComparisonConfig, note: Log) -> dict[str, Any]:
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


def row_of(system: str, outcomes: Sequence[SystemResult]) -> dict[str, Any]:
    """The figures of a system as means over its trainings.

    `spread` is the standard deviation of the keyphrase F1 over seeds, None where there is one training.
    """
    metrics = summarize_seeds([each.counts for each in outcomes])
    single = [summarize_seeds([each.counts])["keyphrase_f1"] for each in outcomes]

    def mean(name: str, digits: int = 1) -> float:
        return round(statistics.fmean(getattr(each, name) for each in outcomes), digits)

    return {
        "system": system,
        "keyphrase_f1": metrics["keyphrase_f1"],
        "low": metrics["keyphrase_f1_low"],
        "high": metrics["keyphrase_f1_high"],
        "precision": metrics["keyphrase_precision"],
        "recall": metrics["keyphrase_recall"],
        "seeds": len(outcomes),
        "spread": statistics.stdev(single) if len(single) > 1 else None,
        "train_s": mean("best_s"),
        "stopped_s": mean("stopped_s"),
        "train_cores": mean("train_cores", 2),
        "texts_per_s": mean("texts_per_s"),
        "use_cores": mean("use_cores", 2),
    }


def _in_a_process(request: ComparisonConfig, system: str, seed: int, note: Log) -> SystemResult:
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


def _child(result: Connection, request: ComparisonConfig, system: str, seed: int, note: Log) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # a job of Ray's has one otherwise
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    try:
        result.send(measure(Dataset(request.data), system, seed, request.repeats, note))
    except UserError as error:
        result.send(error)


def measure(data: Dataset, system: str, seed: int, repeats: int, note: Log) -> SystemResult:
    """Trains a system, `crf`, `spacy` or a preset, and measures it.

    Args:
        data: a dataset with all three splits.
        system: which.
        seed: of the training.
        repeats: times that the texts are gone over for the speed in use; what is told is the median.
        note: is told how the training goes.
    """
    trained = (_train_peer if system in _PEERS else _train_tandem)(data, system, seed, note)
    test = list(data.texts("test"))
    found = trained.start()([each.text for each in test])
    counts = counts_of_spans(found, [each.spans or () for each in test])
    everything = chain.from_iterable(data.texts(split) for split in reversed(SPLITS))
    texts = [each.text for each in islice(everything, _TEXTS_TIMED)]
    turns = [_turn(trained.start(), texts) for _ in range(repeats)]
    rate, use_cores = (statistics.median(values) for values in zip(*turns, strict=True))
    return SystemResult(counts, trained.best_s, trained.stopped_s, trained.cores, rate, use_cores)


def _turn(find: Find, texts: list[str]) -> tuple[float, float]:
    """Texts per second, and cores that were busy."""
    clock = Stopwatch()
    find(texts)
    return len(texts) / clock.seconds, clock.cores


def _train_tandem(data: Dataset, preset: str, seed: int, note: Log) -> Trained:
    tree = preset_values(preset)
    for dotted, value in {"data": data.location, "training.seed": seed, "tagger.pretrained_vectors": False}.items():
        set_dotted(tree, dotted, value)
    config = make_config(tree)
    train, valid = (data.load(split, config.tagger.uses_word_features) for split in ("train", "valid"))
    clock = Stopwatch()
    tagger = new_tagger(config.tagger, data.info["words"], seed)
    training = Training(config.training, tagger, train, valid)
    best_s, weights = 0.0, tagger.state_dict()
    for metrics in training.epochs():
        if training.best == len(training.history) - 1:
            best_s, weights = clock.seconds, copy.deepcopy(tagger.state_dict())
        epoch = f"epoch {training.epoch} of {config.training.epochs}"
        note(f"{preset}: {epoch}, valid F1 {metrics[SELECTION_METRIC]:.4f}, {clock.seconds:.0f} s")
    stopped_s, cores = clock.seconds, clock.cores
    tagger.load_state_dict(weights)

    def start() -> Find:
        extractor = Extractor(tagger, data.tokenizer())
        return lambda texts: [[(each.start, each.end) for each in found] for found in extractor.pipe(texts)]

    return Trained(start, best_s, stopped_s, cores)


def _train_peer(data: Dataset, system: str, seed: int, note: Log) -> Trained:
    train, valid = (_examples(data, split) for split in ("train", "valid"))
    importlib.import_module(PACKAGES[system][0])  # now, for loading a package is no training
    clock = Stopwatch()
    tag, best_s = _PEERS[system](train, valid, seed, clock, note)
    stopped_s, cores = clock.seconds, clock.cores

    return Trained(lambda: raw_text_adapter(tag, data), best_s, stopped_s, cores)


def _examples(data: Dataset, split: str) -> list[Example]:
    return list(examples(data.texts(split), data.tokenizer(), SkipCounts(), sys.maxsize))


def raw_text_adapter(tag: Tag, data: Dataset) -> Find:
    """What gives a system that reads words raw texts to read."""
    return partial(_find, tag, CachedTokenizer(lambda word: UNKNOWN, data.tokenizer()))


def _find(tag: Tag, cut: CachedTokenizer, texts: list[str]) -> list[list[Span]]:
    found: list[list[Span]] = []
    for first in range(0, len(texts), TEXTS_HELD):
        some = texts[first : first + TEXTS_HELD]
        words = cut(some)
        places = [
            (words.starts[begin:end].tolist(), words.ends[begin:end].tolist())
            for begin, end in zip(words.begins[:-1], words.begins[1:], strict=True)
        ]
        tokenized = [
            [text[start:end] for start, end in zip(*each, strict=True)] for text, each in zip(some, places, strict=True)
        ]
        for (starts, ends), spans in zip(places, tag(tokenized), strict=True):
            found.append([(starts[one], ends[other - 1]) for one, other in spans])
    return found
