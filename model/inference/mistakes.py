"""Mistakes by kind: what a tagger gets wrong, the likely reason, and so what to label next.

A mistake is a miss (a span of the data that the tagger lacks), a false positive (a span of the tagger that the data
lacks), or spans of both that overlap without being equal. Its kind is the first of KINDS that applies:

    wrong boundary          a span of the tagger overlaps one of the data
    label noise suspected   the tagger gives a false positive a score of HIGH_CONFIDENCE or more; or the training split,
                            where exactly these words occur MIN_OCCURRENCES times or more, marks them in a share of
                            HIGH_CONFIDENCE or more (false positive), or 1 - HIGH_CONFIDENCE or less (miss). The score
                            alone never makes a miss suspect: a tagger is always confident that unknown words are not
                            keyphrases.
    unseen word             a word of it never occurs in the training split, or too rarely for the vocabulary
    never a keyphrase       a word of it occurs in the training split, but never inside a keyphrase
    ambiguous word          a word of it occurs in the training split both inside and outside keyphrases
    other                   its words occur in the training split only inside keyphrases

Within a kind, mistakes are ordered by the number of mistakes that share their word or phrase, then by the distance
between the tagger and the data.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from model.inference.keyphrase import Keyphrase, KeyphraseRecord

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


class MistakeRecord(TypedDict):
    """A mistake as JSON output has it."""

    kind: str
    text: str
    gold: list[KeyphraseRecord]
    predicted: list[KeyphraseRecord]
    score: float
    reason: str
    place: str


class KindCounts(TypedDict):
    """The mistakes of a kind; `share` is of all misses and false positives, in 0 to 1."""

    misses: int
    false_positives: int
    share: float


class Mistake(NamedTuple):
    """A miss (nothing predicted), a false positive (nothing gold), or overlapping spans.

    Attributes:
        kind: one of KINDS.
        text, place: the text and its `file:line`.
        gold, predicted: the wrong keyphrases of the data and of the tagger, without the text's other keyphrases.
        score: the highest of the predicted keyphrases, or of the missed ones.
        reason: why it is of this kind, for people.
        about: the word or phrase that caused it.
    """

    kind: str
    text: str
    place: str
    gold: list[Keyphrase]
    predicted: list[Keyphrase]
    score: float
    reason: str
    about: str

    def as_record(self) -> MistakeRecord:
        """Return the mistake as plain values."""
        return {
            "kind": self.kind,
            "text": self.text,
            "gold": [each.as_record() for each in self.gold],
            "predicted": [each.as_record() for each in self.predicted],
            "score": self.score,
            "reason": self.reason,
            "place": self.place,
        }


def by_kind(mistakes: Iterable[Mistake]) -> dict[str, KindCounts]:
    """Count the mistakes of each kind, in the order of KINDS."""
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
