"""Files by path or URI: the one place that knows about file systems.

A location is a local path or a URI of any scheme that pyarrow (`s3://`, `gs://`, `hdfs://`, `file://`) or an installed
fsspec package (`memory://`, `az://`, ...) knows. What is written appears whole or not at all.
"""

import fnmatch
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from model.errors import UserError

# A user with a password before an @, or an option such as secret_key=...
_CREDENTIAL = re.compile(r"://[^/?]*:[^/?@]+@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)

_SCRATCH = ".scratch-"


def is_remote(location: str) -> bool:
    """Whether the location is a URI of something other than the local file system."""
    return "://" in location and not location.startswith("file://")


def absolute(location: str) -> str:
    """The location in a form that means the same in every working directory of this machine."""
    if is_remote(location):
        return location
    return str(Path(location.removeprefix("file://")).expanduser().resolve())


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location and the path inside it.

    Raises:
        UserError: the scheme is unknown, its package is not installed, or the location holds a credential.
    """
    if not is_remote(location):
        return fs.LocalFileSystem(), absolute(location)
    if _CREDENTIAL.search(location):
        raise UserError(
            f"{location.partition('://')[0]}://...: holds a credential, and locations are saved and shown; leave it out, and "
            f"give it in the environment or in the storage's own configuration files on every node"
        )
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # not one of pyarrow's own schemes
    import fsspec

    try:
        found, path = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise UserError(f"{location}: cannot open this kind of storage: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def join(location: str, *parts: str) -> str:
    """The location of something below another location; a URI keeps its `?options`."""
    base, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([base.rstrip("/"), *parts]) + mark + options


def parent(location: str) -> str:
    """The location of the directory that holds another location; of itself where there is none above it."""
    base, mark, options = absolute(location).partition("?") if "://" in location else (absolute(location), "", "")
    above = base.rstrip("/").rpartition("/")[0]
    return base + mark + options if above.endswith("/") else (above or "/") + mark + options


def file_type(location: str) -> fs.FileType:
    """File, Directory or NotFound."""
    filesystem, path = resolve(location)
    return filesystem.get_file_info(path).type


def exists(location: str) -> bool:
    """Whether there is a file or directory."""
    return file_type(location) != fs.FileType.NotFound


def require_absent(location: str, marker: str, kind: str, overwrite: bool) -> None:
    """Raises UserError where a directory cannot be made, for something stands there.

    Args:
        location: of the directory.
        marker: the file that makes it one of ours.
        kind: what it is called.
        overwrite: one of ours may be replaced.
    """
    if not exists(location):
        return
    if not overwrite:
        raise UserError(f"{location}: exists already; choose another --out, or replace it with --overwrite")
    if not exists(join(location, marker)):
        raise UserError(f"{location}: is no {kind}, and --overwrite replaces nothing else; choose another --out")


def size(location: str) -> int:
    """The bytes of a file as it lies."""
    filesystem, path = resolve(location)
    return int(filesystem.get_file_info(path).size or 0)


def is_compressed(location: str) -> bool:
    """Whether a file is unpacked as it is read, which can only begin at its beginning."""
    return resolve(location)[1].endswith((".bz2", ".gz", ".lz4", ".zst"))  # the endings that pyarrow goes by


def expand(pattern: str) -> list[str]:
    """The files that a path, URI or glob (`*`, `?`, `[..]`; `*` also crosses folders) names, sorted.

    Raises:
        UserError: there are none, or the path is a directory.
    """
    found = file_type(pattern)
    if found == fs.FileType.File:
        return [pattern]
    if found == fs.FileType.Directory:
        raise UserError(f"{pattern}: is a directory; name its files, for example {join(pattern, '*.jsonl')}")
    filesystem, path = resolve(pattern)
    if not any(mark in path for mark in "*?["):
        raise UserError(f"{pattern}: no such file")
    base = path[: min(path.find(mark) for mark in "*?[" if mark in path)].rpartition("/")[0]
    selector = fs.FileSelector(base or "/", recursive=True, allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    matches = sorted(i.path for i in infos if i.is_file and fnmatch.fnmatch(i.path, path))
    if not matches:
        raise UserError(f"{pattern}: no file matches")
    if "://" not in pattern:
        return matches
    scheme, mark, options = pattern.partition("://")[0], *pattern.partition("?")[1:]
    return [f"{scheme}://{match}{mark}{options}" for match in matches]


def read(location: str) -> bytes:
    """All bytes of a file. Raises FileNotFoundError or another OSError."""
    filesystem, path = resolve(location)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return stream.read()


def write(location: str, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part.

    Raises OSError, in which case the old content stands.
    """
    filesystem, path = resolve(location)
    parent = path.rpartition("/")[0]
    if parent:
        filesystem.create_dir(parent, recursive=True)
    if is_remote(location):  # object stores make an object visible when its upload is complete
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(content)
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_atomic(location: str) -> Iterator[Any]:
    """A file to fill by and by, in a directory that exists; there is none when the block ends with an error.

    Raises OSError.
    """
    filesystem, path = resolve(location)
    if is_remote(location):
        try:
            with filesystem.open_output_stream(path, compression=None) as stream:
                yield stream
        except BaseException:  # closing it made what was written so far visible
            with suppress(OSError):
                filesystem.delete_file(path)
            raise
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(location: str) -> None:
    """Deletes a file. Raises OSError where there is none."""
    filesystem, path = resolve(location)
    filesystem.delete_file(path)


def list_directory(location: str) -> list[str]:
    """What a directory holds, sorted; nothing where there is none."""
    filesystem, path = resolve(location)
    return sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def remove_directory(location: str) -> None:
    """Deletes a directory with all that is in it, if there is one."""
    filesystem, path = resolve(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def make_directory(location: str) -> None:
    """Makes a directory with those above it, where they are not there yet."""
    filesystem, path = resolve(location)
    filesystem.create_dir(path, recursive=True)


@contextmanager
def staged_local_directory(location: str, marker: str) -> Iterator[Path]:
    """A local folder to fill, which becomes the directory `location` when the block ends without an error.

    A local directory is moved into place in one step. On other storage the files are copied and `marker`, the file
    without which nobody takes the directory for whole, comes last. What stood at `location` is replaced.

    Raises:
        OSError: the storage is full or cannot be written; nothing is left behind.
    """
    if is_remote(location):
        with tempfile.TemporaryDirectory(prefix="tandem-") as name:
            yield Path(name)
            _upload(Path(name), location, marker)
        return
    with staged_shared_directory(location, marker) as staging:
        yield Path(staging)


@contextmanager
def staged_shared_directory(location: str, marker: str) -> Iterator[str]:
    """A place that many machines can fill, which is the directory `location` when the block ends without an error.

    On a file system that they all mount it is a hidden directory beside `location`, moved into place in one step. On
    other storage, where nothing can be moved, it is `location` itself: what stood there is deleted first, and the block
    has to write `marker`, the file without which nobody takes the directory for whole, last of all.

    Raises:
        OSError: the storage is full or cannot be written; nothing is left behind.
    """
    if is_remote(location):
        _clear(location, marker)
        try:
            yield location
        except BaseException:
            with suppress(OSError):
                _clear(location, marker)
            raise
        return
    target = Path(resolve(location)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    replaced = staging.with_suffix(".old")
    staging.mkdir()
    try:
        yield str(staging)
        if target.exists():
            target.rename(replaced)
        staging.rename(target)
    finally:
        _delete(staging)
        _delete(replaced)


@contextmanager
def scratch_directory(location: str) -> Iterator[str]:
    """A place for drafts near the directory `location`, which all who see the one see; it is gone after the block."""
    name = f"{_SCRATCH}{uuid.uuid4().hex[:8]}"
    if not is_remote(location):
        target = Path(resolve(location)[1])
        scratch = target.parent / f"{name}.{target.name}"
        scratch.mkdir(parents=True)
        try:
            yield str(scratch)
        finally:
            _delete(scratch)
        return
    place = join(location, name)
    make_directory(place)
    try:
        yield place
    finally:
        with suppress(OSError):
            remove_directory(place)
            if not list_directory(location):
                remove_directory(location)


def _delete(folder: Path) -> None:
    """Deletes a local directory under which others may be writing still: what they begin from now on fails."""
    gone = folder.with_suffix(".gone")
    with suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clear(location: str, marker: str) -> None:
    """Deletes what a remote directory holds, the marker first, but for drafts."""
    held = [name for name in list_directory(location) if not name.startswith(_SCRATCH)]
    for name in sorted(held, key=lambda name: name != marker):
        place = join(location, name)
        if file_type(place) == fs.FileType.Directory:
            remove_directory(place)
        else:
            remove(place)


def _upload(folder: Path, location: str, marker: str) -> None:
    filesystem, path = resolve(location)
    filesystem.create_dir(path, recursive=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == marker, file)):
        name = file.relative_to(folder).as_posix()
        filesystem.create_dir(f"{path}/{name}".rpartition("/")[0], recursive=True)
        fs.copy_files(str(file), f"{path}/{name}", destination_filesystem=filesystem)
