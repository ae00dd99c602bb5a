"""Measurements that run in one process: training in several configurations, evaluation, extraction and `prepare`."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch

from distributed.train.shared_data import SharedData
from jobs.benchmark import reference
from jobs.benchmark.process_groups import ProcessGroupHandle
from jobs.benchmark.systems import preset_config
from model.config import Config, TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.inference.bundle import save_bundle
from model.inference.extractor import PIPE_BATCH_SIZE, Extractor
from model.network.cells import CELLS
from model.network.device import has_bfloat16
from model.network.tagger import new_tagger
from model.prepare.builder import PrepareConfig, prepare
from model.training.evaluation import evaluate
from model.training.loop import Training
from model.training.metrics import summarize

# Names of measurements, as the table shows them.
CEILING, CEILING_HALF = "one matrix product, float32", "one matrix product, bfloat16"
CEILING_TF32 = "one matrix product, float32 as TF32"
REFERENCE, STEP, HALF = "reference loop", "Tandem's step", "  bfloat16"
EXTRACT, PREPARE = "extract", "prepare, per second of a core"
ENCODER_STEP, ENCODER_HALF = "step with a pretrained encoder", "  bfloat16, with a pretrained encoder"


@dataclass(frozen=True)
class Row:
    """A row of the table: the median, lowest and highest value over the rounds."""

    name: str
    unit: str
    median: float
    low: float
    high: float


@dataclass
class Measurements:
    """The values of each measurement by name, one per round."""

    units: dict[str, str] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, value: float) -> None:
        """Add the value of a round."""
        self.units[name] = unit
        self.values.setdefault(name, []).append(value)

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Return the median over the rounds of the ratio of two measurements; None where no round has both."""
        # A round that failed has only the first values.
        pairs = zip(self.values.get(numerator, []), self.values.get(denominator, []), strict=False)
        ratios = [a / b for a, b in pairs]
        return statistics.median(ratios) if ratios else None

    def rows(self) -> list[Row]:
        """Return the rows of the table, in the order in which the measurements were first added."""
        return [
            Row(name, self.units[name], statistics.median(values), min(values), max(values))
            for name, values in self.values.items()
        ]


class _Variant(NamedTuple):
    """Fields of a training's configuration that differ from the defaults."""

    tagger: dict[str, object]
    training: dict[str, object]


def _variants(device: torch.device) -> dict[str, _Variant]:
    """Return the configurations of the step to measure, by name."""
    gpu = device.type == "cuda"
    batch_sizes = (256, 1024, 4096) if gpu else (256,)
    # A GPU uses torch's own in any case.
    of_cpu = {
        "  torch's recurrence": _Variant({"cpu_kernels": False}, {}),
        "  torch's dropout": _Variant({"cpu_dropout": False}, {}),
    }
    variants = {
        STEP: _Variant({}, {}),
        **({} if gpu else of_cpu),
        "  whole embedding table at each step": _Variant({}, {"sparse_embedding": False}),
        "  batches at random": _Variant({}, {"bucket_by_length": False}),
        "  all of these": _Variant(
            {"cpu_kernels": False, "cpu_dropout": False}, {"sparse_embedding": False, "bucket_by_length": False}
        ),
        HALF: _Variant({}, {"precision": "bfloat16"}),
        **{f"  {cell}": _Variant({"cell": cell}, {}) for cell in CELLS if cell != TaggerConfig().cell},
        **{f"  batches of {size}": _Variant({}, {"global_batch_size": size}) for size in batch_sizes},
    }
    if not has_bfloat16(device):
        del variants[HALF]
    return variants


