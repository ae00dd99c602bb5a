"""Tables: CSV and TSV files with or without names of columns, Parquet and Arrow files."""

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model import storage
from model.errors import LineError, StorageError, UserError
from model.readers.head import BLANK, decode_line
from model.readers.record_labels import LABEL_FIELDS
from model.readers.records import TEXT_FIELDS
from model.readers.token_tables import Row, TokenColumns, are_tokens, find_token_columns, has_blank_row, token_texts
from model.shards import FileRange

_DELIMITERS = ("\t", ",", ";", "|")
_ANNOUNCED = re.compile(r"""\"?sep=([^"'\w ])\"?""", re.IGNORECASE)  # the first line that Excel reads and writes
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_READ = TEXT_FIELDS | LABEL_FIELDS  # names of columns, in lower case
_PLAIN_TEXTS = ("text", "full_text", "tweet", "content", "title", "abstract")  # a text such as [1] is no list
_BATCH_ROWS = 1024
csv.field_size_limit(2**27)


class Dialect(NamedTuple):
    """How the cells of a table are written, which may stand in double quotes, with line breaks and doubled quotes in them.

    Attributes:
        delimiter: between cells.
        names: of the columns, from the first line; None where the cells are a text and its keyphrases.
        labeled: whether a column holds keyphrases.
        tokens: the columns of a table of a token a row.
        announced: whether a line before all others tells the delimiter.
    """

    delimiter: str
    names: tuple[str, ...] | None
    labeled: bool = True
    tokens: TokenColumns | None = None
    announced: bool = False


def find_dialect(lines: list[str], suffix: str) -> Dialect | None:
    """Return the dialect of a table, or None where the lines are none, or text<TAB>keyphrases without quotes.

    Without names of columns, quotes count only where they hold a doubled quote or a delimiter: a text may begin with one.
    """
    if announced := _ANNOUNCED.fullmatch(lines[0]):
        return _announced_dialect(lines[1:], announced[1])
    for delimiter in _DELIMITERS:
        if dialect := _named_dialect(lines, delimiter):
            return dialect
    if suffix == ".csv":
        for delimiter in (",", ";"):
            if _is_of_two_cells(lines, delimiter):
                return Dialect(delimiter, None)
    return Dialect("\t", None) if _has_quoted_cells(lines) else None


def _announced_dialect(lines: list[str], delimiter: str) -> Dialect | None:
    if not lines or delimiter not in lines[0]:
        return None
    dialect = _named_dialect(lines, delimiter)
    if dialect is None and _is_of_two_cells(lines, delimiter):
        dialect = Dialect(delimiter, None)
    return (dialect or Dialect(delimiter, _names(lines, delimiter), labeled=False))._replace(announced=True)


def _named_dialect(lines: list[str], delimiter: str) -> Dialect | None:
    """Return the dialect of a table whose first line names columns that are known, or None."""
    names = _names(lines, delimiter)
    texts, labels = TEXT_FIELDS.intersection(names), LABEL_FIELDS.intersection(names)
    tokens = find_token_columns(names, _sample(lines[1:], delimiter))
    # Otherwise a name that is there twice is a word of a text; see `require_texts`.
    if len(names) == 1 or (_repeated(names) and not tokens and not (texts and labels)):
        return None
    if tokens:
        return Dialect(delimiter, names, tokens=tokens)
    # A text of one word may be in these tables too, but not as one of several columns with commas.
    known = len(texts | labels) > 1 or (texts and delimiter != "\t")
    if delimiter == "|" and not labels and not all("|" in line for line in lines):
        return None  # a text such as `Title | News`
    return Dialect(delimiter, names, bool(labels)) if known else None


def unknown_columns(lines: list[str], suffix: str) -> tuple[str, ...] | None:
    """Return the cells of the first line of a CSV file that is a table of more than two columns, or None."""
    for delimiter in _DELIMITERS if suffix == ".csv" else ():
        rows = _sample(lines, delimiter)
        if len(rows) > 1 and len(rows[0]) > 2 and all(len(row) == len(rows[0]) for row in rows):
            return tuple(rows[0])
    return None


def _names(lines: list[str], delimiter: str) -> tuple[str, ...]:
    return tuple(name.strip().strip('"').strip().lower() for name in lines[0].split(delimiter))


def _is_of_two_cells(lines: list[str], delimiter: str) -> bool:
    rows = _sample(lines, delimiter)
    return bool(rows) and all(len(row) == 2 for row in rows)


def _sample(lines: list[str], delimiter: str) -> list[list[str]]:
    """Return the cells of lines; none where they are no table."""
    try:
        return list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:  # a carriage return inside a line
        return []


def _repeated(names: Iterable[str]) -> set[str]:
    """Return the names that occur more than once; spreadsheets write empty ones after the last column."""
    return {name for name, count in Counter(names).items() if name and count > 1}


def _require_distinct(names: Iterable[str], place: str, read: Iterable[str] = _READ) -> None:
    """Raise UserError where columns that are read have one name, since only the last would count."""
    if twice := sorted(name for name in _repeated(names) if name.lower() in read):
        raise UserError(f"{place}: has more than one column {twice[0]!r}; rename or delete all but one")


