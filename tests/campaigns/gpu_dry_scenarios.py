"""What `make gpu-dry` tries: the presets with other values and devices, each trained, resumed and used."""

import os
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo  # before anything is replaced in torch
from gpu_dry_card import SaveOnce
from gpu_dry_ledger import DryCuda, DryFunctions, Ledger
from gpu_dry_tensor import CudaTensor

from distributed.sweep.metric import Metric
from distributed.train.checkpoint import load_checkpoint, save_checkpoint
from distributed.train.process_group import TorchCommunicator
from distributed.train.shared_data import SharedData
from distributed.tune.trial_run import TrialRun, TrialSettings, TrialSpec
from model.config import make_config, set_dotted
from model.data.dataset import Dataset
from model.data.examples import examples
from model.data.labeled_text import SkipCounts
from model.errors import UserError
from model.inference.error_analysis import find_errors
from model.inference.extractor import Extractor
from model.network.encoder_files import load_encoder
from model.presets import PRESETS, preset_values
from model.training import loop
from model.training.communicator import SingleProcess
from model.training.loop import Training

TOLERANCE = 1e-4  # relative, of losses against the CPU's
BATCH = 12
WARM_UP = 3  # first steps of a training, which are not counted: what happens once has happened by then
REFUSED = "refused"  # by the product itself, with a message for the user
COLUMNS = ("train", "evaluate", "resume", "extract", "as CPU")


class Scenario(NamedTuple):
    """What is tried: a preset with other values, on a device."""

    name: str
    preset: str
    values: dict[str, Any]
    device: str = "cuda:0"
    group: bool = False  # in a process group
    trial: bool = False  # as a trial of a worker group that has this device

    @property
    def may_wait(self) -> int:
        """How often a step, with the assembly of its batch, may let the host wait for the GPU.

        In each pass of an encoder, transformers asks whether its mask hides anything.
        """
        return int(self.values.get("training.accumulate", 1)) if self.preset == "encoder" else 0


def scenarios() -> list[Scenario]:
    """Return all that is tried."""
    found = []
    for preset in PRESETS:
        found += [
            Scenario(preset, preset, {}),
            Scenario(f"{preset}, no dropout", preset, {"tagger.dropout": 0.0, "tagger.rare_word_dropout": 0.0}),
            Scenario(f"{preset}, whole table", preset, {"training.sparse_embedding": False}),
            Scenario(f"{preset}, adamw", preset, {"training.optimizer": "adamw"}),
            Scenario(f"{preset}, sgd", preset, {"training.optimizer": "sgd"}),
            Scenario(f"{preset}, bfloat16", preset, {"training.precision": "bfloat16"}),
            *(
                Scenario(f"{preset}, {each}", preset, {"training.gradient_sync": each}, group=True)
                for each in ("ddp", "flat")
            ),
            Scenario(f"{preset}, accumulate 3", preset, {"training.accumulate": 3}, group=True),
            Scenario(f"{preset}, local rank 1", preset, {}, device="cuda:1"),
            Scenario(f"{preset}, trial on cuda:1", preset, {}, device="cuda:1", trial=True),
        ]
    found.append(Scenario("record, lstm", "record", {"tagger.cell": "lstm"}))
    return found


class Outcome(NamedTuple):
    """What came of a scenario: for each column "ok" or what went wrong, the syncs and the kernels."""

    name: str
    columns: dict[str, str]
    syncs: dict[str, dict[str, float]]  # by phase and place, a step or a batch
    kernels: float  # a step
    may_wait: int  # times a step


