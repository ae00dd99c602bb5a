"""Words with character offsets, and the vocabulary, through the `tokenizers` library.

The normalizer converts a text to lower case, links to `<url>` and mentions to `<user>`. The pre-tokenizer splits it into
words, numbers, emoticons and runs of one punctuation mark; in scripts without spaces, each sign is a word. Offsets always
refer to the original text, and tokens cover all of it but spaces and invisible signs.

`tokenizer.json` carries these rules, so what an earlier version prepared keeps its own.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, PreTokenizedString, Regex, Tokenizer, models, normalizers, pre_tokenizers

from model.data.characters import SPACELESS
from model.errors import UserError

PAD, UNKNOWN = 0, 1
SPECIAL = ["<pad>", "<unk>"]
_CACHED_CHUNKS = 150_000  # between spaces; most of a text is among the most frequent
_CACHED_CHARACTERS = 2_000_000  # of these chunks; a text without spaces is one chunk, however long

_LINK = r"https?://\S+|www\.\S+"
_LETTER = rf"[\p{{L}}&&[^{SPACELESS}]]"
_LETTERS = rf"{_LETTER}[\p{{L}}\p{{M}}&&[^{SPACELESS}]]*"  # lower-casing makes a letter and a mark of İ
_WORD = rf"[\p{{L}}\p{{M}}\p{{N}}_&&[^{SPACELESS}]]"
# The name of a mention that begins in a script with spaces ends where another script begins.
_MENTION = rf"(?<![\w@&&[^{SPACELESS}]])@(?:[\w&&[^{SPACELESS}]]+|\w+)"
_WHOLE = "(?!<url>|<user>)"  # what the normalizer puts for a link or a mention is not split
_REWRITTEN = re.compile(r"https?://|www\.|@", re.IGNORECASE)  # how links and mentions begin
_UNBROKEN = re.compile(r"\S+")
_TOKEN = "|".join(
    [
        r"<(?!pad>|unk>)[a-z]+>",  # placeholders: <url>, <user>, <eos>; but not the special words, which a text cannot contain
        rf"(?:{_LETTER}\.){{2,}}",  # u.s.
        rf"\${_LETTERS}",  # cashtags: $aapl
        rf"\d+(?:[.,:/]\d+)*{_WORD}*",  # 3.5m, 10:30, 1/2
        rf"{_WORD}+(?:['’\-&\x{{200C}}\x{{200D}}]{_WORD}+)*",  # don't, anti-spam, q&a; joiners of Persian and Hindi
        rf"(?=[\p{{L}}\p{{M}}\p{{N}}&&[{SPACELESS}]])\X",  # a sign of a script without spaces, with its marks
        rf"['’]{_LETTERS}",  # 's
        r"[:;=]['\-]?[()dp/](?!\p{L})",  # emoticons
        rf"({_WHOLE}[^\s\p{{L}}\p{{N}}])(?:{_WHOLE}\1)+",  # ..., !!!
        rf"\S(?:[\p{{M}}\x{{FE0F}}]|\x{{200D}}{_WHOLE}\S)*",  # any other character, with its combining marks and joined emoji
    ]
)


class Tokens(NamedTuple):
    """The tokens of one text: vocabulary ids, and (start, end) of each in the text, characters, half-open."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def new_tokenizer(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """Return a tokenizer with a vocabulary from words to ids; without one, it splits texts but knows no word."""
    tokenizer = Tokenizer(
        models.WordLevel(vocabulary or {word: i for i, word in enumerate(SPECIAL)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace("\u00ad", ""),  # a soft hyphen is no part of its word
            normalizers.Replace(Regex("[‐‑]"), "-"),
            normalizers.Replace(Regex(f"(?i:{_LINK})"), "<url>"),
            normalizers.Replace(Regex(_MENTION), "<user>"),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    return tokenizer


def parse_tokenizer(content: bytes, location: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`.

    Args:
        content: the content of the file.
        location: of the file, for messages.

    Raises:
        UserError: the content is damaged, or was not written by `prepare`.
    """
    tokenizer = read_tokenizer(content, location, "restore the file, or prepare the dataset again")
    if [tokenizer.id_to_token(i) for i in range(len(SPECIAL))] != SPECIAL:
        raise UserError(
            f"{location}: its vocabulary does not begin with {', '.join(SPECIAL)}; use a tokenizer that prepare wrote"
        )
    return tokenizer


