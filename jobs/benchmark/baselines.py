"""What one would pick instead of Tandem: a linear-chain CRF (sklearn-crfsuite), and spaCy's entity recogniser.

Both are optional packages, imported when one of them is trained. They read the words that our own tokenizer cuts, in the case
in which they stand in the text, and learn from the same keyphrases.
"""

import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from model.data.examples import Example, Span
from model.errors import UserError
from model.training.metrics import counts_of_spans, precision_recall_f1

PACKAGES = {"crf": ("sklearn_crfsuite", "sklearn-crfsuite"), "spacy": ("spacy", "spaCy")}

_AROUND = (-2, -1, 0, 1, 2)  # words that the CRF sees of each word's neighbourhood
_LONG = 10  # characters; the CRF takes longer words for equally long
_ITERATIONS = 100
_WORDS_REMEMBERED = 20_000

# A batch of so many texts would be few steps on a small set of long ones, after which it has hardly learned anything.
_BATCH = 1_000  # words, the largest of spaCy's own settings
_DROP = 0.3
_PASSES = 20
_PATIENCE = 4  # passes without a better F1 on the validation texts, once there is one at all
_LABEL = "KEYPHRASE"
_AT_ONCE = 256  # texts that spaCy's network answers together

Words = list[str]
Tag = Callable[[Sequence[Words]], list[list[Span]]]  # the keyphrases of tokenized texts, as spans of their words
Log = Callable[[str], None]


class Stopwatch:
    """What has passed since it was made."""

    def __init__(self) -> None:
        self._began, self._worked = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._began

    @property
    def cores(self) -> float:
        """Cores that this process kept busy, on average."""
        return (time.process_time() - self._worked) / self.seconds


def check_installed(systems: Sequence[str]) -> None:
    """Raises UserError where the package of a system is missing."""
    wanted = [PACKAGES[system] for system in systems if system in PACKAGES]
    missing = [name for module, name in wanted if importlib.util.find_spec(module) is None]
    if missing:
        rest = ",".join(system for system in systems if system not in PACKAGES) or "record,best"
        raise UserError(
            f"{' and '.join(missing)}: not installed; `make peers DATA=DIR` installs what the comparison needs and runs it, "
            f'`.venv/bin/pip install ".[peers]"` in the project\'s root installs it, and `--systems {rest}` does without'
        )


def words_of(example: Example) -> Words:
    """The words of a text as they stand in it."""
    return [example.text[start:end] for start, end in example.offsets]


def fit_crf(train: list[Example], valid: list[Example], seed: int, clock: Stopwatch, note: Log) -> tuple[Tag, float]:
    """Trains the CRF. It has no passes to choose from and nothing random: `valid` and `seed` change nothing.

    Returns:
        It in use, and the seconds that it took.
    """
    from sklearn_crfsuite import CRF

    model = CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=_ITERATIONS)
    model.fit((features(words_of(each)) for each in train), (bio_tags(each.spans, len(each.ids)) for each in train))
    took = clock.seconds
    note(f"crf: {len(model.training_log_.iterations)} iterations, {took:.0f} s")

    def tag(texts: Sequence[Words]) -> list[list[Span]]:
        return [spans_of_bio(model.predict_single(features(words))) for words in texts]

    return tag, took


def features(words: Words) -> list[list[str]]:
    """What the CRF sees of each word: facts of the word itself and of two on each side."""
    facts = [_facts(word) for word in words]
    rows = []
    for at in range(len(words)):
        row = ["bias"]
        for column, step in enumerate(_AROUND):
            inside = 0 <= at + step < len(words)
            row.extend(facts[at + step][column] if inside else (f"{step:+d} none",))
        rows.append(row)
    return rows


@lru_cache(_WORDS_REMEMBERED)
def _facts(word: str) -> tuple[tuple[str, ...], ...]:
    """The facts of a word, as each of the words around it, and it itself, are told them."""
    lower = word.lower()
    facts = (
        f"word {lower}",
        f"begins {lower[:3]}",
        f"ends {lower[-3:]}",
        f"digit {any(map(str.isdigit, word))}",
        f"capital {word[:1].isupper()}",
        f"length {min(len(word), _LONG)}",
    )
    return tuple(tuple(f"{step:+d} {fact}" for fact in facts) for step in _AROUND)


def bio_tags(spans: Sequence[Span], words: int) -> list[str]:
    """The BIO tags of disjoint spans."""
    tags = ["O"] * words
    for start, end in spans:
        tags[start:end] = ["B", *["I"] * (end - start - 1)]
    return tags


def spans_of_bio(tags: Sequence[str]) -> list[Span]:
    """The spans of any sequence of BIO tags; an I that follows nothing begins a span."""
    starts = [at for at, tag in enumerate(tags) if tag == "B" or (tag == "I" and (at == 0 or tags[at - 1] == "O"))]
    ends = [at for at in range(1, len(tags) + 1) if tags[at - 1] != "O" and (at == len(tags) or tags[at] != "I")]
    return list(zip(starts, ends, strict=True))


def fit_spacy(train: list[Example], valid: list[Example], seed: int, clock: Stopwatch, note: Log) -> tuple[Tag, float]:
    """Trains the entity recogniser of a blank English pipeline.

    Returns:
        It in use, with the weights of the pass that was best on `valid`, and the seconds until that had been measured.
    """
    from spacy.training.batchers import minibatch_by_words
    from spacy.util import fix_random_seed

    fix_random_seed(seed)
    order = random.Random(seed)
    pipeline, labelled = _pipeline(train)
    optimizer = pipeline.initialize(lambda: labelled)
    texts, gold = [words_of(each) for each in valid], [each.spans for each in valid]

    def tag(texts: Sequence[Words]) -> list[list[Span]]:
        documents = pipeline.pipe((_document(pipeline, words) for words in texts), batch_size=_AT_ONCE)
        return [[(entity.start, entity.end) for entity in document.ents] for document in documents]

    best, best_s, stale, weights = 0.0, 0.0, 0, b""
    for number in range(1, _PASSES + 1):
        order.shuffle(labelled)
        for batch in minibatch_by_words(labelled, _BATCH):
            pipeline.update(batch, sgd=optimizer, drop=_DROP)
        f1 = float(precision_recall_f1(*counts_of_spans(tag(texts), gold).sum(0)[:3]).f1)
        if f1 > best or not weights:
            best, stale, weights = f1, 0, pipeline.to_bytes()
            best_s = clock.seconds
        else:
            stale += best > 0
        note(f"spacy: pass {number} of {_PASSES}, valid F1 {f1:.4f}, {clock.seconds:.0f} s")
        if stale == _PATIENCE:
            break
    pipeline.from_bytes(weights)
    return tag, best_s


def _pipeline(train: list[Example]) -> tuple[Any, list[Any]]:
    """A blank pipeline with an entity recogniser, and the texts to train it on."""
    import spacy
    from spacy.tokens import Span as Entity
    from spacy.training import Example as Pair

    pipeline = spacy.blank("en")
    pipeline.add_pipe("ner").add_label(_LABEL)
    pairs = []
    for each in train:
        bare, marked = (_document(pipeline, words_of(each)) for _ in range(2))
        marked.ents = [Entity(marked, start, end, _LABEL) for start, end in each.spans]
        pairs.append(Pair(bare, marked))
    return pipeline, pairs


def _document(pipeline: Any, words: Words) -> Any:
    from spacy.tokens import Doc

    return Doc(pipeline.vocab, words=words)
