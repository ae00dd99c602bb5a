"""One training on another number of processes after each stop: `make world-sizes`.

The training split is read from storage, in several windows. The training is stopped at random steps and goes on, from its state,
in one to three processes drawn anew. Its losses and weights must be those of one process that is never stopped, and each
epoch must bring every text once. The processes are forks with gloo between them, so that torch is imported once.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from helpers import generated_dataset

from distributed.train.process_group import TorchCommunicator
from distributed.train.shared_data import SharedData
from model.config import Config, make_config, merge
from model.presets import preset_values
from model.training import loop, training_texts
from model.training.loop import Training
from model.training.training_texts import GlobalBatch

EPOCHS, ROWS, WINDOW = 3, 60, 500  # of the training; texts of a row group and of a window
Position = tuple[int, int]  # an epoch and a step


class StoppedError(Exception):
    """The training has come to the step at which it is stopped."""


class StopAt:
    """A checkpointer that stops the training at a position, and keeps its state then."""

    def __init__(self, position: Position | None, state: Path) -> None:
        self.position, self.state = position, state

    def should_save(self) -> bool:
        return True

    def save(self, training: Training) -> None:
        if (training.epoch, training.step) == self.position:
            state = training.state()  # all processes take part
            if training.communicator.rank == 0:
                torch.save(state, self.state)
            raise StoppedError


def part(config: Config, folder: Path, processes: int, stop: Position | None) -> float:
    """Trains from the kept state to a position or to the end, in some processes, and returns the seconds."""
    began, store = time.monotonic(), folder / "store"
    store.unlink(missing_ok=True)
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(config, folder, rank, processes, stop)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    assert not failed, f"{len(failed)} of {processes} processes failed"
    return time.monotonic() - began


def train(config: Config, folder: Path, rank: int, processes: int, stop: Position | None) -> None:
    """What one process does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    data = SharedData.load(config.data, config.tagger, config.training)
    tagger, device = data.new_tagger(config.tagger, config.training.seed), torch.device("cpu")
    splits = data.splits_for(config.tagger, device)
    training = Training(
        config.training, tagger, *splits, TorchCommunicator(), checkpointer=StopAt(stop, folder / "state.pt")
    )
    if (folder / "state.pt").exists():
        training.restore(torch.load(folder / "state.pt", weights_only=True))
    if rank == 0:
        training.texts = Recorded(training.texts, folder / "texts.jsonl", training)  # type: ignore[assignment]
    try:
        for _ in training.epochs():
            pass
    except StoppedError:
        return
    if rank == 0:
        torch.save(training.state(), folder / "state.pt")


class Recorded:
    """The texts of a training, which writes down those of each step that was trained."""

    def __init__(self, texts: Any, file: Path, training: Training) -> None:
        self._texts, self._file, self._training = texts, file, training

    def __getattr__(self, name: str) -> Any:
        return getattr(self._texts, name)

    def batches(self, epoch: int, first: int = 0) -> Iterator[GlobalBatch]:
        for step, batch in enumerate(self._texts.batches(epoch, first), first):
            begins = batch.split.begins
            words = [batch.split.ids[begins[row] : begins[row + 1]].tobytes() for row in batch.rows]
            with self._file.open("a") as file:
                file.write(json.dumps([epoch, step, [hashlib.md5(each).hexdigest() for each in words]]) + "\n")
            yield batch


def whole_training(config: Config, folder: Path, cuts: list[tuple[int, Position]], last: int) -> dict[str, Any]:
    """Trains in parts, and returns the state at the end and the texts of each step."""
    folder.mkdir()
    for processes, stop in cuts:
        part(config, folder, processes, stop)
    part(config, folder, last, None)
    steps = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    return {"state": torch.load(folder / "state.pt", weights_only=True), "steps": steps}


def compare(config: Config, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Trains with some stops and without, and returns how the two differ."""
    texts = len(SharedData.load(config.data, config.tagger, config.training).train)
    draw, steps = random.Random(seed), -(-texts // config.training.global_batch_size)
    every = [(epoch, step) for epoch in range(EPOCHS) for step in range(1, steps)]
    cuts = [(draw.randint(1, 3), stop) for stop in sorted(draw.sample(every, count))]
    stopped = whole_training(config, folder / "stopped", cuts, draw.randint(1, 3))
    whole = whole_training(config, folder / "whole", [], 1)
    losses = [
        abs(one[name] - other[name]) / other[name]
        for one, other in zip(stopped["state"]["history"], whole["state"]["history"], strict=True)
        for name in ("train/keyword_loss", "train/keyphrase_loss")
    ]
    weights = [
        float((weight - whole["state"]["tagger"][name]).abs().max())
        for name, weight in stopped["state"]["tagger"].items()
    ]
    epochs: list[Counter[str]] = [Counter() for _ in range(EPOCHS)]
    for epoch, _, digests in stopped["steps"]:
        epochs[epoch].update(digests)
    return {
        "stops": count,
        "processes": [processes for processes, _ in cuts],
        "same_texts_at_each_step": stopped["steps"] == whole["steps"],
        "every_text_once": all(found == epochs[0] and found.total() == texts for found in epochs),
        "loss_difference": max(losses),
        "weight_difference": max(weights),
    }


def configuration(data: str, seed: int) -> Config:
    """The preset `best` with small layers and without dropout, whose draws depend on the process."""
    tree: dict[str, Any] = {"data": data}
    merge(tree, preset_values("best"))
    small = {"embedding_dim": 24, "keyword_hidden": 24, "keyphrase_hidden": 24, "dropout": 0.0}
    merge(tree, {"tagger": small, "training": {"epochs": EPOCHS, "seed": seed, "data": "stream", "patience": 0}})
    return make_config(tree)


def main() -> None:
    """Runs the campaign; ends with 1 where the two trainings differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    training_texts.WINDOW_TEXTS, loop._STEPS_BETWEEN_CHECKS = WINDOW, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="world-sizes-") as scratch:
        data = generated_dataset(Path(scratch), 2000)
        file = Path(data) / "train" / "part-00000.parquet"
        pq.write_table(pq.read_table(file), file, row_group_size=ROWS)
        found = compare(configuration(data, asked.seed), Path(scratch), asked.stops, asked.seed)
    print(json.dumps(found))
    close = found["loss_difference"] < 1e-6 and found["weight_difference"] < 1e-5
    sys.exit(not (found["same_texts_at_each_step"] and found["every_text_once"] and close))


if __name__ == "__main__":
    main()
