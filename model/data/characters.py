"""Characters of any script: signs that are words, the form in which words are compared, and offsets in other units."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal, get_args

Span = tuple[int, int]
Unit = Literal["characters", "utf16", "bytes"]
UNITS: tuple[Unit, ...] = get_args(Unit)

# Blocks of the scripts that put no space between words, for a class of `re` or of the tokenizers library: Thai, Lao,
# Burmese, Khmer, kana and Han.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001aff0-\U0001b16f\U00020000-\U0003fffd"
)
_SPACELESS = re.compile(f"[{SPACELESS}]")
# A letter or digit and what follows it: to `re` marks are no letters, and the two vowels are marks in all but name.
_SIGN = re.compile(rf"(?=\w)[{SPACELESS}][\W\u0e33\u0eb3]*")
# Unicode's Default_Ignorable_Code_Point, and the Arabic tatweel, which only stretches a word.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u0640\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_ALIKE = str.maketrans("‘’‚‛′´`“”„‟″«»‐‑‒–—―−", "'''''''" + '"""""""' + "-------")


def is_spaceless(text: str) -> bool:
    """Return whether a text contains a sign of a script without spaces between words."""
    return not text.isascii() and _SPACELESS.search(text) is not None


def is_sign(word: str) -> bool:
    """Return whether a word is one sign of a script without spaces, with its marks."""
    return not word.isascii() and _SIGN.fullmatch(word) is not None


def is_mark(char: str) -> bool:
    """Return whether a character is written onto the one before it."""
    return unicodedata.category(char).startswith("M")


def is_ignorable(text: str) -> bool:
    """Return whether a text consists of invisible signs, such as soft hyphens and marks of direction."""
    return not _IGNORABLE.sub("", text)


@lru_cache(100_000)
def fold(word: str) -> str:
    """Return the form in which words are compared: NFKC without case, with plain quotes and dashes, without invisible signs."""
    if word.isascii():
        return word.lower()
    # Quotes come first, because NFKC makes a space and an accent of some.
    folded = unicodedata.normalize("NFKC", _IGNORABLE.sub("", word.translate(_ALIKE))).casefold()
    folded = unicodedata.normalize("NFKC", folded).translate(_ALIKE)
    return _IGNORABLE.sub("", folded.replace("i\u0307", "i"))  # the Turkish capital I with a dot


def to_characters(spans: Iterable[Sequence[int]], text: str, unit: Unit) -> tuple[Span, ...]:
    """Return spans in characters.

    Args:
        spans: (start, end) of each, half-open.
        text: the text that they belong to.
        unit: what they count: characters, UTF-16 units (JavaScript, Java, .NET), or bytes of UTF-8.

    Raises:
        ValueError: an offset is outside the text or inside a character.
    """
    offsets = _offsets_in(text, unit)
    places = offsets if isinstance(offsets, range) else {offset: i for i, offset in enumerate(offsets)}
    for offset in (offset for span in spans for offset in span):
        if offset not in places:
            raise ValueError(f"offset {offset} is outside the text or inside a character")
    return tuple((places[start], places[end]) for start, end in spans)


def from_characters(spans: Iterable[Span], text: str, unit: Unit) -> list[Span]:
    """Return spans in another unit; the opposite of `to_characters`.

    Args:
        spans: (start, end) of each, in characters, half-open.
        text: the text that they belong to.
        unit: what the result counts.
    """
    offsets = _offsets_in(text, unit)
    return [(offsets[start], offsets[end]) for start, end in spans]


def _offsets_in(text: str, unit: Unit) -> Sequence[int]:
    """Return the offset of each character of a text in a unit, and of its end; a range where characters are counted."""
    if unit == "characters" or (unit == "utf16" and max(text, default="") <= "\uffff") or text.isascii():
        return range(len(text) + 1)
    sizes = (1 + (char > "\uffff") if unit == "utf16" else len(char.encode()) for char in text)
    return list(accumulate(sizes, initial=0))


def likely_unit(texts: Iterable[tuple[str, Sequence[Sequence[int]]]], evidence: int = 1) -> Unit:
    """Return the unit in which the spans of some texts were probably counted.

    It is not characters where, of the spans that the unit changes, at least half would cut words or leave the text as
    characters, and fewer than a tenth do so in that unit.

    Args:
        texts: each with its spans.
        evidence: the fewest spans that must be wrong as characters; one may be so by chance.
    """
    changed: dict[Unit, list[tuple[bool, bool]]] = {
        unit: [] for unit in UNITS
    }  # wrong as characters, wrong in the unit
    for text, spans in texts:
        if text.isascii():
            continue
        for span in spans:
            wrong = not _fits(text, span, "characters")
            for unit in UNITS[1:]:
                if not _is_unchanged(text, span, unit):
                    changed[unit].append((wrong, not _fits(text, span, unit)))
    for unit, pairs in changed.items():
        as_characters, in_unit = (sum(wrong) for wrong in zip(*pairs, strict=True)) if pairs else (0, 0)
        if as_characters >= max(evidence, len(pairs) / 2) and in_unit * 10 < len(pairs):
            return unit
    return "characters"


def _is_unchanged(text: str, span: Sequence[int], unit: Unit) -> bool:
    try:
        return to_characters([span], text, unit) == (tuple(span),)
    except ValueError:
        return False


def _fits(text: str, span: Sequence[int], unit: Unit) -> bool:
    """Return whether a span is inside the text and cuts no word."""
    try:
        [(start, end)] = to_characters([span], text, unit)
    except ValueError:
        return False
    return start < end and not _is_inside_word(text, start) and not _is_inside_word(text, end)


def _is_inside_word(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if not (before.isalnum() or is_mark(before)):
        return False
    return is_mark(after) or (after.isalnum() and not is_spaceless(before + after))
