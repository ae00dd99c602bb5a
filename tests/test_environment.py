"""What a person may set wrongly, and what does not answer: each ends in one line that names it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, call, last_json, refused

from distributed.cluster import connection
from distributed.cluster.address import cluster_address, require_cluster
from distributed.cluster.connection import _start_ray, _to_start_error
from distributed.cluster.preflight import check_data, missing_keyphrases
from distributed.cluster.resources import ClusterResources
from distributed.train.driver import _saved
from distributed.train.runs import new_run
from distributed.train.tracking import wandb_settings
from jobs.console import invocation
from model import filesystems, storage
from model.config import Config, RunConfig, make_config
from model.data.dataset import Dataset
from model.errors import RunFailedError, StorageError, UserError
from model.prepare.builder import PrepareConfig, prepare

NOBODY = "http://127.0.0.1:9/x"  # the port of `discard`, where nothing listens


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return server.getsockname()[1]


# ---- RAY_ADDRESS and Ray's files


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("http://127.0.0.1:8265", ("`ray job submit`", "unset it")),
        ("https://ray.example.org", ("`ray job submit`",)),
        ("ray://127.0.0.1:10001", ("Ray Client", "RAY_ADDRESS=auto")),
        ("nonsense", ("is no address", "HOST:PORT")),
        ("auto", ("no Ray runs on this machine", "ray start --head")),
    ],
)
def test_an_address_that_cannot_be_a_clusters_is_refused(
    address: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # not those of other tests
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    refused(lambda: require_cluster(address), f"RAY_ADDRESS={address}", *parts)


def test_an_address_where_no_ray_answers_fails_soon(silent: socket.socket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distributed.cluster.ray_internals.ANSWER_S", 0.3)
    for address in ("127.0.0.1:9", "no-such-host.invalid:6379", f"127.0.0.1:{port_of(silent)}"):
        with pytest.raises(RunFailedError, match=f"RAY_ADDRESS={address}: no Ray answers"):
            require_cluster(address)


def test_a_blank_address_and_local_are_this_machine(monkeypatch: pytest.MonkeyPatch):
    for address in ("", " ", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster_address() is None


def test_a_wrong_address_ends_each_command_that_joins_a_cluster(
    small_dataset: str, small_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    source, out = str(Path(small_dataset).parent / "test.jsonl"), str(tmp_path / "out")
    for arguments in (
        ["train", "--data", small_dataset, "--storage", out],
        ["tune", "--data", small_dataset, "--storage", out, "--dry-run"],
        ["prepare", source, "--out", out],
        ["extract", small_bundle, source, "--out", out],
    ):
        done = call(*arguments)
        assert done.exit_code == 2 and done.stderr.startswith("error: RAY_ADDRESS=http"), done.output
        assert done.stderr.count("\n") == 1
    assert not Path(out).exists()


@pytest.mark.ray
def test_a_cluster_that_requires_a_token_says_so(cluster, command, small_dataset: str):
    import ray

    address = ray.get_runtime_context().gcs_address
    arguments = ["train", "--data", small_dataset, "--dry-run"]
    refusal = command(*arguments, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    assert refusal.returncode == 2 and "RAY_AUTH_MODE=token" in refusal.stderr, refusal.stderr
    assert refusal.stderr.count("\n") == 1
    assert last_json(command(*arguments, RAY_ADDRESS=address, RAY_AUTH_MODE="token").stdout)["cluster"]["cpus"] == 4


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "HOME"])
def test_folders_that_ray_cannot_write_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    if name == "HOME":
        monkeypatch.delenv("RAY_AUTH_MODE")  # Ray then writes a token
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file"))
    refused(lambda: _start_ray(ClusterResources(1, 0, 1), 1), "Ray cannot write", f"{name} (now {tmp_path / 'file'})")


def test_a_ray_that_does_not_start_is_not_the_users_mistake():
    assert isinstance(_to_start_error(OSError("AF_UNIX path length cannot exceed 107 bytes")), UserError)
    assert isinstance(_to_start_error(TimeoutError("Timed out after 30 seconds")), RunFailedError)


# ---- storage


def test_a_cluster_of_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch):
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.11.7")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(connection, "require_cluster", lambda _: None)
    monkeypatch.setattr("ray.init", init)
    refused(connection.connect, "RAY_ADDRESS=10.0.0.1:6379", "Ray: 2.60.0 Python: 3.11.7", "use the cluster's versions")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a command with an exception where it would end this process."""
    monkeypatch.setattr("os._exit", sys.exit)


