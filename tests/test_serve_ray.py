"""The HTTP application on Ray Serve: the same answers, and replicas that come, go and are killed."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
import yaml
from helpers import ROOT, call, title_of
from nodes import free_port
from serving import BEARER, TEXT, TOKEN, Load, found_of, running, token_file

from distributed.serve import deployment, run
from distributed.serve.run import hangups, wait_for_signals
from model.errors import UserError
from model.inference.extractor import Extractor
from model.serving.settings import Listen, ServeSettings

pytestmark = pytest.mark.filterwarnings("ignore")
SERVE = yaml.safe_load((ROOT / "docs" / "deploy" / "serve.yaml").read_text("utf-8"))


def replica_processes() -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if title_of(each).startswith("ray::ServeReplica:tandem")]


@pytest.mark.ray
@pytest.mark.long
def test_replicas_answer_reload_and_are_replaced_when_killed(cluster: Any, small_bundle: str, tmp_path: Path):
    bundle, extractor = tmp_path / "bundle", Extractor.load(small_bundle)
    shutil.copytree(small_bundle, bundle)
    arguments = ["--replicas", "2", "--token-file", token_file(tmp_path, TOKEN)]
    port, address = free_port(), ray.get_runtime_context().gcs_address
    with running(str(bundle), tmp_path, *arguments, port=port, RAY_ADDRESS=address) as server:
        assert httpx.post(f"{server.url}/v1/extract", json={"text": TEXT}).status_code == 401
        answer = httpx.post(f"{server.url}/v1/extract", json={"text": TEXT}, headers=BEARER)
        assert found_of(answer) == [[each[:3] for each in extractor(TEXT)]]
        (bundle / "metrics.json").rename(tmp_path / "metrics.json")
        refusal = httpx.post(f"{server.url}/v1/reload", headers=BEARER, timeout=60)
        assert refusal.status_code == 409 and refusal.json()["detail"].startswith(f"{bundle}: is not a complete bundle")
        metrics = json.loads((tmp_path / "metrics.json").read_text()) | {"planted": 1}
        (bundle / "metrics.json").write_text(json.dumps(metrics))
        with Load(server.url, BEARER) as load:
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("taken in again")
            for _ in range(6):  # any replica may answer
                assert httpx.get(f"{server.url}/v1/model", headers=BEARER).json()["metrics"]["planted"] == 1
            load.wait_for(4)
            assert {each.status_code for each in load.answers} == {200}
            first, second = replica_processes()
            os.kill(first.pid, signal.SIGKILL)
            load.wait_for(8)
            while len({each.pid for each in replica_processes()} - {first.pid, second.pid}) < 1:
                load.wait_for(1)
            server.process.terminate()
            assert server.process.wait(60) == 143
        # At most the requests that were in the killed process are lost; after SIGTERM the proxy says that there is nothing.
        lost = [each.status_code for each in load.answers if each.status_code not in (200, 404, 503)]
        assert len(lost) <= 4 and len(load.refused) <= 4
        assert not replica_processes()
        assert TOKEN not in server.log and "Zorvalia" not in server.log
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for path in (logs / "serve").rglob("*.log"):
        content = path.read_text("utf-8", "replace")
        assert TOKEN not in content and "Zorvalia" not in content, path


def test_replicas_that_cannot_be_are_refused(small_bundle: str):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    for arguments, parts in (
        (("--replicas", "two"), ("--replicas two", "1-4")),
        (("--replicas", "3-2"), ("--replicas 3-2",)),
        (("--replicas", "0"), ("--replicas 0",)),
        (("--replicas", "2", "--host", "0.0.0.0"), ("--token-file",)),
        (("--replicas", "2", "--port", "0"), ("--port 0",)),
        (("--replicas", "2", "--port", str(port)), (f"--port {port}", "another --port")),
        (("--gpus-per-replica", "0.5"), ("--replicas",)),
    ):
        done = call("serve", small_bundle, *arguments)
        assert done.exit_code == 2 and all(part in done.stderr for part in parts), done.stderr
    taken.close()


def test_a_gpu_by_number_is_refused_on_a_cluster(small_bundle: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = call("serve", small_bundle, "--replicas", "2", "--port", str(free_port()), "--device", "cuda:1")
    assert done.exit_code == 2 and "--device cuda:1: on a cluster" in done.stderr


def test_a_hangup_does_not_end_a_service_that_still_starts(small_bundle: str, monkeypatch: pytest.MonkeyPatch):
    def load(bundle: str) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        raise UserError("still here")

    monkeypatch.setattr(run, "load_bundle", load)
    done = call("serve", small_bundle, "--replicas", "2", "--port", str(free_port()))
    assert done.exit_code == 2 and "still here" in done.stderr


def test_a_replica_that_dies_while_it_reloads_does_not_end_the_service(monkeypatch: pytest.MonkeyPatch):
    class Handle:
        def broadcast(self, method: str) -> "Handle":
            return self

        async def results_async(self) -> None:
            raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(deployment.serve, "get_deployment_handle", lambda *_: Handle())
    lines: list[str] = []

    def echo(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(KeyboardInterrupt), hangups() as hangup:
        wait_for_signals("bundle", Listen(), deployment.Replicas(), echo, hangup)
    assert "not every replica" in lines[1] and "starts another one" in lines[1]


def test_the_configuration_for_serve_deploy_is_one():
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(SERVE)
    assert schema.http_options.host == "127.0.0.1"
    [application] = schema.applications
    module, _, name = application.import_path.partition(":")
    assert module == deployment.__name__ and callable(getattr(deployment, name))
    assert application.name == deployment.APPLICATION
    assert [each.name for each in application.deployments] == [deployment.DEPLOYMENT]
    settings = ServeSettings.model_validate(application.args)
    assert settings.token_file and application.deployments[0].max_queued_requests > 0


def test_the_rayservice_runs_the_same_configuration():
    service = yaml.safe_load((ROOT / "docs" / "deploy" / "rayservice.yaml").read_text("utf-8"))
    job = yaml.safe_load((ROOT / "docs" / "deploy" / "rayjob.yaml").read_text("utf-8"))
    assert service["apiVersion"] == job["apiVersion"] and service["kind"] == "RayService"
    inside = yaml.safe_load(service["spec"]["serveConfigV2"])
    [ours], [given] = inside["applications"], SERVE["applications"]
    assert {key: ours[key] for key in ("name", "import_path", "route_prefix")} == {
        key: given[key] for key in ("name", "import_path", "route_prefix")
    }
    settings = ServeSettings.model_validate(ours["args"])
    assert settings.token_file and settings.any_host
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == job["spec"]["rayClusterSpec"]["rayVersion"]
    secrets = {each["name"] for each in cluster["headGroupSpec"]["template"]["spec"]["volumes"]}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        [mount] = container["volumeMounts"]
        assert mount["name"] in secrets and settings.token_file.startswith(mount["mountPath"])
