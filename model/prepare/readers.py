"""Readers: the texts of the four input formats, each as a `Labelled` text.

    tsv    text<TAB>keyphrase[;keyphrase...]           the first occurrence of each keyphrase is marked
    jsonl  {"text", "keyphrases": [...]}               every occurrence is marked
           {"text", "spans": [[start, end], ...]}      characters, half-open; they win over "keyphrases"
    conll  token<TAB>tag, blank line between texts     BIO, BIOES or BILOU, with or without a type (`B-person`)
    raw    tweets, plain or {"text"}                   labelled by their one hashtag, see model/prepare/hashtags.py

Files are UTF-8; `.gz` and the other compressions that pyarrow knows by their ending are unpacked.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any

from model import storage
from model.data.examples import LabelledText, SkipCounts
from model.errors import LineError, UserError
from model.prepare import hashtags
from model.shards import FileRange

FORMATS = ("tsv", "jsonl", "conll", "raw")
_TAG = re.compile(r"^(?:O|[BIESLU](?:-\S+)?)$")
_SAMPLE_LINES = 200


class Reader:
    """Reads the labelled texts of one range of a file.

    Attributes:
        lines: how many there were; known when `read` has come to its end.
    """

    def __init__(self, part: FileRange, skip_bad_lines: bool = False) -> None:
        """With `skip_bad_lines` a line that cannot be used is left out and counted, instead of raising LineError."""
        self.part = part
        self.skip_bad_lines = skip_bad_lines
        self.lines = 0

    def read(self, tally: SkipCounts) -> Iterator[LabelledText]:
        """The texts in order of the file; their line numbers begin at 1 where the range does.

        Raises:
            LineError: a line cannot be used.
        """
        parse = _PARSERS[self.part.format]
        for lines in self._blocks():
            try:
                labelled = parse([(place, _decode(raw, place)) for place, raw in lines], tally)
            except LineError as error:
                if not self.skip_bad_lines:
                    raise
                tally.add(f"bad line: {error.problem}", error.place)
                continue
            if labelled is not None:
                yield labelled

    def _blocks(self) -> Iterator[list[tuple[str, bytes]]]:
        """Runs of lines that make one text: up to a blank line in conll, else each line that is not blank."""
        path, single, number = self.part.path, self.part.format != "conll", 0
        block: list[tuple[str, bytes]] = []
        for number, raw in enumerate(self.part.lines(), 1):
            line = raw.rstrip(b"\r\n")
            if line.strip():
                block.append((f"{path}:{number}", line))
            if block and (single or not line.strip()):
                yield block
                block = []
        if block:
            yield block
        self.lines = number


def resolve_inputs(patterns: list[str], format: str = "auto") -> list[FileRange]:
    """The input files that paths, URIs and globs name, with their formats.

    Args:
        patterns: at least one.
        format: one of FORMATS, or `auto` to tell by the content.

    Raises:
        UserError: a file is missing, empty or of no known format, or the files differ in format.
    """
    if format != "auto" and format not in FORMATS:
        raise UserError(f"format {format!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
    paths = [path for pattern in patterns for path in storage.expand(pattern)]
    with ThreadPoolExecutor(16) as threads:  # waiting, for the most part, where the files are far away
        formats = dict(
            zip(paths, threads.map(detect_format, paths) if format == "auto" else repeat(format), strict=False)
        )
    if len(set(formats.values())) > 1:
        seen = ", ".join(f"{path} is {kind}" for path, kind in formats.items())
        raise UserError(f"the sources differ in format: {seen}; prepare them apart, or name one with --format")
    return [FileRange(path, formats[path]) for path in paths]


def detect_format(path: str) -> str:
    """The format of a file, told by its first lines.

    Raises:
        UserError: the file is empty, or looks like none of the formats.
    """
    full = first_lines(path)
    if full[0].lstrip().startswith("{"):
        return "jsonl" if any('"keyphrases"' in line or '"spans"' in line for line in full) else "raw"
    if looks_conll(full):
        return "conll"
    if 2 * sum("\t" in line for line in full) >= len(full):
        return "tsv"
    if any("#" in line for line in full):
        return "raw"
    raise UserError(
        f"{path}:1: looks like none of the formats (text<TAB>keyphrases, JSON lines, CoNLL columns, tweets with "
        f"hashtags); see the README for them, or name one with --format"
    )


def text_of_line(raw: bytes, place: str, jsonl: bool) -> str:
    """The unlabelled text of a line, plain or `{"text"}`. Raises LineError."""
    line = _decode(raw, place)
    return _text(_json_object(line, place).get("text"), place) if jsonl and line.strip() else line


def first_lines(path: str) -> list[str]:
    """The first lines of a file that are not blank. Raises UserError where there is none."""
    lines = [
        line.decode("utf-8", "replace").strip("\r\n\ufeff")
        for line in islice(FileRange(path, "auto").lines(), _SAMPLE_LINES)
    ]
    full = [line for line in lines if line.strip()]
    if not full:
        raise UserError(f"{path}: is empty; give a file with at least one text")
    return full


def looks_conll(lines: list[str]) -> bool:
    """Whether most of the lines are a token and a tag."""
    columns = [(line.split(), "\t" in line) for line in lines]
    tagged = [len(each) >= 2 and _TAG.match(each[-1]) and (tab or len(each) == 2) for each, tab in columns]
    return 2 * sum(map(bool, tagged)) > len(lines)


def _decode(raw: bytes, place: str) -> str:
    try:
        text = raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise LineError(
            place, f"is not UTF-8 (byte {error.start}: {error.reason}); convert the file to UTF-8"
        ) from None
    if "\x00" in text:
        raise LineError(place, "holds a NUL byte; is it a binary or UTF-16 file? Convert it to UTF-8 text")
    return text


Lines = list[tuple[str, str]]


def _parse_tsv(lines: Lines, tally: SkipCounts) -> LabelledText:
    [(place, line)] = lines
    columns = line.split("\t")
    if len(columns) != 2:
        found = "no tab" if len(columns) == 1 else f"{len(columns) - 1} tabs"
        raise LineError(place, f"{found} in the line; write text<TAB>keyphrase[;keyphrase...] with exactly one tab")
    phrases = tuple(phrase.strip() for phrase in columns[1].split(";") if phrase.strip())
    return LabelledText(_text(columns[0], place), place, keyphrases=phrases)


def _parse_jsonl(lines: Lines, tally: SkipCounts) -> LabelledText:
    [(place, line)] = lines
    record = _json_object(line, place)
    text = _text(record.get("text"), place)
    if "spans" in record:
        return LabelledText(text, place, spans=_spans(record["spans"], text, place))
    phrases = record.get("keyphrases")
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
        raise LineError(place, 'has neither "spans" nor "keyphrases" as a list of strings; add one of them')
    return LabelledText(text, place, keyphrases=tuple(phrase for phrase in phrases if phrase.strip()), every=True)


def _spans(value: Any, text: str, place: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise LineError(place, '"spans" is no list; write [[start, end], ...]')
    for span in value:
        if not (isinstance(span, list) and len(span) == 2 and all(type(offset) is int for offset in span)):
            raise LineError(place, f"span {json.dumps(span)} is no pair of whole numbers; write [start, end]")
        if not 0 <= span[0] < span[1] <= len(text):
            raise LineError(
                place, f"span {span} is out of range: the text has {len(text)} characters, and start must be below end"
            )
    return tuple((start, end) for start, end in value)


def _parse_conll(lines: Lines, tally: SkipCounts) -> LabelledText | None:
    """Tokens are joined by one space, so that every token keeps an exact place in the text."""
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
    return LabelledText(text, lines[0][0], spans=tuple(spans))


def _parse_raw(lines: Lines, tally: SkipCounts) -> LabelledText | None:
    [(place, line)] = lines
    text = _text(_json_object(line, place).get("text"), place) if line.lstrip().startswith("{") else line
    found = hashtags.label_by_hashtag(text)
    if isinstance(found, str):
        tally.add(found, place)
        return None
    text, span = found
    return LabelledText(text, place, spans=(span,))


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(place, f"is not JSON ({error}); write one JSON object per line") from None
    if not isinstance(record, dict):
        raise LineError(place, 'is no JSON object; write {"text": ..., "keyphrases": [...]}')
    return record


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise LineError(place, '"text" is missing or no string; write {"text": ..., "keyphrases": [...]}')
    if not value.strip():
        raise LineError(place, "the text is empty; delete the line or give its text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise LineError(
            place, "the text holds half of a surrogate pair (\\ud800 to \\udfff); repair the escape"
        ) from None
    return value


_PARSERS: dict[str, Callable[[Lines, SkipCounts], LabelledText | None]] = {
    "tsv": _parse_tsv,
    "jsonl": _parse_jsonl,
    "conll": _parse_conll,
    "raw": _parse_raw,
}