def test_storage_that_does_not_answer_ends_each_command(
    ended: None, small_dataset: str, small_bundle: str, tmp_path: Path
):
    source, out = str(Path(small_dataset).parent / "test.jsonl"), str(tmp_path / "out")
    for arguments in (
        ["prepare", NOBODY, "--out", out],
        ["prepare", source, "--out", NOBODY],
        ["prepare", source, "--out", out, "--vectors", NOBODY],
        ["train", "--data", NOBODY, "--storage", out],
        ["train", "--data", small_dataset, "--storage", NOBODY],
        ["tune", "--data", small_dataset, "--storage", NOBODY],
        ["evaluate", NOBODY, "--data", small_dataset],
        ["evaluate", small_bundle, "--data", NOBODY],
        ["extract", NOBODY, source],
        ["extract", small_bundle, NOBODY],
        ["report", NOBODY],
    ):
        done = call(*arguments)
        assert done.exit_code == 1 and done.stderr.startswith(f"error: {NOBODY}"), (arguments, done.output)
        assert "cannot be reached" in done.stderr and done.stderr.count("\n") == 1
    assert not Path(out).exists()


def test_each_kind_of_storage_that_does_not_answer_is_named(silent: socket.socket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(filesystems, "ANSWER_S", 1.0)
    s3 = "s3://bucket/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9"
    for location in (s3, f"http://127.0.0.1:{port_of(silent)}/x", "gs://bucket/x?endpoint_override=127.0.0.1:9"):
        with pytest.raises(StorageError, match="check the address and the network") as caught:
            storage.exists(location)
        assert str(caught.value).startswith(location) and "\n" not in str(caught.value)


def test_a_refusal_is_the_users_mistake_and_another_failure_is_not():
    refusal = OSError("When testing 'b': AWS Error ACCESS_DENIED during HeadObject operation: No response body.")
    assert isinstance(filesystems._to_storage_error("s3://b/x", refusal), UserError)
    assert isinstance(filesystems._to_storage_error("s3://b/x", OSError("AWS Error NETWORK_CONNECTION")), StorageError)
    assert "TimeoutError" in str(filesystems._to_storage_error("az://b/x", TimeoutError()))


def test_a_wait_for_storage_is_ended_by_a_signal(silent: socket.socket, tmp_path: Path):
    location = f"s3://bucket/x?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port_of(silent)}"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", "prepare", location, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | keys,
        stderr=subprocess.PIPE,
        text=True,
    )
    silent.settimeout(60)
    connection, _ = silent.accept()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    connection.close()
    assert process.returncode == 143 and errors == "terminated\n" and time.monotonic() - began < 10


# ---- W&B


@pytest.fixture
def wandb_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without any of W&B's variables and files."""
    import wandb

    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_")}
    monkeypatch.chdir(tmp_path)
    os.environ |= {"WANDB_CONFIG_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= before
    wandb.teardown()


def settings_of(**environment: str) -> tuple[str, str]:
    import wandb

    os.environ |= environment
    wandb.teardown()  # what it has read before
    return tuple(wandb_settings(make_config({"data": "d"})))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("offline", "tandem")),
        ({"WANDB_MODE": "OFFLINE"}, ("offline", "tandem")),
        ({"WANDB_MODE": "dryrun"}, ("offline", "tandem")),
        ({"WANDB_MODE": "Disabled"}, ("disabled", "tandem")),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, ("disabled", "tandem")),
        ({"WANDB_DISABLED": "false"}, ("offline", "tandem")),
        ({"WANDB_MODE": "online"}, ("online", "tandem")),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_PROJECT": "theirs"}, ("online", "theirs")),
        ({"WANDB_API_KEY": "", "WANDB_MODE": " ", "WANDB_PROJECT": ""}, ("offline", "tandem")),
    ],
)
def test_wandb_variables_are_honored(environment: dict[str, str], expected: tuple[str, str], wandb_environment: None):
    assert settings_of(**environment) == expected


def test_wandb_settings_files_are_honored_and_a_flag_wins(tmp_path: Path, wandb_environment: None):
    (tmp_path / "settings").write_text("[default]\nmode = disabled\nproject = of-the-file\n")
    assert settings_of() == ("disabled", "of-the-file")
    assert settings_of(WANDB_PROJECT="of-the-variable") == ("disabled", "of-the-variable")
    flag = make_config({"data": "d", "run": {"wandb_project": "of-the-flag"}})
    assert wandb_settings(flag).project == "of-the-flag"
    refused(
        lambda: wandb_settings(make_config({"data": "d", "run": {"wandb_project": "a/b"}})),
        "run.wandb_project",
        "cannot contain",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "off"),
        ("WANDB_BASE_URL", "notaurl"),
        ("WANDB_PROJECT", "a/b"),
        ("WANDB_INIT_TIMEOUT", "soon"),
    ],
)
def test_a_wandb_variable_that_is_wrong_is_named(name: str, value: str, wandb_environment: None):
    refused(lambda: settings_of(**{name: value}), name)


