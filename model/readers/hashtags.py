"""Labeled texts from raw tweets by the rule of Zhang et al. (EMNLP 2016, section 4.1).

A tweet with exactly one hashtag, inside the text, becomes an example: the '#' is removed, the tag is written as words, and
those words are the keyphrase.
"""

import html
import re
from collections.abc import Callable
from functools import cache

_HASHTAG = re.compile(r"(?<![\w&/#])[#＃](\w+)")
_RETWEET = re.compile(r"^\s*RT\b", re.IGNORECASE)
_NOT_WORDS = re.compile(r"https?://\S+|www\.\S+|@\w+|\bvia\b|<\w+>", re.IGNORECASE)
_WORD = re.compile(r"\w")
_SHORT_WORD = re.compile("a|i|am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|oh|on|or|so|to|tv|uk|up|us|we")


def label_by_hashtag(tweet: str) -> tuple[str, tuple[int, int]] | str:
    """Return a text and its keyphrase as (start, end) in characters, half-open, or the reason to skip the tweet."""
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
    """Return the words of a hashtag.

    It is split at underscores, capitals and digits; a tag without any is split into its most probable words.
    """
    if re.fullmatch(r"[A-Za-z]{1,6}\d{1,4}", tag) and not re.search(r"[a-z][A-Z]", tag):
        return [tag]  # short codes: covid19, MH17, ios8
    parts = [part for section in tag.split("_") for part in _split_case(section)]
    return _segment(tag) if parts == [tag] and tag.islower() else parts or [tag]


def _split_case(section: str) -> list[str]:
    """Split before a capital that begins a word, and between letters and digits."""
    parts = [""]
    for i, char in enumerate(section):
        previous, following = section[i - 1 : i], section[i + 1 : i + 2]
        begins = char.isupper() and (previous.islower() or (previous.isupper() and following.islower()))
        if parts[-1] and (begins or char.isdigit() != previous.isdigit()):
            parts.append("")
        parts[-1] += char
    return [part for part in parts if part]


def _segment(tag: str) -> list[str]:
    """Return the most probable words of a joined tag, or the tag itself if they would contain fragments."""
    if len(tag) < 6 or not tag.isascii():
        return [tag]
    found = _segmenter()(tag)
    return found if all(len(word) > 2 or _SHORT_WORD.fullmatch(word) for word in found) else [tag]


@cache
def _segmenter() -> Callable[[str], list[str]]:
    import wordsegment

    wordsegment.load()
    return wordsegment.segment
