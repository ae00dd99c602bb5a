"""Mistakes by kind: what a tagger gets wrong, what may be the reason, and so what to label next.

A mistake is a miss (a span of the data that the tagger lacks), a false positive (a span of the tagger that the data
lacks), or spans of both that overlap without being equal. It is of the first kind of KINDS that holds for it:

    wrong boundary          a span of the tagger overlaps one of the data
    label noise suspected   the tagger gives a false positive a score of SURE or more; or training, where it has exactly
                            these words LEAST times or more, marks them SURE of the times or more (false positive), or
                            1 - SURE or less (miss). A miss is never suspected for its score: a tagger is always sure
                            that words of which it knows nothing are no keyphrase.
    unseen word             a word of it occurs never in the training split, or too seldom for the vocabulary
    never a keyphrase       a word of it occurs in the training split, but never inside a keyphrase
    ambiguous word          a word of it occurs in the training split both inside and outside keyphrases
    other                   its words occur in the training split only inside keyphrases

Within a kind those come first whose word or phrase is at the root of most mistakes, then those on which the tagger is
furthest from the data.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.data.dataset import Dataset, Split, split_from_examples
from model.data.examples import CHUNK_TEXTS, Example, Span
from model.data.labels import B, O, S
from model.data.tokenizer import UNKNOWN
from model.errors import UserError
from model.inference.bundle import Bundle
from model.inference.extractor import Keyphrase
from model.network.decoding import predict_spans, score_tags
from model.network.tagger import Tagger
from model.training.evaluation import predict_batches

HIGH_CONFIDENCE = 0.8
MIN_OCCURRENCES = 5
KINDS = {
    "wrong boundary": "The tagger's keyphrase overlaps the data's: are keyphrases cut by one rule throughout the data?",
    "label noise suspected": "The tagger is sure, or training marks the same words the other way: look at the labels first.",
    "unseen word": "A word occurs never in training, or too seldom for the vocabulary: label texts that have it.",
    "never a keyphrase": "A word occurs in training, but never inside a keyphrase: label texts in which it is in one.",
    "ambiguous word": "A word is in a keyphrase here and in none there: label more texts that have it, of both sorts.",
    "other": "In training the words are nowhere but in keyphrases: what decides here lies in the rest of the text.",
}

ScoredSpan = tuple[int, int, float]  # first token, end token, score
Phrase = tuple[int, ...]  # vocabulary ids


class AnnotatedText(NamedTuple):
    """A text with what the data and the tagger mark in it.

    Attributes:
        text: the text.
        place: `file:line` where it stands.
        ids: vocabulary ids of its tokens.
        offsets: characters of its tokens.
        gold, predicted: keyphrases of the data and of the tagger, each with the score that the tagger gives its tags.
    """

    text: str
    place: str
    ids: list[int]
    offsets: list[Span]
    gold: list[ScoredSpan]
    predicted: list[ScoredSpan]


class Mistake(NamedTuple):
    """A mistake: a miss where nothing is predicted, a false positive where nothing is gold, otherwise spans that overlap.

    Attributes:
        kind: one of KINDS.
        text, place: the text and where it stands.
        gold, predicted: the keyphrases of the data and of the tagger that are wrong; others of the text are not here.
        score: the highest of what is predicted, or of what is missed.
        reason: why it is of this kind, in words.
        about: the word or phrase that it comes from.
    """

    kind: str
    text: str
    place: str
    gold: list[Keyphrase]
    predicted: list[Keyphrase]
    score: float
    reason: str
    about: str

    def line(self) -> dict[str, Any]:
        """The mistake as plain values."""
        return {
            "kind": self.kind,
            "text": self.text,
            "gold": [each._asdict() for each in self.gold],
            "predicted": [each._asdict() for each in self.predicted],
            "score": self.score,
            "reason": self.reason,
            "place": self.place,
        }


class Rate(NamedTuple):
    """How often a word is inside a keyphrase, or a phrase is one, of how often it occurs."""

    marked: int
    all: int


def classify_errors(texts: Iterable[AnnotatedText], train: Split) -> list[Mistake]:
    """The mistakes in some texts, by kind in the order of KINDS, the most informative of each first.

    Args:
        texts: those without a mistake may be there or not.
        train: the training split, in ids of the same vocabulary.
    """
    wrong = [(text, *spans) for text in texts for spans in _apart(text.gold, text.predicted)]
    alone = [(text, (gold or predicted)[0]) for text, gold, predicted in wrong if not (gold and predicted)]
    seen = TrainingStats(train, {tuple(text.ids[start:end]) for text, (start, end, _) in alone})
    found = [_classify(text, gold, predicted, seen) for text, gold, predicted in wrong]
    roots: dict[tuple[str, str], list[float]] = {}
    for each in found:
        roots.setdefault((each.kind, each.about), []).append(_distance(each))
    kinds = list(KINDS)

    def place(mistake: Mistake) -> tuple[int, int, float, str, float]:
        of_root = roots[mistake.kind, mistake.about]
        return kinds.index(mistake.kind), -len(of_root), -max(of_root), mistake.about, -_distance(mistake)

    return sorted(found, key=place)


def by_kind(mistakes: Iterable[Mistake]) -> dict[str, dict[str, float]]:
    """For each kind, in order: `misses`, `false_positives`, and their `share` of all misses and false positives."""
    misses: Counter[str] = Counter()
    false_positives: Counter[str] = Counter()
    for each in mistakes:
        misses[each.kind] += len(each.gold)
        false_positives[each.kind] += len(each.predicted)
    whole = max(misses.total() + false_positives.total(), 1)
    return {
        kind: {
            "misses": misses[kind],
            "false_positives": false_positives[kind],
            "share": (misses[kind] + false_positives[kind]) / whole,
        }
        for kind in KINDS
    }


class TrainingStats:
    """What the training split has of words and of some phrases."""

    def __init__(self, train: Split, phrases: set[Phrase]) -> None:
        """Counts all words, and those phrases of which each word is in the vocabulary."""
        self._all = np.bincount(train.ids)
        self._inside = np.bincount(train.ids[train.tags != O], minlength=len(self._all))
        self._phrases: dict[Phrase, Rate] = {}
        ends = _ends(train)
        touched = np.concatenate([[0], np.cumsum(train.tags != O)])  # keyphrase tokens before each token
        known = sorted((phrase for phrase in phrases if UNKNOWN not in phrase), key=len)
        for size, some in groupby(known, key=len):
            if size <= len(train.ids):
                self._count(train, list(some), size, ends, touched)

    def word(self, word: int) -> Rate:
        """How often a word is inside a keyphrase, of how often it occurs. `<unk>` counts as never seen."""
        if word == UNKNOWN or word >= len(self._all):
            return Rate(0, 0)
        return Rate(int(self._inside[word]), int(self._all[word]))

    def phrase(self, phrase: Phrase) -> Rate:
        """How often a phrase is a keyphrase, of how often it is one or touches none: inside a longer one is neither."""
        return self._phrases.get(phrase, Rate(0, 0))

    def _count(
        self,
        train: Split,
        phrases: list[Phrase],
        size: int,
        ends: npt.NDArray[np.int64],
        touched: npt.NDArray[np.int64],
    ) -> None:
        """Counts phrases of one size."""
        places = len(train.ids) - size + 1
        first = np.repeat(train.begins[:-1], train.lengths)
        within = first[:places] == first[size - 1 :]  # no phrase reaches into the next text
        marked = ends[:places] == np.arange(places) + size
        outside = touched[size:] == touched[:places]
        for position, words in enumerate(zip(*phrases, strict=True)):
            within &= np.isin(train.ids[position : position + places], words)
        at = np.flatnonzero(within & (marked | outside))
        rows = np.lib.stride_tricks.sliding_window_view(train.ids, size)[at].tolist()
        wanted = set(phrases)
        for row, is_marked in zip(map(tuple, rows), marked[at].tolist(), strict=True):
            if row in wanted:
                before = self.phrase(row)
                self._phrases[row] = Rate(before.marked + is_marked, before.all + 1)


def _ends(train: Split) -> npt.NDArray[np.int64]:
    """(tokens,) where the keyphrase ends that begins at a token; 0 where none does."""
    starts = np.flatnonzero((train.tags == B) | (train.tags == S))
    outside = np.flatnonzero((train.tags == O) | (train.tags == B) | (train.tags == S))
    after = np.append(outside, len(train.tags))[np.searchsorted(outside, starts, side="right")]
    ends = np.zeros(len(train.tags), np.int64)
    ends[starts] = after
    return ends


def _apart(gold: list[ScoredSpan], predicted: list[ScoredSpan]) -> list[tuple[list[ScoredSpan], list[ScoredSpan]]]:
    """The spans of only one side, those together that overlap."""
    right = {span[:2] for span in gold} & {span[:2] for span in predicted}
    spans = [(span, side) for side, spans in enumerate((gold, predicted)) for span in spans if span[:2] not in right]
    groups: list[tuple[list[ScoredSpan], list[ScoredSpan]]] = []
    reach = -1
    for span, side in sorted(spans):
        if span[0] >= reach:
            groups.append(([], []))
        groups[-1][side].append(span)
        reach = max(reach, span[1])
    return groups


def _classify(text: AnnotatedText, gold: list[ScoredSpan], predicted: list[ScoredSpan], seen: TrainingStats) -> Mistake:
    score = max(score for *_, score in predicted or gold)
    start, end, _ = (gold or predicted)[0]
    words = [text.text[first:last].lower() for first, last in text.offsets[start:end]]
    if gold and predicted:
        kind, about = "wrong boundary", " ".join(words)
        reason = f"the data has {_quoted(text, gold)}, the tagger {_quoted(text, predicted)}"
    else:
        kind, about, reason = _reason(words, tuple(text.ids[start:end]), score, bool(gold), seen)
    wanted, has = ([_keyphrase(text, span) for span in side] for side in (gold, predicted))
    return Mistake(kind, text.text, text.place, wanted, has, score, reason, about)


def _reason(words: list[str], ids: Phrase, score: float, missed: bool, seen: TrainingStats) -> tuple[str, str, str]:
    """Kind, word or phrase, and reason of a miss or a false positive."""
    phrase, whole = " ".join(words), seen.phrase(ids)
    share = whole.marked / max(whole.all, 1)
    if whole.all >= MIN_OCCURRENCES and (1 - share if missed else share) >= HIGH_CONFIDENCE:
        here = "marked here" if missed else "not marked here"
        return "label noise suspected", phrase, f"{here}, but in training {_told(phrase, whole)}"
    if not missed and score >= HIGH_CONFIDENCE:
        return "label noise suspected", phrase, f"not marked, but the tagger is sure of it ({score:.2f})"
    shares = [(word, seen.word(id)) for word, id in zip(words, ids, strict=True)]
    for word, each in shares:
        if not each.all:
            return "unseen word", word, f"`{word}` is not known from training"
    never = [(word, each) for word, each in shares if not each.marked]
    if never:
        word, each = max(never, key=lambda pair: pair[1].all)
        return "never a keyphrase", word, _told(word, each)
    mixed = [(word, each) for word, each in shares if each.marked < each.all]
    if mixed:
        word, each = min(mixed, key=lambda pair: abs(pair[1].marked / pair[1].all - 0.5))
        return "ambiguous word", word, _told(word, each)
    return "other", phrase, "; ".join(_told(word, each) for word, each in dict(shares).items())


def _told(what: str, share: Rate) -> str:
    return f"`{what}`: keyphrase in {share.marked:,} of {share.all:,}"


def _quoted(text: AnnotatedText, spans: list[ScoredSpan]) -> str:
    return " and ".join(f"`{_keyphrase(text, span).text}`" for span in spans)


def _keyphrase(text: AnnotatedText, span: ScoredSpan) -> Keyphrase:
    start, end = text.offsets[span[0]][0], text.offsets[span[1] - 1][1]
    return Keyphrase(text.text[start:end], start, end, span[2])


def _distance(mistake: Mistake) -> float:
    """How far the tagger is from the data, in 0 to 1."""
    return mistake.score if mistake.predicted else 1 - mistake.score


def find_errors(tagger: Tagger, examples: Iterable[Example], train: Split, device: torch.device) -> list[Mistake]:
    """The mistakes of a tagger, by kind; see model/inference/error_analysis.py.

    Args:
        tagger: on the device.
        examples: labelled texts, read with its tokenizer.
        train: the split that it was trained on.
        device: where to compute.
    """
    return classify_errors(_annotated(tagger, examples, device), train)


def training_split(bundle: Bundle, *locations: str) -> Split:
    """The training split of the dataset that a bundle was trained on: of the first location that has it.

    Raises:
        UserError: none of them is a dataset with the bundle's vocabulary.
    """
    vocabulary, missing = bundle.tokenizer.to_str(), []
    for location in dict.fromkeys(locations):
        try:
            dataset = Dataset(location)
            if dataset.tokenizer().to_str() == vocabulary:
                return dataset.load("train")
            missing.append(f"{location} has another vocabulary")
        except (UserError, OSError) as error:  # OSError: it is there and may not be read, or the network is not
            missing.append(str(error))
    raise UserError(
        f"mistakes are told apart by what the tagger was trained on, and that is not there: {'; '.join(missing)}; put the "
        f"dataset back, or give it as --data"
    )


def _annotated(tagger: Tagger, examples: Iterable[Example], device: torch.device) -> Iterator[AnnotatedText]:
    """The texts in which the tagger differs from the data."""
    examples = iter(examples)
    while chunk := list(islice(examples, CHUNK_TEXTS)):
        found: list[tuple[list[ScoredSpan], list[ScoredSpan]]] = [([], []) for _ in chunk]
        for rows, batch, logits in predict_batches(
            tagger, split_from_examples(chunk, tagger.config.uses_word_features), device
        ):
            gold = score_tags(logits, batch.lengths, batch.keyphrase.clamp(min=O))
            for side, (spans, scores) in enumerate((gold, predict_spans(logits, batch.lengths))):
                for (row, start, end), score in zip(spans.tolist(), scores.tolist(), strict=True):
                    found[rows[row]][side].append((start, end, score))
        for example, (wanted, has) in zip(chunk, found, strict=True):
            if [span[:2] for span in wanted] != [span[:2] for span in has]:
                yield AnnotatedText(example.text, example.place, example.ids, example.offsets, wanted, has)