def test_a_key_that_cannot_be_one_is_said_and_not_used(wandb_environment: None, capsys: pytest.CaptureFixture[str]):
    assert settings_of(WANDB_API_KEY="XX") == ("offline", "tandem")
    said = capsys.readouterr().err
    assert "WANDB_API_KEY" in said and "offline" in said and "XX" not in said


# ---- Python and the terminal


def test_python_without_docstrings_is_refused(command, small_dataset: str):
    done = command("train", "--data", small_dataset, PYTHONOPTIMIZE="2")
    assert done.returncode == 2 and done.stderr.startswith("error: PYTHONOPTIMIZE=2") and done.stderr.count("\n") == 1


def test_printed_commands_can_be_pasted():
    assert invocation("evaluate", "my runs/a'b").endswith("""-m jobs evaluate 'my runs/a'"'"'b'""")


@pytest.mark.parametrize("name", ["my run", "a/b", "ä", "", "-x", "a" * 101])
def test_a_name_that_is_none_is_refused_in_words(name: str):
    refused(lambda: make_config({"data": "d", "run": {"name": name}}), "run.name", "a to z", "100")


def test_a_blank_storage_is_as_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_STORAGE", "")
    assert RunConfig().storage == "runs"


# ---- runs that fail early, and datasets


def run_of(data: str, tmp_path: Path) -> Config:
    return new_run(make_config({"data": data, "run": {"name": "r", "storage": str(tmp_path / "runs")}}))


def test_a_run_that_fails_before_its_first_checkpoint_may_be_started_again(tmp_path: Path):
    config, folder = run_of("d", tmp_path), tmp_path / "runs" / "r"
    with pytest.raises(RunFailedError), _saved(config, str(folder)):
        raise RunFailedError("no")
    assert run_of("d", tmp_path) == config
    with pytest.raises(RunFailedError), _saved(config, str(folder)):
        (folder / "checkpoint_epoch_000001_step_000000").mkdir()
        raise RunFailedError("no")
    refused(lambda: run_of("d", tmp_path), "exists", "--resume r")


def test_a_stopped_run_keeps_its_name(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), _saved(run_of("d", tmp_path), str(tmp_path / "runs" / "r")):
        raise KeyboardInterrupt
    refused(lambda: run_of("d", tmp_path), "exists", "--resume r")


def dataset(folder: Path, train: str, valid: str) -> Dataset:
    folder.mkdir(exist_ok=True)
    for split, lines in {"train": train, "valid": valid}.items():
        (folder / f"{split}.tsv").write_text(lines)
    location = str(folder / "data")
    prepare(PrepareConfig([str(folder / "train.tsv")], location, [str(folder / "valid.tsv")], overwrite=True))
    return Dataset(location)


def test_another_dataset_under_a_runs_path_is_refused(tmp_path: Path):
    first = dataset(tmp_path / "a", "red car\tcar\nblue sky\tsky\n", "red sky\tsky\n")
    config = make_config({"data": first.location, "data_digest": first.digest})
    check_data(config, first)
    moved = dataset(tmp_path / "b", "red car\tcar\nblue sky\tsky\n", "red sky\tsky\n")
    assert moved.digest == first.digest
    check_data(config, dataset(tmp_path / "a", "red car\tcar\nblue sky\tsky\n", "red sky\tsky\n"))
    other = dataset(tmp_path / "a", "red car\tcar\nblue sea\tsea\n", "red sky\tsky\n")
    refused(lambda: check_data(config, other), first.location, "no longer the dataset", "--name")
    unlike = dataset(tmp_path / "a", "red car\tred\nblue sky\tsky\n", "red sky\tsky\n")
    refused(lambda: check_data(config, unlike), "no longer the dataset")


def test_splits_without_keyphrases_are_said(tmp_path: Path, small_bundle: str):
    some, none = "red car\tcar\n", "blue sky\t\n"
    assert missing_keyphrases(dataset(tmp_path / "a", some, some)) == []
    [valid] = missing_keyphrases(dataset(tmp_path / "b", some, none))
    assert "valid has no keyphrases" in valid
    assert len(missing_keyphrases(dataset(tmp_path / "c", none, none))) == 2
    said = call("evaluate", small_bundle, "--data", str(tmp_path / "c" / "valid.tsv"), "--format", "tsv").stderr
    assert "warning" in said and "has no keyphrases" in said
