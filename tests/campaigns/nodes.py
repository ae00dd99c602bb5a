"""A real cluster on one machine: a head without CPUs and nodes of one CPU, token authentication, the real job server.

Processes are begun and ended here by their pids; no other Ray on the machine is touched.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from helpers import OF_THE_CLUSTER, title_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_STARTS = 3  # tries to start a node: Ray gives it 30 seconds, which a busy machine may not
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
        self.wait(self._answers)
        for _ in range(count):
            self.add()
        self.wait(lambda: self.cpus() == count)

    def _answers(self) -> bool:
        """Whether the job server answers."""
        with suppress(OSError):
            return isinstance(json.loads(self.ask("/api/jobs/")), list)
        return False

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
        assert any(self._stays_up(command, environment, path) for _ in range(_STARTS)), path.read_text()

    def _stays_up(self, command: list[str], environment: dict[str, str], path: Path) -> bool:
        """Whether a node, started once, has started; one after the other, or they take one port."""
        with path.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        self.wait(lambda: "will now block forever" in path.read_text() or process.poll() is not None)
        if process.poll() is not None:
            self.processes.remove(process)
        return process.poll() is None

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Ends a node as a power cut would."""
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.processes.remove(node)

    def running(self, title: str) -> list[psutil.Process]:
        """The processes on all nodes that have this in their title."""
        found = [each for node in self.processes for each in psutil.Process(node.pid).children(recursive=True)]
        return [each for each in found if title in title_of(each)]

    def alive(self) -> list[dict[str, Any]]:
        """What Ray tells of the nodes that are alive."""
        return [node for node in self.listed("nodes") if node["state"] == "ALIVE"]

    def cpus(self) -> int:
        """The CPUs of all nodes that are alive."""
        return sum(int(node["resources_total"].get("CPU", 0)) for node in self.alive())

    def left(self) -> dict[str, list[str]]:
        """What jobs have left behind: placement groups, actors and processes."""
        groups = [each["placement_group_id"] for each in self.listed("placement_groups") if each["state"] != "REMOVED"]
        living = [each["class_name"] for each in self.listed("actors") if each["state"] != "DEAD"]
        actors = [name for name in living if name not in (*OF_THE_CLUSTER, "JobSupervisor")]
        processes = [title_of(each) for kind in ("ray::RayTrain", "-m jobs") for each in self.running(kind)]
        return {"placement groups": groups, "actors": actors, "processes": processes}

    def drain(self, node_id: str, seconds: int) -> None:
        """Gives notice that a node will be taken away, as a cloud does for its spot machines."""
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        address = ("--address", f"127.0.0.1:{self.port}", "--node-id", node_id)
        done = self.run("drain-node", *address, *reason, "--deadline-remaining-seconds", str(seconds))
        assert done.returncode == 0, done.stderr

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """What Ray's state API lists."""
        return json.loads(self.ask(f"/api/v0/{kind}?detail=1&limit=10000"))["data"]["result"]["result"]

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

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(json.loads(self.ask(f"/api/jobs/{job}"))["status"])

    def job_logs(self, job: str) -> str:
        """All that a job has printed."""
        return str(json.loads(self.ask(f"/api/jobs/{job}/logs"))["logs"])

    def wait(self, done: Callable[[], bool], seconds: float = 180) -> None:
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
