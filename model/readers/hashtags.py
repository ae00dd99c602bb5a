"""Labeled texts from raw tweets by the rule of Zhang et al. (EMNLP 2016, section 4.1).

A tweet with exactly one hashtag, inside the text, becomes an example: the '#' is removed, the tag is written as words, and
those words are the keyphrase. In a tweet of a script without spaces a tag may also stand between two '#', as on Weibo.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from model.data.characters import is_mark, is_spaceless

_HASH = re.compile(r"(?<![\w&/#])[#＃](?=\w)")
_CLOSED_TAG = re.compile(r"[#＃]([^\s#＃](?:[^\n#＃]*[^\s#＃])?)[#＃]")
_RETWEET = re.compile(r"^\s*RT\b", re.IGNORECASE)
_NOT_WORDS = re.compile(r"https?://\S+|www\.\S+|@\w+|\bvia\b|<\w+>", re.IGNORECASE)
_WORD = re.compile(r"\w")
_JOINERS = "\u200c\u200d"  # inside words of Persian and Hindi
_SHORT_WORD = re.compile("a|i|am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|oh|on|or|so|to|tv|uk|up|us|we")


def label_by_hashtag(tweet: str) -> tuple[str, tuple[int, int]] | str:
    """Return a text and its keyphrase as (start, end) in characters, half-open, or the reason to skip the tweet."""
    tweet = html.unescape(tweet)
    tags = hashtags(tweet)
    if _RETWEET.match(tweet):
        return "a retweet"
    if len(tags) != 1:
        return "no hashtag" if not tags else "more than one hashtag"
    [(start, end, tag)] = tags
    before, after = tweet[:start], tweet[end:]
    if not re.search(r"[^\W\d_]", tag):
        return "the hashtag is a number"
    if not all(_WORD.search(_NOT_WORDS.sub("", side)) for side in (before, after)):
        return "the hashtag is not inside the text"
    phrase = " ".join(words(tag))
    if before and not before[-1].isspace() and not is_spaceless(before[-1] + phrase[0]):
        before += " "
    if after and after[0].isalnum() and not is_spaceless(phrase[-1] + after[0]):
        after = " " + after
    return before + phrase + after, (len(before), len(before) + len(phrase))


class Hashtag(NamedTuple):
    """A hashtag: its characters with each '#', half-open, and the tag without."""

    start: int
    end: int
    tag: str


def hashtags(tweet: str) -> list[Hashtag]:
    """Return the hashtags of a tweet."""
    if is_spaceless(tweet) and (closed := list(_CLOSED_TAG.finditer(tweet))):
        return [Hashtag(*found.span(), found[1]) for found in closed]
    return [_open_hashtag(tweet, found.start()) for found in _HASH.finditer(tweet)]


def _open_hashtag(tweet: str, start: int) -> Hashtag:
    """Return the hashtag that begins at a '#' and ends with its last letter, digit or mark; `re` counts no marks to words."""
    end = start + 1
    for i in range(start + 1, len(tweet)):
        if tweet[i].isalnum() or tweet[i] == "_" or is_mark(tweet[i]):
            end = i + 1
        elif tweet[i] not in _JOINERS:
            break
    return Hashtag(start, end, tweet[start + 1 : end])


def words(tag: str) -> list[str]:
    """Return the words of a hashtag.

    It is split at underscores, capitals and digits; a tag without any is split into its most probable words. In scripts
    without spaces it is split at underscores only.
    """
    tag = unicodedata.normalize("NFC", tag)
    if is_spaceless(tag):
        return tag.replace("_", " ").split() or [tag]
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
