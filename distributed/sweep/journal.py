"""A sweep's append-only journal."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import storage
from model.aliases import EVENTS, current_keys
from model.errors import UserError

JournalEvent = dict[str, Any]


class Journal:
    """Appends events to a sweep's journal; each is on the disk when `write` returns.

    Storage without appending (object stores) gets a numbered file for every event instead.
    """

    def __init__(self, folder: str) -> None:
        """Raises UserError where another process is at work on the sweep."""
        self.folder = folder
        self.events = len(list(read_events(folder)))
        self.stream: Any = None
        if storage.is_remote(folder):
            return
        path = Path(storage.absolute(storage.join(folder, "journal.jsonl")))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is at work on this sweep; wait for it, or stop it") from None
        self._mend(path)

    def _mend(self, path: Path) -> None:
        """Cuts off a last line that a killed process left unfinished."""
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self.stream.truncate(content.rfind(b"\n") + 1)

    def write(self, event: JournalEvent) -> None:
        """Appends an event. Raises OSError."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        if self.stream is not None:
            self.stream.write(line)
            os.fsync(self.stream.fileno())
        else:
            storage.write(storage.join(self.folder, f"journal-{self.events:06d}.jsonl"), line)
        self.events += 1

    def close(self) -> None:
        """Lets go of the sweep."""
        if self.stream is not None:
            self.stream.close()


def read_events(folder: str) -> Iterator[JournalEvent]:
    """The events of a sweep's journal, oldest first; a last line that was cut off is left out.

    Raises:
        UserError: a line that is whole cannot be read.
    """
    for name in storage.list_directory(folder):
        if not name.startswith("journal"):
            continue
        location = storage.join(folder, name)
        lines = storage.read(location).split(b"\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is no whole line
            try:
                yield current_keys(json.loads(line), EVENTS)
            except ValueError as error:
                raise UserError(
                    f"{location}:{number}: is damaged ({error}); remove the line to go on without it"
                ) from None


def timestamp() -> float:
    """Seconds since the Unix epoch, to the millisecond."""
    return round(time.time(), 3)
