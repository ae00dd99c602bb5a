"""The file systems of URIs: pyarrow's own and those of fsspec packages, and whether their storage answers."""

import re
import threading
from textwrap import shorten

import pyarrow as pa
from pyarrow import fs

from model.errors import StorageError, UserError

# Answers of a server that another try would not change: no right, no such bucket or repository.
_REFUSAL = re.compile(r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS|SIGNATURE|TOKEN|\b40[134]\b|Unauthorized|Forbidden")
ANSWER_S = 15.0
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
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


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
        filesystem.handler.fs.info(path)
    except FileNotFoundError as error:
        # fsspec's client of web servers raises it for every failure, with the failure as its cause.
        failure = error.__cause__
        if location.startswith("http") and failure is not None and not isinstance(failure, FileNotFoundError):
            raise failure from None


def _to_storage_error(location: str, error: Exception) -> UserError | StorageError:
    """Return a failure of a storage's client as an error that says what to do."""
    if isinstance(error, UserError):
        return error
    reason = shorten(str(error), 300) or type(error).__name__
    if _REFUSAL.search(reason):
        return UserError(f"{location}: the storage refuses access: {reason}; check the name and the credentials")
    return StorageError(f"{location}: cannot be reached: {reason}; check the address and the network, then try again")
