"""Staged directories: a directory becomes visible when it is complete, and a failure leaves nothing behind.

A local directory is filled under a hidden name beside its place and renamed. Other storage cannot rename: there the marker,
the file without which nobody takes the directory for complete, is written last and deleted first.
"""

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from pyarrow import fs

from model import storage
from model.errors import UserError

_SCRATCH = ".scratch-"


def require_absent(location: str, marker: str, kind: str, overwrite: bool, others: Sequence[str] = ()) -> None:
    """Check that a directory may be created or replaced.

    Args:
        location: the directory.
        marker: the file by which a directory of this kind is recognized.
        kind: its name in messages.
        overwrite: whether a directory of this kind may be replaced.
        others: patterns of the names that such a directory has beside the marker; hidden files count for nothing.

    Raises:
        UserError: something else is there, or a directory of this kind without `overwrite`, or with files of the user.
    """
    if not storage.exists(location):
        return
    if not overwrite:
        raise exists_already(location)
    if not storage.exists(storage.join(location, marker)):
        raise UserError(f"{location}: is no {kind}, and --overwrite replaces nothing else; choose another --out")
    for name in storage.list_directory(location):
        if not any(fnmatchcase(name, pattern) for pattern in (marker, ".*", *others)):
            raise UserError(
                f"{location}: --overwrite would delete {name}, which is no part of the {kind}; move it, or choose another --out"
            )


def exists_already(location: str) -> UserError:
    """Return the error for an output that is there already."""
    return UserError(f"{location}: exists already; choose another --out, or replace it with --overwrite")


@contextmanager
def staged_local_directory(location: str, marker: str) -> Iterator[Path]:
    """Yield a local folder that becomes the directory `location`, replacing it, when the block ends without an error.

    Raises:
        OSError: the storage is full or cannot be written; nothing remains.
    """
    if storage.is_remote(location):
        with tempfile.TemporaryDirectory(prefix="tandem-") as name:
            yield Path(name)
            _upload(Path(name), location, marker)
        return
    with staged_shared_directory(location, marker, replace=True) as staging:
        yield Path(staging)


@contextmanager
def staged_shared_directory(location: str, marker: str, replace: bool) -> Iterator[str]:
    """Yield a location that many machines can write to; it is the directory `location` when the block ends.

    On a file system it is a hidden directory beside `location`, renamed at the end. On other storage it is `location`
    itself: its content is deleted first, and the block has to write `marker` last.

    Args:
        location: the directory.
        marker: the file without which it is not complete.
        replace: whether to replace what is there at the end; on other storage it always is.

    Raises:
        UserError: something is there at the end that may not be replaced; it remains as it is.
        OSError: the storage is full or cannot be written; nothing remains.
    """
    if storage.is_remote(location):
        _clear(location, marker)
        try:
            yield location
        except BaseException:
            with suppress(OSError):
                _clear(location, marker)
            raise
        return
    target = Path(storage.absolute(location))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    replaced = staging.with_suffix(".old")
    staging.mkdir()
    try:
        yield str(staging)
        if target.exists():
            if not replace:
                raise exists_already(location)
            target.rename(replaced)
        staging.rename(target)
    finally:
        _delete(staging)
        _delete(replaced)


def remove_unfinished(folder: str, prefix: str) -> None:
    """Delete what killed processes left of staged directories in a folder whose names begin with `prefix`.

    On other storage than a file system nothing is done: there they have their final names.
    """
    if not storage.is_remote(folder):
        for path in Path(storage.absolute(folder)).glob(f".{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def scratch_directory(location: str) -> Iterator[str]:
    """Yield a directory for temporary files, visible wherever the directory `location` is; it is deleted at the end."""
    name = f"{_SCRATCH}{uuid.uuid4().hex[:8]}"
    if not storage.is_remote(location):
        target = Path(storage.absolute(location))
        local = target.parent / f"{name}.{target.name}"
        local.mkdir(parents=True)
        try:
            yield str(local)
        finally:
            _delete(local)
        return
    remote = storage.join(location, name)
    storage.make_directory(remote)
    try:
        yield remote
    finally:
        with suppress(OSError):
            storage.remove_directory(remote)
            if not storage.list_directory(location):
                storage.remove_directory(location)


def _delete(folder: Path) -> None:
    """Delete a local directory to which others may still be writing: renaming it first makes their next writes fail."""
    deleted = folder.with_suffix(".gone")
    with suppress(OSError):
        folder.rename(deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def _clear(location: str, marker: str) -> None:
    """Delete the content of a remote directory, the marker first, except scratch directories."""
    names = [name for name in storage.list_directory(location) if not name.startswith(_SCRATCH)]
    for name in sorted(names, key=lambda name: name != marker):
        entry = storage.join(location, name)
        if storage.file_type(entry) == fs.FileType.Directory:
            storage.remove_directory(entry)
        else:
            storage.remove(entry)


def _upload(folder: Path, location: str, marker: str) -> None:
    """Copy a local folder to remote storage, the marker last."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == marker, file)):
        target = storage.join(location, file.relative_to(folder).as_posix())
        storage.make_directory(storage.parent(target))
        with file.open("rb") as content:
            storage.upload(content, target)
