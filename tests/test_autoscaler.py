"""cluster.yaml's node types under Ray's autoscaler, from no nodes: its nodes are processes on this machine.

Everything runs in namespaces of its own and ends with them; no other Ray on the machine is seen or touched.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, SMALL

pytestmark = [pytest.mark.ray, pytest.mark.long]
BIN = Path(sys.executable).parent
NAMESPACES = ("unshare", "--pid", "--net", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
HEAD_TYPE = "ray.head.default"  # what the provider of such nodes calls its head
HEAD_ID = "f" * 51 + "00000"
IDLE_SECONDS = 6
# Asks Ray for bundles as a placement group and tells, as JSON, which nodes came and whether they went when nobody used them.
PROBE = """
import json, ray, sys, time
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
def nodes():
    return sorted([n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)] for n in ray.nodes() if n["Alive"])
group = ray.util.placement_group(*json.loads(sys.argv[1]))
ready, _ = ray.wait([group.ready()], timeout=60)
came = nodes()
ray.util.remove_placement_group(group)
deadline = time.monotonic() + 60
while len(nodes()) > 1 and time.monotonic() < deadline:
    time.sleep(0.5)
print(json.dumps({"ready": bool(ready), "came": came, "left": nodes()}))
"""


def autoscaler_config() -> dict[str, Any]:
    """cluster.yaml's types and limits, with a provider whose nodes are processes."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    types = {HEAD_TYPE: cluster["available_node_types"].pop("head"), **cluster["available_node_types"]}
    for name, kind in types.items():
        kind["node_config"] = {}
        if name != HEAD_TYPE:
            # The provider for AWS adds the accelerator and the memory. No job asks for them, and that decides which type
            # the autoscaler thinks the fittest.
            kind["resources"]["accelerator_type:A10G"] = 1
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    steps = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        **{f"{step}_commands": [] for step in steps},
        "file_mounts": {},
        "cluster_synced_files": [],
        "cluster_name": "tandem",
        "max_workers": cluster["max_workers"],
        "upscaling_speed": cluster["upscaling_speed"],
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        # Under its own name, this provider wants a file that Ray's package does not have.
        "provider": {"type": "external", "module": provider, "launch_multiple": True, "disable_node_updaters": True},
        "available_node_types": types,
        "head_node_type": HEAD_TYPE,
    }


class Cloud:
    """A head whose autoscaler starts and ends nodes. `run` runs a command where it is seen."""

    def __init__(self, folder: Path) -> None:
        self.shared = Path(tempfile.mkdtemp(prefix="tandem-shared-", dir="/dev/shm"))  # counts as mounted
        self.scratch = tempfile.mkdtemp(prefix="rc-", dir="/tmp")
        self.log = folder / "head.log"
        (folder / "cluster.json").write_text(json.dumps(autoscaler_config()))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": self.scratch,
            "WANDB_MODE": "offline",
        }
        own = {
            "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        }
        ray = f"{BIN / 'ray'} start --head --num-cpus=0 --node-ip-address=127.0.0.1 --port=6379 --disable-usage-stats"
        options = f"--object-store-memory=100000000 --autoscaling-config={folder / 'cluster.json'} --block"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*NAMESPACES, "sh", "-c", f"ip link set lo up && exec {ray} {options}"],
                env=self.environment | own, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while "will now block forever" not in self.log.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.5)

    def run(self, *command: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """Runs a command beside the head."""
        [inside] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        enter = ["nsenter", "--target", inside, "--pid", "--net", "--mount", "--uts", f"--wd={ROOT}"]
        environment = self.environment | {"RAY_ADDRESS": "127.0.0.1:6379"}
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, timeout=timeout)

    def jobs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m jobs ...`."""
        return self.run(sys.executable, "-m", "jobs", *arguments)

    def probe(self, count: int, bundle: dict[str, float], strategy: str) -> dict[str, Any]:
        """Which nodes come for a request, as (CPUs, GPUs), and which are left when nobody uses them."""
        done = self.run(sys.executable, "-c", PROBE, json.dumps([[bundle] * count, strategy]))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def end(self) -> None:
        """Ends all processes, with their namespaces, and removes all files."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.shared, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A head without CPUs and no other node."""
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("needs namespaces of its own, which this user may not make")
    here = Cloud(tmp_path_factory.mktemp("cloud"))
    try:
        yield here
    finally:
        here.end()


@pytest.fixture(scope="module")
def training(cloud: Cloud, small_dataset: str) -> list[str]:
    """A training on storage that all nodes see."""
    shutil.copytree(small_dataset, cloud.shared / "data")
    sizes = [f"--set=tagger.{name}={size}" for name, size in SMALL.items()]
    return ["train", "--data", str(cloud.shared / "data"), "--storage", str(cloud.shared / "runs"), *sizes]


def test_a_dry_run_says_what_is_there_and_what_can_come(cloud: Cloud, training: list[str]):
    done = cloud.jobs(*training, "--workers", "4", "--dry-run")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["asks"] == {"workers": 4, "cpus_per_worker": 1, "gpus_per_worker": 1}
    assert told["cluster"] == {"cpus": 0, "gpus": 0, "nodes": 1}
    assert told["can_become"] == {"cpus": 120, "gpus": 14, "nodes": 9}
    refused = cloud.jobs(*training, "--workers", "15", "--device", "cuda", "--dry-run")
    assert refused.returncode == 2 and "has 0 GPUs, at most 14" in refused.stderr


@pytest.mark.parametrize(
    ("count", "strategy", "nodes"),
    [(1, "PACK", [[4, 1]]), (2, "PACK", [[4, 1]] * 2), (4, "PACK", [[48, 4]]), (4, "STRICT_PACK", [[48, 4]])],
)
def test_the_right_type_comes_and_goes(cloud: Cloud, count: int, strategy: str, nodes: list[list[float]]):
    found = cloud.probe(count, {"CPU": 1, "GPU": 1}, strategy)
    assert found == {"ready": True, "came": [[0, 0], *nodes], "left": [[0, 0]]}


def test_a_training_runs_from_no_nodes(cloud: Cloud, training: list[str]):
    # These nodes have GPUs only by name.
    done = cloud.jobs(*training, "--workers", "4", "--device", "cpu", "--epochs", "2", "--name", "fresh", "--json")
    assert done.returncode == 0, done.stderr
    assert "4 x (1 CPU) on 1 node, at most 9" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["epochs"] == 2
    assert (cloud.shared / "runs" / "fresh" / "bundle" / "config.json").exists()


def test_what_never_comes_is_waited_for_so_long_and_no_longer(cloud: Cloud, training: list[str]):
    # The autoscaler would start such a node, but Ray on this machine takes longer than that.
    asks = ["--workers", "2", "--device", "cpu", "--set", "run.cpus_per_worker=48", "--set", "run.wait_minutes=0.02"]
    done = cloud.jobs(*training, *asks, "--name", "impatient")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: 2 x (48 CPU) not granted after 0.02 minutes: the cluster has 0 CPUs" in done.stderr
    assert "the autoscaler may add nodes up to 120 CPUs" in done.stderr and "run.wait_minutes" in done.stderr
