"""A real cluster on one machine: a head without CPUs and three nodes, token authentication, the real job server.

Processes are begun and ended here by their pids; no other Ray on the machine is touched.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, SMALL

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        not os.environ.get("TANDEM_CLUSTER"), reason="starts a cluster of its own; make test-cluster runs it"
    ),
]
BIN = Path(sys.executable).parent
TINY = [f"--set=tagger.{name}={size}" for name, size in SMALL.items()]
START = (str(BIN / "ray"), "start", "--disable-usage-stats", "--block", "--object-store-memory=100000000")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nodes:
    """A cluster of processes.

    Attributes:
        shared: a folder on a file system that all nodes mount.
        environment: of the nodes, and what a client needs to speak to them.
        secrets: that the nodes hold in their environment.
    """

    def __init__(self, folder: Path) -> None:
        self.shared = Path(tempfile.mkdtemp(prefix="tandem-shared-", dir="/dev/shm"))
        self.base = tempfile.mkdtemp(prefix="rc-", dir="/tmp")
        self.scratch = f"{self.base}/ray"  # what every node takes for its own; see _start
        Path(self.scratch).mkdir()
        self.port, self.dashboard = free_port(), free_port()
        self.logs = folder
        self.secrets = [secrets.token_hex(20) for _ in range(2)]
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
            "WANDB_MODE": "offline",
            "WANDB_API_KEY": self.secrets[0],
            "AWS_SECRET_ACCESS_KEY": self.secrets[1],
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self, count: int) -> None:
        """Starts the head and some nodes."""
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--temp-dir={self.scratch}")
        self._start("--head", "--num-cpus=0", "--include-dashboard=true", *ports)
        self.wait(lambda: self.run("job", "list").returncode == 0)
        for _ in range(count):
            self.add()
        self.wait(lambda: self.cpus() == count)

    def add(self) -> None:
        """A node with one CPU more."""
        self._start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1")

    def _start(self, *arguments: str) -> None:
        path = self.logs / f"node-{time.monotonic_ns()}.log"
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        # Nodes on one machine would unpack a job's files into one folder, each over the others'. So each has its own, put in
        # the place of the common one for its processes alone.
        own = tempfile.mkdtemp(prefix="node-", dir=self.base)
        ray = [*START, f"--dashboard-agent-listen-port={free_port()}", *arguments]
        command = ["unshare", "--mount", "sh", "-c", f'mount --bind {own} {self.scratch} && exec "$@"', "sh", *ray]
        with path.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        self.wait(lambda: "will now block forever" in path.read_text())  # one after the other, or they take one port

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Ends a node as a power cut would."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            process.kill()
        node.wait()
        self.processes.remove(node)

    def cpus(self) -> int:
        """The CPUs of all nodes that are alive."""
        found = json.loads(self.ask("/api/v0/nodes?detail=1"))["data"]["result"]["result"]
        return sum(int(node["resources_total"].get("CPU", 0)) for node in found if node["state"] == "ALIVE")

    def ask(self, path: str) -> str:
        """What the dashboard's server says to those who hold the token."""
        request = urllib.request.Request(f"{self.environment['RAY_ADDRESS']}{path}")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()

    def run(self, *arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """`ray ...` as a client."""
        command = [str(BIN / "ray"), *arguments]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    def submit(self, *arguments: str, job: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of a command of ours."""
        options = ["--submission-id", job, "--working-dir", ".", *([] if wait else ["--no-wait"])]
        return self.run("job", "submit", *options, "--", "python", "-m", "jobs", *arguments)

    def wait(self, done: Callable[[], bool], seconds: float = 90) -> None:
        """Until something is so; fails with what the nodes say."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "\n".join(path.read_text() for path in self.logs.glob("node-*.log"))
            time.sleep(1)

    def end(self) -> None:
        """Ends all processes and removes all files."""
        for node in list(self.processes)[::-1]:
            self.kill(node)
        shutil.rmtree(self.shared, ignore_errors=True)
        shutil.rmtree(self.base, ignore_errors=True)


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
