"""Named configurations: where a run begins, before a file, --set or a flag says otherwise."""

from typing import Any

from model.config import put
from model.errors import UserError

# By dotted name; what a preset does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "record": {},  # the defaults are the record's own
    "best": {
        "tagger.cell": "gru",
        "tagger.bidirectional": True,
        "tagger.embedding": 128,
        "tagger.hidden1": 128,
        "tagger.hidden2": 128,
        "tagger.window": 1,
        "tagger.rare_word_dropout": 1.0,
        "tagger.spelling": 64,
        "tagger.transitions": True,
        "tagger.decoding": "spans",
        "training.lr": 3e-3,
        "training.schedule": "cosine",
        "training.batch": 32,
    },
}


def tree_of(name: str) -> dict[str, Any]:
    """The values that a preset sets. Raises UserError where there is no such preset."""
    if name not in PRESETS:
        raise UserError(f"--preset {name}: is unknown; known are {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    for dotted, value in PRESETS[name].items():
        put(tree, dotted, value)
    return tree
