"""Shards: input files divided into ranges of lines, by their size in bytes alone.

A shard is a list of file ranges of about SHARD_BYTES together. Shards do not depend on the number of workers, so nothing
that is computed shard by shard does either. A range of bytes owns the lines whose first byte is inside it. Where records
are blocks of lines, a range starts after the first blank line at or after its first line, and the range before it
extends to that blank line. A file whose lines cannot be found from any of its bytes is a single range.
"""

import hashlib
import io
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, Literal, NamedTuple, Protocol, TypeVar

from model import storage
from model.errors import StorageError, UserError

SHARD_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20
_COMPRESSION_RATIO = 3  # assumed, to weigh compressed files
_THREADS = 16  # files whose size is looked up at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


class Layout(NamedTuple):
    """How the bytes of a file become records, decided once from its beginning.

    Attributes:
        format: a key of model.readers.formats.FORMATS, or `text` for unlabeled lines.
        compression: `gzip`, `bz2`, `lz4` or `zstd`.
        encoding: `utf-8` or `utf-16`.
        cr: whether lines end with a carriage return alone.
        blocks: whether records are blocks of lines that a blank line ends, and must not be divided.
        whole: whether the file must be read as a whole, because its records are no lines, or span several.
        offsets: what spans count: `characters`, `utf16` units or `bytes` of UTF-8.
        tag_names: of tags that are numbers, from 0.
        options: what the format has to know besides, see its module.
    """

    format: str = "text"
    compression: str | None = None
    encoding: str = "utf-8"
    cr: bool = False
    blocks: bool = False
    whole: bool = False
    offsets: Literal["characters", "utf16", "bytes"] = "characters"
    tag_names: tuple[str, ...] = ()
    options: Any = None

    @property
    def rewritten(self) -> bool:
        """Return whether the lines are not those of the bytes, but have to be decoded first."""
        return self.encoding != "utf-8" or self.cr


class FileRange(NamedTuple):
    """The lines of a file whose first byte is in `start` to `end`, or of a whole file.

    Attributes:
        path: path or URI as the user gave it, for messages.
        layout: of the whole file.
        start, end: bytes, half-open; None is the end of the file.
        location: where to read it, in a form that is valid in every working directory; "" for `path`.
    """

    path: str
    layout: Layout = Layout()
    start: int = 0
    end: int | None = None
    location: str = ""

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the whole file, decompressed, or at the start of a range. Raises UserError where it cannot be read."""
        filesystem, path = storage.resolve(self.location or self.path)
        whole = not self.start and self.end is None
        try:
            if whole:
                raw = filesystem.open_input_stream(path, compression=self.layout.compression)
            else:
                raw = filesystem.open_input_file(path)
            with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
                yield stream
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: not found on a machine that has to read it; use a path on a file system that every "
                f"node mounts, or a URI such as s3://bucket/file"
            ) from None
        except StorageError:
            raise
        except (OSError, EOFError) as error:
            raise UserError(f"{self.path}: cannot be read: {error}; is it damaged or incomplete?") from error

    def lines(self) -> Iterator[bytes]:
        """Yield the lines as UTF-8, decompressed. Raises UserError where the file cannot be read."""
        with self.open() as stream:
            if self.layout.rewritten:
                yield from decoded_lines(stream, self.layout.encoding, self.path)
            elif not self.start and self.end is None:
                yield from stream
            else:
                yield from self._owned_lines(stream)

    def _owned_lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        at = self.start
        if self.start:
            stream.seek(self.start - 1)
            at += len(stream.readline()) - 1  # the rest of a line of the previous range
        if self.start and self.layout.blocks:
            blank = -1
            for raw in stream:
                blank, at = at, at + len(raw)
                if not raw.strip():
                    break
            if self.end is not None and blank >= self.end:
                return  # the previous range extends to that blank line, and so covers this range
        for raw in stream:
            beyond = self.end is not None and at >= self.end
            if beyond and not self.layout.blocks:
                return
            yield raw
            at += len(raw)
            if beyond and not raw.strip():
                return


def decoded_lines(stream: IO[bytes], encoding: str, path: str) -> Iterator[bytes]:
    """Yield the lines of a stream as UTF-8, whatever ends them. Raises UserError where it is not in that encoding."""
    # What is not UTF-8 passes, so that the line that contains it is named.
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    try:
        with io.TextIOWrapper(stream, encoding, errors) as text:
            for line in text:
                yield line.encode("utf-8", "surrogateescape")
    except UnicodeError as error:
        raise UserError(f"{path}: is damaged {encoding.upper()}: {error}; convert the file to UTF-8") from None


class ParallelMap(Protocol):
    """Applies a function to items, somewhere, and yields the results in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: list[Item], /) -> Generator[Result, None, None]: ...


def serial_map(function: Callable[[Item], Result], items: list[Item]) -> Generator[Result, None, None]:
    """Apply a function to items one after the other, in this process."""
    for item in items:
        yield function(item)


def make_shards(files: list[FileRange], shard_bytes: int = SHARD_BYTES) -> list[list[FileRange]]:
    """Divide whole files into shards, in their order. Raises UserError where a location cannot be used."""
    files = [file._replace(location=storage.absolute(file.location or file.path)) for file in files]
    shards: list[list[FileRange]] = []
    room = 0
    for file, size in _with_sizes(files):
        for file_range, weight in _ranges(file, size, shard_bytes):
            if not shards or weight > room:
                shards.append([])
                room = shard_bytes
            shards[-1].append(file_range)
            room -= weight
    return shards


def _with_sizes(files: list[FileRange]) -> Iterator[tuple[FileRange, int]]:
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from zip(files, threads.map(storage.size, [file.location for file in files]), strict=True)


def _ranges(file: FileRange, size: int, shard_bytes: int) -> Iterator[tuple[FileRange, int]]:
    """Yield the ranges of a file, each with its weight in bytes."""
    layout = file.layout
    if layout.compression or layout.whole or layout.rewritten:
        yield file, size * (_COMPRESSION_RATIO if layout.compression else 1)
        return
    for start in range(0, max(size, 1), shard_bytes):
        end = start + shard_bytes if start + shard_bytes < size else None
        yield file._replace(start=start, end=end), min(shard_bytes, size - start)


def checksum(file: FileRange) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of the decompressed content of the whole file.

    Raises:
        UserError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with file._replace(start=0, end=None).open() as stream:
        while block := stream.read(_BUFFER_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
