"""What a cluster can become: by cluster.yaml, by Kubernetes, and what a request is answered with."""

import subprocess
import sys
from typing import Any

import pytest
import yaml
from helpers import ROOT, refused

from distributed.cluster.autoscaler import AutoscalerLimits, parse_autoscaler_config, read_on_head
from distributed.cluster.preflight import check_storage
from distributed.cluster.ray_internals import AutoscalerConfig
from distributed.cluster.resources import ClusterResources, describe_request, plan_workers, with_autoscaler
from distributed.sweep.plan import make_plan, validate_plan
from model.config import RunConfig

CLUSTER: AutoscalerConfig = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
HEAD = (0.0, 0.0)
FRESH = with_autoscaler(ClusterResources(0, 0, 1, (HEAD,), 1), parse_autoscaler_config(CLUSTER))


def test_cluster_yaml_tells_what_can_come():
    assert parse_autoscaler_config(CLUSTER) == AutoscalerLimits(((4.0, 1.0, 8), (48.0, 4.0, 2)), 8)
    assert FRESH.autoscaled is not None
    # Of eight nodes two have four GPUs and 48 CPUs, and six have one GPU and 4 CPUs; the head comes on top, with nothing.
    assert (FRESH.autoscaled.cpus, FRESH.autoscaled.gpus, FRESH.autoscaled.nodes) == (120, 14, 9)
    assert (
        FRESH.autoscaled.worker_slots(1, 1) == 14
        and FRESH.autoscaled.worker_slots(8, 1) == 8
        and FRESH.autoscaled.worker_slots(49, 0) == 0
    )
    assert FRESH.worker_slots(1, 0) == 0


@pytest.mark.parametrize(("share", "slots"), [(0.3, 12), (0.4, 8), (0.75, 4), (0.2, 20), (0.1, 40), (1, 4), (2, 2)])
def test_a_share_of_a_gpu_does_not_span_two(share: float, slots: int):
    assert ClusterResources(64, 4, 1).worker_slots(1, share) == slots


def test_what_runs_already_counts_as_come():
    running = with_autoscaler(
        ClusterResources(52, 5, 3, (HEAD, (4.0, 1.0), (48.0, 4.0)), 3), parse_autoscaler_config(CLUSTER)
    )
    assert running.autoscaled == FRESH.autoscaled
    full = ClusterResources(48, 4, 3, (HEAD, (24.0, 2.0), (24.0, 2.0)), 3)
    assert with_autoscaler(full, AutoscalerLimits(((24.0, 2.0, 2),), 2)).autoscaled is None  # nothing more can come
    beside = with_autoscaler(
        ClusterResources(16, 0, 2, (HEAD, (16.0, 0.0)), 2), parse_autoscaler_config(CLUSTER)
    ).autoscaled  # somebody added a node by hand
    assert beside is not None and (beside.cpus, beside.nodes) == (136, 10)


def test_a_fixed_set_of_machines_has_nothing_to_come():
    kinds = {"local.cluster.node": {"resources": {}, "min_workers": 2, "max_workers": 2}}
    assert parse_autoscaler_config({"max_workers": 2, "available_node_types": kinds}) == AutoscalerLimits((), 0)
    assert with_autoscaler(ClusterResources(2, 0, 1, ((2.0, 0.0),), 1), AutoscalerLimits((), 0)).autoscaled is None


def test_from_no_nodes_a_request_is_judged_by_what_can_come():
    assert str(plan_workers(RunConfig(workers=4), FRESH)) == "4 x (1 CPU, 1 GPU)"
    assert str(plan_workers(RunConfig(workers=15), FRESH)) == "15 x (1 CPU)"  # not every worker would have a GPU
    refused(lambda: plan_workers(RunConfig(workers=15, device="cuda"), FRESH), "15 GPUs", "has 0 GPUs, at most 14")
    refused(lambda: plan_workers(RunConfig(workers=121), FRESH), "121 CPUs", "has 0 CPUs, at most 120")
    refused(lambda: plan_workers(RunConfig(workers=9, cpus_per_worker=8), FRESH), "9 x (8 CPU, 1 GPU)", "room for 8")
    assert str(plan_workers(RunConfig(workers=20, min_workers=14), FRESH)) == "20 x (1 CPU, 1 GPU)"
    described = describe_request(plan_workers(RunConfig(workers=4), FRESH), FRESH)
    assert described["cluster"] == {"cpus": 0, "gpus": 0, "nodes": 1}
    assert described["can_become"] == {"cpus": 120, "gpus": 14, "nodes": 9}
    assert ClusterResources(2, 0, 1).as_dict()["can_become"] is None


def test_a_sweep_from_no_nodes_takes_the_gpus_that_can_come(small_dataset: str):
    plan = make_plan({"config": {"data": small_dataset}, "trials": 20})
    resources = validate_plan(plan, FRESH)[2]
    assert (resources.gpus, resources.concurrent) == (1, 14)


def test_storage_has_to_be_seen_by_nodes_that_do_not_run_yet():
    refused(lambda: check_storage("/nowhere/runs", FRESH), "local path", "has 1 node, at most 9", "s3://")


def test_the_file_of_the_autoscaler_is_found_by_its_cluster():
    options = ["--gcs-address=10.0.0.1:6379", f"--autoscaling-config={ROOT / 'cluster.yaml'}"]
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()", *options], stdin=-1, stdout=-1)
    try:
        process.stdout.readline()  # type: ignore[union-attr]
        assert read_on_head("10.0.0.1:6379") == CLUSTER
        assert read_on_head("10.0.0.2:6379") is None  # another cluster's
    finally:
        process.communicate(b"\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("autoscaling", [True, False])
def test_on_kubernetes_the_raycluster_is_read(monkeypatch: pytest.MonkeyPatch, autoscaling: bool):
    job = yaml.safe_load((ROOT / "docs" / "deploy" / "rayjob.yaml").read_text("utf-8"))
    spec = job["spec"]["rayClusterSpec"] | {"enableInTreeAutoscaling": autoscaling}
    asked: list[str] = []

    def get(self: Any, path: str) -> dict[str, Any]:
        asked.append(path)
        return {"metadata": {"name": "tandem", "namespace": "here"}, "spec": spec}

    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient.get", get)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "tandem")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "here")
    config = read_on_head("10.0.0.1:6379")
    assert asked == ["rayclusters/tandem"] and (config is not None) == autoscaling
    assert config is None or parse_autoscaler_config(config) == AutoscalerLimits(((4.0, 1.0, 8),), 8)


def test_outside_of_a_cluster_nothing_is_found(monkeypatch: pytest.MonkeyPatch):
    assert read_on_head("127.0.0.1:1") is None
    monkeypatch.setenv("RAY_CLUSTER_NAME", "tandem")  # as KubeRay does, but without an autoscaler's rights
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "default")
    assert read_on_head("127.0.0.1:1") is None