def read_tokenizer(content: bytes, location: str, remedy: str) -> Tokenizer:
    """Return any tokenizer of the `tokenizers` library.

    Args:
        content: the content of its file.
        location, remedy: of the file, and how to mend it, for messages.

    Raises:
        UserError: the content is damaged.
    """
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for any malformed content
        raise UserError(f"{location}: is damaged or not a tokenizer: {error}; {remedy}") from error


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [_tokens(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]


class TokenizedTexts(NamedTuple):
    """The tokens of many texts, concatenated.

    Attributes:
        ids: (tokens,) id of each word.
        starts, ends: (tokens,) first character of each token in its text, and one after its last.
        begins: (texts + 1,) index of the first token of each text; the last entry is the number of tokens.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]


class CachedTokenizer:
    """Tokenizes texts as `encode` does, with any mapping from words to ids, and faster.

    No token contains a space, and no rule of the normalizer extends across one. So the library tokenizes each chunk
    between two spaces once, its tokens are cached, and the rest is array arithmetic.
    """

    def __init__(self, id_of: Callable[[str], int], rules: Tokenizer | None = None) -> None:
        """Create a tokenizer with an empty cache.

        Args:
            id_of: returns the id of a normalized word.
            rules: a tokenizer whose normalizer and pre-tokenizer are used, by default those of `new_tokenizer`.
        """
        self._id_of = id_of
        self._rules = rules or new_tokenizer()
        self._clear()

    def __call__(self, texts: Sequence[str]) -> TokenizedTexts:
        """Return the tokens of at least one text."""
        if len(self._chunk_ids) > _CACHED_CHUNKS or self._characters > _CACHED_CHARACTERS:
            self._clear()
        chunk_counts = np.array([text.count(" ") + 1 for text in texts])
        chunks = np.array(list(map(self._chunk_ids.__getitem__, " ".join(texts).split(" "))))
        # `asarray` does not copy the cache. Its views must not be kept: an array that has one cannot grow.
        sizes, firsts = np.asarray(self._sizes)[chunks], np.asarray(self._firsts)[chunks]
        token_counts = np.asarray(self._firsts)[chunks + 1] - firsts
        # Where each chunk starts in its text: the sizes before it and a space each, less those of the texts before.
        chunk_starts = np.cumsum(sizes + 1) - sizes - 1
        first_chunks = np.cumsum(chunk_counts) - chunk_counts
        chunk_starts -= np.repeat(chunk_starts[first_chunks], chunk_counts)
        # Where each token is in the cache.
        tokens = np.repeat(firsts - np.cumsum(token_counts) + token_counts, token_counts) + np.arange(
            token_counts.sum()
        )
        shifts = np.repeat(chunk_starts, token_counts)
        begins = np.concatenate([[0], np.cumsum(np.add.reduceat(token_counts, first_chunks))])
        return TokenizedTexts(
            np.asarray(self._ids)[tokens].astype(np.int32),
            (np.asarray(self._starts)[tokens] + shifts).astype(np.int32),
            (np.asarray(self._ends)[tokens] + shifts).astype(np.int32),
            begins,
        )

    def _clear(self) -> None:
        self._chunk_ids = _DefaultDict(self._tokenize_chunk)
        self._characters = 0  # of all chunks
        self._sizes = array("q")  # by chunk: its characters
        self._firsts = array("q", [0])  # by chunk: index of its first token; the last entry is the number of tokens
        self._ids, self._starts, self._ends = array("q"), array("q"), array("q")  # by token

    def _tokenize_chunk(self, chunk: str) -> int:
        """Add a chunk to the cache; return its number."""
        splitter = PreTokenizedString(chunk)
        splitter.normalize(self._rules.normalizer.normalize)
        self._rules.pre_tokenizer.pre_tokenize(splitter)
        splits = splitter.get_splits("original", "char")
        for start, end in _repair_offsets(chunk, [offsets for _, offsets, _ in splits]):
            self._starts.append(start)
            self._ends.append(end)
        self._ids.extend(self._id_of(word) for word, *_ in splits)
        self._firsts.append(len(self._ids))
        self._sizes.append(len(chunk))
        self._characters += len(chunk)
        return len(self._sizes) - 1


class _DefaultDict(dict[str, int]):
    """A dictionary that computes a missing value from its key."""

    def __init__(self, missing: Callable[[str], int]) -> None:
        self._missing = missing

    def __missing__(self, key: str) -> int:
        self[key] = value = self._missing(key)
        return value


def _tokens(text: str, encoding: Encoding) -> Tokens:
    return Tokens(encoding.ids, _repair_offsets(text, encoding.offsets))


def _repair_offsets(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the offsets with characters added that the library leaves out.

    Of links and mentions it returns the last character, and of characters that the normalizer joins or drops, such as a
    letter with a combining mark at the end of a word, only the first.
    """
    if text.isascii() and "@" not in text and "://" not in text and "www." not in text.lower():
        return offsets
    repaired: list[tuple[int, int]] = []
    for start, end in [*offsets, (len(text), len(text))]:
        end_before = repaired[-1][1] if repaired else 0
        rewritten = _REWRITTEN.search(text, end_before, start) if start < end else None
        if rewritten:
            start = rewritten.start()
        if repaired:
            left_out = _UNBROKEN.match(text, end_before, start)
            repaired[-1] = (repaired[-1][0], left_out.end() if left_out else end_before)
        repaired.append((start, end))
    return repaired[:-1]
