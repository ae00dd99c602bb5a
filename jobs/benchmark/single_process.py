"""The lanes of the benchmark that run in one process: training in all its variants, and what stands around it."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jobs.benchmark import reference
from jobs.benchmark.process_groups import ProcessGroupHandle
from model.config import Config, TaggerConfig, TrainingConfig
from model.data.batching import epoch_batches
from model.data.dataset import Dataset
from model.errors import UserError
from model.inference.bundle import save_bundle
from model.inference.extractor import TEXTS_HELD, Extractor
from model.network.cells import CELLS
from model.network.device import check_precision
from model.network.tagger import new_tagger
from model.prepare.builder import PrepareConfig, prepare
from model.training.evaluation import evaluate
from model.training.loop import Training
from model.training.metrics import summarize

CEILING, CEILING_HALF = "one matrix product, float32", "one matrix product, bfloat16"
OWNER, STEP, HALF = "the hand-made loop", "Tandem's step", "  bfloat16"
EXTRACT, PREPARE = "extract", "prepare, each second of a core"


class Row(NamedTuple):
    """A line of the table: the median over the rounds, the lowest and the highest."""

    name: str
    unit: str
    median: float
    low: float
    high: float


@dataclass
class Measurements:
    """What was measured: the rates of each lane, round by round."""

    units: dict[str, str] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, rate: float) -> None:
        """Adds a round's rate."""
        self.units[name] = unit
        self.rates.setdefault(name, []).append(rate)

    def ratio(self, above: str, below: str) -> float:
        """The median over the rounds of one lane's rate by another's."""
        pairs = zip(self.rates[above], self.rates[below], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(name, self.units[name], statistics.median(rates), min(rates), max(rates))
            for name, rates in self.rates.items()
        ]


def _variants(place: torch.device) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Lanes of the step: changes of the tagger's and of the training's configuration."""
    off: tuple[dict[str, Any], dict[str, Any]] = (
        {"cpu_kernels": False, "cpu_dropout": False},
        {"sparse_embedding": False, "bucket_by_length": False},
    )
    batches = (256, 1024, 4096) if place.type == "cuda" else (256,)
    found = {
        STEP: ({}, {}),
        "  torch's recurrence": ({"cpu_kernels": False}, {}),
        "  torch's dropout": ({"cpu_dropout": False}, {}),
        "  the whole table at each step": ({}, {"sparse_embedding": False}),
        "  batches at random": ({}, {"bucket_by_length": False}),
        "  all of these": off,
        HALF: ({}, {"precision": "bfloat16"}),
        **{f"  {cell}": ({"cell": cell}, {}) for cell in CELLS if cell != TaggerConfig().cell},
        **{f"  batches of {size}": ({}, {"global_batch_size": size}) for size in batches},
    }
    try:
        check_precision("bfloat16", place)
    except UserError:
        del found[HALF]
    return found


def in_this_process(
    location: str, repeats: int, place: torch.device, folder: Path, hand_made: ProcessGroupHandle, lanes: Measurements
) -> None:
    """Has the lanes take turns with the hand-made loop; a first round warms up and is not counted.

    That loop has a process of its own, for what this one has settled, such as how memory is kept, would speed it up.
    """
    data, tagger = Dataset(location), TaggerConfig()
    train, valid, words = data.load("train"), data.load("valid"), data.info["words"]
    steps: dict[str, Iterator[float]] = {}
    for name, (of_tagger, changed) in _variants(place).items():
        fresh = new_tagger(TaggerConfig(**of_tagger), words, 0)
        training = Training(TrainingConfig(**changed), fresh, train, valid, device=place)
        steps[name] = reference.training_steps(training)
        if name == STEP:
            steps["batches alone"] = _batches(training)
            texts = {"evaluate": _evaluated(training), EXTRACT: _extracted(data, training, folder)}
    for precision, name in ((torch.float32, CEILING), (torch.bfloat16, CEILING_HALF)):
        steps[name] = reference.gemm_roofline(tagger, precision, place)
    for round in range(-1, repeats):
        rates = [(OWNER, "tokens/s", hand_made.turn().tokens_per_s)]
        for unit, lane in (("tokens/s", steps), ("texts/s", texts)):
            rates += [(name, unit, reference.timed(work, place)) for name, work in lane.items()]
        for name, unit, rate in rates if round >= 0 else ():
            lanes.add(name, unit, rate)


def _batches(training: Training) -> Iterator[float]:
    lengths = training.train.lengths
    while True:
        for rows in epoch_batches(lengths, training.config.global_batch_size, 0, 0):
            yield float(training.local_batch(rows).lengths.sum())


def _evaluated(training: Training) -> Iterator[float]:
    while True:
        evaluate(training.tagger, training.valid, training.device)
        training.tagger.train()  # its steps are another lane, and have their dropout
        yield len(training.valid)


def _extracted(data: Dataset, training: Training, folder: Path) -> Iterator[float]:
    """From a bundle, as anybody has it, of a tagger that has trained for a moment."""
    steps = reference.training_steps(training)
    for _ in range(100):
        next(steps)
    metrics = summarize(evaluate(training.tagger, training.valid, training.device).counts)
    training.tagger.train()
    bundle = str(folder / "bundle")
    weights = training.tagger.state_dict()
    save_bundle(bundle, Config(data=data.location), data.tokenizer_bytes(), weights, {"split": "valid", **metrics})
    extractor = Extractor.load(bundle, training.device.type)
    texts = [labelled.text for labelled in data.texts("train")]
    while True:
        for begin in range(0, len(texts), TEXTS_HELD):
            some = texts[begin : begin + TEXTS_HELD]
            list(extractor.pipe(some))
            yield len(some)


def prepare_again(location: str, texts: int, repeats: int, folder: Path, lanes: Measurements) -> None:
    """Labelled texts as TSV, repeated until there are enough; what is told is texts for each second of one core."""
    data = Dataset(location)
    lines = []
    for labelled in data.texts("train"):
        phrases = (labelled.text[start:end] for start, end in labelled.spans or ())
        lines.append(f"{labelled.text}\t{';'.join(phrases)}".replace("\n", " "))
    source = folder / "texts.tsv"
    source.write_text("".join(f"{line}\n" for line in islice(cycle(lines), texts)), "utf-8")
    for _ in range(repeats):
        began = time.process_time()
        info = prepare(PrepareConfig([str(source)], str(folder / "prepared"), skip_bad_lines=True, overwrite=True))
        rows = sum(split["rows"] for split in info["splits"].values())
        lanes.add(PREPARE, "texts/s", rows / (time.process_time() - began))
