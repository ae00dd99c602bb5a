"""cluster.yaml and the deployments in docs/deploy/: what Ray itself checks, and what it does not."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

TEXT = (ROOT / "cluster.yaml").read_text("utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDS = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
TYPES: dict[str, Any] = CLUSTER["available_node_types"]
LOCAL_TEXT = (ROOT / "docs" / "deploy" / "cluster-local.yaml").read_text("utf-8")
LOCAL: dict[str, Any] = yaml.safe_load(LOCAL_TEXT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [TEXT, LOCAL_TEXT], ids=["aws", "local"])
def test_ray_accepts_it(text: str):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(text)))


def test_ray_python_and_torch_are_the_projects_own():
    ray, python = re.fullmatch(r"\S+:([\d.]+)-py(\d+)-gpu", CLUSTER["docker"]["image"]).groups()  # type: ignore[union-attr]
    assert ray in NEEDS["ray"] and len(list(NEEDS["ray"])) == 1
    assert f"{python[0]}.{python[1:]}" in SpecifierSet(PROJECT["requires-python"])
    [torch] = [part for line in CLUSTER["setup_commands"] for part in line.split() if part.startswith("torch==")]
    assert torch.removeprefix("torch==") in NEEDS["torch"]
    assert f"TORCH ?= {torch}\n" in (ROOT / "Makefile").read_text("utf-8")
    job = yaml.safe_load((ROOT / "docs" / "deploy" / "rayjob.yaml").read_text("utf-8"))["spec"]["rayClusterSpec"]
    assert job["rayVersion"] == ray


def test_the_head_trains_nothing_and_costs_no_more_than_it_must():
    head = TYPES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    workers = [node for name, node in TYPES.items() if name != CLUSTER["head_node_type"]]
    assert sorted(node["resources"]["GPU"] for node in workers) == [1, 4]
    for node in workers:
        assert node["min_workers"] == 0 < node["max_workers"] <= CLUSTER["max_workers"]
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 30 and CLUSTER["provider"]["cache_stopped_nodes"] is False


def test_no_port_is_open_to_the_world_and_only_holders_of_the_token_get_in():
    # Without groups of the user's own, Ray makes one that lets in ssh from everywhere.
    assert all(node["node_config"]["SecurityGroupIds"] for node in TYPES.values())
    for text, cluster in ((TEXT, CLUSTER), (LOCAL_TEXT, LOCAL)):
        assert "0.0.0.0" not in text
        starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
        starts = [line for line in starts if "ray start" in line]
        assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
        assert any(path.endswith("/.ray/auth_token") for path in cluster["file_mounts"])


def test_every_value_that_a_user_must_set_is_marked():
    for text in (TEXT, LOCAL_TEXT):
        lines = [line for line in text.splitlines() if re.search(r"^[^#]*[-/]SET", line)]
        assert lines and all("# SET" in line for line in lines)


def test_pip_does_not_build_in_a_folder_that_docker_made_as_root():
    made = {path.rpartition("/")[0].replace("/home/ray", "~") for path in CLUSTER["file_mounts"]}
    parts = [part.split() for line in CLUSTER["setup_commands"] for part in line.split("&&")]
    installed = {words[-1] for words in parts if words[:2] == ["pip", "install"]}
    assert "~/tandem" in made and "/tmp/tandem" in installed and not made & installed


def test_machines_over_ssh_get_what_the_cloud_gets():
    torch = next(line for line in CLUSTER["setup_commands"] if "torch==" in line).split()[-1]
    assert any(torch in line.split() for line in LOCAL["setup_commands"])
    mounted = [[path.rpartition("/")[2] for path in cluster["file_mounts"]] for cluster in (CLUSTER, LOCAL)]
    assert mounted[0] == mounted[1]
    commands = [line for name, lines in LOCAL.items() if name.endswith("_commands") for line in lines]
    assert commands and not any("#" in line for line in commands)  # would comment out what Ray puts behind a command
