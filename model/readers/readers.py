"""Readers: the texts of input files, labeled or not, see model/readers/formats.py for the formats."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import chain, islice, repeat
from typing import Any, BinaryIO, NamedTuple

from model import storage
from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, UserError
from model.readers import documents
from model.readers.conll import is_tag
from model.readers.formats import FORMATS, binary_layout, csv_layout, json_layout
from model.readers.head import BLANK, Head, decode_line, is_binary_table, read_head, stream_layout
from model.readers.options import AUTO, ReadOptions
from model.readers.records import KNOWN
from model.shards import FileRange, Layout, decoded_lines

_OPEN_FILES = 16  # whose beginnings are read at a time
_SPLIT = re.compile("(?:train|validation|valid|val|dev|test)(?![a-z])")  # begins the name of a file
_OUR_SPLIT = {"train": "train", "test": "test"}  # all others are validation splits
_TABS = "tabs"  # option of unlabeled lines that have them


class TextStream(NamedTuple):
    """A stream in place of a file; `lines` can be called once."""

    path: str
    layout: Layout
    content: Iterator[bytes]

    def lines(self) -> Iterator[bytes]:
        """Yield the lines as UTF-8."""
        return self.content


class Reader:
    """Reads the texts of one range of a file, or of a stream.

    Attributes:
        lines: number of lines, or of records where these are no lines; known once all texts are read.
    """

    def __init__(self, file_range: FileRange | TextStream, skip_bad_lines: bool = False) -> None:
        """Read a range; with `skip_bad_lines`, count lines that cannot be used instead of raising LineError."""
        self.file_range = file_range
        self.skip_bad_lines = skip_bad_lines
        self.lines = 0

    def read(self, skips: SkipCounts) -> Iterator[LabeledText]:
        """Yield the labeled texts in file order, with line numbers counted from 1 at the start of the range.

        Raises:
            LineError: a line cannot be used.
        """
        parse = FORMATS[self.file_range.layout.format].parse
        for labeled in self._parsed(self._records(), parse, skips):
            if labeled is not None:
                yield labeled

    def texts(self, skips: SkipCounts) -> Iterator[str]:
        """Yield the texts without their labels, in file order; a blank line is an empty text.

        Raises:
            LineError: a line cannot be used.
        """
        layout = self.file_range.layout
        if layout.blocks:
            yield from (labeled.text for labeled in self.read(skips))
            return
        text_of = FORMATS[layout.format].text if layout.format in FORMATS else None

        def parse(record: Any, place: str, *_: object) -> str:
            # A blank line is an empty text; of another record, {} for example, it may be told that there is none.
            return text_of(record, place) if text_of and (layout.whole or record.strip(BLANK)) else record

        yield from self._parsed(self._records() if layout.whole else self._lines(), parse, skips)

    def _parsed(
        self, records: Iterator[tuple[str, Any]], parse: Callable[..., Any], skips: SkipCounts
    ) -> Iterator[Any]:
        """Yield what `parse` returns for each record, see `Format.parse`. Count or raise what cannot be used."""
        layout = self.file_range.layout
        for place, value in records:
            try:
                parsed = parse(_decoded(value, place, layout), place, layout, skips)
            except LineError as error:
                if not self.skip_bad_lines:
                    raise
                skips.add(f"bad line: {error.problem}", error.place)
                continue
            yield parsed

    def _records(self) -> Iterator[tuple[str, Any]]:
        """Yield the place and the value of each record that is not blank."""
        layout = self.file_range.layout
        if layout.whole:
            records = FORMATS[layout.format].records
            assert records is not None
            for record in records(self.file_range):
                self.lines += 1
                yield record
        elif layout.blocks:
            yield from self._blocks()
        else:
            for place, line in self._lines():
                if _has_content(line):
                    yield place, line

    def _blocks(self) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        """Yield the lines of each block that a blank line ends, and the place of the first."""
        block: list[tuple[str, bytes]] = []
        for place, line in self._lines():
            if _has_content(line):
                block.append((place, line))
            elif block:
                yield block[0][0], block
                block = []
        if block:
            yield block[0][0], block

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        path, number = self.file_range.path, 0
        for number, raw in enumerate(self.file_range.lines(), 1):
            yield f"{path}:{number}", raw.rstrip(b"\r\n")
        self.lines = number


def stream_texts(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the texts of a stream, one per line or JSON object, or of one JSON array; a blank line is an empty text.

    Raises:
        UserError: the stream is no text.
        LineError: a line is not UTF-8, or a record has no text.
    """
    start = stream.readline()
    if not start:
        return
    layout = stream_layout(start, name)
    lines: Iterator[bytes] = chain([start], stream)
    if layout.rewritten:  # what ends a line may not be what ends `start`
        lines = decoded_lines(BytesIO(start + stream.read()), layout.encoding, name)
    blank_lines = 0
    for first in lines:
        line = first.decode("utf-8", "replace").strip("\r\n\ufeff")
        if line.strip(BLANK):
            break
        yield line  # at once, because the next line may take long
        blank_lines += 1
    else:
        return
    layout = json_layout(Head(name, first, [line], layout), "jsonl") or layout
    content = chain(repeat(b"\n", blank_lines), [first], lines)  # with blank lines, so that messages count them
    texts = Reader(TextStream(name, layout, content)).texts(SkipCounts())
    yield from texts if layout.whole else islice(texts, blank_lines, None)


