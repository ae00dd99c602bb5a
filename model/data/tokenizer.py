"""Words with character offsets, and the vocabulary, through the `tokenizers` library.

Two things happen to a text: the normaliser lower-cases it and writes links as `<url>` and mentions as `<user>`; the
pre-tokenizer cuts it into words, numbers, emoticons and runs of one punctuation mark. Offsets always speak of the
original text.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, PreTokenizedString, Regex, Tokenizer, models, normalizers, pre_tokenizers

from model.errors import UserError

PAD, UNKNOWN = 0, 1
SPECIAL = ["<pad>", "<unk>"]

_LINK = r"https?://\S+|www\.\S+"
_MENTION = r"(?<![\w@])@\w+"
_REWRITTEN = re.compile(f"{_LINK}|{_MENTION}", re.IGNORECASE)
_WORD = r"[\p{L}\p{M}\p{N}_]"
_TOKEN = "|".join(
    [
        r"<(?!pad>|unk>)[a-z]+>",  # placeholders: <url>, <user>, <eos>; never a special word, which has a meaning of its own
        r"(?:\p{L}\.){2,}",  # u.s.
        r"\$\p{L}+",  # cashtags: $aapl
        rf"\d+(?:[.,:/]\d+)*{_WORD}*",  # 3.5m, 10:30, 1/2
        rf"{_WORD}+(?:['’\-&]{_WORD}+)*",  # don't, anti-spam, q&a
        r"['’]\p{L}+",  # 's
        r"[:;=]['\-]?[()dp/](?!\p{L})",  # emoticons
        r"([^\s\p{L}\p{N}])\1+",  # ..., !!!
        r"\S(?:[\p{M}\x{FE0F}]|\x{200D}\S)*",  # any other sign, with its combining marks and joined emoji
    ]
)


class Tokens(NamedTuple):
    """The tokens of one text: vocabulary ids, and where each begins and ends in the text (characters, half-open)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def new_tokenizer(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A tokenizer with a vocabulary; without one it is enough to find the words of a text."""
    known = vocabulary or {word: i for i, word in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(f"(?i:{_LINK})"), "<url>"),
            normalizers.Replace(Regex(_MENTION), "<user>"),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    return tokenizer


def parse_tokenizer(content: bytes, location: str) -> Tokenizer:
    """A tokenizer from the content of a `tokenizer.json`. Raises UserError where it is not one of ours."""
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for any malformed content
        raise UserError(f"{location}: is damaged or no tokenizer: {error}; restore the file or make it anew") from error
    if [tokenizer.id_to_token(i) for i in range(len(SPECIAL))] != SPECIAL:
        raise UserError(
            f"{location}: its vocabulary does not begin with {', '.join(SPECIAL)}; it was not made by prepare"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """The tokens of each text."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]


class TokenizedTexts(NamedTuple):
    """The tokens of many texts, one text after the other.

    Attributes:
        ids: (tokens,) what stands for each word.
        starts, ends: (tokens,) where it begins and ends in its text (characters, half-open).
        begins: (texts + 1,) where each text begins in them; the last entry is their end.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]


class CachedTokenizer:
    """Cuts texts into the words that `encode` would find, with or without a vocabulary.

    No word reaches across a space, and neither does any rule of the normaliser. So what stands between two spaces is
    cut by the library once, and remembered; all else is arithmetic on arrays.
    """

    def __init__(self, id_of: Callable[[str], int], rules: Tokenizer | None = None) -> None:
        """Takes what gives a word its id, and a tokenizer whose rules hold, by default those of `new_tokenizer`."""
        self._id_of = id_of
        self._rules = rules or new_tokenizer()
        self._forget()

    def __call__(self, texts: Sequence[str]) -> TokenizedTexts:
        """The tokens of each text; there has to be one."""
        if len(self._known) > _REMEMBERED:
            self._forget()
        runs = np.array([text.count(" ") + 1 for text in texts])
        numbers = np.array(list(map(self._known.__getitem__, " ".join(texts).split(" "))))
        size, first = np.array(self._sizes)[numbers], np.array(self._firsts)
        count, first = np.diff(first)[numbers], first[numbers]
        at = np.cumsum(size + 1) - size - 1
        first_run = np.cumsum(runs) - runs
        at -= np.repeat(at[first_run], runs)
        tokens = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        shift = np.repeat(at, count)
        begins = np.concatenate([[0], np.cumsum(np.add.reduceat(count, first_run))])
        return TokenizedTexts(
            np.array(self._ids, np.int32)[tokens],
            (np.array(self._starts)[tokens] + shift).astype(np.int32),
            (np.array(self._ends)[tokens] + shift).astype(np.int32),
            begins,
        )

    def _forget(self) -> None:
        self._known = _DefaultDict(self._cut)  # a run's number
        self._sizes = array("q")  # by run: its characters
        self._firsts = array("q", [0])  # by run: the first of its tokens; the last entry is their end
        self._ids, self._starts, self._ends = array("q"), array("q"), array("q")  # by token

    def _cut(self, run: str) -> int:
        cut = PreTokenizedString(run)
        cut.normalize(self._rules.normalizer.normalize)
        self._rules.pre_tokenizer.pre_tokenize(cut)
        splits = cut.get_splits("original", "char")
        for start, end in _repaired(run, [offsets for _, offsets, _ in splits]):
            self._starts.append(start)
            self._ends.append(end)
        self._ids.extend(self._id_of(word) for word, *_ in splits)
        self._firsts.append(len(self._ids))
        self._sizes.append(len(run))
        return len(self._sizes) - 1


class _DefaultDict(dict[str, int]):
    """A dictionary that asks for what it lacks."""

    def __init__(self, missing: Callable[[str], int]) -> None:
        self._missing = missing

    def __missing__(self, key: str) -> int:
        self[key] = value = self._missing(key)
        return value


def _tokens(text: str, encoding: Encoding) -> Tokens:
    return Tokens(encoding.ids, _repaired(text, encoding.offsets))


def _repaired(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The offsets, where the library gives a rewritten link or mention those of its last character alone."""
    if "@" in text or "http" in text.lower() or "www." in text.lower():
        starts = {match.end(): match.start() for match in _REWRITTEN.finditer(text)}
        return [(min(start, starts.get(end, start)), end) for start, end in offsets]
    return offsets


_REMEMBERED = 150_000  # what stands between spaces; most of a text is among the most frequent