class Attempt:
    """A scenario that is being carried out."""

    def __init__(self, scenario: Scenario, data: str, encoder: str, folder: Path) -> None:
        """
        Args:
            scenario: what is tried.
            data: location of a dataset.
            encoder: folder of a pretrained one, for the preset that has one.
            folder: an empty one, for a checkpoint, as a trial's in a sweep.
        """
        self.scenario, self.data, self.encoder, self.folder = scenario, data, encoder, folder
        self.ledger = CudaTensor.ledger = Ledger()
        self.device = torch.device(scenario.device)
        self.columns = dict.fromkeys(COLUMNS, "-")
        self.calls, self.evaluating = Counter[str](), False
        self.training: Any = None

    def run(self) -> Outcome:
        """Try each part; what depends on a part that failed is left out."""
        if self.scenario.device == "cuda:1" and self.scenario.trial:
            torch._C._cuda_setDevice(1)  # as a worker group does; other threads stay with 0
        try:
            with DryCuda(self.ledger), DryFunctions(self.ledger):
                if self._try("train", self._train):
                    self._try("resume", self._resume)
                    self._try("extract", self._extract)
            if self.columns["train"] == "ok" and "no dropout" in self.scenario.name:
                self._try("as CPU", self._compare)
        finally:
            torch._C._cuda_setDevice(0)
        kernels = self.ledger.kernels["step"] / max(self.calls["step"], 1)
        return Outcome(self.scenario.name, self.columns, self._syncs(), kernels, self.scenario.may_wait)

    def _try(self, column: str, part: Callable[[], None]) -> bool:
        try:
            with self.ledger.in_phase(column):
                part()
            self.columns[column] = "ok"
        except UserError as error:
            self.columns[column] = f"{REFUSED}: {_one_line(error)}"
        except Exception as error:
            if column == "train" and self.evaluating:
                self.columns["train"], column = "ok", "evaluate"
            self.columns[column] = _one_line(error)
            if os.environ.get("TRACE"):
                traceback.print_exc()
        return self.columns["train"] == "ok" and self.columns["evaluate"] in ("-", "ok")

    def config(self) -> Any:
        """Return the configuration of the scenario."""
        tree = {"data": self.data} | preset_values(self.scenario.preset)
        values = {"training.global_batch_size": BATCH, "training.epochs": 3} | self.scenario.values
        if self.scenario.preset == "encoder":
            values["tagger.encoder"] = self.encoder
        for name, value in values.items():
            set_dotted(tree, name, value)
        return make_config(tree)

    def _new(self, checkpointer: Any = None, device: torch.device | None = None) -> Any:
        """Return a training of the scenario."""
        config = self.config()
        data = SharedData.load(self.data, config.tagger, config.training)
        tagger = data.new_tagger(config.tagger, config.training.seed)
        group, splits = TorchCommunicator() if self.scenario.group else None, (data.train, data.valid)
        return Training(config.training, tagger, *splits, group, device or self.device, checkpointer=checkpointer)

    def _counted(self, training: Any) -> Any:
        """Let a training count its steps, the assembly of batches and its checks apart."""
        training.train_step = self._steady("step", training.train_step)
        training.local_batches = self._steady("batch", training.local_batches)
        training._check = self.ledger.counted("check", training._check)
        return training

    def _steady(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts for a phase, once it has been called a few times."""
        first, steady = self.ledger.counted("first steps", function), self.ledger.counted(phase, function)
        calls = count()

        def run(*args: Any, **kwargs: Any) -> Any:
            if next(calls) < WARM_UP:
                return first(*args, **kwargs)
            self.calls[phase] += 1
            return steady(*args, **kwargs)

        return run

    def _epoch(self, training: Any) -> None:
        """Train an epoch and evaluate."""

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            self.evaluating = True
            return measured(*args, **kwargs)

        measured = loop.evaluate
        with patch.object(loop, "evaluate", self.ledger.counted("evaluate", evaluate)):
            training.run_epoch()

    def _train(self) -> None:
        if self.scenario.trial:
            self._train_trial()
        else:
            self.training = self._counted(self._new(SaveOnce(self.folder, self.ledger)))
            self._epoch(self.training)
        self.columns["evaluate"] = "ok"
        wrong = [name for name, each in self.training.tagger.named_parameters() if each.device != self.device]
        assert not wrong, f"not on {self.device}: {', '.join(wrong)}"

    def _train_trial(self) -> None:
        """Train as a worker of a group does that carries out trials: its device is the current one of its thread."""
        config = self.config()
        spec = TrialSpec("trial", config.model_dump(), str(self.folder))
        settings: Any = TrialSettings(None, None, 1, 1, 1.0, Metric.parse("valid/keyphrase_f1"))  # type: ignore[arg-type]
        data = SharedData.load(self.data, config.tagger, config.training)
        self.training = self._counted(TrialRun(spec, data, settings, SingleProcess(), None).training)
        self._epoch(self.training)

    def _resume(self) -> None:
        """Resume from the checkpoint inside the epoch, or where a trial was, and end with the same weights."""
        if self.scenario.trial:
            save_checkpoint(self.folder, self.training.state())
            self._epoch(self.training)
        resumed = self._counted(self._new())
        resumed.restore(load_checkpoint(str(self.folder)))
        self._epoch(resumed)
        for name, value in self.training.tagger.state_dict().items():
            other = resumed.tagger.state_dict()[name]
            assert _on_cpu(value).equal(_on_cpu(other)), f"{name} is another than without the interruption"

    def _extract(self) -> None:
        dataset, config = Dataset(self.data), self.config().tagger
        subwords = load_encoder(config.encoder).subwords() if config.encoder else None
        extractor = Extractor(self.training.tagger, dataset.tokenizer(), str(self.device), subwords)
        texts = list(dataset.texts("test"))
        list(extractor.pipe([each.text for each in texts]))
        found = examples(iter(texts), dataset.tokenizer(), SkipCounts(), 1000)
        find_errors(self.training.tagger, found, self.training.train, self.device, subwords)

    def _compare(self) -> None:
        """Train the same on the CPU, and compare the losses."""
        other = self._new(device=torch.device("cpu"))
        other.run_epoch()
        for name in ("train/loss", "valid/loss"):
            here, there = self.training.history[0][name], other.history[0][name]
            assert abs(here - there) <= TOLERANCE * abs(there), f"{name} is {here:.6f}, and {there:.6f} on the CPU"

    def _syncs(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for (phase, place), times in self.ledger.syncs.items():
            found.setdefault(phase, {})[place] = times / self.calls.get(phase, 1)
        for (phase, place), times in self.ledger.pageable.items():
            if phase in self.calls:
                found.setdefault("pageable", {})[place] = times / self.calls[phase]
        return found


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.values_on_cpu if isinstance(value, CudaTensor) else value


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
