"""Examples: a labeled text as tokens and token spans."""

import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from tokenizers import Tokenizer

from model.data.labeled_text import LabeledText, SkipCounts
from model.data.tokenizer import encode, new_tokenizer

CHUNK_TEXTS = 2048  # texts tokenized at a time
_TOKENIZER = new_tokenizer()  # splits keyphrases; all tokenizers of this package split texts in the same way
Span = tuple[int, int]


class Example(NamedTuple):
    """A tokenized text with its keyphrases.

    Attributes:
        text: the original text.
        ids: vocabulary id of each token.
        offsets: (start, end) of each token in the text, characters, half-open.
        spans: (start, end) of each keyphrase, token indices, half-open, sorted and disjoint.
        place: `file:line` where the text begins.
    """

    text: str
    ids: list[int]
    offsets: list[Span]
    spans: list[Span]
    place: str


def examples(
    texts: Iterable[LabeledText], tokenizer: Tokenizer, skips: SkipCounts, max_tokens: int
) -> Iterator[Example]:
    """Yield the examples of labeled texts, in order; see `locate_keyphrases` for what is skipped."""
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK_TEXTS)):
        for labeled, (ids, offsets) in zip(chunk, encode(tokenizer, [each.text for each in chunk]), strict=True):
            starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
            spans = locate_keyphrases(labeled, starts, ends, skips, max_tokens)
            if spans is not None:
                yield Example(labeled.text, ids, offsets, spans, labeled.place)


def locate_keyphrases(
    labeled: LabeledText, starts: list[int], ends: list[int], skips: SkipCounts, max_tokens: int
) -> list[Span] | None:
    """Return the keyphrases of a text as token spans, sorted and disjoint, or None where the text is skipped.

    A phrase matches where its words are consecutive tokens of the text, ignoring case. A character span is widened to
    whole tokens. Of overlapping spans the longest is kept. A text is skipped if it has more than `max_tokens` tokens,
    or if it has keyphrases and none can be kept.

    Args:
        labeled: the text.
        starts, ends: first character of each token, and one after its last.
        skips: counts what is skipped or changed.
        max_tokens: the most tokens that a text may have.
    """
    place = labeled.place
    if len(starts) > max_tokens:
        skips.add(f"text longer than {max_tokens} tokens", place)
        return None
    if not starts:
        skips.add("text without a word", place)
        return None
    if labeled.spans is not None:
        covers = [_token_span(span, starts, ends, skips, place) for span in labeled.spans]
        spans = [span for span in covers if span is not None]
    else:
        spans = _match_phrases(labeled, starts, ends, skips)
    if not spans and (labeled.spans or labeled.keyphrases):
        skips.add("text with no keyphrase left", place)
        return None
    return _drop_overlaps(spans, skips, place) if len(spans) > 1 else spans


def _token_span(span: Span, starts: list[int], ends: list[int], skips: SkipCounts, place: str) -> Span | None:
    """Return the tokens that share a character with a character span."""
    touched = [i for i in range(bisect_left(starts, span[1])) if ends[i] > span[0]]
    if not touched:
        skips.add("span without a word", place)
        return None
    first, last = touched[0], touched[-1]
    if starts[first] < span[0] or ends[last] > span[1]:
        skips.add("span widened to whole tokens", place)
    return first, last + 1


def _match_phrases(labeled: LabeledText, starts: list[int], ends: list[int], skips: SkipCounts) -> list[Span]:
    """Return the token spans where the phrases occur."""
    words: list[str] = []
    spans = []
    for phrase in dict.fromkeys(labeled.keyphrases):
        target = _normalized_phrase(phrase)
        words = words or _normalized_words(labeled.text, starts, ends)
        matches = _find_sublist(words, target, labeled.every)
        if not matches:
            skips.add("keyphrase not in its text", labeled.place)
        spans += [(i, i + len(target)) for i in matches]
    return spans


def _find_sublist(words: list[str], target: list[str], every: bool) -> list[int]:
    """Return where the target begins in the words: every index, or only the first."""
    matches: list[int] = []
    at, size = -1, len(target)
    while target and (every or not matches):
        try:
            at = words.index(target[0], at + 1)
        except ValueError:
            break
        if words[at : at + size] == target:
            matches.append(at)
    return matches


def _normalized_words(text: str, starts: list[int], ends: list[int]) -> list[str]:
    """Return the words of a text in the form in which they are compared: lower case, NFC."""
    if text.isascii():  # lower-casing keeps every character at its offset
        text = text.lower()
        return [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return [unicodedata.normalize("NFC", text[start:end].lower()) for start, end in zip(starts, ends, strict=True)]


@lru_cache(100_000)
def _normalized_phrase(phrase: str) -> list[str]:
    offsets = encode(_TOKENIZER, [phrase])[0].offsets
    return _normalized_words(phrase, [start for start, _ in offsets], [end for _, end in offsets])


def _drop_overlaps(spans: list[Span], skips: SkipCounts, place: str) -> list[Span]:
    """Return the spans in order, without those that overlap a longer one."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
        else:
            skips.add("span inside or across a longer one", place)
    return sorted(kept)