def measure_in_process(
    location: str,
    repeats: int,
    device: torch.device,
    folder: Path,
    reference_loop: ProcessGroupHandle,
    measurements: Measurements,
) -> None:
    """Time all variants of the step, evaluation and extraction in rounds with the reference loop.

    The reference loop has a process of its own, because settings of this one, such as how memory is kept, would speed it
    up. A first round warms up and is not counted.

    Args:
        location: a dataset directory.
        repeats: number of rounds.
        device: where to train.
        folder: an empty directory for a bundle.
        reference_loop: a group of one process that trains by the reference loop.
        measurements: receives the values.
    """
    data, tagger = Dataset(location), TaggerConfig()
    train, valid, words = data.load("train"), data.load("valid"), data.info["words"]
    steps: dict[str, Iterator[float]] = {}
    for name, variant in _variants(device).items():
        model = new_tagger(TaggerConfig(**variant.tagger), words, 0)
        training = Training(TrainingConfig(**variant.training), model, train, valid, device=device)
        steps[name] = reference.training_steps(training)
        if name == STEP:
            steps["batches alone"] = _batches(training)
            texts = {"evaluate": _evaluated(training), EXTRACT: _extracted(data, training, folder)}
    for precision, name in ((torch.float32, CEILING), (torch.bfloat16, CEILING_HALF)):
        steps[name] = reference.gemm_roofline(tagger, precision, device)
    if device.type == "cuda":
        steps[CEILING_TF32] = reference.gemm_roofline(tagger, torch.float32, device, tf32=True)
    for round in range(-1, repeats):
        rates = [(REFERENCE, "tokens/s", reference_loop.measure().tokens_per_s)]
        for unit, group in (("tokens/s", steps), ("texts/s", texts)):
            rates += [(name, unit, reference.timed(work, device)) for name, work in group.items()]
        for name, unit, rate in rates if round >= 0 else ():
            measurements.add(name, unit, rate)


def measure_encoder(
    location: str, encoder: str, repeats: int, device: torch.device, measurements: Measurements
) -> None:
    """Time the step of the preset `encoder` in the precisions that the device has, in rounds. A first round is not counted.

    Args:
        location: a dataset directory.
        encoder: pretrained: path, URI, or name on the hub.
        repeats: number of rounds.
        device: where to train.
        measurements: receives the values.

    Raises:
        UserError: the encoder cannot be used.
    """
    config = preset_config(Dataset(location), "encoder", 0, encoder)
    shared = SharedData.load(location, config.tagger, config.training)
    precisions = {ENCODER_STEP: "float32", **({ENCODER_HALF: "bfloat16"} if has_bfloat16(device) else {})}
    steps: dict[str, Iterator[float]] = {}
    for name, precision in precisions.items():
        settings = config.training.model_copy(update={"precision": precision})
        tagger = shared.new_tagger(config.tagger, 0)
        steps[name] = reference.training_steps(Training(settings, tagger, shared.train, shared.valid, device=device))
    for round in range(-1, repeats):
        for name, work in steps.items():
            rate = reference.timed(work, device)
            if round >= 0:
                measurements.add(name, "tokens/s", rate)


def _batches(training: Training) -> Iterator[float]:
    while True:
        for texts in training.texts.batches(0):
            yield float(sum(batch.lengths.sum() for batch in training.local_batches(texts, 0)))


def _evaluated(training: Training) -> Iterator[float]:
    while True:
        evaluate(training.tagger, training.valid, training.device)
        training.tagger.train()  # its steps are measured as well, with dropout
        yield len(training.valid)


def _extracted(data: Dataset, training: Training, folder: Path) -> Iterator[float]:
    """Extract with the bundle of a briefly trained tagger, as a user would. Yield numbers of texts."""
    steps = reference.training_steps(training)
    for _ in range(100):
        next(steps)
    metrics = summarize(evaluate(training.tagger, training.valid, training.device).counts)
    training.tagger.train()
    bundle = str(folder / "bundle")
    weights = training.tagger.state_dict()
    save_bundle(bundle, Config(data=data.location), data.tokenizer_bytes(), weights, {"split": "valid", **metrics})
    extractor = Extractor.load(bundle, training.device.type)
    texts = [labeled.text for labeled in data.texts("train")]
    while True:
        for begin in range(0, len(texts), PIPE_BATCH_SIZE):
            chunk = texts[begin : begin + PIPE_BATCH_SIZE]
            list(extractor.pipe(chunk))
            yield len(chunk)


def measure_prepare(location: str, texts: int, repeats: int, folder: Path, measurements: Measurements) -> None:
    """Time `prepare`, in texts per second of processor time, on a dataset's training texts repeated to a number of texts."""
    data = Dataset(location)
    lines = []
    for labeled in data.texts("train"):
        phrases = (labeled.text[start:end] for start, end in labeled.spans or ())
        lines.append(f"{labeled.text}\t{';'.join(phrases)}".replace("\n", " "))
    source = folder / "texts.tsv"
    source.write_text("".join(f"{line}\n" for line in islice(cycle(lines), texts)), "utf-8")
    for _ in range(repeats):
        began = time.process_time()
        info = prepare(PrepareConfig([str(source)], str(folder / "prepared"), skip_bad_lines=True, overwrite=True))
        rows = sum(split["rows"] for split in info["splits"].values())
        measurements.add(PREPARE, "texts/s", rows / (time.process_time() - began))
