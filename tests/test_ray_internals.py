"""What Ray does not promise: each private name gives the real thing on the pinned Ray, and is used in one file alone."""

import ast
import inspect
import logging
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train  # whole, before a test hides parts of Ray
import yaml
from helpers import ROOT, sources

from distributed.cluster import ray_internals

pytestmark = pytest.mark.filterwarnings("ignore")
HOME = "distributed/cluster/ray_internals.py"


@pytest.fixture(autouse=True)
def no_fallback(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest):
    """Fails a test in which a private name of Ray was missed, unless that is its subject."""
    ray_internals._warn.cache_clear()
    yield
    warned = [record for record in caplog.get_records("call") if record.name == ray_internals.__name__]
    assert bool(warned) == ("vanish" in request.node.name), warned


def test_a_check_of_the_address_that_vanished_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    for name in ("ray._private.grpc_utils", "ray._private.services"):
        monkeypatch.setitem(sys.modules, name, None)
    head = ray_internals.find_head("10.0.0.1:6379")
    assert head == "10.0.0.1:6379" and ray_internals.ask_head(head) is ray_internals.HeadReply.ALIVE
    assert "RAY_ADDRESS" in caplog.text


def trainer() -> Any:
    from ray.train.torch import TorchTrainer

    return TorchTrainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))


def test_unused_callbacks_are_left_out():
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    unused = (PlacementGroupCleanerCallback, DatasetsCallback)
    whole, trimmed = trainer(), trainer()
    ray_internals.drop_unused_callbacks(trimmed)
    before, after = whole._create_default_callbacks(), trimmed._create_default_callbacks()
    assert [type(each) for each in before if not isinstance(each, unused)] == [type(each) for each in after]
    assert len(after) == len(before) - 2
    assert "self._create_default_callbacks()" in inspect.getsource(type(trimmed).fit)
    assert inspect.signature(RayTrainWorker.init_train_context).parameters["dataset_shard_provider"].default is None


@pytest.mark.parametrize("name", sorted(ray_internals._UNUSED_CALLBACKS))
def test_a_callback_that_vanished_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
):
    monkeypatch.setattr(ray_internals, "_UNUSED_CALLBACKS", {f"Other{name}": "it stays"})
    unchanged = trainer()
    ray_internals.drop_unused_callbacks(unchanged)
    assert name in [type(each).__name__ for each in unchanged._create_default_callbacks()]
    assert "it stays" in caplog.text


def test_a_trainer_whose_callbacks_vanished_costs_warnings(caplog: pytest.LogCaptureFixture):
    ray_internals.drop_unused_callbacks(SimpleNamespace())  # type: ignore[arg-type]
    assert all(consequence in caplog.text for consequence in ray_internals._UNUSED_CALLBACKS.values())


def test_trials_are_started_without_credentials(monkeypatch: pytest.MonkeyPatch):
    from ray.tune.execution import class_cache

    names = set(class_cache.ENV_VARS_TO_PROPAGATE) | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", names)
    for name in (*names, "RAY_TRAIN_V2_ENABLED"):
        monkeypatch.setenv(name, "planted")
    environment = passed_to_trials()
    assert environment["AWS_SECRET_ACCESS_KEY"] == "planted", "Ray passes nothing of the kind; remove the function"
    ray_internals.keep_credentials_out_of_trials()
    left = passed_to_trials()
    assert left == {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    assert not [name for name in left if re.search("SECRET|TOKEN|PASSWORD|CREDENTIAL|_KEY", name)]


def passed_to_trials() -> dict[str, str]:
    """The environment that Ray Tune passes to a trial's process."""
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trainable:
        pass

    passed: dict[str, str] = _ActorClassCache().get(Trainable)._default_options["runtime_env"]["env_vars"]
    return passed


@pytest.mark.parametrize("change", [("delattr",), ("setattr", frozenset({"AWS_ACCESS_KEY_ID"}))])
def test_a_list_of_credentials_that_vanished_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: tuple[Any, ...]
):
    from ray.tune.execution import class_cache

    getattr(monkeypatch, change[0])(class_cache, "ENV_VARS_TO_PROPAGATE", *change[1:])
    ray_internals.keep_credentials_out_of_trials()
    assert "AWS credentials" in caplog.text


