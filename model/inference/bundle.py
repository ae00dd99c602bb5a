"""The bundle: a finished tagger as a folder that can be loaded without Ray and without pickle.

    config.json          format version and configuration
    tokenizer.json       vocabulary and offsets
    weights.safetensors  the network
    metrics.json         its metrics on the validation split
    README.md            the model card

A local bundle is moved into place when it is complete; on other storage `config.json` is written last.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from tokenizers import Tokenizer

from model import staging, storage
from model.aliases import current_weights
from model.config import Config, make_config
from model.data.tokenizer import parse_tokenizer
from model.errors import UserError
from model.network.tagger import Tagger

BUNDLE_FORMAT = 2  # that is written; 1 is read too, by model/aliases.py


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        config: of the run that trained it.
        tokenizer: of the dataset that it was trained on.
        tagger: on the CPU, in evaluation mode.
        metrics: of the epoch that the weights come from, on the validation split.
    """

    config: Config
    tokenizer: Tokenizer
    tagger: Tagger
    metrics: dict[str, Any]


def save_bundle(
    location: str, config: Config, tokenizer: bytes, weights: dict[str, torch.Tensor], metrics: dict[str, Any]
) -> None:
    """Write a bundle, completely or not at all; an existing one is replaced.

    Args:
        location: path or URI of the folder.
        config: the run's configuration.
        tokenizer: content of the dataset's tokenizer.json.
        weights: the tagger's state_dict.
        metrics: of the epoch that the weights come from; the keys of `model.training.metrics.summarize`, and others.
    """
    about = {"format_version": BUNDLE_FORMAT, **config.model_dump()}
    with staging.staged_local_directory(location, marker="config.json") as folder:
        save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, folder / "weights.safetensors")
        (folder / "tokenizer.json").write_bytes(tokenizer)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), "utf-8")
        (folder / "README.md").write_text(_model_card(config, metrics), "utf-8")
        (folder / "config.json").write_text(json.dumps(about, indent=2), "utf-8")


def load_bundle(location: str) -> Bundle:
    """Read a bundle of any format up to BUNDLE_FORMAT.

    Args:
        location: path or URI of the folder.

    Raises:
        UserError: there is no bundle, or a file is missing, damaged or of a newer format.
    """
    if not storage.exists(location):
        raise UserError(f"{location}: no such bundle; `python -m jobs train` writes one into the run's folder")
    about = _json(location, "config.json")
    version = about.pop("format_version", None)
    if not isinstance(version, int) or version > BUNDLE_FORMAT:
        raise UserError(
            f"{location}/config.json: has bundle format {version}, and this Tandem reads up to {BUNDLE_FORMAT}; "
            f"update Tandem, or train again"
        )
    config = make_config(about, f"{location}/config.json")
    tokenizer = parse_tokenizer(_file(location, "tokenizer.json"), f"{location}/tokenizer.json")
    tagger = Tagger(config.tagger, tokenizer.get_vocab_size())
    try:
        tagger.load_state_dict(current_weights(load(_file(location, "weights.safetensors"))))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{location}/weights.safetensors: is damaged ({error}); copy the bundle again") from error
    return Bundle(config, tokenizer, tagger.eval(), _json(location, "metrics.json"))


def _file(location: str, name: str) -> bytes:
    try:
        return storage.read(storage.join(location, name))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{location}: is not a complete bundle: {name} is missing; copy the bundle again") from None


def _json(location: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_file(location, name))
    except ValueError as error:
        raise UserError(f"{location}/{name}: is damaged ({error}); copy the bundle again") from None
    if not isinstance(content, dict):
        raise UserError(f"{location}/{name}: is not a JSON object; copy the bundle again")
    return content


def _model_card(config: Config, metrics: dict[str, Any]) -> str:
    tagger, training = config.tagger, config.training
    directions = "both directions" if tagger.bidirectional else "left to right"
    rows = "\n".join(
        f"| {head} | {metrics[f'{head}_precision']:.4f} | {metrics[f'{head}_recall']:.4f} | {metrics[f'{head}_f1']:.4f} "
        f"| {metrics[f'{head}_f1_low']:.4f} to {metrics[f'{head}_f1_high']:.4f} | {metrics[f'{head}_exact_match']:.4f} |"
        for head in ("keyphrase", "keyword")
    )
    return f"""---
library_name: tandem
tags: [keyphrase-extraction, token-classification]
---
# Keyphrase tagger

A joint-layer RNN (Zhang et al., EMNLP 2016) that finds the keyphrases of short texts.

- cell {tagger.cell}, {directions}; {tagger.keyword_hidden} and {tagger.keyphrase_hidden} hidden units
- a window of {tagger.window} words of {tagger.embedding_dim} values, dropout {tagger.dropout:g}
- objective {training.alpha:g} * keyword loss + {1 - training.alpha:g} * keyphrase loss
- {training.optimizer}, lr {training.lr:g} ({training.schedule}), batch {training.global_batch_size}, seed {training.seed}

Metrics on the validation split, with 95 % bootstrap intervals:

| head | precision | recall | F1 | interval | exact match |
|---|---|---|---|---|---|
{rows}

    echo "what a match by Roger Federer tonight" | python -m jobs extract BUNDLE

    from model.inference.extractor import Extractor
    extractor = Extractor.load("BUNDLE")
    extractor("what a match by Roger Federer tonight")

It was trained on `{config.data}` and nothing else. Before you rely on it, measure it on your own texts:
`python -m jobs evaluate BUNDLE --data FILE`.
"""
