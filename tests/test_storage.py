"""Remote storage that fails now and then, or for good."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
from flaky_storage import FlakyFileSystem
from fsspec.implementations.local import LocalFileSystem
from helpers import refused
from pyarrow import fs

from distributed.train.checkpoint import DIGEST, STATE, load_checkpoint
from model import filesystems, staging, storage
from model.data.dataset import Dataset
from model.distillation.label_files import TeacherLabels
from model.errors import StorageError
from model.prepare.builder import PrepareConfig, prepare
from model.readers import documents
from model.shards import FileRange


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on remote storage that fails one call in five."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(FlakyFileSystem, "share", 0.2)
    for name in ("WAITS_S", "_LOOK_UP_WAITS_S"):
        monkeypatch.setattr(filesystems, name, (0.001,) * 8)
    yield f"flaky://{tmp_path}/remote"
    filesystems._answered.clear()


def test_what_is_written_is_read_and_listed(flaky: str):
    for number in range(30):
        folder = f"{flaky}/{number % 7}"
        place, written = f"{folder}/x{number}", os.urandom(10 + 10_000 * number)
        storage.write(place, written)
        assert storage.read(place) == written and storage.exists(place)
        with storage.open_atomic(place) as file:
            file.write(written + b"1")
        assert storage.read(place) == written + b"1"
        assert storage.list_directory(folder) == [f"x{number}"]
        assert storage.expand(f"{flaky}/*/x*") == [place]
        storage.remove(place)
        assert not storage.exists(place) and storage.list_directory(folder) == []
    storage.remove_directory(flaky)
    assert storage.file_type(flaky) == fs.FileType.NotFound


def test_globs_leave_hidden_names_out_unless_they_have_the_dot(flaky: str, tmp_path: Path):
    for folder in (str(tmp_path / "local"), flaky):
        for name in ("x", ".x", ".new.1a2b.part/x", "in/.ipynb_checkpoints/x", "in/x"):
            storage.write(f"{folder}/{name}", b"")
        assert storage.expand(f"{folder}/*x") == [f"{folder}/in/x", f"{folder}/x"]
        assert storage.expand(f"{folder}/.[x]") == [f"{folder}/.x"]
        assert storage.expand(f"{folder}/*/.ipynb*/x") == [f"{folder}/in/.ipynb_checkpoints/x"]
        refused(lambda folder=folder: storage.expand(f"{folder}/*/[.]ipynb*/x"), "no file matches")  # type: ignore[misc]


def test_globs_take_folders_that_exist_by_their_names(flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in (str(tmp_path / "a[1]"), f"{flaky}/a[1]"):
        storage.write(f"{folder}/b*/x1", b"")
        assert storage.expand(f"{folder}/b*/x[1]") == storage.expand(f"{folder}/*") == [f"{folder}/b*/x1"]
        refused(lambda folder=folder: storage.expand(f"{folder}/none"), "no such file")  # type: ignore[misc]
    storage.write(str(tmp_path / "a2/x"), b"")
    assert storage.expand(f"{tmp_path}/a[2]/*") == [f"{tmp_path}/a2/x"]
    monkeypatch.chdir(tmp_path / "a[1]")
    assert storage.expand("*/x?") == [str(tmp_path / "a[1]/b*/x1")]


class Hosted(LocalFileSystem):
    """Names a host in its URIs and leaves it out of its paths, as HDFS and SFTP do."""

    protocol = "hosted"

    def __init__(self, host: str | None = None) -> None:
        assert host == "server"
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return urlsplit(path).path if "://" in path else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str | None]:
        return {"host": urlsplit(path).hostname}


def test_globs_keep_the_rest_of_a_uri(tmp_path: Path):
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    storage.write(f"{tmp_path}/in/x1", b"one")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/x1", "one")
    for before, after in (
        (f"hosted://server:22{tmp_path}", ""),
        (f"file://{tmp_path}", ""),
        ("zip:/", f"::{tmp_path}/a.zip"),
    ):
        assert storage.expand(f"{before}/in/x*{after}") == [place := f"{before}/in/x1{after}"]
        assert storage.read(place) == b"one"
    assert storage.expand(f"file://{tmp_path}/in/x?") == [f"file://{tmp_path}/in/x1"]


def _texts(folder: Path) -> str:
    file = folder / "texts.tsv"
    file.write_text("".join(f"a match by player {number} tonight\tplayer {number}\n" for number in range(50)))
    return str(file)


def test_a_dataset_is_prepared_and_read(flaky: str, tmp_path: Path):
    for place in (str(tmp_path / "local"), f"{flaky}/data"):
        prepare(PrepareConfig([_texts(tmp_path)], place))
    local, remote = Dataset(str(tmp_path / "local")), Dataset(f"{flaky}/data")
    assert remote.digest == local.digest
    assert [labeled.text for labeled in remote.texts("train")] == [labeled.text for labeled in local.texts("train")]


def test_a_directory_is_uploaded_as_a_whole(flaky: str):
    for content in (b"old", b"new"):
        with staging.staged_local_directory(f"{flaky}/checkpoint", DIGEST) as folder:
            (folder / STATE).write_bytes(content)
            (folder / DIGEST).write_text("{}")
    assert storage.list_directory(f"{flaky}/checkpoint") == sorted((DIGEST, STATE))
    assert storage.read(f"{flaky}/checkpoint/{STATE}") == b"new"


def _whole_dataset(place: str) -> Any:
    return list(Dataset(place).texts("train"))


def _lines(place: str) -> Any:
    return list(FileRange(f"{place}/train/part-00000.parquet").lines())


@pytest.mark.parametrize("read", [_whole_dataset, _lines, storage.list_directory, storage.file_type, load_checkpoint])
def test_storage_that_always_fails_is_neither_empty_nor_damaged(
    flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Any]
):
    prepare(PrepareConfig([_texts(tmp_path)], f"{flaky}/data"))
    storage.write(f"{flaky}/data/{STATE}", b"")
    monkeypatch.setattr(FlakyFileSystem, "share", 1.0)
    with pytest.raises(StorageError, match=r"cannot be reached.*try again"):
        read(f"{flaky}/data")


def test_an_upload_that_always_fails_leaves_no_file(flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage.write(f"{flaky}/other", b"")
    monkeypatch.setattr(FlakyFileSystem, "share", 0.0)
    monkeypatch.setattr("shutil.copyfileobj", _half_of_a_copy)
    with pytest.raises(StorageError):
        storage.write(f"{flaky}/file", b"12345678")
    assert storage.list_directory(flaky) == ["other"]
    with pytest.raises(ZeroDivisionError), storage.open_atomic(f"{flaky}/file") as file:
        file.write(b"1234")
        _ = 1 / 0
    assert storage.list_directory(flaky) == ["other"]


def _half_of_a_copy(source: Any, target: Any, *_: Any) -> None:
    target.write(source.read()[:4])
    raise TimeoutError


def test_answers_that_stay_the_same_are_not_waited_for(flaky: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FlakyFileSystem, "share", 0.0)
    monkeypatch.setattr(filesystems, "WAITS_S", (1e9,))
    with pytest.raises(FileNotFoundError):
        storage.read(f"{flaky}/missing")
    with pytest.raises(FileNotFoundError):
        storage.remove(f"{flaky}/missing")
    assert storage.list_directory(f"{flaky}/missing") == []

    def forbidden() -> None:
        raise OSError("403 Forbidden")

    refused(lambda: filesystems.retry(forbidden, "az://box/file"), "az://box/file", "refuses access", "credentials")


def test_a_failure_that_passes_is_reported_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    answers: list[Any] = [TimeoutError("503"), 7]

    def call() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(filesystems, "WAITS_S", (0.01,))
    assert filesystems.retry(call, "az://box/file") == 7
    assert [record.message for record in caplog.records] == ["az://box/file: 503; trying again in 0.0 s"]


class _Client:
    """A client like those of pyarrow, whose calls fail for a while."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def open_input_stream(self, path: str, compression: None) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("When reading information for key 'x' in bucket 'b': AWS Error SLOW_DOWN: reduce your rate")
        return io.BytesIO(b"whole")


def test_a_file_of_pyarrows_own_storage_is_read_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filesystems, "WAITS_S", (0.001,) * 3)
    client = _Client(3)
    monkeypatch.setattr(storage, "resolve", lambda location: (client, "b/x"))
    assert storage.read("s3://b/x") == b"whole"
    for read in (storage.read, load_checkpoint, TeacherLabels, _annotated):
        client.failures = 4
        with pytest.raises(StorageError, match="SLOW_DOWN"):
            read("s3://b/x")


def _annotated(place: str) -> Any:
    return documents._read(place)
