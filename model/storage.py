"""Files by path or URI.

A location is a local path or a URI of any scheme that pyarrow (`s3://`, `gs://`, `hdfs://`, `file://`) or an installed
fsspec package (`memory://`, `az://`, ...) supports. A file is written completely or not at all. What remote storage refuses for
a moment is tried again, see `model.filesystems.retry`.
"""

import fnmatch
import glob
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO

from pyarrow import fs

from model.errors import UserError
from model.filesystems import open_filesystem, require_answer, retry

# A user with a password before an @, or an option such as secret_key=...
_CREDENTIAL = re.compile(r"://[^/?]*:[^/?@]+@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)
_CHUNK_BYTES = 2**20  # of an upload


def is_remote(location: str) -> bool:
    """Return whether the location is a URI of anything but the local file system."""
    return "://" in location and not location.startswith("file://")


def absolute(location: str) -> str:
    """Return the location in a form that is valid in every working directory of this machine.

    Raises:
        UserError: it is empty, which would be the working directory.
    """
    if not location:
        raise UserError("the path of a file or folder is empty; is a variable of the shell not set?")
    if is_remote(location):
        return location
    return str(Path(location.removeprefix("file://")).expanduser().resolve())


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a location and the path inside it.

    Raises:
        UserError: the scheme is unknown, its package is not installed, the location contains a credential, or the storage
            refuses access.
        StorageError: the storage does not answer.
    """
    if not is_remote(location):
        return fs.LocalFileSystem(), absolute(location)
    if _CREDENTIAL.search(location):
        raise UserError(
            f"{location.partition('://')[0]}://...: contains a credential, but locations are saved and displayed; remove it, "
            f"and set it in the environment or in the storage's own configuration files on every node"
        )
    require_answer(location)
    return open_filesystem(location)


def join(location: str, *parts: str) -> str:
    """Return a location below another one; a URI keeps its `?options`."""
    base, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([base.rstrip("/"), *parts]) + mark + options


def parent(location: str) -> str:
    """Return the location of the parent directory, or the location itself if it has none."""
    base, mark, options = absolute(location).partition("?") if "://" in location else (absolute(location), "", "")
    above = base.rstrip("/").rpartition("/")[0]
    return base + mark + options if above.endswith("/") else (above or "/") + mark + options


def file_type(location: str) -> fs.FileType:
    """Return whether there is a file or a directory: File, Directory or NotFound."""
    filesystem, path = resolve(location)
    return filesystem.get_file_info(path).type


def exists(location: str) -> bool:
    """Return whether there is a file or directory."""
    return file_type(location) != fs.FileType.NotFound


def is_pipe(location: str) -> bool:
    """Return whether a location is a pipe or another device of this machine, which can be read only once."""
    path = Path(location).expanduser()
    return not is_remote(location) and path.exists() and not path.is_file() and not path.is_dir()


def size(location: str) -> int:
    """Return the size of a file in bytes, compressed if it is."""
    filesystem, path = resolve(location)
    return int(filesystem.get_file_info(path).size or 0)


def expand(pattern: str) -> list[str]:
    """Return the files that a path, URI or glob matches, sorted.

    A glob has `*` (which also matches `/`), `?` and `[..]`. As in a shell, only a dot in it matches that of a hidden name. A
    folder that exists is taken by its name, which may contain brackets.

    Raises:
        UserError: there are none, or the path is a directory.
    """
    found = file_type(pattern)
    if found == fs.FileType.File or is_pipe(pattern):
        return [pattern]
    if found == fs.FileType.Directory:
        raise UserError(f"{pattern}: is a directory; name its files, for example {join(pattern, '*.jsonl')}")
    filesystem, path = resolve(pattern)
    base = _literal_base(filesystem, path)
    if not glob.has_magic(path[len(base) :]):
        raise UserError(f"{pattern}: no such file")
    selector = fs.FileSelector(base or "/", recursive=True, allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    escaped = glob.escape(base) + path[len(base) :]
    paths = (info.path for info in infos if info.is_file and fnmatch.fnmatch(info.path, escaped))
    # Where a path has more hidden names than the pattern, a wildcard has matched one.
    matches = sorted(each for each in paths if each.count("/.") == path.count("/."))
    if not matches:
        raise UserError(f"{pattern}: no file matches")
    if not is_remote(pattern):
        return [f"file://{match}" if "://" in pattern else match for match in matches]
    return [_to_uri(match, path, pattern) for match in matches]


def _to_uri(match: str, path: str, pattern: str) -> str:
    """Return the URI of a file that a glob matches.

    Args:
        match: its path inside the file system.
        path: that of the glob; some file systems leave out a host, as HDFS does.
        pattern: the URI of the glob.
    """
    # What follows are options, and in fsspec's chains, such as zip://*.tsv::a.zip, where the file system is.
    uri = re.split(r"\?|::", pattern, maxsplit=1)[0]
    same = (one == other for one, other in zip(uri[::-1], path[::-1], strict=False))
    shared = sum(1 for _ in takewhile(bool, same))  # characters at the ends of both
    base, path_base = uri[: len(uri) - shared], path[: len(path) - shared]
    return base + match.removeprefix(path_base) + pattern[len(uri) :]


def _literal_base(filesystem: fs.FileSystem, path: str) -> str:
    """Return the folders at the beginning of a glob that are no pattern: without a wildcard, or there by that very name."""
    base = ""
    for end in (i for i, char in enumerate(path) if char == "/"):
        folder = path[:end]
        if glob.has_magic(folder[len(base) :]) and filesystem.get_file_info(folder).type != fs.FileType.Directory:
            break
        base = folder
    return base


def read(location: str) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: remote storage has failed several times.
        OSError: the file cannot be read.
    """
    filesystem, path = resolve(location)

    def attempt() -> bytes:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()

    return retry(attempt, location) if is_remote(location) else attempt()


def write(location: str, content: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new. Creates missing parent directories.

    Raises:
        OSError: the file cannot be written; the old content of a local file remains.
    """
    filesystem, path = resolve(location)
    parent = path.rpartition("/")[0]
    if parent:
        filesystem.create_dir(parent, recursive=True)
    if is_remote(location):
        upload(io.BytesIO(content), location)
        return
    temporary = _temporary_path(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def upload(file: IO[bytes], location: str) -> None:
    """Replace a file of remote storage, which makes it visible when the upload is complete.

    Args:
        file: at any position; all of it is uploaded.
        location: URI, in an existing directory.

    Raises:
        OSError: the upload has failed several times; no file remains.
    """
    filesystem, path = resolve(location)

    def attempt() -> None:
        file.seek(0)
        stream = filesystem.open_output_stream(path, compression=None)
        try:
            with stream:
                shutil.copyfileobj(file, stream, _CHUNK_BYTES)
        except BaseException:  # closing the stream has made what was written so far visible
            with suppress(OSError):
                filesystem.delete_file(path)
            raise

    retry(attempt, location)


@contextmanager
def open_atomic(location: str) -> Iterator[IO[bytes]]:
    """Open a file for writing, in an existing directory; if the block raises, no file is written.

    Raises:
        OSError: the file cannot be written.
    """
    if is_remote(location):
        resolve(location)  # before the block's work
        with tempfile.TemporaryFile(prefix="tandem-") as file:
            yield file
            upload(file, location)
        return
    path = absolute(location)
    temporary = _temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(location: str) -> None:
    """Delete a file. Raises OSError if it does not exist."""
    filesystem, path = resolve(location)
    filesystem.delete_file(path)


def list_directory(location: str) -> list[str]:
    """Return the names in a directory, sorted; none where there is no directory."""
    filesystem, path = resolve(location)
    return sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def remove_directory(location: str) -> None:
    """Delete a directory with its content, if there is one."""
    filesystem, path = resolve(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def make_directory(location: str) -> None:
    """Create a directory and its parents where they are missing."""
    filesystem, path = resolve(location)
    filesystem.create_dir(path, recursive=True)


def _temporary_path(path: str) -> Path:
    return Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
