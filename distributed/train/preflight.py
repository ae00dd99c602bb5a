"""Checks of a run before any work is done: the dataset, the batch size, the resources."""

from distributed.cluster.connection import inspect_cluster
from distributed.cluster.preflight import check_data
from distributed.cluster.resources import ClusterResources, WorkerRequest, describe_request, plan_workers
from model.config import Config
from model.data.dataset import Dataset


def validate_run(config: Config, cluster: ClusterResources) -> WorkerRequest:
    """Return the resources that a run requests of a cluster.

    Raises:
        UserError: the run cannot be carried out: its dataset, its batch size or its resources do not allow it.
    """
    check_data(config, Dataset(config.data))
    return plan_workers(config.run, cluster)


def dry_run(config: Config) -> dict[str, object]:
    """Return the resolved configuration and the resources that a run would request, without running anything."""
    cluster = inspect_cluster()
    request = validate_run(config, cluster)
    return {"name": config.run.name, "config": config.model_dump(), **describe_request(request, cluster)}
