"""Pieces: how the lines of input files are shared out, by the bytes of the input alone.

A piece is a list of ranges of files, about PIECE bytes together. It does not depend on how many workers there are, and
so neither does anything that is made from it. A range of bytes owns the lines whose first byte lies in it. Where texts
are blocks of lines, a range begins after the first blank line at or after its first line, and the range before it reads
on to that blank line. A compressed file is one range.
"""

import hashlib
import io
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from model import storage
from model.errors import UserError

SHARD_BYTES = 16 * 2**20  # bytes
_BUFFER = 2**20
_UNPACKED = 3  # how many times its size a compressed file has about, unpacked
_AT_ONCE = 16  # files that are asked for their size or their first lines at once


class FileRange(NamedTuple):
    """The lines of a file whose first byte lies in `start` to `end`, or of a whole file.

    Attributes:
        path: path or URI, as it was given and is told.
        format: what stands in a line, see model/prepare/readers.py.
        start, end: bytes, half-open; None is the end of the file.
        location: the path in the form that means the same in every working directory.
    """

    path: str
    format: str
    start: int = 0
    end: int | None = None
    location: str = ""

    def lines(self) -> Iterator[bytes]:
        """The lines, unpacked. Raises UserError where the file cannot be read."""
        filesystem, inside = storage.resolve(self.location or self.path)
        whole = not self.start and self.end is None
        try:
            raw = filesystem.open_input_stream(inside) if whole else filesystem.open_input_file(inside)
            with io.BufferedReader(raw, _BUFFER) as stream:
                yield from stream if whole else self._owned(stream)
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: is not there on a machine that has to read it; give a path on a file system that every "
                f"node mounts, or a URI such as s3://bucket/file"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}; is it damaged or not yet whole?") from error

    def _owned(self, stream: io.BufferedReader) -> Iterator[bytes]:
        at, blocks = self.start, self.format == "conll"
        if self.start:
            stream.seek(self.start - 1)
            at += len(stream.readline()) - 1  # what is left of a line of the range before
        if self.start and blocks:
            blank = -1
            for raw in stream:
                blank, at = at, at + len(raw)
                if not raw.strip():
                    break
            if self.end is not None and blank >= self.end:
                return  # the range before reads on to that blank line, and so through this range
        for raw in stream:
            beyond = self.end is not None and at >= self.end
            if beyond and not blocks:
                return
            yield raw
            at += len(raw)
            if beyond and not raw.strip():
                return


# Carries a function out over the items of a list, somewhere, and gives the results in their order.
ParallelMap = Callable[[Callable[[Any], Any], list[Any]], Generator[Any, None, None]]


def serial_map(function: Callable[[Any], Any], items: list[Any]) -> Generator[Any, None, None]:
    """Carries a function out over the items in this process, one after the other."""
    for item in items:
        yield function(item)


def make_shards(files: list[FileRange], size: int = SHARD_BYTES) -> list[list[FileRange]]:
    """The pieces of whole files, in their order."""
    files = [file._replace(location=storage.absolute(file.path)) for file in files]
    pieces: list[list[FileRange]] = []
    room = 0
    for part, weight in (each for file, bytes_ in _sizes(files) for each in _ranges(file, bytes_, size)):
        if not pieces or weight > room:
            pieces.append([])
            room = size
        pieces[-1].append(part)
        room -= weight
    return pieces


def _sizes(files: list[FileRange]) -> Iterator[tuple[FileRange, int]]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        yield from zip(files, threads.map(storage.size, [file.path for file in files]), strict=True)


def _ranges(file: FileRange, size: int, most: int) -> Iterator[tuple[FileRange, int]]:
    """The ranges of a file, each with the bytes that it counts for."""
    if storage.is_compressed(file.path):
        yield file, size * _UNPACKED
    else:
        for start in range(0, max(size, 1), most):
            end = start + most if start + most < size else None
            yield file._replace(start=start, end=end), min(most, size - start)


def checksum(file: FileRange) -> tuple[int, str]:
    """The bytes of the unpacked content of all of a file, and their SHA-256. Raises UserError where it cannot be read."""
    digest, size = hashlib.sha256(), 0
    filesystem, inside = storage.resolve(file.location or file.path)
    try:
        with filesystem.open_input_stream(inside) as stream:
            while block := stream.read(_BUFFER):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read: {error}; is it damaged or not yet whole?") from error
    return size, digest.hexdigest()
