"""Tables of a token and its tag a row, whose texts a column parts, such as `Sentence #`, or a blank row."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, groupby, islice, pairwise
from operator import itemgetter, not_
from typing import Any, NamedTuple

from model.readers.conll import is_tag
from model.readers.record_labels import LABEL_FIELDS

# What the columns may be named, in lower case.
_TOKENS = ("token", "word", "tokens", "words")
_TAGS = re.compile(r"(?:(?:ner|bio|iob|entity)[ _-]?)?(?:tags?|labels?)|ner|bio|iob")
_PARTS = re.compile(
    r"(?:sentence|sent|document|doc|paragraph|text|tweet|article)s?[ _-]?(?:#|id|idx|index|no|nr|num|number)?"
)
_LOOKED_AT = 100_000  # lines, for a blank one
_EMPTY_CELLS = b' \t,;|"\r\n\x1a'

Row = dict[str, Any] | str  # the cells by the names of the columns, or what is wrong


class TokenColumns(NamedTuple):
    """The names of the columns of the token and its tag, and of those whose values change with each text."""

    token: str
    tag: str
    parts: tuple[str, ...]


def find_token_columns(names: Sequence[str], rows: list[list[str]]) -> TokenColumns | None:
    """Return the columns of a table of a token a row by their names and their first values, or None for another table."""
    columns = {name: [row[i] for row in rows if i < len(row)] for i, name in enumerate(names)}
    token = next((name for name in _TOKENS if name in columns and _are_words(columns[name])), None)
    tags = [name for name in names if _TAGS.fullmatch(name)]
    if token is None or any(name in LABEL_FIELDS and name not in tags for name in names):
        return None
    chosen = [name for name in tags if _most(map(is_tag, columns[name]))]
    chosen = chosen or [name for name in tags if _most(map(str.isdecimal, columns[name]))]
    return TokenColumns(token, chosen[-1], tuple(filter(_PARTS.fullmatch, names))) if chosen else None


def are_tokens(rows: list[list[str]]) -> bool:
    """Return whether rows of two cells are tokens and tags, rather than texts and keyphrases."""
    tokens, tags = ([row[i] for row in rows] for i in (0, 1))
    return "O" in tags and _most(map(is_tag, tags)) and _are_words(tokens)


def _are_words(values: list[str]) -> bool:
    return _most(len(value.split()) == 1 for value in values)


def _most(found: Iterable[bool]) -> bool:
    values = list(found)
    return 2 * sum(values) > len(values)


def has_blank_row(lines: Iterator[bytes]) -> bool:
    """Return whether a row without content parts the first rows of a table that has names."""
    rows = dropwhile(not_, (line.strip(_EMPTY_CELLS) for line in islice(lines, _LOOKED_AT)))
    return any(row and not before for before, row in pairwise(dropwhile(not_, islice(rows, 1, None))))


def token_texts(rows: Iterator[tuple[str, Row]], columns: TokenColumns) -> Iterator[tuple[str, Row]]:
    """Yield the place and the record of each text, or the place of a row that cannot be used and what is wrong with it."""
    for _, group in groupby(_keyed(rows, columns), key=itemgetter(0)):
        yield _text([(place, row) for _, place, row in group], columns)


def _keyed(rows: Iterator[tuple[str, Row]], columns: TokenColumns) -> Iterator[tuple[Any, str, Row]]:
    """Yield each row that has content after what all rows of its text have in common; an empty cell is like the one above."""
    values, blank_rows = [""] * len(columns.parts), 0
    for place, row in rows:
        if not row:
            blank_rows += 1
            continue
        if isinstance(row, dict):
            values = [row.get(name) or above for name, above in zip(columns.parts, values, strict=True)]
        yield (blank_rows, values), place, row


def _text(rows: list[tuple[str, Row]], columns: TokenColumns) -> tuple[str, Row]:
    tokens, tags = [], []
    for place, row in rows:
        if isinstance(row, str):
            return place, row
        token, tag = (row.get(name, "").strip() for name in (columns.token, columns.tag))
        if problem := _problem(token, tag, columns):
            return place, problem
        tokens.append(token)
        tags.append(int(tag) if tag.isdecimal() else tag)
    return rows[0][0], {"tokens": tokens, "tags": tags}


def _problem(token: str, tag: str, columns: TokenColumns) -> str | None:
    if not token:
        return f"the token in column {columns.token!r} is empty; write the token, or delete the row"
    if len(token.splitlines()) > 1:
        return "the token has a line break; mend the quotes of the table"
    if not is_tag(tag) and not tag.isdecimal():
        return f"tag {tag!r} in column {columns.tag!r} is unknown; write O, or B, I, E, S alone or as B-type"
    return None
