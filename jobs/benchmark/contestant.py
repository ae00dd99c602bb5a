"""One system of the comparison, trained and measured in this process: a preset of Tandem's, or a peer.

All learn from the same keyphrases of the train split, on the CPU and without pretrained vectors, and those that choose their
best pass do so on the valid split. What is measured is the system in use: raw texts of the test split go in, the characters of
keyphrases come out, and every system's words are cut by the same tokenizer.
"""

import copy
import importlib
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from jobs.benchmark.baselines import PACKAGES, Clock, Note, Tag, fit_crf, fit_spacy
from model.config import make_config, put
from model.data.dataset import Dataset
from model.data.examples import Example, Span, examples
from model.data.tokenizer import UNKNOWN, Cutter
from model.inference.extractor import TEXTS_HELD, Extractor
from model.prepare.readers import Tally
from model.prepare.writers import SPLITS
from model.presets import tree_of
from model.training.loop import RANKED_BY, Training, new_tagger
from model.training.metrics import Counts, counts_of_spans

_PEERS = {"crf": fit_crf, "spacy": fit_spacy}
_TEXTS_TIMED = 10_000

Find = Callable[[list[str]], list[list[Span]]]  # the keyphrases of raw texts, as their characters


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


class Outcome(NamedTuple):
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


def measure(data: Dataset, system: str, seed: int, repeats: int, note: Note) -> Outcome:
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
    return Outcome(counts, trained.best_s, trained.stopped_s, trained.cores, rate, use_cores)


def _turn(find: Find, texts: list[str]) -> tuple[float, float]:
    """Texts per second, and cores that were busy."""
    clock = Clock()
    find(texts)
    return len(texts) / clock.seconds, clock.cores


def _train_tandem(data: Dataset, preset: str, seed: int, note: Note) -> Trained:
    tree = tree_of(preset)
    for dotted, value in {"data": data.location, "training.seed": seed, "tagger.vectors": False}.items():
        put(tree, dotted, value)
    config = make_config(tree)
    train, valid = (data.load(split, config.tagger.spelled) for split in ("train", "valid"))
    clock = Clock()
    tagger = new_tagger(config.tagger, data.info["words"], seed)
    training = Training(config.training, tagger, train, valid)
    best_s, weights = 0.0, tagger.state_dict()
    for figures in training.epochs():
        if training.best == len(training.history) - 1:
            best_s, weights = clock.seconds, copy.deepcopy(tagger.state_dict())
        epoch = f"epoch {training.epoch} of {config.training.epochs}"
        note(f"{preset}: {epoch}, valid F1 {figures[RANKED_BY]:.4f}, {clock.seconds:.0f} s")
    stopped_s, cores = clock.seconds, clock.cores
    tagger.load_state_dict(weights)

    def start() -> Find:
        extractor = Extractor(tagger, data.tokenizer())
        return lambda texts: [[(each.start, each.end) for each in found] for found in extractor.many(texts)]

    return Trained(start, best_s, stopped_s, cores)


def _train_peer(data: Dataset, system: str, seed: int, note: Note) -> Trained:
    train, valid = (_examples(data, split) for split in ("train", "valid"))
    importlib.import_module(PACKAGES[system][0])  # now, for loading a package is no training
    clock = Clock()
    tag, best_s = _PEERS[system](train, valid, seed, clock, note)
    stopped_s, cores = clock.seconds, clock.cores

    return Trained(lambda: finder(tag, data), best_s, stopped_s, cores)


def _examples(data: Dataset, split: str) -> list[Example]:
    return list(examples(data.texts(split), data.tokenizer(), Tally(), sys.maxsize))


def finder(tag: Tag, data: Dataset) -> Find:
    """What gives a system that reads words raw texts to read."""
    return partial(_find, tag, Cutter(lambda word: UNKNOWN, data.tokenizer()))


def _find(tag: Tag, cut: Cutter, texts: list[str]) -> list[list[Span]]:
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
