"""Jobs on a real cluster: a head and three nodes on this machine, see nodes.py."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SMALL, alone, without_measurements
from nodes import Nodes

from distributed.sweep.state import read_sweep
from model.config import make_config

pytestmark = [pytest.mark.ray, pytest.mark.long]
TINY = [f"--set=tagger.{name}={size}" for name, size in SMALL.items()]
EPOCHS = 20
LONG = [f"--epochs={EPOCHS}", "--batch=16"]  # some 20 s of training, so that there is a midst to disturb


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and three nodes with one CPU each."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("nodes on one machine need mounts of their own, which this user may not make")
    cluster = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        cluster.begin(3)
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def training(nodes: Nodes, small_dataset: str) -> list[str]:
    """A training of three workers on a dataset that all nodes see."""
    data = nodes.shared / "data"
    if not data.exists():
        shutil.copytree(small_dataset, data)
    settings = ["--data", str(data), "--storage", str(nodes.shared / "runs"), "--workers", "3", "--lr", "0.01", *TINY]
    return ["train", *settings, "--set", "tagger.dropout=0.1", "--set", "training.patience=0", "--device", "cpu"]


def result_of(logs: str) -> dict[str, Any]:
    """The last JSON line of a job's log."""
    return json.loads([line for line in logs.splitlines() if line.startswith("{")][-1])


def test_a_submitted_training_runs_on_three_nodes(nodes: Nodes, training: list[str], small_bundle: str):
    done = nodes.submit(*training, "--name", "three", "--epochs", "8", "--json", job="three")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in nodes.run("job", "status", "three").stdout.upper()
    logs = nodes.run("job", "logs", "three").stdout
    result = result_of(logs)
    assert result["epochs"] == 8 and (nodes.shared / "runs" / "three" / "bundle" / "config.json").exists()
    assert "3 x (1 CPU) on 4 nodes" in logs and "epoch 8/8" in logs
    assert not re.search(r"\x1b\[|\r", logs.split("epoch 1/8")[1].split('{"name"')[0])
    one = subprocess.run(
        [sys.executable, "-m", "jobs", *training, "--workers", "1", "--name", "one", "--epochs", "8", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"WANDB_MODE": "offline"},
    )  # fmt: skip
    alone = result_of(one.stdout)
    assert alone["keyphrase_f1_low"] <= result["keyphrase_f1"] <= alone["keyphrase_f1_high"]


def test_no_secret_is_in_what_a_run_leaves_or_the_job_server_tells(nodes: Nodes, training: list[str]):
    trials = ["--trials", "2", "--max-epochs", "1", "--no-stopping", "--finalists", "0", "--device", "cpu", *TINY]
    done = nodes.submit("tune", *training[1:5], *trials, "--name", "searched", job="searched")
    assert done.returncode == 0, done.stdout + done.stderr
    done = nodes.submit(*training, "--name", "secret", "--epochs", "1", "--json", job="secret")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [nodes.run("job", "list").stdout, nodes.run("job", "logs", "secret").stdout, done.stdout]
    told.append(nodes.ask("/api/jobs/"))
    assert "secret" in told[-1]
    files = [path for root in (nodes.shared, Path(nodes.base)) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50
    for secret in [*nodes.secrets, nodes.environment["RAY_AUTH_TOKEN"]]:
        assert not any(secret in text for text in told)
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []


def test_storage_on_one_node_alone_is_refused_before_anything_is_held(nodes: Nodes, training: list[str]):
    local = [each.replace(str(nodes.shared / "runs"), "/tmp/runs") for each in training]
    done = nodes.submit(*local, "--name", "local", job="local")
    logs = nodes.run("job", "logs", "local").stdout
    assert done.returncode != 0 and "is a local path, and the cluster has 4 nodes" in logs and "Traceback" not in logs


def test_a_node_that_is_lost_costs_no_bit(nodes: Nodes, training: list[str]):
    one = [*training, "--workers", "1", *LONG, "--json"]
    nodes.submit(*one, "--name", "node", job="node", wait=False)
    nodes.wait(lambda: f"epoch 2/{EPOCHS}" in nodes.job_logs("node"), 180)
    [worker] = nodes.running("ray::RayTrainWorker")
    nodes.kill(next(node for node in nodes.processes if node.pid in [parent.pid for parent in worker.parents()]))
    nodes.wait(lambda: nodes.status("node") not in ("PENDING", "RUNNING"), 180)
    logs = nodes.job_logs("node")
    assert nodes.status("node") == "SUCCEEDED", logs
    assert "lost worker 0" in logs and "resuming from checkpoint_epoch_" in logs
    nodes.add()
    run = nodes.shared / "runs" / "node"
    undisturbed = alone(make_config(json.loads((run / "config.json").read_text()))).history
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for epoch, other in zip(history, undisturbed, strict=True):
        assert without_measurements(epoch) == without_measurements(other)


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, training: list[str]) -> tuple[bytes, dict[str, Any]]:
    """The weights and the result of LONG on three workers, which nothing disturbs."""
    done = nodes.submit(*training, "--name", "undisturbed", *LONG, "--json", job="undisturbed")
    assert done.returncode == 0, done.stdout + done.stderr
    return weights(nodes, "undisturbed"), result_of(nodes.job_logs("undisturbed"))


