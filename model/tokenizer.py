"""Words with character offsets, and the vocabulary, through the `tokenizers` library.

Two things happen to a text: the normaliser lower-cases it and writes links as `<url>` and mentions as `<user>`; the
pre-tokenizer cuts it into words, numbers, emoticons and runs of one punctuation mark. Offsets always speak of the
original text.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

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


def train_tokenizer(texts: Iterable[str], min_frequency: int, max_words: int) -> Tokenizer:
    """A tokenizer whose vocabulary is the words of the texts.

    Args:
        texts: the training texts.
        min_frequency: words seen less often become `<unk>`.
        max_words: the most frequent words are kept, the special ones included.
    """
    tokenizer = new_tokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_words, min_frequency=min_frequency, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A new one: in the trained one the special words would be found in a text that happens to hold them.
    return new_tokenizer(tokenizer.get_vocab())


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


def _tokens(text: str, encoding: Encoding) -> Tokens:
    ids, offsets = encoding.ids, encoding.offsets
    if "@" in text or "http" in text.lower() or "www." in text.lower():
        # The library gives a rewritten link or mention the offsets of its last character alone.
        starts = {match.end(): match.start() for match in _REWRITTEN.finditer(text)}
        offsets = [(min(start, starts.get(end, start)), end) for start, end in offsets]
    return Tokens(ids, offsets)
