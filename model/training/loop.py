"""The training loop: steps, epochs, evaluation. It knows the other workers only through a `Communicator`.

training = Training(config, tagger, train, valid)
for metrics in training.epochs():
    print(metrics["epoch"], metrics["valid/keyphrase_f1"])
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch.optim.optimizer import StateDict

from model.aliases import current_weights
from model.config import TrainingConfig
from model.data.batching import Batch, prefetch
from model.data.dataset import Split
from model.data.training_batches import TrainingBatches
from model.errors import DivergedError
from model.network.device import check_precision, seed_dropout, tune_malloc, with_index
from model.network.logits import EmbeddingRows, Logits
from model.network.tagger import Tagger
from model.training import legacy_metrics
from model.training.communicator import Communicator, SingleProcess
from model.training.device_usage import DeviceMeter, out_of_memory_as_user_error, usage_metrics
from model.training.evaluation import evaluate
from model.training.loss import training_loss
from model.training.metrics import Counts, summarize
from model.training.optimizer import apply_gradients, clip_gradients, learning_rate, make_optimizers
from model.training.progress import EpochLosses, EpochTimer, Progress, ProgressReporter
from model.training.training_texts import GlobalBatch, StreamedSplit, training_texts

SELECTION_METRIC = "valid/keyphrase_f1"
_STEPS_BETWEEN_CHECKS = 20  # a check waits for the device and the other workers, so not every step

Metrics = dict[str, float]


class TrainingState(TypedDict):
    """All that a training needs to resume; `losses` and `seconds` are those of the epoch that `step` is in."""

    tagger: dict[str, torch.Tensor]
    optimizers: list[StateDict]
    epoch: int
    step: int
    losses: list[float]
    seconds: float
    history: list[Metrics]


class Checkpointer(Protocol):
    """Saves a training inside an epoch."""

    def should_save(self) -> bool:
        """Return whether this worker wants a checkpoint now; called every few steps."""
        ...

    def save(self, training: "Training") -> None:
        """Save the training; called on all workers at the same step when one of them wants it."""
        ...


class Training:
    """The training of one tagger.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the running epoch.
        history: the metrics of each finished epoch.
        texts: that are trained on, in the order of an epoch.
        counts: (texts, 8) of the last epoch on the validation split; None before its end.
        logits: of the last training step, for each of its batches.
    """

    def __init__(
        self,
        config: TrainingConfig,
        tagger: Tagger,
        train: Split | StreamedSplit,
        valid: Split,
        communicator: Communicator | None = None,
        device: torch.device | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        """
        Args:
            config: objective, optimizer, order of the data.
            tagger: trained in place; moved to the device.
            train: the split to train on, in memory or on storage.
            valid: the split to rank epochs by.
            communicator: of the workers, each of which runs this same loop; none for one process.
            device: where to compute, by default the CPU.
            on_progress: called about twice a second.
            checkpointer: saves checkpoints inside epochs; those between epochs are up to the caller.

        Raises:
            UserError: the device does not have the precision, or the encoder cannot compute its states again.
        """
        tune_malloc()
        self.config, self.train, self.valid = config, train, valid
        self.communicator: Communicator = communicator or SingleProcess()
        self.device = with_index(device or torch.device("cpu"))
        check_precision(config.precision, self.device)
        self.on_progress, self.checkpointer = on_progress, checkpointer
        self.tagger = tagger.to(self.device)
        if tagger.encoder:
            tagger.encoder.freeze_unused()
            if config.gradient_checkpointing:
                tagger.encoder.checkpoint_activations()
        self.optimizers = make_optimizers(self.tagger, config)
        self.sync = self.communicator.sync_gradients(self.tagger, config)
        table_rows = [table.num_embeddings for table in self.tagger.tables]
        self.texts = training_texts(train, config)
        counts = None
        if tagger.config.rare_word_dropout and table_rows:
            counts = self.texts.word_counts(table_rows[0], self.communicator, self.device)
        self.batches = TrainingBatches(
            tagger.config, config, table_rows, counts, self.communicator.rank, self.communicator.size
        )
        self.logits: list[Logits] = []
        self.meter = DeviceMeter(self.device)
        self.history: list[Metrics] = []
        self.counts: Counts | None = None
        self.epoch = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step, self._timer = 0, EpochTimer()
        self._losses = EpochLosses(torch.zeros(2, dtype=torch.float64, device=self.device))

    def epochs(self) -> Iterator[Metrics]:
        """Train until the budget or the patience is spent, and yield the metrics of each epoch when it ends.

        Raises:
            DivergedError: the loss is no longer finite.
        """
        while not self.finished:
            yield self.run_epoch()

    @property
    def finished(self) -> bool:
        """Return whether all epochs are done, or `patience` epochs brought no better F1."""
        stale = len(self.history) - 1 - self.best if self.history else 0
        return self.epoch >= self.config.epochs or bool(self.config.patience and stale >= self.config.patience)

    @property
    def best(self) -> int:
        """Index in the history of the first epoch with the highest `valid/keyphrase_f1`."""
        return int(np.argmax([metrics[SELECTION_METRIC] for metrics in self.history]))

    def state(self) -> TrainingState:
        """Return all that is needed to resume; `torch.load(weights_only=True)` can read it.

        Inside an epoch, all workers have to call it at the same step.
        """
        sums = self._losses.sums
        return {
            "tagger": self.tagger.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "step": self.step,
            "losses": (self.communicator.all_reduce(sums) if self.step else sums).tolist(),
            "seconds": self._timer.seconds,
            "history": self.history,
        }

    def restore(self, state: TrainingState) -> None:
        """Resume from a state, which may be that of another number of workers."""
        self.tagger.load_state_dict(current_weights(state["tagger"]))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.epoch, self.step, self.history = state["epoch"], state["step"], list(state["history"])
        sums = torch.tensor(state["losses"], dtype=torch.float64, device=self.device)
        self._losses, self._timer = EpochLosses(sums / self.communicator.size), EpochTimer(state["seconds"])

    def run_epoch(self) -> Metrics:
        """Train one epoch, or what a checkpoint left of it, evaluate, and return the metrics."""
        self.meter.start()
        with out_of_memory_as_user_error(self.config, self.communicator.size, self.device):
            trained = self._train_epoch()
            seconds = self._timer.seconds
            self._begin_epoch()
            evaluation = evaluate(self.tagger, self.valid, self.device, self.communicator, tune_decoding=True)
        if not math.isfinite(evaluation.keyword_loss + evaluation.keyphrase_loss):  # since the last step
            raise self._diverged(self.texts.steps - 1, self.texts.steps)
        self.epoch, self.counts = self.epoch + 1, evaluation.counts
        alpha = self.config.alpha
        self.history.append(
            {
                "epoch": self.epoch,
                **trained,
                "train/seconds": seconds,
                "train/tokens_per_s": self.texts.tokens / seconds,
                "valid/loss": alpha * evaluation.keyword_loss + (1 - alpha) * evaluation.keyphrase_loss,
                "valid/keyword_loss": evaluation.keyword_loss,
                "valid/keyphrase_loss": evaluation.keyphrase_loss,
                **{f"valid/{name}": value for name, value in summarize(evaluation.counts).items()},
                **legacy_metrics.evaluation_metrics(evaluation.counts),
                **usage_metrics(self.meter.read(), self.communicator, self.device),
            }
        )
        return self.history[-1]

    def _train_epoch(self) -> Metrics:
        steps = self.texts.steps
        before = self.texts.tokens * self.step / steps
        progress = ProgressReporter(self.on_progress, self.epoch + 1, steps, before, self.communicator.size)
        self._timer.start()
        self.tagger.train()
        # A GPU computes while the CPU is idle: it can assemble the next batch.
        assembled = (prefetch if self.device.type == "cuda" else map)(
            lambda numbered: (*numbered, self.local_batches(numbered[1], numbered[0])),
            enumerate(self.texts.batches(self.epoch, self.step), self.step),
        )
        for step, texts, local in assembled:
            lr = learning_rate(self.config, self.epoch * steps + step, steps)
            losses = self.train_step(local, texts.tokens, step, lr)
            self._losses.add(losses, step)
            self.step = step + 1
            if step % _STEPS_BETWEEN_CHECKS == 0 or self.step == steps:
                self._check(steps)
            progress.update(step, texts.tokens, self._losses)
        self._timer.lap()
        return self._training_metrics(local, losses, len(texts.rows), lr)

    def _training_metrics(self, local: list[Batch], losses: torch.Tensor, texts: int, lr: float) -> Metrics:
        """Return the metrics of an epoch, given this worker's batches of its last step, their losses (2,), texts and lr."""
        sums = [legacy_metrics.batch_sums(*each) for each in zip(self.logits, local, strict=True)]
        record = self.communicator.all_reduce(torch.cat([torch.stack(sums).sum(0), losses]))
        keyword, keyphrase = (self.communicator.all_reduce(self._losses.sums) / self.texts.tokens).tolist()
        alpha = self.config.alpha
        return {
            "train/loss": alpha * keyword + (1 - alpha) * keyphrase,
            "train/keyword_loss": keyword,
            "train/keyphrase_loss": keyphrase,
            "train/lr": lr,
            **legacy_metrics.training_metrics(record, texts, alpha, lr),
        }

    def local_batches(self, texts: GlobalBatch, step: int) -> list[Batch]:
        """Return this worker's share of a global batch, on the device; see `TrainingBatches`."""
        return [batch.to(self.device) for batch in self.batches(*texts, self.epoch, step)]

    def train_step(self, batches: list[Batch], tokens: int, step: int, lr: float) -> torch.Tensor:
        """Update the weights once, and return the loss sums (2,) of keyword and keyphrase head over this worker's share.

        Args:
            batches: this worker's share of the global batch.
            tokens: of the global batch.
            step: of the epoch, from 0; seeds the dropout.
            lr: learning rate.
        """
        seed_dropout(self.config.seed, self.epoch, step, self.communicator.rank, self.device)
        tables = batches[0].tables
        rows = self.tagger.gather_rows(tables)
        self.logits = []
        with self.sync.no_sync():
            losses = [self._backward(batch, rows, tokens) for batch in batches[:-1]]
        losses.append(self._backward(batches[-1], rows, tokens))
        self.sync.all_reduce(rows)
        self.tagger.scatter_gradients(tables, rows)
        if self.config.max_grad_norm:
            clip_gradients(self.tagger, self.config.max_grad_norm)
        apply_gradients(self.optimizers, lr)
        return torch.stack(losses).sum(0)

    def _backward(self, batch: Batch, rows: list[torch.Tensor], tokens: int) -> torch.Tensor:
        """Add the gradients of a batch to those of the step, and return its loss sums (2,)."""
        lookups = [EmbeddingRows(each, table.indices) for each, table in zip(rows, batch.tables, strict=False)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits: Logits = self.sync.module(
                batch.ids, batch.lengths, batch.word_features, lookups, batch.encoder_inputs
            )
        sums = training_loss(logits, batch, self.config)
        # The workers' gradients are summed, and the objective is a mean over the tokens of the global batch.
        (sums.total(self.config.alpha) / tokens).backward()
        self.logits.append(logits)
        return torch.stack(sums).detach().double()

    def _check(self, steps: int) -> None:
        """Stop all workers if the loss of one is no longer finite, and save a checkpoint if one of them wants it."""
        self.meter.sample()
        wanted = self.checkpointer is not None and self.checkpointer.should_save()
        bad = self._losses.first_bad
        flags = torch.stack([(bad >= 0).long(), torch.tensor(int(wanted), device=self.device)])
        diverged, save = self.communicator.all_reduce(flags).tolist()
        if diverged:
            raise self._diverged(int(bad) if bad >= 0 else self.step - 1, steps)
        if save and self.step < steps and self.checkpointer:
            self._timer.lap()
            self.checkpointer.save(self)

    def _diverged(self, step: int, steps: int) -> DivergedError:
        lr = learning_rate(self.config, self.epoch * steps + step, steps)
        return DivergedError(
            f"the loss is no longer a number since epoch {self.epoch + 1}, step {step + 1} of {steps} (lr {lr:g}); "
            f"train again with a lower training.lr or a smaller training.max_grad_norm (now {self.config.max_grad_norm:g})"
        )
