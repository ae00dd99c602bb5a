"""The beginning of a file: what holds for every format, and what a format is recognized by."""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from model import storage
from model.errors import LineError, UserError
from model.shards import FileRange, Layout

_SAMPLE_LINES = 200
BLANK = " \t\x1a"  # what a blank line may hold; the last sign ended files of DOS
_SAMPLE_BYTES = 2**16
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"(\xb5/\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
# What people have instead of a text file, by its first bytes, and what to do.
_REFUSED = {
    b"\xd0\xcf\x11\xe0": "is an old office document; save it as CSV UTF-8, and give that file",
    b"%PDF": "is a PDF; give its text in a file, one text per line",
    b"\xfd7zXZ": "is compressed with xz; unpack it with unxz, and give that file",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and give its files",
    b"Rar!": "is a RAR archive; unpack it, and give its files",
    b"SQLite format 3": "is a database; export its table as CSV, and give that file",
    b"\x89HDF": "is an HDF5 file; export its table as CSV or Parquet, and give that file",
    b"\x80\x04": "is a pickle, which can run code when it is read; save the data as Parquet or JSON lines",
    b"\x80\x05": "is a pickle, which can run code when it is read; save the data as Parquet or JSON lines",
}
_ZIPPED = {
    b"xl/": "is an Excel workbook; save the sheet as CSV UTF-8, and give that file",
    b"word/": "is a Word document; save it as plain text in UTF-8, and give that file",
    b"opendocument": "is an office document; save it as CSV UTF-8, and give that file",
}


class Head(NamedTuple):
    """The beginning of a file.

    Attributes:
        path: path or URI as the user gave it.
        content: first bytes, decompressed.
        lines: the lines that are not blank among the first ones, without their ends.
        layout: what was found out without knowing the format.
        location: where the file is read, see `FileRange`.
    """

    path: str
    content: bytes
    lines: list[str]
    layout: Layout
    location: str = ""


def read_head(path: str, may_be_empty: bool = False) -> Head:
    """Read the beginning of a file.

    Raises:
        UserError: the file is missing, of a kind that is never read, or empty, unless it may be.
    """
    location = _copied(path) if storage.is_pipe(path) else ""
    layout = Layout()
    content = _first_bytes(path, layout, location)
    if compression := next((name for mark, name in _COMPRESSIONS.items() if content.startswith(mark)), None):
        layout = layout._replace(compression=compression)
        content = _first_bytes(path, layout, location)
    _refuse(path, content)
    # In a stream, where texts are typed, one may begin so.
    if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{path}: is an HTML page; download the file that it shows, or give its text, one text per line"
        )
    layout = _text_layout(content, layout)
    lines = [] if is_binary_table(content) else _first_lines(FileRange(path, layout, location=location))
    if not lines and not is_binary_table(content) and not may_be_empty:
        raise UserError(f"{path}: is empty; give a file with at least one text")
    return Head(path, content, lines, layout, location)


def _first_lines(file: FileRange) -> list[str]:
    """Return the first lines that are not blank."""
    lines = (line.decode("utf-8", "replace").strip("\r\n\ufeff") for line in file.lines())
    return list(islice((line for line in lines if line.strip(BLANK)), _SAMPLE_LINES))


def stream_layout(content: bytes, name: str) -> Layout:
    """Return the layout of a stream by its first bytes. Raises UserError where it is no text."""
    _refuse(name, content)
    if packed := next((packed for mark, packed in _COMPRESSIONS.items() if content.startswith(mark)), None):
        raise UserError(f"{name}: is compressed with {packed}; unpack it first, or give the file by its name")
    if is_binary_table(content):
        raise UserError(f"{name}: is a Parquet or Arrow file, which is no stream of lines; give the file by its name")
    return _text_layout(content, Layout())


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


def decode_file(content: bytes, path: str) -> str:
    """Return the content of a whole file as text, with its line ends as they are. Raises LineError where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LineError(f"{path}:{line}", f"is not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def is_binary_table(content: bytes) -> bool:
    """Return whether the bytes begin a Parquet file, an Arrow file or an Arrow stream."""
    return content.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"))


def _text_layout(content: bytes, layout: Layout) -> Layout:
    if content.startswith(_UTF16_MARKS):
        return layout._replace(encoding="utf-16")
    return layout._replace(cr=b"\r" in content and b"\n" not in content)


def _first_bytes(path: str, layout: Layout, location: str) -> bytes:
    with FileRange(path, layout, location=location).open() as stream:
        return stream.read(_SAMPLE_BYTES)


def _refuse(path: str, content: bytes) -> None:
    if content.startswith(b"PK\x03\x04"):
        found = next((what for mark, what in _ZIPPED.items() if mark in content), None)
        raise UserError(f"{path}: {found or 'is a ZIP archive; unpack it, and give its files'}")
    if content[257:262] == b"ustar":
        raise UserError(f"{path}: is a tar archive; unpack it, and give its files")
    for mark, what in _REFUSED.items():
        if content.startswith(mark):
            raise UserError(f"{path}: {what}")


def _copied(path: str) -> str:
    """Copy a pipe, which can be read only once, to a file that ends with this process; return its path."""
    handle, copy = tempfile.mkstemp(prefix="tandem-pipe-")
    atexit.register(_delete, copy)
    with os.fdopen(handle, "wb") as file, Path(path).open("rb") as pipe:
        shutil.copyfileobj(pipe, file)
    return copy


def _delete(path: str) -> None:
    with suppress(FileNotFoundError):
        Path(path).unlink()