def weights(nodes: Nodes, run: str) -> bytes:
    """The weights of a finished run."""
    return (nodes.shared / "runs" / run / "bundle" / "weights.safetensors").read_bytes()


def test_a_stopped_job_leaves_nothing_behind_and_goes_on_to_the_same_bits(
    nodes: Nodes, training: list[str], undisturbed: tuple[bytes, dict[str, Any]]
):
    nodes.submit(*training, "--name", "stopped", *LONG, "--json", job="stopped", wait=False)
    nodes.wait(lambda: f"epoch 3/{EPOCHS}" in nodes.job_logs("stopped"))
    assert nodes.run("job", "stop", "stopped").returncode == 0
    stopped = time.monotonic()
    nodes.wait(lambda: not any(nodes.left().values()), 30)
    print(f"nothing was left {time.monotonic() - stopped:.1f} s after the stop")
    assert nodes.status("stopped") == "STOPPED" and "resume with" in nodes.job_logs("stopped")
    again = ["train", "--resume", "stopped", "--storage", str(nodes.shared / "runs"), "--json"]
    done = nodes.submit(*again, job="again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from checkpoint_epoch_" in nodes.job_logs("again")
    assert weights(nodes, "stopped") == undisturbed[0]


def test_an_elastic_training_goes_on_with_the_nodes_that_are_left_and_grows_again(
    nodes: Nodes, training: list[str], undisturbed: tuple[bytes, dict[str, Any]]
):
    elastic = [each if each != "3" else "2:3" for each in training]
    long = ["--epochs", "80", "--batch", "16"]
    nodes.submit(*elastic, "--name", "elastic", *long, "--json", job="elastic", wait=False)
    nodes.wait(lambda: "epoch 3/80" in nodes.job_logs("elastic"), 150)
    nodes.kill(nodes.processes[-1])
    nodes.wait(lambda: "with 2 worker(s)" in nodes.job_logs("elastic"), 120)
    nodes.add()
    nodes.wait(lambda: "with 3 worker(s)" in nodes.job_logs("elastic"), 120)
    nodes.wait(lambda: nodes.status("elastic") not in ("PENDING", "RUNNING"), 400)
    logs = nodes.job_logs("elastic")
    assert nodes.status("elastic") == "SUCCEEDED", logs
    _, alone = undisturbed
    assert alone["keyphrase_f1_low"] <= result_of(logs)["keyphrase_f1"] <= alone["keyphrase_f1_high"]


def test_a_notice_from_the_cloud_is_answered_by_a_checkpoint(
    nodes: Nodes, training: list[str], undisturbed: tuple[bytes, dict[str, Any]]
):
    nodes.submit(*training, "--name", "spot", *LONG, "--json", job="spot", wait=False)
    nodes.wait(lambda: f"epoch 2/{EPOCHS}" in nodes.job_logs("spot"))
    busy = {actor["node_id"] for actor in nodes.listed("actors") if actor["class_name"].startswith("RayTrainWorker")}
    nodes.drain(min(busy), seconds=15)
    nodes.add()
    nodes.wait(lambda: nodes.status("spot") not in ("PENDING", "RUNNING"), 180)
    logs = nodes.job_logs("spot")
    assert "will be taken away in" in logs and "resuming from checkpoint_epoch_" in logs
    assert nodes.status("spot") == "SUCCEEDED" and weights(nodes, "spot") == undisturbed[0]


def test_a_notice_from_the_cloud_restarts_a_trial_of_several_workers(nodes: Nodes, training: list[str]):
    """Ray must not restart the trial's worker group by itself: the new group would wait for an epoch request for ever."""
    runs = nodes.shared / "runs"
    same = ["--space", "training.lr=0.01", "--space", "training.alpha=0.5", "--no-stopping"]
    size = ["--trials", "2", "--max-epochs", str(EPOCHS), "--set", "training.global_batch_size=16", *TINY]
    where = [
        *training[1:5],
        "--name",
        "drained",
        "--workers-per-trial",
        "2",
        "--max-concurrent",
        "1",
        "--device",
        "cpu",
    ]
    nodes.submit("tune", *where, *same, *size, "--json", job="drained", wait=False)
    journal = runs / "drained" / "journal.jsonl"
    nodes.wait(lambda: journal.exists() and journal.read_text().count('"event": "epoch"') >= 2, 150)
    busy = {actor["node_id"] for actor in nodes.listed("actors") if actor["class_name"].startswith("RayTrainWorker")}
    nodes.drain(min(busy), seconds=10)
    nodes.add()
    nodes.wait(lambda: nodes.status("drained") not in ("PENDING", "RUNNING"), 240)
    logs = nodes.job_logs("drained")
    assert nodes.status("drained") == "SUCCEEDED" and "restarting from its last checkpoint" in logs, logs
    assert result_of(logs)["failed"] == 0 and result_of(logs)["epochs_spent"] == 2 * EPOCHS
    one, other = read_sweep(str(runs / "drained")).searched
    assert one.retries + other.retries == 1
    key = "valid/keyphrase_f1"
    assert [epoch[key] for epoch in one.metrics] == [epoch[key] for epoch in other.metrics]
