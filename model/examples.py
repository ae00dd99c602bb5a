"""Examples: a labelled text as tokens and token spans."""

import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from tokenizers import Tokenizer

from model.corpus import Labelled, Tally
from model.tokenizer import Tokens, encode, new_tokenizer

CHUNK = 2048  # texts that are held and encoded at a time
_WORDS = new_tokenizer()  # cuts a keyphrase as every tokenizer cuts its text


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
    offsets: list[tuple[int, int]]
    spans: list[tuple[int, int]]
    place: str


def examples(texts: Iterable[Labelled], tokenizer: Tokenizer, tally: Tally, max_tokens: int) -> Iterator[Example]:
    """The examples that labelled texts give, in order; what is left out is counted in the tally.

    A keyphrase is found where its words stand in a row as tokens of the text, whatever their case. A character span is
    widened to whole tokens. Of spans that overlap the longest is kept. A text is left out when it has more than
    `max_tokens` tokens, or when it has keyphrases of which none is left.
    """
    texts = iter(texts)
    while chunk := list(islice(texts, CHUNK)):
        for labelled, tokens in zip(chunk, encode(tokenizer, [each.text for each in chunk]), strict=True):
            example = _example(labelled, tokens, tally, max_tokens)
            if example is not None:
                yield example


def _example(labelled: Labelled, tokens: Tokens, tally: Tally, max_tokens: int) -> Example | None:
    place = labelled.place
    if len(tokens.ids) > max_tokens:
        tally.add(f"text longer than {max_tokens} tokens", place)
        return None
    if not tokens.ids:
        tally.add("text without a word", place)
        return None
    if labelled.spans is not None:
        found = [_cover(span, tokens.offsets, tally, place) for span in labelled.spans]
        spans = [span for span in found if span is not None]
    else:
        spans = _locate(labelled, tokens, tally)
    if not spans and (labelled.spans or labelled.keyphrases):
        tally.add("text with no keyphrase left", place)
        return None
    return Example(labelled.text, tokens.ids, tokens.offsets, _disjoint(spans, tally, place), place)


def _cover(span: tuple[int, int], offsets: list[tuple[int, int]], tally: Tally, place: str) -> tuple[int, int] | None:
    """The tokens that share a character with a character span."""
    touched = [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
    if not touched:
        tally.add("span without a word", place)
        return None
    first, last = touched[0], touched[-1]
    if offsets[first][0] < span[0] or offsets[last][1] > span[1]:
        tally.add("span widened to whole tokens", place)
    return first, last + 1


def _locate(labelled: Labelled, tokens: Tokens, tally: Tally) -> list[tuple[int, int]]:
    """Where the words of the keyphrases stand."""
    words = _surface(labelled.text, tokens.offsets)
    spans = []
    for phrase in dict.fromkeys(labelled.keyphrases):
        wanted = _surface(phrase, encode(_WORDS, [phrase])[0].offsets)
        size = len(wanted)
        starts = [i for i in range(len(words) - size + 1) if size and words[i : i + size] == wanted]
        if not starts:
            tally.add("keyphrase not in its text", labelled.place)
        spans += [(i, i + size) for i in (starts if labelled.every else starts[:1])]
    return spans


def _surface(text: str, offsets: Iterable[tuple[int, int]]) -> list[str]:
    """The words of a text in the form in which they are compared."""
    words = [text[start:end].lower() for start, end in offsets]
    return words if text.isascii() else [unicodedata.normalize("NFC", word) for word in words]


def _disjoint(spans: list[tuple[int, int]], tally: Tally, place: str) -> list[tuple[int, int]]:
    """The spans in order, without those that overlap a longer one."""
    kept: list[tuple[int, int]] = []
    for span in sorted(set(spans), key=lambda span: (span[0] - span[1], span)):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
        else:
            tally.add("span inside or across a longer one", place)
    return sorted(kept)