def require_texts(dialect: Dialect, lines: list[str], file: FileRange) -> None:
    """Raise UserError where a table has two columns of one name that is read, or a token a row, and no names of columns, or
    nothing that parts the texts.
    """
    _require_distinct(dialect.names or (), f"{file.path}:1", _READ.union(dialect.tokens[:2] if dialect.tokens else ()))
    remedy = "a column such as sentence_id, whose value changes with each text, or a blank line between texts"
    if dialect.names is None and are_tokens([row for row in _sample(lines, dialect.delimiter) if len(row) == 2]):
        raise UserError(f"{file.path}:1: has a token and its tag a row; add a first line token,tag, and {remedy}")
    if dialect.tokens and not dialect.tokens.parts and not has_blank_row(file.lines()):
        raise UserError(f"{file.path}:1: has a token a row, and nothing that parts the texts; add {remedy}")


def _has_quoted_cells(lines: list[str]) -> bool:
    cells = [line.split("\t")[0] for line in lines if line.startswith('"') and "\t" in line]
    return any('""' in cell[1:-1] for cell in cells) and all(map(_QUOTED.fullmatch, cells))


def table_rows(file: FileRange) -> Iterator[tuple[str, Any]]:
    """Yield `file:line` and the cells of each row, by the names of the columns if there are any, or what is wrong with it.

    Of a table of a token a row, yield `file:line` and the tokens and tags of each text.
    """
    dialect: Dialect = file.layout.options
    return token_texts(_rows(file, dialect), dialect.tokens) if dialect.tokens else _rows(file, dialect)


def _rows(file: FileRange, dialect: Dialect) -> Iterator[tuple[str, Any]]:
    read = 0

    def decoded(raw: bytes) -> str:
        nonlocal read
        read += 1
        return decode_line(raw, f"{file.path}:{read}")

    # A generator would end with the first line that is not UTF-8; `map` goes on.
    reader = csv.reader(map(decoded, file.lines()), delimiter=dialect.delimiter, strict=True)
    heading = dialect.announced + (dialect.names is not None)  # lines before the first row
    while True:
        place = f"{file.path}:{read + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except LineError as error:
            yield error.place, error.problem
        except csv.Error as error:
            yield place, f"is not a row of a table: {error}; mend its quotes"
        else:
            if not any(cell.strip(BLANK) for cell in row):
                if dialect.tokens:
                    yield place, {}
                continue
            if heading <= 0:
                yield place, row if dialect.names is None else _named(dialect.names, row, bool(dialect.tokens))
        heading -= 1


def _named(names: tuple[str, ...], row: list[str], plain: bool) -> Row:
    """Return a row by the names of its columns, or what is wrong with it."""
    if len(row) > len(names):
        return f"has {len(row)} cells, but there are {len(names)} columns; put cells with a delimiter in quotes"
    cells = zip(names, row, strict=False)
    return {name: value if plain or name in _PLAIN_TEXTS else _cell(value) for name, value in cells}


def _cell(value: str) -> Any:
    """Return the content of a cell; a list is written as JSON, or as Python prints it, which is what pandas does."""
    if not value.lstrip().startswith(("[", "{")):
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(value)
    with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        printed = ast.literal_eval(value)
        if repr(printed) == value:  # of ['a' 'b'], which NumPy prints, Python makes ['ab']
            return json.loads(json.dumps(printed))
    return value


def binary_rows(file: FileRange) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:row` and the fields of each row of a Parquet or Arrow file; class labels by their names.

    Raises:
        UserError: the file is damaged.
    """
    number = 0
    try:
        for batch in _batches(file):
            batch.validate(full=True)  # pyarrow reads damaged offsets unchecked
            _require_distinct(batch.schema.names, file.path)
            names = _class_names(batch.schema)
            for row in batch.to_pylist():
                number += 1
                yield f"{file.path}:{number}", {name: _labeled(value, names.get(name)) for name, value in row.items()}
    except StorageError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file.path}: cannot be read: {error}; is it damaged or incomplete?") from None


def _batches(file: FileRange) -> Iterator[pa.RecordBatch]:
    filesystem, path = storage.resolve(file.location or file.path)
    with ExitStack() as opened:
        if file.layout.compression:  # such files are read from any place of them
            stream = pa.BufferReader(opened.enter_context(file.open()).read())
        else:
            stream = opened.enter_context(filesystem.open_input_file(path))
        start = stream.read(6)
        stream.seek(0)
        if start.startswith(b"PAR1"):
            yield from pq.ParquetFile(stream).iter_batches(_BATCH_ROWS)
        elif start == b"ARROW1":
            reader = pa.ipc.open_file(stream)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(stream)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of class labels that the `datasets` library keeps in the schema, by column.

    Raises:
        pa.ArrowInvalid: what it kept is damaged.
    """
    content = (schema.metadata or {}).get(b"huggingface")
    names = {}
    try:
        features = json.loads(content)["info"]["features"] if content else {}
        for column, feature in features.items():
            inner = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
            if isinstance(inner, dict) and inner.get("names"):
                names[column] = list(map(str, inner["names"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise pa.ArrowInvalid(f"its metadata of the datasets library is damaged ({type(error).__name__})") from None
    return names


def _labeled(value: Any, names: list[str] | None) -> Any:
    if names is None or not isinstance(value, list):
        return value
    return [names[each] if isinstance(each, int) and 0 <= each < len(names) else each for each in value]