def _has_content(line: bytes) -> bool:
    """Return whether a line is not blank; the first one may have a byte order mark."""
    return bool(line.removeprefix(b"\xef\xbb\xbf").strip(BLANK.encode()))


def _decoded(value: Any, place: str, layout: Layout) -> Any:
    """Return the lines of a record as text. Raises LineError."""
    if layout.whole:
        return value
    if layout.blocks:
        return [(each, decode_line(raw, each)) for each, raw in value]
    return decode_line(value, place)


def resolve_inputs(patterns: list[str], options: ReadOptions = AUTO) -> list[FileRange]:
    """Return the labeled files that paths, URIs, globs and directories match, with their layouts.

    Args:
        patterns: at least one. A directory stands for the pairs of files in it, or for its Parquet or Arrow files.
        options: what their content does not tell.

    Raises:
        UserError: a file is missing, empty or of no known format, the files differ in format, a directory holds several
            splits, or an option is wrong.
    """
    if options.format != "auto" and options.format not in FORMATS:
        raise UserError(f"format {options.format!r} is unknown; choose one of {', '.join(['auto', *FORMATS])}")
    if unknown := [name for name in options.tag_names if not is_tag(name)]:
        raise UserError(
            f"--tag-names: {unknown[0]!r} is no tag; write O, or B, I, E, S alone or as B-type, from number 0 on"
        )

    def layout_of(head: Head) -> Layout:
        return detect_layout(head, options)._replace(offsets=options.offsets, tag_names=options.tag_names)

    files = _files(patterns, read_head, layout_of)
    plain = {file.path for file in files}
    for pattern in patterns:
        if pattern not in plain:  # a glob or a directory
            _require_one_split(pattern)
    if len({file.layout.format for file in files}) > 1:
        listed = ", ".join(f"{file.path} is {file.layout.format}" for file in files[:10])
        raise UserError(f"the input files differ in format: {listed}; prepare them separately, or set --format")
    if (options.token_column or options.tag_column) and files[0].layout.format != "conll":
        raise UserError(
            f"--token-column and --tag-column: are of CoNLL files, and {files[0].path} is {files[0].layout.format}; leave them "
            f"out"
        )
    if options.tag_names and not FORMATS[files[0].layout.format].tag_names:
        raise UserError(
            f"--tag-names: is for formats with tags, and {files[0].path} is {files[0].layout.format}; leave it out"
        )
    return files


def unlabeled_inputs(patterns: list[str], may_be_empty: bool = False) -> list[FileRange]:
    """Return the files that paths, URIs, globs and directories match, to be read without labels.

    Their format is that of their records, or `text` for lines.

    Raises:
        UserError: a file is missing, of a kind that is never read, or empty, unless it may be.
    """
    return _files(patterns, partial(read_head, may_be_empty=may_be_empty), unlabeled_layout)


def _files(patterns: list[str], read: Callable[[str], Head], layout_of: Callable[[Head], Layout]) -> list[FileRange]:
    paths = [path for pattern in patterns for path in _expand(pattern)]
    with ThreadPoolExecutor(_OPEN_FILES) as threads:  # remote files are mostly waited for
        heads = list(threads.map(read, paths))
    return [FileRange(head.path, layout_of(head), location=head.location) for head in heads]


def _expand(pattern: str) -> list[str]:
    """Return the files of a path, URI, glob or directory; of `-`, standard input. Raises UserError where there are none."""
    if pattern == "-":
        return ["/dev/stdin"]
    if storage.file_type(pattern).name != "Directory":
        return storage.expand(pattern)
    return labeled_files(pattern) or storage.expand(pattern)


