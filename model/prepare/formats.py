"""The formats of labeled files. A new format is one function and its record in FORMATS; everything else reads that table.

Files are UTF-8; `.gz` and the other compressions that pyarrow knows by their suffix are decompressed.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError
from model.prepare import hashtags

Lines = list[tuple[str, str]]  # `file:line` and content of each line of a record
_TAG = re.compile(r"^(?:O|[BIESLU](?:-\S+)?)$")


@dataclass(frozen=True)
class Format:
    """How one format is recognized and read.

    Attributes:
        name: its name for `--format` and in dataset.json.
        summary: what a record looks like, for help texts.
        sniff: tells from the first non-blank lines of a file whether it has this format.
        parse: turns the lines of a record into a text, or None where it skips the record, which it may count. It raises
            LineError.
        blocks: whether a record is a block of lines that a blank line ends, rather than a single line.
    """

    name: str
    summary: str
    sniff: Callable[[list[str]], bool]
    parse: Callable[[Lines, SkipCounts], LabeledText | None]
    blocks: bool = False


def decode_line(raw: bytes, place: str) -> str:
    """Return a line as text. Raises LineError where it is not UTF-8 text."""
    try:
        text = raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise LineError(
            place, f"is not UTF-8 (byte {error.start}: {error.reason}); convert the file to UTF-8"
        ) from None
    if "\x00" in text:
        raise LineError(place, "contains a NUL byte; if the file is binary or UTF-16, convert it to UTF-8 text")
    return text


def text_of_line(raw: bytes, place: str, jsonl: bool) -> str:
    """Return the unlabeled text of a line, plain or `{"text"}`. Raises LineError."""
    line = decode_line(raw, place)
    return _text(_json_object(line, place).get("text"), place) if jsonl and line.strip() else line


def is_json(lines: list[str]) -> bool:
    """Return whether the lines look like JSON objects."""
    return lines[0].lstrip().startswith("{")


def _is_jsonl(lines: list[str]) -> bool:
    return is_json(lines) and any('"keyphrases"' in line or '"spans"' in line for line in lines)


def _parse_jsonl(lines: Lines, skips: SkipCounts) -> LabeledText:
    [(place, line)] = lines
    record = _json_object(line, place)
    text = _text(record.get("text"), place)
    if "spans" in record:
        return LabeledText(text, place, spans=_spans(record["spans"], text, place))
    phrases = record.get("keyphrases")
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise LineError(place, 'has neither "spans" nor "keyphrases" as a list of strings; add one of them')
    return LabeledText(text, place, keyphrases=tuple(phrase for phrase in phrases if phrase.strip()), every=True)


def _spans(value: object, text: str, place: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise LineError(place, '"spans" is not a list; write [[start, end], ...]')
    for span in value:
        if not (isinstance(span, list) and len(span) == 2 and all(type(offset) is int for offset in span)):
            raise LineError(place, f"span {json.dumps(span)} is not a pair of whole numbers; write [start, end]")
        if not 0 <= span[0] < span[1] <= len(text):
            raise LineError(
                place, f"span {span} is out of range: the text has {len(text)} characters, and start must be below end"
            )
    return tuple((start, end) for start, end in value)


def _is_conll(lines: list[str]) -> bool:
    """Return whether most of the lines are a token and a tag."""
    columns = [(line.split(), "\t" in line) for line in lines]
    tagged = [len(each) >= 2 and _TAG.match(each[-1]) and (tab or len(each) == 2) for each, tab in columns]
    return not is_json(lines) and 2 * sum(map(bool, tagged)) > len(lines)


def _parse_conll(lines: Lines, skips: SkipCounts) -> LabeledText | None:
    """Join the tokens with single spaces, so that the offsets of every token are exact."""
    text, spans, start = "", [], None
    for place, line in lines:
        columns = line.split("\t") if "\t" in line else line.split()
        token, tag = columns[0].strip(), columns[-1].strip()
        if token == "-DOCSTART-":
            return None
        if len(columns) < 2 or not token:
            raise LineError(place, "has no token and tag; write token<TAB>tag, and a blank line between texts")
        if not _TAG.match(tag):
            raise LineError(place, f"tag {tag!r} is unknown; tags are O, B, I, E, S (or L, U), alone or as B-type")
        if tag[0] in "OBSU" and start is not None:
            spans.append((start, len(text)))
            start = None
        text += (" " if text else "") + token
        if tag[0] != "O" and start is None:
            start = len(text) - len(token)
        if tag[0] in "ESLU":
            spans.append((start or 0, len(text)))
            start = None
    if start is not None:
        spans.append((start, len(text)))
    return LabeledText(text, lines[0][0], spans=tuple(spans))


def _is_tsv(lines: list[str]) -> bool:
    return not is_json(lines) and 2 * sum("\t" in line for line in lines) >= len(lines)


def _parse_tsv(lines: Lines, skips: SkipCounts) -> LabeledText:
    [(place, line)] = lines
    columns = line.split("\t")
    if len(columns) != 2:
        problem = "no tab" if len(columns) == 1 else f"{len(columns) - 1} tabs"
        raise LineError(place, f"{problem} in the line; write text<TAB>keyphrase[;keyphrase...] with exactly one tab")
    phrases = tuple(phrase.strip() for phrase in columns[1].split(";") if phrase.strip())
    return LabeledText(_text(columns[0], place), place, keyphrases=phrases)


def _is_raw(lines: list[str]) -> bool:
    return is_json(lines) or any("#" in line for line in lines)


def _parse_raw(lines: Lines, skips: SkipCounts) -> LabeledText | None:
    [(place, line)] = lines
    text = _text(_json_object(line, place).get("text"), place) if line.lstrip().startswith("{") else line
    labeled = hashtags.label_by_hashtag(text)
    if isinstance(labeled, str):
        skips.add(labeled, place)
        return None
    text, span = labeled
    return LabeledText(text, place, spans=(span,))


def _json_object(line: str, place: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(place, f"is not JSON ({error}); write one JSON object per line") from None
    if not isinstance(record, dict):
        raise LineError(place, 'is not a JSON object; write {"text": ..., "keyphrases": [...]}')
    return record


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise LineError(place, '"text" is missing or not a string; write {"text": ..., "keyphrases": [...]}')
    if not value.strip():
        raise LineError(place, "the text is empty; delete the line or add its text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise LineError(
            place, "the text contains half of a surrogate pair (\\ud800 to \\udfff); repair the escape"
        ) from None
    return value


# In the order in which they are tried: the first whose `sniff` returns true is the format of a file.
FORMATS = {
    format.name: format
    for format in (
        # "keyphrases" mark every occurrence; "spans" are characters, half-open, and take precedence.
        Format(
            "jsonl", '{"text", "keyphrases": [...]} or {"text", "spans": [[start, end], ...]}', _is_jsonl, _parse_jsonl
        ),
        # BIO, BIOES or BILOU tags, with or without a type (`B-person`).
        Format("conll", "token<TAB>tag, a blank line between texts", _is_conll, _parse_conll, blocks=True),
        # The first occurrence of each keyphrase is marked.
        Format("tsv", "text<TAB>keyphrase[;keyphrase...]", _is_tsv, _parse_tsv),
        # Labeled by their hashtag, see model/prepare/hashtags.py.
        Format("raw", 'tweets, plain or {"text"}, with exactly one hashtag', _is_raw, _parse_raw),
    )
}