def task_failed(error: Exception) -> list[Exception]:
    """Tell Ray Tune that a trial's process failed, at its start and later, and return what it makes known of it."""
    from ray.air.execution._internal import RayActorManager

    told: list[Exception] = []
    manager = object.__new__(RayActorManager)
    manager._failed_actor_ids, manager._cleanup_actor = set(), lambda tracked_actor: None
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(error))
    # With these names, as Tune calls them.
    manager._actor_start_failed(tracked_actor=actor, exception=error)
    manager._actor_task_failed(
        tracked_actor_task=SimpleNamespace(_tracked_actor=actor, _on_error=None), exception=error
    )
    return told


def test_a_trial_that_ends_for_lack_of_memory_does_not_end_the_others():
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

    low, died = OutOfMemoryError("a worker was killed due to the node running low on memory"), ActorDiedError()
    with pytest.raises(RuntimeError):  # otherwise Tune expects it, and the function can go
        task_failed(low)
    with ray_internals.restarts_after_low_memory():
        at_start, later = task_failed(low)
        assert type(at_start) is type(later) is RayActorError and "low on memory" in str(at_start) == str(later)
        assert task_failed(died) == [died, died]
        with pytest.raises(RuntimeError):
            task_failed(ValueError("something else"))
    with pytest.raises(RuntimeError):
        task_failed(low)


def test_a_handler_of_failed_trials_that_vanished_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from ray.air.execution._internal import RayActorManager

    monkeypatch.delattr(RayActorManager, "_actor_task_failed")
    with ray_internals.restarts_after_low_memory():
        pass
    assert "low on memory" in caplog.text


def test_the_notice_of_a_preemption_is_read(monkeypatch: pytest.MonkeyPatch):
    from ray.train import PreemptionInfo
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    here = object.__new__(context.TrainContext)
    here.preemption_context = PreemptionContext()
    monkeypatch.setattr(context, "_train_context", here)
    assert "preemption_context" in context.TrainContext.__dataclass_fields__
    assert ray_internals.preemption_notice() is None
    notice = PreemptionInfo(deadline_ms=5000, preempted_node_to_ranks={"node": [0]})
    here.preemption_context.preemption_info = notice
    assert ray_internals.preemption_notice() is notice and notice.deadline_ms == 5000


def test_a_notice_that_vanished_is_none(monkeypatch: pytest.MonkeyPatch):
    from ray.train.v2._internal.execution import context

    monkeypatch.delattr(context, "get_train_context")
    assert ray_internals.preemption_notice() is None


@pytest.mark.ray
def test_the_placement_groups_of_this_job_are_found(cluster: Any):
    import ray

    groups = [
        ray.util.placement_group([{"CPU": 1}]),
        ray.util.placement_group([{ray_internals.HEAD_NODE_RESOURCE: 0.001}]),
        ray.util.placement_group([{"CPU": 999}]),
    ]
    try:
        ray.get([group.ready() for group in groups[:2]])
        found = ray_internals.placement_groups_of_this_job()
        assert found is not None and found[groups[0].id.hex()] == "CREATED" and found[groups[2].id.hex()] == "PENDING"
        assert groups[1].id.hex() not in found  # as Tune's own
        assert ray.PlacementGroupID.from_hex(groups[0].id.hex()) == groups[0].id
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)
    found = ray_internals.placement_groups_of_this_job()
    assert found is not None and found[groups[0].id.hex()] == "REMOVED"
    assert ray_internals.autoscaler_activity(ray.get_runtime_context().gcs_address) == ""


def test_a_table_of_groups_that_vanished_is_none(monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: {"a01": {"status": "CREATED"}})
    assert ray_internals.placement_groups_of_this_job() is None


def test_the_autoscaler_says_what_it_does(monkeypatch: pytest.MonkeyPatch):
    from ray.autoscaler.v2 import sdk
    from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo

    def launch(state: Any, count: int, details: str | None = None) -> LaunchRequest:
        return LaunchRequest("m5.large", "gpu_worker", count, state, 0, details=details)

    names = LaunchRequest.Status
    status = ClusterStatus(
        pending_launches=[launch(names.PENDING, 2)],
        pending_nodes=[NodeInfo("m5.large", "gpu_worker", "i-1", "10.0.0.2")],
        failed_launches=[launch(names.FAILED, 1, "no capacity")],
    )
    monkeypatch.setattr(sdk, "get_cluster_status", lambda address: status)
    assert ray_internals.autoscaler_activity("here") == (
        "3 gpu_worker starting, gpu_worker failed to start: no capacity"
    )
    monkeypatch.delattr(sdk, "get_cluster_status")
    assert ray_internals.autoscaler_activity("here") == ""


