"""The formats of labeled files. A new format is one record in FORMATS; everything else reads that table.

Files are UTF-8, or UTF-16 with its mark; what gzip, bzip2, lz4 and zstd have compressed is decompressed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import Any

from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, UserError
from model.readers import conll, documents, json_files, records, tables
from model.readers.head import Head, decode_file, is_binary_table
from model.readers.options import SUMMARIES, ReadOptions
from model.readers.record_labels import LABEL_FIELDS, phrases_of
from model.shards import FileRange, Layout

_SAMPLE_RECORDS = 200
_TWEETS = "tweets"  # option of rows without labels
_PLAIN = "plain"  # option of raw tweets that do not begin with JSON: a line that begins as JSON does may be a tweet


@dataclass(frozen=True)
class Format:
    """How one format is recognized and read.

    Attributes:
        name: its name for `--format` and in dataset.json, a key of SUMMARIES.
        detect: returns the layout of a file that has this format by its beginning, else None.
        parse: turns a record into a text, or None where it skips the record, which it may count. It gets the record, a line
            or a block of lines with their places, or whatever `records` yields; its place; and the layout. It raises
            LineError.
        records: yields the place and the value of each record of a file, where these are neither lines nor blocks.
        text: returns the text of a record alone, where it is not the whole line.
        tag_names: whether it reads tags that are numbers by `ReadOptions.tag_names`.
    """

    name: str
    detect: Callable[[Head, ReadOptions], Layout | None]
    parse: Callable[[Any, str, Layout, SkipCounts], LabeledText | None]
    records: Callable[[Any], Iterator[tuple[str, Any]]] | None = None
    text: Callable[[Any, str], str] | None = None
    tag_names: bool = False


def json_layout(head: Head, format: str) -> Layout | None:
    """Return the layout of JSON lines, or of a file that is one JSON value; None for anything else."""
    if not head.lines or not json_files.is_json(head.lines):
        return None
    return head.layout._replace(format=format, whole=json_files.is_one_value(head.lines))


def json_sample(head: Head, layout: Layout) -> list[Any]:
    """Return some records from the beginning of a JSON file; none where they cannot be parsed."""
    sample = []
    try:
        if layout.whole:
            file = FileRange(head.path, layout, location=head.location)
            sample = [value for _, value in islice(_json_file(file), _SAMPLE_RECORDS)]
        else:
            sample = [json_files.parse_json(line, head.path) for line in head.lines if json_files.is_json_line(line)]
    except UserError:
        pass  # reading the file tells what is wrong with it, and where
    return sample


def _detect_json(head: Head, options: ReadOptions) -> Layout | None:
    """Return the layout of labeled records, or, where a file has no labels, of tweets. Raises UserError for neither."""
    layout = json_layout(head, "jsonl")
    if options.format != "auto":
        return layout or head.layout._replace(format="jsonl")
    return layout._replace(format="raw") if layout and _are_tweets(json_sample(head, layout), head.path) else layout


def _are_tweets(sample: list[Any], path: str) -> bool:
    """Return whether records without labels have hashtags. Raises UserError where they have neither."""
    if not sample or any(map(records.is_labeled, sample)):
        return False
    named = set[str]().union(*map(records.keyphrase_fields, sample))
    if named & LABEL_FIELDS:  # which are null so far
        return False
    if named or not any(map(_has_hashtag, sample)):
        raise records.unusable_fields(sample[0], path)
    return True


def _detect_raw(head: Head, options: ReadOptions) -> Layout | None:
    plain = head.layout._replace(format="raw", options=_PLAIN)
    if options.format == "raw":
        return json_layout(head, "raw") or plain
    return plain if any("#" in line or "＃" in line for line in head.lines) else None


def _has_hashtag(value: object) -> bool:
    try:
        return not {"#", "＃"}.isdisjoint(records.text_of_record(value, ""))
    except LineError:
        return False


def _json_file(file: FileRange) -> Iterator[tuple[str, Any]]:
    return json_files.json_items(decode_file(b"".join(file.lines()), file.path), file.path)


def _value(record: Any, place: str) -> Any:
    return json_files.parse_json(record, place) if isinstance(record, str) else record


def _parse_json(record: Any, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    return records.parse_record(_value(record, place), place, layout, skips)


def _text_of_json(value: Any, place: str) -> str:
    return records.text_of_record(_value(value, place), place)


def _detect_conll(head: Head, options: ReadOptions) -> Layout | None:
    if not head.lines or (options.format == "auto" and json_files.is_json(head.lines)):
        return None
    if options.format == "auto" and not head.lines[0].startswith("#"):  # as a comment does
        table = tables.find_dialect(head.lines, "")
        if table and table.tokens:
            return None
    columns = conll.find_columns(head.lines, options.token_column, options.tag_column, options.tag_names)
    if columns is None and options.format == "auto":
        return None
    if columns is None:
        columns = conll.Columns(tabs=any("\t" in line for line in head.lines), names=options.tag_names)
    return head.layout._replace(format="conll", blocks=True, options=columns)


def _parse_conll(record: conll.Lines, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    return conll.parse_block(record, layout.options)


def _detect_webanno(head: Head, options: ReadOptions) -> Layout | None:
    if not any(line.startswith(documents.WEBANNO) for line in head.lines[:3]):
        if options.format == "auto":
            return None
        raise UserError(
            f"{head.path}: does not begin with {documents.WEBANNO}; leave --format out to detect the format"
        )
    return head.layout._replace(format="webanno", blocks=True, options=documents.span_columns(head.lines))


def _parse_webanno(record: conll.Lines, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    return documents.parse_webanno(record, layout.options, skips)


def _suffix(head: Head) -> str:
    """Return the suffix of a file in lower case, without that of its compression."""
    name = PurePath(head.path.partition("?")[0].lower())
    return PurePath(name.stem).suffix if head.layout.compression and name.stem.endswith(".csv") else name.suffix


def csv_layout(head: Head) -> Layout | None:
    """Return the layout of a table with names of columns or quotes; None for anything else.

    Raises:
        UserError: it has a token a row, and no names of columns, or nothing that parts the texts.
    """
    if not head.lines or json_files.is_json(head.lines):
        return None
    dialect = tables.find_dialect(head.lines, _suffix(head))
    if dialect is None:
        return None
    tables.require_texts(dialect, head.lines, FileRange(head.path, head.layout, location=head.location))
    return head.layout._replace(format="csv", whole=True, options=dialect)


def _detect_csv(head: Head, options: ReadOptions) -> Layout | None:
    layout = csv_layout(head)
    if layout is None and options.format == "csv":
        delimiter = max(",;\t|", key=head.lines[0].count)
        return head.layout._replace(format="csv", whole=True, options=tables.Dialect(delimiter, None))
    if layout is None and (unknown := tables.unknown_columns(head.lines, _suffix(head))):
        raise records.unusable_fields(dict.fromkeys(unknown), head.path)
    if layout and not layout.options.labeled:
        names = layout.options.names
        if records.keyphrase_names(names) or "#" not in "".join(head.lines[1:]):
            raise records.unusable_fields(dict.fromkeys(names), head.path)
    return layout


def _parse_row(record: Any, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    match record:
        case str():
            raise LineError(place, record)
        case dict() if layout.options.labeled:
            return records.parse_record(record, place, layout, skips)
        case dict():
            return records.parse_tweet(record, place, skips)
    return _parse_cells(record, place, skips)


def _text_of_row(value: Any, place: str) -> str:
    match value:
        case str():
            raise LineError(place, value)
        case dict():
            return records.text_of_record(value, place)
    return str(value[0])


def _detect_tsv(head: Head, options: ReadOptions) -> Layout | None:
    if options.format == "auto" and (
        json_files.is_json(head.lines) or 2 * sum("\t" in line for line in head.lines) < len(head.lines)
    ):
        return None
    return head.layout._replace(format="tsv")


def _parse_tsv(record: str, place: str, layout: Layout, skips: SkipCounts) -> LabeledText:
    return _parse_cells(record.split("\t"), place, skips)


def _parse_cells(cells: list[str], place: str, skips: SkipCounts) -> LabeledText:
    """Read a text and its keyphrases, separated by semicolons."""
    text = records.checked_text(cells[0], place)
    if len(cells) == 1:
        skips.add("line without a tab, read as a text without keyphrases", place)
        return LabeledText(text, place)
    if len(cells) != 2:
        problem = f"{len(cells) - 1} tabs in the line; write text<TAB>keyphrase[;keyphrase...] with exactly one tab"
        raise LineError(place, f"{problem}, or name the columns in the first line")
    return LabeledText(text, place, keyphrases=phrases_of(cells[1], text))


def _parse_raw(record: Any, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    is_plain = isinstance(record, str) and (
        not json_files.is_json([record]) or (layout.options == _PLAIN and not json_files.is_json_line(record))
    )
    if is_plain:
        return records.label_tweet(records.checked_text(record, place), place, skips)
    return records.parse_tweet(_value(record, place), place, skips)


def binary_layout(head: Head) -> Layout | None:
    """Return the layout of a Parquet or Arrow file; None for anything else."""
    if not is_binary_table(head.content):
        return None
    return head.layout._replace(format="parquet" if head.content.startswith(b"PAR1") else "arrow", whole=True)


def _detect_binary(head: Head, options: ReadOptions) -> Layout | None:
    layout = binary_layout(head)
    if layout is None or options.format != "auto":
        return layout
    rows = tables.binary_rows(FileRange(head.path, layout, location=head.location))
    sample = [value for _, value in islice(rows, _SAMPLE_RECORDS)]
    return layout._replace(options=_TWEETS) if _are_tweets(sample, head.path) else layout


def _parse_binary(record: Any, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    if layout.options == _TWEETS:
        return records.parse_tweet(record, place, skips)
    return records.parse_record(record, place, layout, skips)


def _detect_pair(head: Head, options: ReadOptions) -> Layout | None:
    beside = documents.companion(head.location or head.path)
    if beside is None:
        return None
    name = "brat" if beside.partition("?")[0].endswith(".ann") else "keyfiles"
    return head.layout._replace(format=name, whole=True)


def _parse_pair(record: tuple[str, str, str], place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    return documents.parse_pair(record, place, layout.offsets, skips)


def _detect_docbin(head: Head, options: ReadOptions) -> Layout | None:
    is_docbin = head.path.partition("?")[0].endswith(".spacy")
    return head.layout._replace(format="docbin", whole=True) if is_docbin else None


# In the order in which they are tried: the first that detects its own layout is the format of a file.
FORMATS = {
    format.name: format
    for format in (
        Format("parquet", _detect_binary, _parse_binary, tables.binary_rows, records.text_of_record, tag_names=True),
        Format("arrow", lambda *_: None, _parse_binary, tables.binary_rows, records.text_of_record, tag_names=True),
        Format(
            "docbin",
            _detect_docbin,
            lambda record, *_: record,
            documents.doc_bin,
            lambda value, place: value.text,
        ),
        # Entities of brat are characters of the text.
        Format("brat", _detect_pair, _parse_pair, documents.pair, lambda value, place: value[0]),
        Format(
            "keyfiles",
            lambda *_: None,
            _parse_pair,
            documents.pair,
            lambda value, place: value[0],
        ),
        Format("webanno", _detect_webanno, _parse_webanno),
        # Lists of keyphrases mark every occurrence; spans are characters, half-open, and take precedence.
        Format("jsonl", _detect_json, _parse_json, _json_file, _text_of_json, tag_names=True),
        # BIO, BIOES, BILOU or BMES tags, with or without a type (`B-person`).
        Format("conll", _detect_conll, _parse_conll, tag_names=True),
        # The first occurrence of each keyphrase is marked.
        Format(
            "csv",
            _detect_csv,
            _parse_row,
            tables.table_rows,
            _text_of_row,
            tag_names=True,
        ),
        Format("tsv", _detect_tsv, _parse_tsv),
        # Labeled by their hashtag, see model/readers/hashtags.py.
        Format(
            "raw",
            _detect_raw,
            _parse_raw,
            _json_file,
            _text_of_json,
        ),
    )
}


def describe(layout: Layout) -> str:
    """Return what a file is taken for, in words."""
    parts = [f"{layout.format} ({SUMMARIES[layout.format]})"]
    match layout.options:
        case conll.Columns() as columns:
            separator = "tabs" if columns.tabs else "blanks"
            parts.append(
                f"token in column {columns.token + 1}, tag in column {columns.tag + 1}, separated by {separator}"
            )
        case tables.Dialect(tokens=tuple((token, tag, between))):
            parts.append(
                f"token in column {token}, tag in column {tag}, texts parted by {', '.join(between) or 'blank rows'}"
            )
        case tables.Dialect(names=tuple(names), labeled=labeled):
            parts.append(f"columns {', '.join(names)}{'' if labeled else ', labeled by the hashtag'}")
    if layout.options == _TWEETS:
        parts.append("labeled by the hashtag")
    if layout.encoding != "utf-8":
        parts.append(layout.encoding.upper())
    if layout.compression:
        parts.append(layout.compression)
    return "; ".join(parts)
