"""Baselines for accuracy: a linear-chain CRF (sklearn-crfsuite), and spaCy's entity recognizer.

Both are optional packages, imported when one of them is trained. They read the words of Tandem's tokenizer in the case of the
text, and learn from the same keyphrases.
"""

from __future__ import annotations

import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from model.data.characters import Span
from model.data.examples import Example
from model.errors import UserError
from model.training.metrics import KEYPHRASE, counts_of_spans, score_columns

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.training import Example as SpacyExample

# The optional packages of each system: module and name.
PACKAGES = {
    "crf": {"sklearn_crfsuite": "sklearn-crfsuite"},
    "spacy": {"spacy": "spaCy"},
    "transformers": {"transformers": "transformers", "accelerate": "accelerate"},
    "encoder": {"transformers": "transformers"},
}

_CONTEXT = (-2, -1, 0, 1, 2)  # words around a word that are features of the CRF
_MAX_LENGTH = 10  # characters; to the CRF, longer words have this length
_ITERATIONS = 100
_CACHED_WORDS = 20_000

# Counted in words: with a number of texts, a small set of long texts would give too few steps to learn anything.
_BATCH_WORDS = 1_000  # the largest of spaCy's default batch sizes
_DROPOUT = 0.3
_EPOCHS = 20
_PATIENCE = 4  # epochs without a better F1 on the validation texts, once it is above 0
_LABEL = "KEYPHRASE"
_PIPE_TEXTS = 256  # texts in a batch of spaCy's network in use

Words = list[str]
TagTexts = Callable[[Sequence[Words]], list[list[Span]]]  # tokenized texts -> spans of their words
Log = Callable[[str], None]


class Stopwatch:
    """Time since its creation."""

    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self._began

    @property
    def cores(self) -> float:
        """Processor seconds of this process per second."""
        return (time.process_time() - self._cpu_began) / self.seconds


def check_installed(systems: Sequence[str]) -> None:
    """Raise UserError where the package of a system is not installed."""
    required = {module: name for system in systems for module, name in PACKAGES.get(system, {}).items()}
    missing = [name for module, name in required.items() if importlib.util.find_spec(module) is None]
    if missing:
        rest = ",".join(system for system in systems if system not in PACKAGES) or "record,best"
        raise UserError(
            f"{' and '.join(missing)}: not installed; `make peers DATA=DIR` installs all of it and runs the comparison, "
            f'`.venv/bin/pip install ".[peers,encoder]"` in the project root only installs it, and `--systems {rest}` needs none'
        )


def words_of(example: Example) -> Words:
    """Return the words of a text in their original case."""
    return [example.text[start:end] for start, end in example.offsets]


def fit_crf(
    train: list[Example], valid: list[Example], seed: int, stopwatch: Stopwatch, log: Log
) -> tuple[TagTexts, float]:
    """Train the CRF. It is deterministic and uses its last iteration, so `valid` and `seed` have no effect.

    Returns:
        The trained CRF, and the seconds until it was trained.
    """
    from sklearn_crfsuite import CRF

    model = CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=_ITERATIONS)
    model.fit((features(words_of(each)) for each in train), (bio_tags(each.spans, len(each.ids)) for each in train))
    seconds = stopwatch.seconds
    log(f"crf: {len(model.training_log_.iterations)} iterations, {seconds:.0f} s")

    def tag(texts: Sequence[Words]) -> list[list[Span]]:
        return [spans_of_bio(model.predict_single(features(words))) for words in texts]

    return tag, seconds


def features(words: Words) -> list[list[str]]:
    """Return the CRF's features of each word: properties of the word itself and of two words on each side."""
    properties = [_properties(word) for word in words]
    rows = []
    for i in range(len(words)):
        row = ["bias"]
        for column, offset in enumerate(_CONTEXT):
            inside = 0 <= i + offset < len(words)
            row.extend(properties[i + offset][column] if inside else (f"{offset:+d} none",))
        rows.append(row)
    return rows


