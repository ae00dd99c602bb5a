"""What can be known to fail before any work is done."""

from pathlib import Path

from distributed.cluster.resources import ClusterResources
from model import storage
from model.config import Config
from model.data.batching import min_batch_size
from model.data.dataset import Dataset
from model.errors import UserError


def check_data(config: Config, dataset: Dataset) -> None:
    """Raises UserError where the dataset lacks a split, or does not go with the configuration."""
    dataset.require("train")
    dataset.require("valid")
    smallest = min_batch_size(dataset.rows("train"), config.training.global_batch_size)
    if config.run.workers > smallest:
        raise UserError(
            f"{config.run.workers} workers, but the smallest batch has {smallest} texts ({dataset.rows('train')} texts in "
            f"batches of {config.training.global_batch_size}); lower --workers or raise --batch-size"
        )
    vectors = dataset.info.get("vectors")
    size = vectors["size"] if vectors else config.tagger.embedding_dim
    if config.tagger.pretrained_vectors and size != config.tagger.embedding_dim:
        raise UserError(
            f"{config.data}: its word vectors have {size} values, and tagger.embedding_dim is {config.tagger.embedding_dim}; "
            f"use --set tagger.embedding_dim={size}, or --set tagger.pretrained_vectors=false to do without them"
        )


def check_storage(location: str, cluster: ClusterResources, option: str = "--storage") -> None:
    """Raises UserError where files cannot be written, or where the other nodes would not see them."""
    several = cluster.at_most.nodes > 1
    if several and not storage.is_remote(location) and not _is_mounted(Path(storage.absolute(location))):
        raise UserError(
            f"storage {location}: is a local path, and the cluster has {cluster.describe_count('node')}; give {option} a path "
            f"on a file system that every node mounts, or a URI such as s3://bucket/runs"
        )
    probe = storage.join(location, ".writable")
    try:
        storage.write(probe, b"probe")
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"storage {location}: cannot be written: {error}; choose another with {option}") from None


def _is_mounted(path: Path) -> bool:
    """Whether a path lies on a file system of its own, as network file systems do."""
    return any(parent != Path("/") and parent.is_mount() for parent in (path, *path.parents))