def test_the_autoscaler_names_its_cluster_and_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from ray._private import services

    started: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, *_, **__: started.append(command))
    services.start_monitor("10.0.0.1:6379", str(tmp_path), autoscaling_config="~/ray_bootstrap_config.yaml")
    [command] = started
    assert "--gcs-address=10.0.0.1:6379" in command and "--autoscaling-config=~/ray_bootstrap_config.yaml" in command
    assert ray_internals.autoscaler_config_file("10.0.0.1:6379") is None


def test_a_raycluster_of_kubernetes_is_read(monkeypatch: pytest.MonkeyPatch):
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    spec = yaml.safe_load(next((ROOT / "docs").rglob("rayjob.yaml")).read_text("utf-8"))["spec"]["rayClusterSpec"]
    cluster = {"metadata": {"name": "tandem", "namespace": "here"}, "spec": spec | {"enableInTreeAutoscaling": True}}
    monkeypatch.setattr(KubernetesHttpApiClient, "get", lambda self, path: cluster)
    monkeypatch.setattr(KubernetesHttpApiClient, "__init__", lambda self, namespace: None)
    config = ray_internals.kuberay_autoscaler_config("tandem", "here")
    assert config is not None and config["max_workers"] and config["available_node_types"]


def test_a_client_of_kubernetes_that_vanished_is_none(monkeypatch: pytest.MonkeyPatch):
    from ray.autoscaler._private.kuberay import node_provider

    monkeypatch.delattr(node_provider, "KubernetesHttpApiClient")
    assert ray_internals.kuberay_autoscaler_config("tandem", "here") is None


def test_ray_has_the_names_that_are_set_and_asked_for():
    import ray
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.train.v2._internal import constants

    assert HEAD_NODE_RESOURCE_NAME == ray_internals.HEAD_NODE_RESOURCE
    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR == ray_internals.HEALTH_CHECK_INTERVAL
    assert constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR == ray_internals.START_TIMEOUT
    assert constants.ENABLE_PRINT_PATCH_ENV_VAR == ray_internals.PRINT_PATCH
    assert RAY_JOB_CONFIG_JSON_ENV_VAR == ray_internals.JOB_CONFIG
    root = Path(ray.__file__).parent
    source = "".join(
        path.read_text() for folder in ("tune", "air", "_common") for path in (root / folder).rglob("*.py")
    )
    for name in (*ray_internals.TUNE_ENVIRONMENT, ray_internals.MAX_PENDING_TRIALS, "RAY_USAGE_STATS_ENABLED"):
        assert f'"{name}"' in source, name


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TANDEM_A", "1")
    monkeypatch.delenv("TANDEM_B", raising=False)
    with pytest.raises(OSError), ray_internals.environment({"TANDEM_A": "2", "TANDEM_B": "3"}):
        assert (os.environ["TANDEM_A"], os.environ["TANDEM_B"]) == ("2", "3")
        raise OSError
    assert os.environ["TANDEM_A"] == "1" and "TANDEM_B" not in os.environ
    for name in ray_internals.TRAIN_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ray_internals.START_TIMEOUT, "7")
    ray_internals.set_train_defaults()
    assert {name: os.environ[name] for name in ray_internals.TRAIN_ENVIRONMENT} == ray_internals.TRAIN_ENVIRONMENT | {
        ray_internals.START_TIMEOUT: "7"
    }


def test_what_vanished_is_said_once(caplog: pytest.LogCaptureFixture):
    ray_internals._warn("vanished")
    ray_internals._warn("vanished")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def private_names(source: str) -> list[str]:
    """What a source takes of Ray that is private: by import, or as an attribute of the module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return [
        name
        for name in found
        if name.startswith("ray.")
        and (any(part.startswith("_") for part in name.split(".")) or name.startswith(("ray.autoscaler", "ray.core")))
    ]


def test_private_names_are_used_in_one_file_alone():
    for path in sources():
        found = private_names(path.read_text("utf-8"))
        assert bool(found) == (str(path.relative_to(ROOT)) == HOME), f"{path}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "from ray._raylet import PlacementGroupID",
        "import ray._private.state",
        "def f():\n    from ray.train.v2._internal.execution.context import get_train_context",
        "from ray.train.torch.config import _TorchBackend",
        "from ray.autoscaler.v2.sdk import get_cluster_status",
        "import ray\nray._private.state.state.get_cluster_config()",
    ],
)
def test_a_private_name_is_found(source: str):
    assert private_names(source)
