"""Named configurations: where a run begins, before a file, --set or a flag says otherwise."""

from typing import Any

from model.config import put
from model.errors import UserError

# By dotted name; what a preset does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "record": {},  # the defaults are the record's own
    "best": {
        "tagger.cell": "lstm",
        "tagger.bidirectional": True,
        "tagger.word_dropout": 0.1,
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
