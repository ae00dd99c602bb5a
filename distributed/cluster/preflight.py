"""Checks before any work is done: the dataset and the storage."""

import uuid
from pathlib import Path

import numpy as np

from distributed.cluster.resources import ClusterResources
from model import storage
from model.config import Config
from model.data.batching import min_batch_size
from model.data.dataset import Dataset
from model.distillation.teacher_split import count_held_out, teacher_labels
from model.errors import UserError
from model.training.training_texts import in_fold


def check_data(config: Config, dataset: Dataset) -> None:
    """Check that a dataset has its splits, suits the configuration and is still the same. Raises UserError."""
    dataset.require("train")
    dataset.require("valid")
    if config.data_digest not in (None, dataset.digest):
        raise UserError(
            f"{config.data}: is no longer the dataset that the run was started on; prepare that one again, or start a new run "
            f"with another --name"
        )
    rows = _gold_texts(config, dataset)
    smallest = min_batch_size(rows, config.training.global_batch_size)
    for labels in teacher_labels(config.training):
        labels.check_words(dataset.tokenizer_bytes(), config.data)
        # With more texts, of which some may be left out, the batches of an epoch are at least half full.
        smallest = min(smallest, max(config.training.global_batch_size // 2, 1))
    if config.run.workers > smallest:
        raise UserError(
            f"{config.run.workers} workers, but the smallest batch has {smallest} texts ({rows} texts in "
            f"batches of {config.training.global_batch_size}); use fewer workers, or a larger training.global_batch_size"
        )
    vectors = dataset.info.get("vectors")
    size = vectors["size"] if vectors else config.tagger.embedding_dim
    if config.tagger.pretrained_vectors and config.tagger.embedding_dim and size != config.tagger.embedding_dim:
        raise UserError(
            f"{config.data}: its word vectors have {size} values, and tagger.embedding_dim is {config.tagger.embedding_dim}; "
            f"use --set tagger.embedding_dim={size}, or --set tagger.pretrained_vectors=false to train without them"
        )


def _gold_texts(config: Config, dataset: Dataset) -> int:
    """Return how many texts of the training split are trained on. Raises UserError where that is none."""
    rows = np.arange(dataset.rows("train"))
    if config.training.held_out_fold is None:
        return len(rows)
    left = len(rows) - int(in_fold(rows, config.training.held_out_fold).sum())
    if not left:
        raise UserError(
            f"{config.data}: training.held_out_fold={config.training.held_out_fold} leaves no text to train on; leave it out"
        )
    return left


def data_warnings(config: Config, dataset: Dataset) -> list[str]:
    """Return warnings about data that can be trained on, but teaches or measures badly."""
    labels = teacher_labels(config.training)
    return missing_keyphrases(dataset) + [
        f"warning: {folder.location}: {count} labeled texts are in the {split} split of {dataset.location} as well, so "
        f"its F1 is too high; label texts without them"
        for folder, shared in zip(labels, count_held_out(labels, dataset), strict=True)
        for split, count in shared.items()
    ]


def missing_keyphrases(dataset: Dataset) -> list[str]:
    """Return a warning for each split of a dataset that has no keyphrases, which nothing can be learned or chosen from."""
    splits = dataset.info["splits"]
    without = [name for name in ("train", "valid") if not splits[name]["keyphrases"]]
    effects = {"train": "nothing can be learned from it", "valid": "F1 stays 0, and no epoch is better than another"}
    return [f"warning: {dataset.location}: {name} has no keyphrases; {effects[name]}" for name in without]


def check_storage(location: str, cluster: ClusterResources, option: str = "--storage") -> None:
    """Check that files can be written to a location, and that other nodes would see them. Raises UserError.

    Args:
        location: path or URI.
        cluster: whose nodes write there.
        option: of the command line that gave the location, for the message.
    """
    if not _is_seen_by_all(location, cluster):
        raise UserError(
            f"storage {location}: is a local path, and the cluster has {cluster.describe_count('node')}; give {option} a path "
            f"on a file system that every node mounts, or a URI such as s3://bucket/runs"
        )
    probe = storage.join(location, f".writable-{uuid.uuid4().hex[:8]}")  # others may check at the same time
    try:
        storage.write(probe, b"probe")
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"storage {location}: cannot be written: {error}; choose another with {option}") from None


def check_shared(location: str, cluster: ClusterResources, what: str) -> None:
    """Raise UserError where other nodes of a cluster would not see a location that is read on all of them."""
    if not _is_seen_by_all(location, cluster):
        raise UserError(
            f"{location}: {what} is at a local path, and the cluster has {cluster.describe_count('node')}; copy it to a file "
            f"system that every node mounts, or to a URI such as s3://bucket/runs"
        )


def _is_seen_by_all(location: str, cluster: ClusterResources) -> bool:
    """Return whether every node can read a location, as far as it can be told from here."""
    alone = cluster.maximum.nodes <= 1
    return alone or storage.is_remote(location) or _is_mounted(Path(storage.absolute(location)))


def _is_mounted(path: Path) -> bool:
    """Return whether a path is below a mount point other than the root, as on a network file system."""
    return any(parent != Path("/") and parent.is_mount() for parent in (path, *path.parents))
