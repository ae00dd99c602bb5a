"""Labelled texts from raw tweets by the paper's rule (Zhang et al., EMNLP 2016, section 4.1).

A tweet with exactly one hashtag, which stands inside the text, is an example: the '#' is dropped, the tag is written as
words, and those words are the keyphrase.
"""

import html
import re
from functools import cache
from typing import Any

_HASHTAG = re.compile(r"(?<![\w&/#])[#＃](\w+)")
_RETWEET = re.compile(r"^\s*RT\b", re.IGNORECASE)
_NOT_WORDS = re.compile(r"https?://\S+|www\.\S+|@\w+|\bvia\b|<\w+>", re.IGNORECASE)
_WORD = re.compile(r"\w")
_SHORT_WORDS = frozenset(
    [
        "a",
        "i",
        "am",
        "an",
        "as",
        "at",
        "be",
        "by",
        "do",
        "go",
        "he",
        "if",
        "in",
        "is",
        "it",
        "me",
        "my",
        "no",
        "of",
        "oh",
        "on",
        "or",
        "so",
        "to",
        "tv",
        "uk",
        "up",
        "us",
        "we",
    ]
)


def label_by_hashtag(tweet: str) -> tuple[str, tuple[int, int]] | str:
    """A text and its keyphrase's characters (start, end); or, where the tweet is no example, the reason."""
    tweet = html.unescape(tweet)
    tags = list(_HASHTAG.finditer(tweet))
    if _RETWEET.match(tweet):
        return "a retweet"
    if len(tags) != 1:
        return "no hashtag" if not tags else "more than one hashtag"
    before, tag, after = tweet[: tags[0].start()], tags[0].group(1), tweet[tags[0].end() :]
    if not re.search(r"[^\W\d_]", tag):
        return "the hashtag is a number"
    if not all(_WORD.search(_NOT_WORDS.sub("", side)) for side in (before, after)):
        return "the hashtag is not inside the text"
    phrase = " ".join(words(tag))
    if before and not before[-1].isspace():
        before += " "
    return before + phrase + after, (len(before), len(before) + len(phrase))


def words(tag: str) -> list[str]:
    """The words of a hashtag: by underscores, capitals and digits, and where it has none of them by the likeliest cut."""
    if re.fullmatch(r"[A-Za-z]{1,6}\d{1,4}", tag) and not re.search(r"[a-z][A-Z]", tag):
        return [tag]  # short codes: covid19, MH17, ios8
    pieces = [piece for part in tag.split("_") for piece in _cased_pieces(part)]
    return _segments(tag) if pieces == [tag] and tag.islower() else pieces or [tag]


def _cased_pieces(part: str) -> list[str]:
    """Cuts before a capital that begins a word, and between letters and digits."""
    pieces = [""]
    for i, sign in enumerate(part):
        previous, following = part[i - 1 : i], part[i + 1 : i + 2]
        begins = sign.isupper() and (previous.islower() or (previous.isupper() and following.islower()))
        if pieces[-1] and (begins or sign.isdigit() != previous.isdigit()):
            pieces.append("")
        pieces[-1] += sign
    return [piece for piece in pieces if piece]


def _segments(tag: str) -> list[str]:
    """The likeliest words of a joined tag; the tag itself where they would hold scraps that are no words."""
    if len(tag) < 6 or not tag.isascii():
        return [tag]
    found: list[str] = _segmenter().segment(tag)
    return found if all(len(word) > 2 or word in _SHORT_WORDS for word in found) else [tag]


@cache
def _segmenter() -> Any:
    import wordsegment

    wordsegment.load()
    return wordsegment
