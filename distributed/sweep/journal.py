"""A sweep's append-only journal: a JSON object a line, whose last key is the CRC-32 of the line without it."""

import errno
import heapq
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal, NotRequired, cast

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on

from distributed.sweep.space import Values
from distributed.train.runs import lock
from model import storage
from model.aliases import EVENTS, current_keys
from model.config import first_problem
from model.errors import UserError


class SessionEvent(TypedDict):
    """A process begins to work on the sweep; what each of its trials holds. Times are seconds since the Unix epoch."""

    event: Literal["session"]
    time: float
    cpus: NotRequired[float]
    gpus: NotRequired[float]


class TrialEvent(TypedDict):
    """A trial is proposed."""

    event: Literal["trial"]
    time: float
    name: str
    values: Values
    epochs: int
    series: str | None
    finalist_of: str | None


class BegunEvent(TypedDict):
    """A trial's first training step begins, in this session or after a restart."""

    event: Literal["begun"]
    time: float
    trial: str


class EpochEvent(TypedDict):
    """A trial has finished an epoch; with a `state` it ends with it. A trial that resumes reports its past again."""

    event: Literal["epoch"]
    time: float
    trial: str
    metrics: dict[str, float]
    state: NotRequired[str]


class RetryEvent(TypedDict):
    """A trial failed and is restarted."""

    event: Literal["retry"]
    time: float
    trial: str
    error: str


class BrokenEvent(TypedDict):
    """A trial ends without metrics: `diverged` or `failed`."""

    event: Literal["broken"]
    time: float
    trial: str
    state: str
    error: str


_CHECKSUM = b', "crc32": '
_FILE = "journal.jsonl"
_PREFIX, _SUFFIX = "journal-", ".jsonl"  # of an event's own file, with its number in between
JournalEvent = SessionEvent | TrialEvent | BegunEvent | EpochEvent | RetryEvent | BrokenEvent
_EVENT: TypeAdapter[JournalEvent] = TypeAdapter(Annotated[JournalEvent, Field(discriminator="event")])


class Journal:
    """Appends events to a sweep's journal; each is on the disk when `write` returns.

    Storage without appending (object stores) gets a numbered file for every event instead.
    """

    def __init__(self, folder: str) -> None:
        """Open the journal. Raises UserError where another process works on the sweep."""
        self.folder = folder
        # After the last file, not by their count: the user may have removed a damaged one.
        self.next_number = max((int(name[len(_PREFIX) : -len(_SUFFIX)]) for name in _numbered(folder)), default=-1) + 1
        self.stream: FileIO | None = None
        if storage.is_remote(folder):
            return
        path = Path(storage.absolute(storage.join(folder, _FILE)))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open("a+b", buffering=0)
        lock(self.stream.fileno(), folder, "sweep")
        _remove_partial_line(path, self.stream)

    def write(self, event: JournalEvent) -> None:
        """Append an event. Raises OSError."""
        content = json.dumps(event, ensure_ascii=False).encode()
        line = b"%s%s%d}\n" % (content[:-1], _CHECKSUM, zlib.crc32(content))
        if self.stream is not None:
            _append(self.stream, line)
        else:
            storage.write(storage.join(self.folder, f"{_PREFIX}{self.next_number:06d}{_SUFFIX}"), line)
            self.next_number += 1

    def close(self) -> None:
        """Release the sweep."""
        if self.stream is not None:
            self.stream.close()


def _numbered(folder: str) -> list[str]:
    """Return the names of the files that hold an event each, oldest first."""
    return [name for name in storage.list_directory(folder) if re.fullmatch(rf"{_PREFIX}\d+{_SUFFIX}", name)]


def _append(stream: FileIO, line: bytes) -> None:
    """Append a line; where the disk has no room for all of it, remove its beginning. Raises OSError."""
    end = os.fstat(stream.fileno()).st_size
    if stream.write(line) != len(line):  # the next event would become a part of this line
        stream.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), stream.name)
    os.fsync(stream.fileno())


def _remove_partial_line(path: Path, stream: FileIO) -> None:
    """Remove a last line that a killed process left unfinished."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        stream.truncate(content.rfind(b"\n") + 1)


def read_events(folder: str) -> Iterator[JournalEvent]:
    """Iterate over the events of a sweep's journal, oldest first, without a last line that was cut off.

    Raises:
        UserError: a line that is whole cannot be read.
    """
    # A sweep that was copied from one kind of storage to the other, and resumed there, has events in both kinds of files.
    parts = (_read_files(folder, names) for names in (_numbered(folder), [_FILE]))
    return heapq.merge(*parts, key=lambda event: event["time"])


def _read_files(folder: str, names: list[str]) -> Iterator[JournalEvent]:
    for location in (storage.join(folder, name) for name in names):
        try:
            lines = storage.read(location).split(b"\n")
        except FileNotFoundError:
            continue
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is no whole line
            try:
                yield _event(line)
            except (ValueError, AttributeError) as error:
                raise UserError(
                    f"{location}:{number}: is damaged ({error}); remove the line to continue without it"
                ) from None


def _event(line: bytes) -> JournalEvent:
    """Return the event of a line. Raises ValueError or AttributeError where it is damaged."""
    content, mark, checksum = line.rpartition(_CHECKSUM)
    if mark:  # lines of earlier versions have none
        line = content + b"}"
        if zlib.crc32(line) != int(checksum.removesuffix(b"}")):
            raise ValueError("its checksum is that of another line")
    event = current_keys(json.loads(line), EVENTS)
    try:
        _EVENT.validate_python(event)  # what it returns has other numbers: 3.0 for 3
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    return cast(JournalEvent, event)


def timestamp() -> float:
    """Return the seconds since the Unix epoch, to the millisecond."""
    return round(time.time(), 3)
