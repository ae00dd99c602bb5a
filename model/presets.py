"""Named sets of configuration values, by dotted name; all other fields keep their defaults."""

import math

from model.config import TrainingConfig, Tree, set_dotted
from model.errors import UserError

PRESETS: dict[str, dict[str, object]] = {
    "record": {},  # the defaults are the record's own
    "best": {
        "tagger.cell": "gru",
        "tagger.bidirectional": True,
        "tagger.embedding_dim": 128,
        "tagger.keyword_hidden": 128,
        "tagger.keyphrase_hidden": 128,
        "tagger.window": 1,
        "tagger.rare_word_dropout": 1.0,
        "tagger.word_feature_dim": 64,
        "tagger.crf": True,
        "tagger.decoding": "spans",
        "training.lr": 3e-3,
        "training.schedule": "cosine",
        "training.global_batch_size": 32,
    },
    "encoder": {
        "tagger.encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "tagger.cell": "none",
        "tagger.embedding_dim": 128,
        "tagger.rare_word_dropout": 1.0,
        "tagger.word_feature_dim": 64,  # of capitals, which many encoders do not see
        "tagger.dropout": 0.1,
        "tagger.crf": True,
        "tagger.decoding": "spans",
        "training.optimizer": "adamw",
        "training.schedule": "linear",
        "training.epochs": 6,
        "training.global_batch_size": 32,
        "training.max_grad_norm": 1.0,
    },
}

_MIN_STEPS = 250  # of `best` and `encoder`; chosen on the validation splits of small datasets, see docs/benchmarks.md


def preset_values(name: str, train_texts: int | None = None) -> Tree:
    """Return the values that a preset sets, as a tree.

    Args:
        name: of the preset.
        train_texts: texts of the training split. Where they are so few that `best` or `encoder` would make fewer than 250
            steps, it has more epochs, and as much more patience. None: many texts.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: is unknown; known are {', '.join(PRESETS)}")
    tree: Tree = {}
    for dotted, value in PRESETS[name].items():
        set_dotted(tree, dotted, value)
    if train_texts and name != "record":  # which stays what it was
        training = TrainingConfig.model_validate(tree["training"])
        steps = training.epochs * math.ceil(train_texts / training.global_batch_size)
        if (factor := _MIN_STEPS / steps) > 1:
            tree["training"]["epochs"] = math.ceil(training.epochs * factor)
            tree["training"]["patience"] = math.ceil(training.patience * factor)
    return tree
