"""CoNLL: a token and its tag per line, in any two of up to ten columns, and a blank line between texts."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from model.data.characters import Span
from model.data.labeled_text import LabeledText
from model.errors import LineError, UserError

# A prefix of BIO, BIOES, BILOU or BMES, and a type, which may have blanks.
_TAG = re.compile(r"O|[BIESLUM](?:[-_].+)?", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[-.]\d+)?")  # CoNLL-U: 8, 8-9, 8.1
_MANY_TAGS = 10  # as many lines have no word in common in one place
Lines = list[tuple[str, str]]  # `file:line` and content


class Columns(NamedTuple):
    """Where a line has its token and its tag.

    Attributes:
        token, tag: indices; negative ones count from the last column.
        tabs: whether columns are separated by a tab each, otherwise by blanks.
        numbered: whether a whole number in the first column makes a line a token.
        names: of tags that are numbers, from 0.
    """

    token: int = 0
    tag: int = -1
    tabs: bool = True
    numbered: bool = False
    names: tuple[str, ...] = ()

    def tag_of(self, row: list[str]) -> str:
        """Return the tag of a line; empty where it has none."""
        return _named(next(iter(row[self.tag :]), ""), self.names)


def find_columns(
    lines: list[str], token: int | None = None, tag: int | None = None, names: tuple[str, ...] = ()
) -> Columns | None:
    """Return the columns of a file, or None where most lines have no tag.

    Args:
        lines: those of the sample that are not blank.
        token, tag: columns that the user named, from 1.
        names: of tags that are numbers, from 0.

    Raises:
        UserError: the file has no such column.
    """
    rows, tabs = _rows(lines)
    if not rows:
        return None
    width = len(rows[0])
    for name, column in (("--token-column", token), ("--tag-column", tag)):
        if column is not None and not 1 <= column <= width:
            raise UserError(f"{name} {column}: the file has {width} columns; choose one of them, from 1")
    columns = list(zip(*rows, strict=True))
    numbers = width > 2 and 1 not in (token, tag) and all(map(_NUMBER.fullmatch, columns[0]))
    # Of CoNLL-U, only tokens have whole numbers; in other files, such as WebAnno TSV 2, all are numbered 1-1, 1-2.
    numbered = numbers and any(map(str.isdigit, columns[0]))
    if token and tag:
        return Columns(token - 1, tag - 1, tabs, numbered, names)
    own = int(numbers and bool(names))  # the numbers of tokens are no tags
    tags = [tag - 1] if tag else [i for i, column in enumerate(columns) if i >= own and _are_tags(column, tabs, names)]
    if not tags or width < 2:
        return None
    # In CoNLL-2003 the last column counts; where tokens are numbered, further columns are nested keyphrases.
    chosen = tags[0] if numbers else tags[-1]
    first = next(i for i in range(int(numbers), width) if i != chosen)
    return Columns(token - 1 if token else first, chosen, tabs, numbered, names)


def _rows(lines: list[str]) -> tuple[list[list[str]], bool]:
    """Return the lines with the most frequent number of columns, and whether tabs separate these."""
    lines = [line for line in lines if not line.startswith("-DOCSTART-")]
    tabs = 2 * sum("\t" in line for line in lines) > len(lines)
    rows = [row for line in lines if not _is_comment(row := split(line, tabs), row[1:])]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    usual = [row for row in rows if len(row) == width]
    return (usual if 2 * len(usual) > len(rows) else []), tabs


def split(line: str, tabs: bool) -> list[str]:
    """Return the columns of a line, without blanks around them."""
    return [column.strip() for column in line.rstrip("\r\n").split("\t")] if tabs else re.findall(r"[^ \t\r\n]+", line)


def _is_comment(row: list[str], tags: list[str]) -> bool:
    """Return whether a line is a comment rather than a token `#` with one of the tags."""
    return row[:1] != [] and row[0].startswith("#") and not any(map(is_tag, tags))


def _named(tag: str, names: tuple[str, ...]) -> str:
    """Return the name of a tag that is a number, and any other tag as it is."""
    return names[int(tag)] if tag.isdecimal() and int(tag) < len(names) else tag


def _are_tags(column: Sequence[str], tabs: bool, names: tuple[str, ...]) -> bool:
    """Return whether most values are tags, and not between blanks only a word of texts, such as `I` or `E-mail`."""
    tags = [tag.upper() for value in column if is_tag(tag := _named(value, names))]
    told_apart = tabs or len(set(tags)) > 1 or (set(tags) == {"O"} and len(tags) >= _MANY_TAGS)
    return 2 * len(tags) > len(column) and told_apart


def parse_block(lines: Lines, columns: Columns) -> LabeledText | None:
    """Return the text of a block, or None where it has no token.

    Raises:
        LineError: a line has no token or no known tag.
    """
    tokens, tags = [], []
    for place, line in lines:
        row = split(line, columns.tabs)
        tag = columns.tag_of(row)
        if row[:1] == ["-DOCSTART-"] or _is_comment(row, [tag]):
            continue
        if columns.numbered and not row[0].isdigit():
            continue  # a range of tokens, or an empty node
        if len(row) < 2 or len(row) <= columns.token or not tag:
            raise LineError(place, "has no token and tag; write token<TAB>tag, and a blank line between texts")
        if not is_tag(tag):
            known = "tags are O, B, I, E, S (or L, U, M), alone or as B-type, or numbers with --tag-names O,B-KEY,I-KEY"
            raise LineError(place, f"tag {tag!r} is unknown; {known}")
        if not (token := row[columns.token]):
            raise LineError(place, "the token is empty; write the token, or delete the line")
        tokens.append(token)
        tags.append(tag)
    if not tokens:
        return None
    text, offsets = join_tokens(tokens)
    return LabeledText(text, lines[0][0], spans=characters(spans_of_tags(tags), offsets))


def join_tokens(tokens: list[str]) -> tuple[str, list[Span]]:
    """Join tokens with single spaces; return the text, and the characters of each token."""
    offsets, at = [], 0
    for token in tokens:
        offsets.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), offsets


def characters(spans: list[Span], offsets: list[Span]) -> tuple[Span, ...]:
    """Return the characters of spans of tokens, both half-open."""
    return tuple((offsets[first][0], offsets[end - 1][1]) for first, end in spans)


def is_tag(value: str) -> bool:
    """Return whether a value is a tag of BIO, BIOES, BILOU or BMES, with or without a type."""
    return bool(_TAG.fullmatch(value))


def spans_of_tags(tags: list[str]) -> list[Span]:
    """Return the keyphrases of a tag sequence as spans of tokens.

    It reads BIO (both kinds), IO, BIOES, BILOU and BMES alike: `B`, `S`, `U`, or another type than that of the token before
    begins a keyphrase; `E`, `L`, `S` and `U` end one.
    """
    spans, first, type_before = [], None, ""
    for i, tag in enumerate(tags):
        prefix, type_ = tag[0].upper(), tag[2:]
        another = bool(type_ and type_before and type_ != type_before)
        if first is not None and (prefix in "OBSU" or another):
            spans.append((first, i))
            first = None
        if prefix != "O" and first is None:
            first, type_before = i, type_
        if first is not None and prefix in "ESLU":
            spans.append((first, i + 1))
            first = None
    return spans if first is None else [*spans, (first, len(tags))]
