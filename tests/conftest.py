"""Fixtures: a small dataset directory, the command line, and the one Ray cluster that tests share."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers import ROOT, SMALL, alone, call, generated_dataset, start_ray
from hypothesis import settings
from typer.testing import Result

os.environ["WANDB_MODE"] = (
    "disabled"  # its log costs up to a quarter of a small sweep; tests of it and of processes have it
)
for name in ("RAY_ADDRESS", "TANDEM_STORAGE"):
    os.environ.pop(name, None)
# A shell starts what it runs in the background with Ctrl-C ignored, and so would be the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("thorough", max_examples=10_000, deadline=None)  # --hypothesis-profile=thorough


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, those that start a process last of them; then those that start Ray, the last file first.

    The longest of these are in the last files, and what runs alone in the end should be short.
    """
    fast = [item for item in items if "ray" not in item.keywords]
    fast.sort(key=lambda item: "command" in item.fixturenames)
    items[:] = fast + [item for item in items if "ray" in item.keywords][::-1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Kernels with one thread, whatever an earlier test has set: a worker with one CPU has one, and gives the same bits.

    The small taggers of the tests gain nothing by more, and beside other processes, threads that wait for each other take many
    times as long.
    """
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the collector what the imports left, which stays until the end: a full collection took a quarter of a second."""
    gc.freeze()


def made_once(name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A folder that all test processes share: the first that asks for it makes its content, and the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            make(folder)
    return folder


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset directory of 700 training, 100 validation and 200 test texts of the built-in corpus."""
    return str(made_once("small", tmp_path_factory, lambda folder: generated_dataset(folder, 1000)) / "data")


@pytest.fixture(scope="session")
def small_bundle(small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of a tagger trained for a few epochs on the small dataset, without Ray."""
    made = made_once("tagger", tmp_path_factory, lambda folder: make_bundle(small_dataset, str(folder / "bundle")))
    return str(made / "bundle")


def make_bundle(dataset: str, location: str) -> None:
    """Train a small tagger on a dataset and save it."""
    from model.config import make_config
    from model.data.dataset import Dataset
    from model.inference.bundle import save_bundle

    tree = {"data": dataset, "tagger": SMALL | {"dropout": 0.1}, "training": {"epochs": 6, "lr": 0.01}}
    config = make_config(tree)
    training = alone(config)
    metrics = {name.removeprefix("valid/"): value for name, value in training.history[-1].items()}
    save_bundle(location, config, Dataset(dataset).tokenizer_bytes(), training.tagger.state_dict(), metrics)


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m jobs ...` as a user would."""

    def run(*arguments: str, stdin: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=ROOT,
            input=content,
            capture_output=True,
            env=os.environ | {"WANDB_MODE": "offline"} | environment,
            timeout=500,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever this one has, but for tests of one."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A local Ray with four CPUs by name, so that two workers fit on any machine, and no GPU; ends with the tests."""
    import ray

    from distributed.cluster.connection import connect

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    start_ray(4, num_gpus=0)
    # A process for each training, which would tell it of a preemption. What sweeps leave behind is looked for with it: they
    # start their workers from processes of Ray, which have begun already and do not see this.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    yield connect()
    ray.shutdown()


@pytest.fixture
def call_on_cluster(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process, on the shared cluster; alone, it would end that."""
    monkeypatch.setattr("ray.shutdown", lambda: None)
    return call
