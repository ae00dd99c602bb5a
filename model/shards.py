"""Shards: input files divided into ranges of lines, by their size in bytes alone.

A shard is a list of file ranges of about SHARD_BYTES together. Shards do not depend on the number of workers, so nothing
that is computed shard by shard does either. A range of bytes owns the lines whose first byte is inside it. Where records
are blocks of lines, a range starts after the first blank line at or after its first line, and the range before it
extends to that blank line. A compressed file is a single range.
"""

import hashlib
import io
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

from model import storage
from model.errors import UserError

SHARD_BYTES = 16 * 2**20
_BUFFER_BYTES = 2**20
_COMPRESSION_RATIO = 3  # assumed, to weigh compressed files
_THREADS = 16  # files whose size is looked up at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


class FileRange(NamedTuple):
    """The lines of a file whose first byte is in `start` to `end`, or of a whole file.

    Attributes:
        path: path or URI as the user gave it, for messages.
        format: what a line contains, see model/prepare/formats.py.
        start, end: bytes, half-open; None is the end of the file.
        location: the path in a form that is valid in every working directory.
        blocks: whether records are blocks of lines that a blank line ends, and must not be divided.
    """

    path: str
    format: str
    start: int = 0
    end: int | None = None
    location: str = ""
    blocks: bool = False

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, decompressed. Raises UserError where the file cannot be read."""
        filesystem, path = storage.resolve(self.location or self.path)
        whole = not self.start and self.end is None
        try:
            raw = filesystem.open_input_stream(path) if whole else filesystem.open_input_file(path)
            with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
                yield from stream if whole else self._owned_lines(stream)
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: not found on a machine that has to read it; use a path on a file system that every "
                f"node mounts, or a URI such as s3://bucket/file"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}; is it damaged or incomplete?") from error

    def _owned_lines(self, stream: io.BufferedReader) -> Iterator[bytes]:
        at = self.start
        if self.start:
            stream.seek(self.start - 1)
            at += len(stream.readline()) - 1  # the rest of a line of the previous range
        if self.start and self.blocks:
            blank = -1
            for raw in stream:
                blank, at = at, at + len(raw)
                if not raw.strip():
                    break
            if self.end is not None and blank >= self.end:
                return  # the previous range extends to that blank line, and so covers this range
        for raw in stream:
            beyond = self.end is not None and at >= self.end
            if beyond and not self.blocks:
                return
            yield raw
            at += len(raw)
            if beyond and not raw.strip():
                return


class ParallelMap(Protocol):
    """Applies a function to items, somewhere, and yields the results in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: list[Item], /) -> Generator[Result, None, None]: ...


def serial_map(function: Callable[[Item], Result], items: list[Item]) -> Generator[Result, None, None]:
    """Apply a function to items one after the other, in this process."""
    for item in items:
        yield function(item)


def make_shards(files: list[FileRange], shard_bytes: int = SHARD_BYTES) -> list[list[FileRange]]:
    """Divide whole files into shards, in their order. Raises UserError where a location cannot be used."""
    files = [file._replace(location=storage.absolute(file.path)) for file in files]
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
        yield from zip(files, threads.map(storage.size, [file.path for file in files]), strict=True)


def _ranges(file: FileRange, size: int, shard_bytes: int) -> Iterator[tuple[FileRange, int]]:
    """Yield the ranges of a file, each with its weight in bytes."""
    if storage.is_compressed(file.path):
        yield file, size * _COMPRESSION_RATIO
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
    filesystem, path = storage.resolve(file.location or file.path)
    try:
        with filesystem.open_input_stream(path) as stream:
            while block := stream.read(_BUFFER_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error}; is it damaged or incomplete?") from error
    return size, digest.hexdigest()
