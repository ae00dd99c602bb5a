"""DistributedDataParallel against one flat all-reduce: equal weights, and milliseconds a step by the network's size.

PYTHONPATH=.:tests torchrun --standalone --nproc-per-node=2 tests/campaigns/gradient_sync.py
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import generated_dataset

from distributed.train.process_group import TorchCommunicator
from model.config import Config, make_config, merge
from model.data.batching import epoch_batches
from model.data.dataset import Dataset
from model.network.tagger import new_tagger
from model.presets import preset_values
from model.training.loop import Training
from model.training.training_texts import GlobalBatch

# Hidden units of both layers of a network with about so many millions of dense parameters.
HIDDEN = {1: 430, 5: 1350, 22: 2980, 110: 6920}


def configuration(data: str, preset: str, tree: dict[str, Any]) -> Config:
    """A preset of the product, with other values."""
    values: dict[str, Any] = {"data": data}
    merge(values, preset_values(preset))
    merge(values, tree)
    return make_config(values)


def steps(config: Config) -> Iterator[Training]:
    """A training, after each of its steps."""
    data = Dataset(config.data)
    train = data.load("train", config.tagger.uses_word_features)
    tagger = new_tagger(config.tagger, data.info["words"], config.training.seed)
    training = Training(config.training, tagger, train, train, TorchCommunicator())
    batches = epoch_batches(train.lengths, config.training.global_batch_size, 0, 0)
    tagger.train()
    for number, rows in cycle(enumerate(batches)):
        tokens = int(train.lengths[rows].sum())
        training.train_step(
            training.local_batches(GlobalBatch(training.train, rows), number), tokens, number, config.training.lr
        )
        yield training


def distance(data: str, preset: str, tree: dict[str, Any], count: int) -> float:
    """The greatest difference of a weight between the two ways, after some steps."""
    found = []
    for way in ("flat", "ddp"):
        *_, training = (each for _, each in zip(range(count), steps(with_sync(data, preset, tree, way)), strict=False))
        found.append([weight.clone() for weight in training.tagger.state_dict().values()])
    return max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))


def with_sync(data: str, preset: str, tree: dict[str, Any], way: str) -> Config:
    """A configuration with a way to sum gradients."""
    return configuration(data, preset, tree | {"training": tree.get("training", {}) | {"gradient_sync": way}})


def milliseconds(data: str, tree: dict[str, Any], rounds: int, count: int) -> dict[str, float]:
    """The median milliseconds a step of both ways, in alternating rounds; the first is not counted."""
    ways = {way: steps(with_sync(data, "record", tree, way)) for way in ("flat", "ddp")}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, training in ways.items():
            dist.barrier()
            began = time.perf_counter()
            for _ in range(count):
                next(training)
            dist.barrier()
            taken[way].append(1000 * (time.perf_counter() - began) / count)
    return {way: statistics.median(values[1:]) for way, values in taken.items()}


def main() -> None:
    """Print the differences and the times as JSON, on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a dataset directory; default: 1,000 texts of the built-in corpus")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--equal", nargs="*", default=["record", "best", "22"])
    parser.add_argument("--millions", nargs="*", type=int, default=list(HIDDEN))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or generated_dataset(Path(folder), 1000)
        for name in arguments.equal:
            preset, tree = (name, {}) if name in ("record", "best") else ("record", sized(int(name)))
            report(
                {"equal": name, "workers": dist.get_world_size(), "off": distance(data, preset, tree, arguments.steps)}
            )
        for millions in arguments.millions:
            count = max(1, 40 // millions)
            report({"millions": millions, **milliseconds(data, sized(millions), arguments.rounds, count)})
    dist.destroy_process_group()


def sized(millions: int) -> dict[str, Any]:
    """A network with about so many millions of dense parameters, and small batches, so that its exchange matters."""
    hidden = HIDDEN[millions]
    return {"tagger": {"keyword_hidden": hidden, "keyphrase_hidden": hidden}, "training": {"global_batch_size": 16}}


def report(row: dict[str, Any]) -> None:
    """Print a row on rank 0."""
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
