"""What the checks of `make gpu` begin from: datasets, bundles, and a training of a preset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers import ROOT, alone, generated_dataset

from model.config import Config, make_config, set_dotted
from model.data.dataset import Dataset
from model.inference.bundle import save_bundle
from model.network.tagger import new_tagger
from model.presets import PRESETS, preset_values
from model.training.communicator import Communicator
from model.training.loop import Training

__all__ = ["PRESETS", "ROOT", "Check", "NotHereError", "config_of", "large", "prepare", "small", "training_of"]
SMALL, LARGE = 3_000, 11_702  # texts, of which 7 in 10 are for training: of LARGE two batches of 4,096
NO_DROPOUT = {"tagger.dropout": 0.0, "tagger.rare_word_dropout": 0.0}


class NotHereError(Exception):
    """A check does not apply to this machine."""


class Check(NamedTuple):
    """A check: it returns what it found, and raises where that is wrong.

    Attributes:
        run: given the device and the folder of `prepare`.
        limit_s: seconds after which it is ended.
        alone: whether nothing else may run meanwhile.
    """

    name: str
    run: Callable[[torch.device, Path], str]
    limit_s: float
    alone: bool = False


def small(folder: Path) -> str:
    """Return the dataset directory of the checks."""
    return str(folder / "small" / "data")


def large(folder: Path) -> str:
    """Return the dataset directory of the measurements, and of trainings that are interrupted."""
    return str(folder / "large" / "data")


def prepare(device: torch.device, folder: Path) -> str:
    """Write both datasets, and on the CPU a bundle of each preset, trained for an epoch."""
    for name, texts in (("small", SMALL), ("large", LARGE)):
        (folder / name).mkdir()
        generated_dataset(folder / name, texts)
    scores = []
    for preset in PRESETS:
        config = config_of(preset, small(folder), {"training.epochs": 1, "training.lr": 3e-3})
        training = alone(config)
        metrics = {name.removeprefix("valid/"): value for name, value in training.history[-1].items()}
        tokenizer = Dataset(config.data).tokenizer_bytes()
        save_bundle(str(folder / preset), config, tokenizer, training.tagger.state_dict(), metrics)
        scores.append(f"{preset} {metrics['keyphrase_f1']:.3f}")
    texts = [each.text.replace("\n", " ") for each in Dataset(large(folder)).texts("test")]
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return f"{SMALL:,} and {LARGE:,} texts; F1 after an epoch: {', '.join(scores)}"


def config_of(preset: str, data: str, values: dict[str, Any]) -> Config:
    """Return the configuration of a preset with other values, by dotted name."""
    tree = {"data": data} | preset_values(preset)
    for name, value in values.items():
        set_dotted(tree, name, value)
    return make_config(tree)


def training_of(
    preset: str,
    data: str,
    device: torch.device,
    values: dict[str, Any] | None = None,
    communicator: Communicator | None = None,
) -> Training:
    """Return a new training of a preset on a device."""
    config, dataset = config_of(preset, data, values or {}), Dataset(data)
    train, valid = (dataset.load(split, config.tagger.uses_word_features) for split in ("train", "valid"))
    tagger = new_tagger(config.tagger, dataset.info["words"], config.training.seed)
    return Training(config.training, tagger, train, valid, communicator, device)
