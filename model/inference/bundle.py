"""The bundle: a finished tagger as a folder that can be loaded without Ray and without pickle.

    config.json          format version and configuration
    tokenizer.json       vocabulary and offsets
    weights.safetensors  the network, with the encoder
    encoder/             config.json and tokenizer.json of a pretrained encoder, where it has one
    metrics.json         its metrics on the validation split
    README.md            the model card

A local bundle is moved into place when it is complete; on other storage `config.json` is written last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from tokenizers import Tokenizer

from model import staging, storage
from model.aliases import current_weights
from model.config import Config, TaggerConfig, TrainingConfig, make_config
from model.data.subwords import SubwordTokenizer
from model.data.tokenizer import parse_tokenizer
from model.errors import UserError
from model.inference.bundle_location import require_bundle
from model.network.encoder import Encoder, build_model
from model.network.encoder_files import EncoderFiles, subword_tokenizer
from model.network.tagger import Tagger

BUNDLE_FORMAT = 3  # that is written; 1 and 2 are read too, see model/aliases.py and `load_bundle`


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        config: of the run that trained it.
        tokenizer: of the dataset that it was trained on.
        tagger: on the CPU, in evaluation mode.
        metrics: of the epoch that the weights come from, on the validation split.
        weights_sha256: digest of its weights.
        subwords: what finds the sub-words of words, for a tagger with an encoder.
    """

    config: Config
    tokenizer: Tokenizer
    tagger: Tagger
    metrics: dict[str, Any]
    weights_sha256: str
    subwords: SubwordTokenizer | None = None


def save_bundle(
    location: str,
    config: Config,
    tokenizer: bytes,
    weights: dict[str, torch.Tensor],
    metrics: dict[str, Any],
    encoder: EncoderFiles | None = None,
) -> None:
    """Write a bundle, completely or not at all; an existing one is replaced.

    Args:
        location: path or URI of the folder.
        config: the run's configuration.
        tokenizer: content of the dataset's tokenizer.json.
        weights: the tagger's state_dict; of a frozen encoder they are added.
        metrics: of the epoch that the weights come from; the keys of `model.training.metrics.summarize`, and others.
        encoder: that the tagger was trained with.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    if encoder and config.tagger.encoder_frozen:
        tensors |= {f"encoder.model.{name}": torch.tensor(values) for name, values in encoder.weights.items()}
    content = save(tensors)
    files = {"weights.safetensors": content, "tokenizer.json": tokenizer}
    if encoder:
        files["encoder/config.json"] = json.dumps(encoder.config, indent=2).encode()
        files["encoder/tokenizer.json"] = encoder.tokenizer
    digests = {name: sha256(each).hexdigest() for name, each in files.items()}
    about = {"format_version": BUNDLE_FORMAT, "sha256": digests, **config.model_dump()}
    with staging.staged_local_directory(location, marker="config.json") as folder:
        for name, each in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(each)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), "utf-8")
        (folder / "README.md").write_text(_model_card(config, metrics, encoder), "utf-8")
        (folder / "config.json").write_text(json.dumps(about, indent=2), "utf-8")


def load_bundle(location: str) -> Bundle:
    """Read a bundle of any format up to BUNDLE_FORMAT.

    Args:
        location: path or URI of the folder.

    Raises:
        UserError: there is no bundle, or a file is missing, damaged or of a newer format.
    """
    require_bundle(location)
    about = _json(location, "config.json")
    version = about.pop("format_version", None)
    if version is None:
        raise UserError(f"{location}: is no bundle: its config.json has no format_version; give that of a finished run")
    if not isinstance(version, int) or version > BUNDLE_FORMAT:
        raise UserError(
            f"{location}/config.json: has bundle format {version}, and this Tandem reads up to {BUNDLE_FORMAT}; "
            f"update Tandem, or train again"
        )
    digests = about.pop("sha256", {})
    if "weights_sha256" in about:  # of an earlier version
        digests["weights.safetensors"] = about.pop("weights_sha256")
    config = make_config(about, f"{location}/config.json")
    tokenizer = parse_tokenizer(_file(location, "tokenizer.json", digests), f"{location}/tokenizer.json")
    tagger, subwords = _empty_tagger(location, config.tagger, tokenizer.get_vocab_size(), digests)
    content = _file(location, "weights.safetensors", digests)
    try:
        tagger.load_state_dict(current_weights(load(content)))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{location}/weights.safetensors: is damaged ({error}); copy the bundle again") from error
    return Bundle(
        config, tokenizer, tagger.eval(), _json(location, "metrics.json"), sha256(content).hexdigest(), subwords
    )


def read_card(location: str) -> str:
    """Return the model card of a bundle; empty where it has none."""
    try:
        return storage.read(storage.join(location, "README.md")).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def bundle_digest(location: str) -> str:
    """Return the SHA-256 of all that decides what a bundle predicts: two copies of a bundle have the same one.

    Raises:
        UserError: there is no bundle, or a file is missing.
    """
    require_bundle(location)
    digest = sha256()
    encoder = storage.exists(storage.join(location, "encoder"))
    for name in ("config.json", "tokenizer.json", "weights.safetensors"):
        digest.update(sha256(_file(location, name)).digest())
    for name in ("encoder/config.json", "encoder/tokenizer.json") if encoder else ():
        digest.update(sha256(_file(location, name)).digest())
    return digest.hexdigest()


def _empty_tagger(
    location: str, config: TaggerConfig, words: int, digests: Mapping[str, str]
) -> tuple[Tagger, SubwordTokenizer | None]:
    """Return a tagger with random weights, and what finds sub-words for it."""
    if config.encoder is None:
        return Tagger(config, words), None
    encoder_config = _json(location, "encoder/config.json", digests)
    encoder = Encoder(config, build_model(encoder_config))
    subwords = subword_tokenizer(_file(location, "encoder/tokenizer.json", digests), encoder_config)
    return Tagger(config, words, encoder=encoder), subwords


def _file(location: str, name: str, digests: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a file, which has its digest among some; bundles of earlier versions do not name all."""
    try:
        content = storage.read(storage.join(location, name))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{location}: is not a complete bundle: {name} is missing; copy the bundle again") from None
    if (digests or {}).get(name) not in (None, sha256(content).hexdigest()):
        raise UserError(f"{location}/{name}: does not match its digest in config.json; copy the bundle again")
    return content


