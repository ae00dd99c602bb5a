"""Examples: a labelled text as tokens and token spans."""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from tokenizers import Tokenizer

from model.data.tokenizer import encode, new_tokenizer

CHUNK_TEXTS = 2048  # texts that are held and encoded at a time
_WORDS = new_tokenizer()  # cuts a keyphrase as every tokenizer cuts its text
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and what is known of its keyphrases: either places or words.

    Attributes:
        text: the text.
        place: `file:line` where it stands, 1-based.
        spans: (start, end) in characters, half-open.
        keyphrases: phrases to look for in the text, used where `spans` is None.
        every: mark every occurrence of a keyphrase; otherwise the first alone.
    """

    text: str
    place: str
    spans: tuple[tuple[int, int], ...] | None = None
    keyphrases: tuple[str, ...] = ()
    every: bool = False


@dataclass
class SkipCounts:
    """What was left out, and why: for each reason a count and the first places."""

    limit: int = 10
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        """Counts one more case of a reason."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.places.setdefault(reason, [])
        if len(shown) < self.limit:
            shown.append(place)

    def join(self, other: "SkipCounts", lines_before: int) -> None:
        """Adds what a tally of the next lines counted, whose places begin that many lines later."""
        for reason, number in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + number
            shown = self.places.setdefault(reason, [])
            places = other.places[reason][: self.limit - len(shown)]
            shown += [shift_line(place, lines_before) for place in places]


class Example(NamedTuple):
    """One text ready for the tagger.

    Attributes:
        text: the original text.
        ids: vocabulary ids of its tokens.
        offsets: (start, end) of each token in the text, characters, half-open.
        spans: (start, end) of each keyphrase, token indices, half-open, sorted and disjoint.
        place: `file:line` where it was read.
    """

    text: str
    ids: list[int]
    offsets: list[Span]
    spans: list[Span]
    place: str


def examples(
    texts: Iterable[LabelledText], tokenizer: Tokenizer, tally: SkipCounts, max_tokens: int
) -> Iterator[Example]:
    """The examples that labelled texts give, in order; see `spans_of` for what is left out."""
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK_TEXTS)):
        for labelled, (ids, offsets) in zip(chunk, encode(tokenizer, [each.text for each in chunk]), strict=True):
            starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
            spans = locate_keyphrases(labelled, starts, ends, tally, max_tokens)
            if spans is not None:
                yield Example(labelled.text, ids, offsets, spans, labelled.place)


def locate_keyphrases(
    labelled: LabelledText, starts: list[int], ends: list[int], tally: SkipCounts, max_tokens: int
) -> list[Span] | None:
    """The keyphrases of a text as spans of its tokens, sorted and disjoint; None where the text is left out.

    A keyphrase is found where its words stand in a row as tokens of the text, whatever their case. A character span is
    widened to whole tokens. Of spans that overlap the longest is kept. A text is left out when it has more than
    `max_tokens` tokens, or when it has keyphrases of which none is left. The tally counts what is left out.

    Args:
        labelled: the text.
        starts, ends: where each of its tokens begins and ends, characters.
        tally: what was left out.
        max_tokens: longer texts are left out.
    """
    place = labelled.place
    if len(starts) > max_tokens:
        tally.add(f"text longer than {max_tokens} tokens", place)
        return None
    if not starts:
        tally.add("text without a word", place)
        return None
    if labelled.spans is not None:
        found = [_cover(span, starts, ends, tally, place) for span in labelled.spans]
        spans = [span for span in found if span is not None]
    else:
        spans = _locate(labelled, starts, ends, tally)
    if not spans and (labelled.spans or labelled.keyphrases):
        tally.add("text with no keyphrase left", place)
        return None
    return _disjoint(spans, tally, place) if len(spans) > 1 else spans


def _cover(span: Span, starts: list[int], ends: list[int], tally: SkipCounts, place: str) -> Span | None:
    """The tokens that share a character with a character span."""
    touched = [i for i in range(bisect_left(starts, span[1])) if ends[i] > span[0]]
    if not touched:
        tally.add("span without a word", place)
        return None
    first, last = touched[0], touched[-1]
    if starts[first] < span[0] or ends[last] > span[1]:
        tally.add("span widened to whole tokens", place)
    return first, last + 1


def _locate(labelled: LabelledText, starts: list[int], ends: list[int], tally: SkipCounts) -> list[Span]:
    """Where the words of the keyphrases stand."""
    words: list[str] = []
    spans = []
    for phrase in dict.fromkeys(labelled.keyphrases):
        wanted = _surface_of_phrase(phrase)
        words = words or _surface(labelled.text, starts, ends)
        found = _runs(words, wanted, labelled.every)
        if not found:
            tally.add("keyphrase not in its text", labelled.place)
        spans += [(i, i + len(wanted)) for i in found]
    return spans


def _runs(words: list[str], wanted: list[str], every: bool) -> list[int]:
    """Where some words stand in a row: everywhere, or the first place alone."""
    found: list[int] = []
    at, size = -1, len(wanted)
    while wanted and (every or not found):
        try:
            at = words.index(wanted[0], at + 1)
        except ValueError:
            break
        if words[at : at + size] == wanted:
            found.append(at)
    return found


def _surface(text: str, starts: list[int], ends: list[int]) -> list[str]:
    """The words of a text in the form in which they are compared."""
    if text.isascii():  # lower-casing leaves every sign in its place
        text = text.lower()
        return [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [unicodedata.normalize("NFC", text[start:end].lower()) for start, end in zip(starts, ends, strict=True)]


@lru_cache(100_000)
def _surface_of_phrase(phrase: str) -> list[str]:
    offsets = encode(_WORDS, [phrase])[0].offsets
    return _surface(phrase, [start for start, _ in offsets], [end for _, end in offsets])


def _disjoint(spans: list[Span], tally: SkipCounts, place: str) -> list[Span]:
    """The spans in order, without those that overlap a longer one."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
        else:
            tally.add("span inside or across a longer one", place)
    return sorted(kept)


def shift_line(place: str, lines_before: int) -> str:
    """A place whose line is counted from further back."""
    file, _, line = place.rpartition(":")
    return f"{file}:{int(line) + lines_before}"


def format_skips(counts: dict[str, int], places: dict[str, list[str]]) -> list[str]:
    """What a tally counted, in words: the most frequent reason first, each with its first lines as `file:1,5,9`."""
    lines = []
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        by_file: dict[str, list[str]] = {}
        for place in places[reason]:
            file, _, line = place.rpartition(":")
            by_file.setdefault(file, []).append(line)
        shown = "; ".join(f"{file}:{','.join(dict.fromkeys(each))}" for file, each in by_file.items())
        lines.append(f"{number:,} x {reason}: {shown}{', ...' if number > len(places[reason]) else ''}")
    return lines