@lru_cache(_CACHED_WORDS)
def _properties(word: str) -> tuple[tuple[str, ...], ...]:
    """Return the properties of a word, as features at each offset of _CONTEXT."""
    lower = word.lower()
    properties = (
        f"word {lower}",
        f"begins {lower[:3]}",
        f"ends {lower[-3:]}",
        f"digit {any(map(str.isdigit, word))}",
        f"capital {word[:1].isupper()}",
        f"length {min(len(word), _MAX_LENGTH)}",
    )
    return tuple(tuple(f"{offset:+d} {each}" for each in properties) for offset in _CONTEXT)


def bio_tags(spans: Sequence[Span], words: int) -> list[str]:
    """Return the BIO tags of disjoint spans of a text with a number of words."""
    tags = ["O"] * words
    for start, end in spans:
        tags[start:end] = ["B", *["I"] * (end - start - 1)]
    return tags


def spans_of_bio(tags: Sequence[str]) -> list[Span]:
    """Return the spans of BIO tags, legal or not; an I without a B before it begins a span."""
    starts = [i for i, tag in enumerate(tags) if tag == "B" or (tag == "I" and (i == 0 or tags[i - 1] == "O"))]
    ends = [i for i in range(1, len(tags) + 1) if tags[i - 1] != "O" and (i == len(tags) or tags[i] != "I")]
    return list(zip(starts, ends, strict=True))


def fit_spacy(
    train: list[Example], valid: list[Example], seed: int, stopwatch: Stopwatch, log: Log
) -> tuple[TagTexts, float]:
    """Train the entity recognizer of a blank English pipeline.

    Returns:
        The pipeline with the weights of its best epoch on `valid`, and the seconds until that epoch was validated.
    """
    from spacy.training.batchers import minibatch_by_words
    from spacy.util import fix_random_seed

    fix_random_seed(seed)
    order = random.Random(seed)
    pipeline, labeled = _pipeline(train)
    optimizer = pipeline.initialize(lambda: labeled)
    texts, gold = [words_of(each) for each in valid], [each.spans for each in valid]

    def tag(texts: Sequence[Words]) -> list[list[Span]]:
        documents = pipeline.pipe((_document(pipeline, words) for words in texts), batch_size=_PIPE_TEXTS)
        return [[(entity.start, entity.end) for entity in document.ents] for document in documents]

    best, best_s, stale, weights = 0.0, 0.0, 0, b""
    for epoch in range(1, _EPOCHS + 1):
        order.shuffle(labeled)
        for batch in minibatch_by_words(labeled, _BATCH_WORDS):
            pipeline.update(batch, sgd=optimizer, drop=_DROPOUT)
        f1 = float(score_columns(counts_of_spans(tag(texts), gold).sum(0)[KEYPHRASE]).f1)
        if f1 > best or not weights:
            best, stale, weights = f1, 0, pipeline.to_bytes()
            best_s = stopwatch.seconds
        else:
            stale += best > 0
        log(f"spacy: epoch {epoch} of {_EPOCHS}, valid F1 {f1:.4f}, {stopwatch.seconds:.0f} s")
        if stale == _PATIENCE:
            break
    pipeline.from_bytes(weights)
    return tag, best_s


def _pipeline(train: list[Example]) -> tuple[Language, list[SpacyExample]]:
    """Return a blank pipeline with an entity recognizer, and the examples to train it on."""
    import spacy
    from spacy.tokens import Span as Entity
    from spacy.training import Example as Pair

    pipeline = spacy.blank("en")
    pipeline.add_pipe("ner").add_label(_LABEL)
    pairs = []
    for each in train:
        plain, annotated = (_document(pipeline, words_of(each)) for _ in range(2))
        annotated.ents = [Entity(annotated, start, end, _LABEL) for start, end in each.spans]
        pairs.append(Pair(plain, annotated))
    return pipeline, pairs


def _document(pipeline: Language, words: Words) -> Doc:
    from spacy.tokens import Doc

    return Doc(pipeline.vocab, words=words)
