"""One system of the accuracy benchmark: train it, score it on the test split, and time it in use."""

import copy
import importlib
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from distributed.train.shared_data import SharedData
from jobs.benchmark.baselines import PACKAGES, Log, Stopwatch, TagTexts, fit_crf, fit_spacy
from jobs.benchmark.token_classification import fit_token_classifier
from model.config import Config, Precision, Tree, make_config, set_dotted
from model.data.characters import Span
from model.data.dataset import SPLITS, Dataset
from model.data.examples import Example, examples
from model.data.labeled_text import SkipCounts
from model.data.tokenizer import UNKNOWN, CachedTokenizer
from model.inference.extractor import PIPE_BATCH_SIZE, Extractor
from model.network.device import resolve_device
from model.presets import preset_values
from model.training.loop import SELECTION_METRIC, Training
from model.training.metrics import Counts, counts_of_spans

_BASELINES = ("crf", "spacy", "transformers")
_TEXTS_TIMED = 10_000
ExtractSpans = Callable[[list[str]], list[list[Span]]]  # raw texts -> the characters of their keyphrases


class TrainedSystem(NamedTuple):
    """A trained system.

    Attributes:
        load: return it ready for use, with an empty tokenizer cache.
        best_s: seconds from texts in memory until the model that is used was trained and validated.
        stopped_s: seconds until training ended.
        cores: processor seconds per second of training.
    """

    load: Callable[[], ExtractSpans]
    best_s: float
    stopped_s: float
    cores: float


class SystemResult(NamedTuple):
    """The result of one training.

    Attributes:
        counts: (texts, 8) counts on the test split; those of keywords are 0.
        best_s, stopped_s, train_cores: as in `TrainedSystem`.
        texts_per_s: throughput from raw texts to the characters of keyphrases.
        use_cores: processor seconds per second of that.
    """

    counts: Counts
    best_s: float
    stopped_s: float
    train_cores: float
    texts_per_s: float
    use_cores: float


