"""Examples: a labeled text as tokens and token spans."""

import html
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, product
from typing import NamedTuple

from tokenizers import Tokenizer

from model.data.characters import Span, fold, likely_unit
from model.data.labeled_text import LabeledText, SkipCounts
from model.data.tokenizer import encode, new_tokenizer
from model.errors import LineError

CHUNK_TEXTS = 2048  # texts tokenized at a time
MAX_TOKENS = 1_000  # of a text: longer ones are left out of datasets and measurements, and extracted in parts
RULES = new_tokenizer()  # splits keyphrases as `prepare` splits texts
_ENDING = re.compile("(?:'s|-.*)?", re.DOTALL)  # of a word that begins with a keyphrase


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
    """Yield the examples of labeled texts, in order; see `locate_keyphrases` for what is skipped.

    Raises:
        LineError: the spans are not counted in characters.
    """
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK_TEXTS)):
        require_characters(chunk)
        for labeled, (ids, offsets) in zip(chunk, encode(tokenizer, [each.text for each in chunk]), strict=True):
            starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
            spans = locate_keyphrases(labeled, starts, ends, skips, max_tokens, tokenizer)
            if spans is not None:
                yield Example(labeled.text, ids, offsets, spans, labeled.place)


def require_characters(texts: Sequence[LabeledText]) -> None:
    """Raise LineError where the spans of some texts were apparently counted in another unit than characters."""
    with_spans = [each for each in texts if each.spans and not each.text.isascii()]
    unit = likely_unit(((each.text, each.spans or ()) for each in with_spans), evidence=2)
    if unit == "characters":
        return
    name = "UTF-16 units" if unit == "utf16" else "bytes of UTF-8"
    # The first text whose own spans show it; where none does alone, the first of all.
    texts_of_unit = (each for each in with_spans if likely_unit([(each.text, each.spans or ())]) == unit)
    raise LineError(
        next(texts_of_unit, with_spans[0]).place,
        f"the spans would cut words if they were counted in characters, but not in {name}; set --offsets {unit}",
    )


def locate_keyphrases(
    labeled: LabeledText,
    starts: list[int],
    ends: list[int],
    skips: SkipCounts,
    max_tokens: int,
    rules: Tokenizer = RULES,
) -> list[Span] | None:
    """Return the keyphrases of a text as token spans, sorted and disjoint, or None where the text is skipped.

    A phrase matches where its words are consecutive tokens of the text in the form of `fold`, or, where that is nowhere, in
    a text that writes `&` as `&amp;` or whose token goes on after the phrase with 's or a hyphen. A character span is
    widened to whole tokens. Of overlapping spans the longest is kept. A text is skipped if it has more than `max_tokens`
    tokens, or if it has keyphrases and none can be kept.

    Args:
        labeled: the text.
        starts, ends: first character of each token, and one after its last.
        skips: counts what is skipped or changed.
        max_tokens: the most tokens that a text may have.
        rules: the tokenizer that made the tokens, or one with its rules.
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
        spans = _match_phrases(labeled, starts, ends, skips, rules)
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


def _match_phrases(
    labeled: LabeledText, starts: list[int], ends: list[int], skips: SkipCounts, rules: Tokenizer
) -> list[Span]:
    """Return the token spans where the phrases occur."""
    words: list[str] = []
    tokens: Sequence[int] = ()
    spans: list[Span] = []
    lower = (
        labeled.text.lower() if labeled.text.isascii() else ""
    )  # lower-casing ASCII keeps every character at its offset
    for phrase in dict.fromkeys(labeled.keyphrases):
        target = _folded_phrase(phrase, rules)
        if found := _find_in_ascii(lower, starts, ends, target, labeled.every):
            spans += found
            continue
        if not words:
            words, tokens = _folded_words(labeled.text, starts, ends)
        escaped = html.escape(phrase, quote=False)
        forms = [target] if escaped == phrase else [target, _folded_phrase(escaped, rules)]
        for find, form in product((_find_sublist, _find_beginning), forms):
            if matches := find(words, form, labeled.every):
                break
        else:
            skips.add("keyphrase not in its text", labeled.place)
            continue
        if any(len(words[i + len(form) - 1]) > len(form[-1]) for i in matches):
            skips.add("span widened to whole tokens", labeled.place)
        spans += [(tokens[i], tokens[i + len(form) - 1] + 1) for i in matches]
    return spans


def _find_in_ascii(lower: str, starts: list[int], ends: list[int], target: list[str], every: bool) -> list[Span]:
    """Return the token spans that `_find_sublist` finds, without a list of all words, which would take half of the time."""
    found: list[Span] = []
    at, size = -1, len(target)
    while target and (at := lower.find(target[0], at + 1)) >= 0:
        first = bisect_left(starts, at)
        own = range(first, min(first + size, len(starts)))
        if own and starts[first] == at and [lower[starts[i] : ends[i]] for i in own] == target:
            found.append((first, first + size))
            if not every:
                break
    return found


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


def _find_beginning(words: list[str], target: list[str], every: bool) -> list[int]:
    """Return where the target begins in the words if the last word of either may go on: Norwick's, Norwick-based."""
    if not target:
        return []
    before, last = target[:-1], target[-1].removesuffix("'s")
    ends = (i for i, word in enumerate(words) if word.startswith(last) and _ENDING.fullmatch(word, len(last)))
    matches = (i - len(before) for i in ends if i >= len(before) and words[i - len(before) : i] == before)
    return list(matches if every else islice(matches, 1))


def _folded_words(text: str, starts: list[int], ends: list[int]) -> tuple[list[str], Sequence[int]]:
    """Return the words of a text in the form of `fold`, and the number of the token of each: invisible signs are left out."""
    if text.isascii():
        text = text.lower()
        return [text[start:end] for start, end in zip(starts, ends, strict=True)], range(len(starts))
    folded = [fold(text[start:end]) for start, end in zip(starts, ends, strict=True)]
    tokens = [i for i, word in enumerate(folded) if word]
    return [folded[i] for i in tokens], tokens


@lru_cache(100_000)
def _folded_phrase(phrase: str, rules: Tokenizer) -> list[str]:
    offsets = encode(rules, [phrase])[0].offsets
    return _folded_words(phrase, [start for start, _ in offsets], [end for _, end in offsets])[0]


def _drop_overlaps(spans: list[Span], skips: SkipCounts, place: str) -> list[Span]:
    """Return the spans in order, without those that overlap a longer one."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
        else:
            skips.add("span inside or across a longer one", place)
    return sorted(kept)
