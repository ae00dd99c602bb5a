"""Names of earlier versions, still read in files, on the command line, in bundles, runs and sweeps; written nowhere."""

from collections.abc import Mapping
from typing import Any, TypeVar

from model.errors import UserError

Value = TypeVar("Value")

# Configuration fields, by dotted name.
FIELDS = {
    "tagger.embedding": "tagger.embedding_dim",
    "tagger.hidden1": "tagger.keyword_hidden",
    "tagger.hidden2": "tagger.keyphrase_hidden",
    "tagger.spelling": "tagger.word_feature_dim",
    "tagger.transitions": "tagger.crf",
    "tagger.vectors": "tagger.pretrained_vectors",
    "tagger.fast_rnn": "tagger.cpu_kernels",
    "tagger.fast_dropout": "tagger.cpu_dropout",
    "training.batch": "training.global_batch_size",
    "training.clip": "training.max_grad_norm",
    "training.exchange": "training.gradient_dtype",
    "training.row_updates": "training.sparse_embedding",
    "training.bucketed": "training.bucket_by_length",
    "run.project": "run.wandb_project",
}

# Parts of the dotted names of weights.
WEIGHTS = {
    "spelling": "word_feature_embedding",
    "transitions": "crf",
    "step": "transition",
    "layer1": "keyword_rnn",
    "layer2": "keyphrase_rnn",
    "forwards": "forward_rnn",
    "backwards": "backward_rnn",
}

# Keys of a sweep's journal and result.
EVENTS = {"figures": "metrics"}
RESULTS = {"figures": "scores"}


def current_field(dotted: str) -> str:
    """Return the present name of a configuration field; `run.project` gives `run.wandb_project`."""
    return FIELDS.get(dotted, dotted)


def current_fields(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of one section of a configuration under their present names.

    Args:
        section: `tagger`, `training` or `run`.
        values: fields by name, without the section.

    Raises:
        UserError: a field is given under both of its names.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        current = current_field(f"{section}.{name}").removeprefix(f"{section}.")
        if current != name and current in values:
            raise UserError(f"{section}.{name} is the earlier name of {section}.{current}; leave one of the two out")
        found[current] = value
    return found


def current_keys(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    """Return a mapping with its keys under the present names of a table (FIELDS, EVENTS, RESULTS)."""
    return {names.get(key, key): value for key, value in values.items()}


def current_weights(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return a tagger's state_dict under the present names of its modules; those of an encoder are never renamed."""
    return {
        name if name.startswith("encoder.") else ".".join(WEIGHTS.get(part, part) for part in name.split(".")): value
        for name, value in weights.items()
    }