def measure(
    data: Dataset,
    system: str,
    seed: int,
    repeats: int,
    log: Log,
    encoder: str | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> SystemResult:
    """Train a system and measure it.

    Args:
        data: a dataset with all three splits.
        system: `crf`, `spacy`, `transformers` or a preset.
        seed: seed of the training.
        repeats: passes over the texts for the throughput, of which the median counts.
        log: receives a line per epoch.
        encoder: pretrained, for the systems that need one.
        device, precision: see `ComparisonConfig`.
    """
    train = _train_baseline if system in _BASELINES else _train_preset
    trained = train(data, system, seed, log, encoder, device, precision)
    test = list(data.texts("test"))
    predicted = trained.load()([each.text for each in test])
    counts = counts_of_spans(predicted, [each.spans or () for each in test])
    all_texts = chain.from_iterable(data.texts(split) for split in reversed(SPLITS))
    texts = [each.text for each in islice(all_texts, _TEXTS_TIMED)]
    rates = [_throughput(trained.load(), texts) for _ in range(repeats)]
    rate, use_cores = (statistics.median(values) for values in zip(*rates, strict=True))
    return SystemResult(counts, trained.best_s, trained.stopped_s, trained.cores, rate, use_cores)


def _throughput(extract: ExtractSpans, texts: list[str]) -> tuple[float, float]:
    """Return texts per second, and processor seconds per second."""
    stopwatch = Stopwatch()
    extract(texts)
    return len(texts) / stopwatch.seconds, stopwatch.cores


def _train_preset(
    data: Dataset, preset: str, seed: int, log: Log, encoder: str | None, device: str, precision: Precision
) -> TrainedSystem:
    config = preset_config(data, preset, seed, encoder, precision)
    shared = SharedData.load(data.location, config.tagger, config.training)
    stopwatch = Stopwatch()
    tagger = shared.new_tagger(config.tagger, seed)
    training = Training(config.training, tagger, shared.train, shared.valid, device=resolve_device(device))
    best_s, weights = 0.0, tagger.state_dict()
    for metrics in training.epochs():
        if training.best == len(training.history) - 1:
            best_s, weights = stopwatch.seconds, copy.deepcopy(tagger.state_dict())
        epoch = f"epoch {training.epoch} of {config.training.epochs}"
        log(f"{preset}: {epoch}, valid F1 {metrics[SELECTION_METRIC]:.4f}, {stopwatch.seconds:.0f} s")
    stopped_s, cores = stopwatch.seconds, stopwatch.cores
    tagger.load_state_dict(weights)

    def load() -> ExtractSpans:
        subwords = shared.encoder.subwords() if shared.encoder else None
        extractor = Extractor(tagger, data.tokenizer(), device, subwords)
        return lambda texts: [[(each.start, each.end) for each in found] for found in extractor.pipe(texts)]

    return TrainedSystem(load, best_s, stopped_s, cores)


def preset_config(
    data: Dataset, preset: str, seed: int, encoder: str | None, precision: Precision = "float32"
) -> Config:
    """Return the configuration of a preset for a dataset. The encoder is for a preset that has one."""
    tree = preset_values(preset, data.rows("train"))
    values: Tree = {
        "data": data.location,
        "training.seed": seed,
        "training.precision": precision,
        "tagger.pretrained_vectors": False,
    }
    if "encoder" in tree.get("tagger", {}):
        values["tagger.encoder"] = encoder
    for dotted, value in values.items():
        set_dotted(tree, dotted, value)
    return make_config(tree)


def _train_baseline(
    data: Dataset, system: str, seed: int, log: Log, encoder: str | None, device: str, precision: Precision
) -> TrainedSystem:
    train, valid = (_examples(data, split) for split in ("train", "valid"))
    fit = _imported_fit(system, encoder, device, precision)  # before the stopwatch starts
    stopwatch = Stopwatch()
    tag, best_s = fit(train, valid, seed, stopwatch, log)
    stopped_s, cores = stopwatch.seconds, stopwatch.cores

    return TrainedSystem(lambda: raw_text_adapter(tag, data), best_s, stopped_s, cores)


def _imported_fit(
    system: str, encoder: str | None, device: str, precision: Precision
) -> Callable[..., tuple[TagTexts, float]]:
    """Return the function that trains a baseline, with its packages imported."""
    for module in PACKAGES[system]:
        importlib.import_module(module)
    if system != "transformers":
        return {"crf": fit_crf, "spacy": fit_spacy}[system]
    assert encoder is not None
    importlib.import_module("transformers.trainer")  # the package imports its parts when they are used
    return partial(fit_token_classifier, encoder, device, precision)


def _examples(data: Dataset, split: str) -> list[Example]:
    return list(examples(data.texts(split), data.tokenizer(), SkipCounts(), sys.maxsize))


def raw_text_adapter(tag: TagTexts, data: Dataset) -> ExtractSpans:
    """Return a function that extracts spans of raw texts with a system that tags tokenized texts."""
    return partial(_extract_spans, tag, CachedTokenizer(lambda word: UNKNOWN, data.tokenizer()))


def _extract_spans(tag: TagTexts, tokenize: CachedTokenizer, texts: list[str]) -> list[list[Span]]:
    extracted: list[list[Span]] = []
    for first in range(0, len(texts), PIPE_BATCH_SIZE):
        chunk = texts[first : first + PIPE_BATCH_SIZE]
        words = tokenize(chunk)
        offsets = [
            (words.starts[begin:end].tolist(), words.ends[begin:end].tolist())
            for begin, end in zip(words.begins[:-1], words.begins[1:], strict=True)
        ]
        tokenized = [
            [text[start:end] for start, end in zip(*each, strict=True)]
            for text, each in zip(chunk, offsets, strict=True)
        ]
        for (starts, ends), spans in zip(offsets, tag(tokenized), strict=True):
            extracted.append([(starts[begin], ends[end - 1]) for begin, end in spans])
    return extracted