def _json(location: str, name: str, digests: Mapping[str, str] | None = None) -> dict[str, Any]:
    try:
        content = json.loads(_file(location, name, digests))
    except ValueError as error:
        raise UserError(f"{location}/{name}: is damaged ({error}); copy the bundle again") from None
    if not isinstance(content, dict):
        raise UserError(f"{location}/{name}: is not a JSON object; copy the bundle again")
    return content


def _of_teacher(training: TrainingConfig) -> str:
    if training.teacher is None:
        return ""
    return f"- learned also from texts that a teacher labeled ({training.teacher_targets} targets)\n"


def _model_card(config: Config, metrics: dict[str, Any], encoder: EncoderFiles | None) -> str:
    training = config.training
    beside = ", after the encoder's own pretraining" if encoder else ""
    rows = "\n".join(
        f"| {head} | {metrics[f'{head}_precision']:.4f} | {metrics[f'{head}_recall']:.4f} | {metrics[f'{head}_f1']:.4f} "
        f"| {metrics[f'{head}_f1_low']:.4f} to {metrics[f'{head}_f1_high']:.4f} | {metrics[f'{head}_exact_match']:.4f} |"
        for head in ("keyphrase", "keyword")
    )
    return f"""---
library_name: tandem
tags: [keyphrase-extraction, token-classification]{_base_model(config.tagger, encoder)}
---
# Keyphrase tagger

{_architecture(config.tagger, encoder)}
- objective {training.alpha:g} * keyword loss + {1 - training.alpha:g} * keyphrase loss
- {training.optimizer}, lr {training.lr:g} ({training.schedule}), batch {training.global_batch_size}, seed {training.seed}
{_of_teacher(training)}
Metrics on the validation split, with 95 % bootstrap intervals:

| head | precision | recall | F1 | interval | exact match |
|---|---|---|---|---|---|
{rows}

    echo "what a match by Roger Federer tonight" | python -m jobs extract BUNDLE

    from model.inference.extractor import Extractor
    extractor = Extractor.load("BUNDLE")
    extractor("what a match by Roger Federer tonight")

It was trained on `{config.data}` and nothing else{beside}. Before you rely on it, measure it on your own texts:
`python -m jobs evaluate BUNDLE --data FILE`.
"""


def _base_model(tagger: TaggerConfig, encoder: EncoderFiles | None) -> str:
    """Return the lines of a card's header that name a pretrained encoder and its licence."""
    return f"\nbase_model: {tagger.encoder}\nlicense: {encoder.license or 'unknown'}" if encoder else ""


def _architecture(tagger: TaggerConfig, encoder: EncoderFiles | None) -> str:
    """Return the part of a card that describes the network."""
    lines = []
    if encoder:
        frozen = "frozen" if tagger.encoder_frozen else "fine-tuned"
        lines.append(
            f"- pretrained encoder {tagger.encoder} ({encoder.config['model_type']}), {frozen}; licence: "
            f"{encoder.license or 'see its own card'}; SHA-256 of its weights {encoder.digest}"
        )
        lines.append(f"- state of a word: {tagger.pooling} of its sub-words, dropout {tagger.dropout:g}")
    if tagger.embedding_dim:
        lines.append(
            f"- a window of {tagger.window} words of {tagger.embedding_dim} values, dropout {tagger.dropout:g}"
        )
    if tagger.cell == "none":
        return "\n".join(["A pretrained encoder with two heads that finds the keyphrases of short texts.", "", *lines])
    directions = "both directions" if tagger.bidirectional else "left to right"
    cell = f"- cell {tagger.cell}, {directions}; {tagger.keyword_hidden} and {tagger.keyphrase_hidden} hidden units"
    title = "A joint-layer RNN (Zhang et al., EMNLP 2016) that finds the keyphrases of short texts."
    return "\n".join([title, "", cell, *lines])
