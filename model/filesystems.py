"""The file systems of URIs: pyarrow's own and those of fsspec packages, whether their storage answers, and when to try again.

The clients of pyarrow's own (S3, GCS, HDFS) try again by themselves; those of fsspec packages do so here. Files that are read or
written as a whole are tried again as a whole, see `model.storage`.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from textwrap import shorten
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from model.errors import StorageError, UserError

Result = TypeVar("Result")
_log = logging.getLogger("tandem.storage")

# Answers of a server that another try would not change: no right, no such bucket or repository.
_REFUSAL = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS|SIGNATURE|TOKEN|\b40[134]\b|Unauthorized|Forbidden")
# Answers about files, mistakes of ours, and failures after other tries, that stay the same.
_FINAL = (
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(UserError, StorageError, TypeError, ValueError, AttributeError, NotImplementedError),
)
ANSWER_S = 15.0
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between the tries of a call: a failure is final after about 15 s
_LOOK_UP_WAITS_S = (0.2, 0.5)
_answered: set[str] = set()  # scheme and host of storage that has answered this process


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the path inside it.

    Raises:
        UserError: the scheme is unknown, or its package is not installed.
    """
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # not one of pyarrow's own schemes
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise UserError(f"{location}: cannot open this kind of storage: {error}") from error
    return fs.PyFileSystem(_RetryingHandler(filesystem)), path


def retry(
    call: Callable[[], Result], location: str, waits: Sequence[float] | None = None, log_level: int = logging.WARNING
) -> Result:
    """Return the result of a call to remote storage, which is tried again after a failure that may pass.

    Args:
        call: has the same effect when it is called again.
        location: for messages.
        waits: seconds between the tries, each varied by half so that many processes do not return at the same moment; None:
            WAITS_S.
        log_level: of a line for each failure but the last.

    Raises:
        UserError: the storage refuses access.
        StorageError: the last try failed too.
        FileNotFoundError, PermissionError: or another answer that would stay the same.
    """
    remaining = iter(WAITS_S if waits is None else waits)
    while True:
        try:
            return call()
        except _FINAL:
            raise
        except Exception as error:  # each client has its own kinds
            failure = _to_storage_error(location, error)
            wait = next(remaining, None)
            if wait is None or isinstance(failure, UserError):
                raise failure from error
            wait *= random.SystemRandom().uniform(0.5, 1.5)
            _log.log(log_level, "%s: %s; trying again in %.1f s", location, _reason(error), wait)
        time.sleep(wait)


class _RetryingHandler(fs.FSSpecHandler):
    """The files of an fsspec package; calls that fail are tried again, except uploads.

    fsspec's `exists`, `isfile`, `isdir` and `find` take any failure for "there is no such file": `info` and `ls` raise it.
    """

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self._retry(super().get_file_info, paths[0] if paths else "", paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        (base,) = self.get_file_info([selector.base_dir])
        if base.type == fs.FileType.NotFound and selector.allow_not_found:
            return []
        if base.type != fs.FileType.Directory:
            raise (FileNotFoundError if base.type == fs.FileType.NotFound else NotADirectoryError)(selector.base_dir)
        return list(self._entries(selector.base_dir, selector.recursive))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._retry(super().create_dir, path, path, recursive)

    def delete_dir(self, path: str) -> None:
        self._delete(path, recursive=True)

    def delete_file(self, path: str) -> None:
        self._delete(path, recursive=False)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        if not self.get_file_info([path])[0].is_file:
            raise FileNotFoundError(path)
        file = self._retry(self.fs.open, path, path, "rb")
        return pa.PythonFile(_RetryingFile(file, self.fs.unstrip_protocol(path)), mode="r")

    def _entries(self, folder: str, recursive: bool) -> Iterator[fs.FileInfo]:
        for entry in self._retry(self.fs.ls, folder, folder, detail=True):
            if entry["name"].strip("/") == folder.strip("/"):
                continue  # object stores may list a folder in itself
            info = self._create_file_info(entry["name"], entry)
            yield info
            if recursive and info.type == fs.FileType.Directory:
                yield from self._entries(entry["name"], recursive)

    def _delete(self, path: str, recursive: bool) -> None:
        if self.get_file_info([path])[0].type == fs.FileType.NotFound:
            raise FileNotFoundError(path)

        def delete() -> None:
            with suppress(FileNotFoundError):  # a try that seemed to fail has deleted it
                self.fs.rm(path, recursive=recursive)

        self._retry(delete, path)

    def _retry(self, call: Callable[..., Result], path: str, *arguments: object, **options: object) -> Result:
        return retry(partial(call, *arguments, **options), self.fs.unstrip_protocol(path))


class _RetryingFile:
    """A file that is read; a read that fails is tried again from the same position."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()

        def attempt() -> bytes:
            if self._file.tell() != start:
                self._file.seek(start)
            return self._file.read(size)

        return retry(attempt, self._path)


def require_answer(location: str) -> None:
    """Check once in this process that the storage of a remote location answers.

    A thread asks: the clients of some storage wait for minutes, and no signal ends them.

    Raises:
        UserError: the storage refuses access, or its scheme is unknown.
        StorageError: it does not answer.
    """
    place = "/".join(location.split("/", 3)[:3])
    if place in _answered:
        return
    failures: list[Exception] = []

    def ask() -> None:
        try:
            _look_up(location)
        except Exception as error:  # each client has its own kinds
            failures.append(error)

    thread = threading.Thread(target=ask, name="storage", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if thread.is_alive():
        raise StorageError(
            f"{location}: no answer within {ANSWER_S:g} s; check the address and the network, then try again"
        )
    for error in failures:
        raise _to_storage_error(location, error) from error
    _answered.add(place)


def _look_up(location: str) -> None:
    """Ask the storage about a location, whether there is something or not."""
    filesystem, path = open_filesystem(location)
    if not isinstance(filesystem, fs.PyFileSystem):
        filesystem.get_file_info(path)
        return
    try:
        retry(lambda: filesystem.handler.fs.info(path), location, _LOOK_UP_WAITS_S, logging.DEBUG)
    except FileNotFoundError as error:
        # fsspec's client of web servers raises it for every failure, with the failure as its cause.
        failure = error.__cause__
        if location.startswith("http") and failure is not None and not isinstance(failure, FileNotFoundError):
            raise failure from None


def _to_storage_error(location: str, error: Exception) -> UserError | StorageError:
    """Return a failure of a storage's client as an error that says what to do."""
    if isinstance(error, (UserError, StorageError)):
        return error
    reason = _reason(error)
    if _REFUSAL.search(reason):
        return UserError(f"{location}: the storage refuses access: {reason}; check the name and the credentials")
    return StorageError(f"{location}: cannot be reached: {reason}; check the address and the network, then try again")


def _reason(error: Exception) -> str:
    return shorten(str(error), 300) or type(error).__name__