def files_by_split(directory: str) -> dict[str, list[str]]:
    """Return what a directory of collections, or its folder `data`, holds of train, valid and test: files, or folders of them.

    Empty where the location is no directory, or holds no training split, or no other.
    """
    if not directory or storage.file_type(directory).name != "Directory":
        return {}
    for folder in (directory, storage.join(directory, "data")):
        found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
        for name in _labeled_names(folder) or storage.list_directory(folder):
            if split := _SPLIT.match(name):
                found[_OUR_SPLIT.get(split[0], "valid")].append(storage.join(folder, name))
        if found["train"] and (found["valid"] or found["test"]):
            return found
    return {}


def _require_one_split(pattern: str) -> None:
    """Raise UserError where a directory holds files of several splits, which would be read as one."""
    if storage.file_type(pattern).name != "Directory":
        return
    splits = sorted({split[0] for name in _labeled_names(pattern) if (split := _SPLIT.match(name))})
    if len(splits) > 1:
        example = storage.join(pattern, f"{splits[0]}*")
        raise UserError(f"{pattern}: holds several splits ({', '.join(splits)}); name the files of one, as {example}")


def labeled_files(directory: str) -> list[str]:
    """Return the files of a directory that can only be labeled ones: pairs of files, else tables, else DocBins."""
    return [storage.join(directory, name) for name in _labeled_names(directory)]


def left_out(patterns: list[str]) -> list[str]:
    """Return a line for each directory of pairs of files with texts that are not read, as their keyphrases are missing."""
    lines = []
    for directory in (pattern for pattern in patterns if storage.file_type(pattern).name == "Directory"):
        read = set(_labeled_names(directory))
        suffixes = tuple(suffix for suffix in documents.PAIRS if any(name.endswith(suffix) for name in read))
        alone = [name for name in storage.list_directory(directory) if name.endswith(suffixes) and name not in read]
        if alone:
            lines.append(f"{directory}: {len(alone):,} texts without keyphrases are left out, such as {alone[0]}")
    return lines


def _labeled_names(directory: str) -> list[str]:
    # `datasets` keeps what map and filter have returned beside its data.
    names = [name for name in storage.list_directory(directory) if not name.startswith("cache-")]
    known = set(names)
    pairs = [name for name in names if not known.isdisjoint(documents.possible_companions(name))]
    tables = ([name for name in names if name.endswith(suffix)] for suffix in (".parquet", ".arrow", ".spacy"))
    return next(filter(None, (pairs, *tables)), [])


def detect_layout(head: Head, options: ReadOptions = AUTO) -> Layout:
    """Return the layout of a labeled file.

    Raises:
        UserError: it looks like none of the formats, or its records hold no keyphrases.
    """
    if options.format != "auto":
        format = FORMATS[options.format]
        if is_binary_table(head.content) and options.format not in ("parquet", "arrow"):
            raise UserError(f"{head.path}: is a Parquet or Arrow file, not {options.format}; leave --format out")
        return format.detect(head, options) or head.layout._replace(
            format=options.format, whole=format.records is not None
        )
    for format in FORMATS.values():
        if layout := format.detect(head, options):
            return layout
    for line in head.lines[:1]:
        decode_line(line.encode(), f"{head.path}:1")  # which tells of NUL bytes, as UTF-16 without its mark has
    raise UserError(
        f"{head.path}:1: looks like none of the formats; write a text, a tab and keyphrase;keyphrase, or {KNOWN}, one per "
        f"line, or set --format ({', '.join(FORMATS)})"
    )


def unlabeled_layout(head: Head) -> Layout:
    """Return how to read the texts of a file without their labels."""
    if layout := json_layout(head, "jsonl") or binary_layout(head):
        return layout
    for name in ("docbin", "brat", "webanno", "conll"):
        if layout := FORMATS[name].detect(head, AUTO):
            return layout
    if (layout := csv_layout(head)) and (layout.options.names or layout.options.announced):
        return layout
    tabs = head.lines and FORMATS["tsv"].detect(head, AUTO)
    return head.layout._replace(options=_TABS if tabs else None)


def reading_notes(files: list[FileRange]) -> list[str]:
    """Return what may surprise in how unlabeled files are read: a line each, with the first file of which it is true."""
    paths: dict[str, list[str]] = {}
    for file in files:
        if surprise := _surprise(file.layout):
            paths.setdefault(surprise, []).append(file.path)
    more = {surprise: f" and {len(own) - 1:,} more" if len(own) > 1 else "" for surprise, own in paths.items()}
    return [f"{own[0]}{more[surprise]}: {surprise}" for surprise, own in paths.items()]


def _surprise(layout: Layout) -> str | None:
    if layout.format in ("jsonl", "text"):
        surprise = "looks like text<TAB>keyphrases, but each line is read whole, as a text"
        return surprise if layout.options == _TABS else None
    return f"is read as {layout.format}, without its labels"
