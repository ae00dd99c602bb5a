"""The training loop: steps, epochs, evaluation. It knows the other workers only through `Workers`.

training = Training(config, tagger, train, valid)
for figures in training.epochs():
    print(figures["epoch"], figures["valid/keyphrase_f1"])
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from model.aliases import current_weights
from model.config import TrainingConfig
from model.data.batching import Batch, RowIds, collate, epoch_batches, prefetch
from model.data.dataset import Split
from model.errors import DivergedError
from model.network.device import check_precision, tune_malloc
from model.network.tagger import Tagger
from model.training import legacy_metrics
from model.training.communicator import Communicator, SingleProcess
from model.training.evaluation import evaluate
from model.training.loss import dual_loss
from model.training.metrics import Counts, summarize
from model.training.optimizer import clip_gradients, learning_rate, make_optimizers

SELECTION_METRIC = "valid/keyphrase_f1"
_SECONDS_BETWEEN_REPORTS = 0.5
_STEPS_BETWEEN_CHECKS = 20  # each asks the device and the other workers for a number, so not every step

Metrics = dict[str, float]


class Progress(NamedTuple):
    """Where a running epoch stands. Losses are means per token since the epoch's beginning."""

    epoch: int
    step: int
    steps: int
    tokens_per_s: float
    keyword_loss: float
    keyphrase_loss: float


class Checkpointer(Protocol):
    """Keeps a training where a restart finds it."""

    def should_save(self) -> bool:
        """Whether this worker wants a checkpoint inside the running epoch; asked every few steps."""
        ...

    def save(self, training: "Training") -> None:
        """Keeps it as it is; called on all workers at the same step where one of them wants it."""
        ...


class Training:
    """One tagger on its way through the epochs.

    Attributes:
        epoch: epochs that are finished.
        step: steps of the next epoch that are done.
        history: the figures of each of them.
        counts: (texts, 8) of the last epoch on the validation split; None before there is one.
    """

    def __init__(
        self,
        config: TrainingConfig,
        tagger: Tagger,
        train: Split,
        valid: Split,
        workers: Communicator | None = None,
        device: torch.device | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        keeper: Checkpointer | None = None,
    ) -> None:
        """Raises UserError where the device does not have the precision.

        Args:
            config: objective, optimiser, order of the data.
            tagger: trained in place; moved to the device.
            train, valid: what it learns from and what it is ranked on.
            workers: the other processes, each of which runs this same loop.
            device: where to compute, the CPU by default.
            on_progress: called about twice a second.
            keeper: keeps checkpoints inside epochs; those between epochs are up to the caller.
        """
        tune_malloc()
        self.config, self.train, self.valid = config, train, valid
        self.workers: Communicator = workers or SingleProcess()
        self.device = device or torch.device("cpu")
        check_precision(config.precision, self.device)
        self.on_progress, self.keeper = on_progress, keeper
        self.tagger = tagger.to(self.device)
        self.tagger.count_words(train.ids)
        for table in self.tagger.tables:
            table.sparse = config.sparse_embedding
        self.optimizers = make_optimizers(self.tagger, config)
        self.epoch = self.step = 0
        self._losses = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # sums over this worker's part of the epoch
        self._seconds = 0.0  # of the epoch, up to the last checkpoint inside it
        self.history: list[Metrics] = []
        self.counts: Counts | None = None

    def epochs(self) -> Iterator[Metrics]:
        """Trains on, and gives the figures of each epoch when it ends, until the budget or the patience is spent.

        Raises:
            DivergedError: the loss is no longer a finite number.
        """
        while not self.finished:
            yield self.run_epoch()

    @property
    def finished(self) -> bool:
        """Whether the budget of epochs is spent, or `patience` epochs brought no better F1."""
        stale = len(self.history) - 1 - self.best if self.history else 0
        return self.epoch >= self.config.epochs or bool(self.config.patience and stale >= self.config.patience)

    @property
    def best(self) -> int:
        """Index in the history of the first epoch with the highest `valid/keyphrase_f1`."""
        return int(np.argmax([metrics[SELECTION_METRIC] for metrics in self.history]))

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here; can be read with `torch.load(weights_only=True)`.

        Inside an epoch, all workers have to call it at the same step.
        """
        losses = self.workers.sum(self._losses) if self.step else self._losses
        return {
            "tagger": self.tagger.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "epoch": self.epoch,
            "step": self.step,
            "losses": losses.tolist(),
            "seconds": self._seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self.tagger.load_state_dict(current_weights(state["tagger"]))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.epoch, self.step, self.history = state["epoch"], state["step"], list(state["history"])
        self._losses = torch.tensor(state["losses"], dtype=torch.float64, device=self.device) / self.workers.size
        self._seconds = state["seconds"]

    def run_epoch(self) -> Metrics:
        """Trains one epoch, or what a checkpoint left of it, evaluates, and gives the figures."""
        trained = self._train_epoch()
        seconds = self._seconds
        self.step, self._seconds, self._losses = 0, 0.0, torch.zeros_like(self._losses)
        evaluation = evaluate(self.tagger, self.valid, self.device, self.workers, settle=True)
        self.epoch, self.counts = self.epoch + 1, evaluation.counts
        alpha = self.config.alpha
        self.history.append(
            {
                "epoch": self.epoch,
                **trained,
                "train/seconds": seconds,
                "train/tokens_per_s": len(self.train.ids) / seconds,
                "valid/loss": alpha * evaluation.keyword_loss + (1 - alpha) * evaluation.keyphrase_loss,
                "valid/keyword_loss": evaluation.keyword_loss,
                "valid/keyphrase_loss": evaluation.keyphrase_loss,
                **{f"valid/{name}": value for name, value in summarize(evaluation.counts).items()},
                **legacy_metrics.evaluation_keys(evaluation.counts),
            }
        )
        return self.history[-1]

    def _train_epoch(self) -> Metrics:
        lengths = self.train.lengths
        batches = epoch_batches(
            lengths, self.config.global_batch_size, self.config.seed, self.epoch, self.config.bucket_by_length
        )
        done = sum(int(lengths[rows].sum()) for rows in batches[: self.step])
        first_bad = torch.full((), -1, device=self.device)
        last_record, lr, tokens = torch.zeros(0), 0.0, done
        resumed = reported = began = time.perf_counter()
        self.tagger.train()
        # Where the processor does nothing but to prepare the device's work, it has time for the next batch.
        assembled = (prefetch if self.device.type == "cuda" else map)(self.local_batch, batches[self.step :])
        for step, batch in enumerate(assembled, self.step):
            rows, last = batches[step], step == len(batches) - 1
            lr = learning_rate(self.config, self.epoch * len(batches) + step, len(batches))
            sums, record_sums = self.train_step(batch, int(lengths[rows].sum()), step, lr, last)
            self._losses += sums
            first_bad = torch.where((first_bad < 0) & ~sums.isfinite().all(), step, first_bad)
            tokens += int(lengths[rows].sum())
            self.step = step + 1
            if step % _STEPS_BETWEEN_CHECKS == 0 or last:
                due = self._check(first_bad, step, len(batches))
                if due and not last and self.keeper:
                    self._seconds, began = self._seconds + time.perf_counter() - began, time.perf_counter()
                    self.keeper.save(self)
            if record_sums is not None:
                last_record = record_sums
            now = time.perf_counter()
            if self.on_progress and now - reported > _SECONDS_BETWEEN_REPORTS:
                reported, speed = now, (tokens - done) / (now - resumed)
                share = (self._losses / tokens * self.workers.size).tolist()  # this worker's texts stand for all
                self.on_progress(Progress(self.epoch + 1, step + 1, len(batches), speed, *share))
        self._seconds += time.perf_counter() - began
        keyword, keyphrase = (self.workers.sum(self._losses) / len(self.train.ids)).tolist()
        total = self.config.alpha * keyword + (1 - self.config.alpha) * keyphrase
        metrics = {
            "train/loss": total,
            "train/keyword_loss": keyword,
            "train/keyphrase_loss": keyphrase,
            "train/lr": lr,
        }
        return metrics | legacy_metrics.training_keys(
            self.workers.sum(last_record), len(batches[-1]), self.config.alpha, lr
        )

    def local_batch(self, rows: RowIds) -> Batch:
        """This worker's share of a global batch."""
        return collate(self.train, rows[self.workers.rank :: self.workers.size]).to(self.device)

    def train_step(
        self, batch: Batch, tokens: int, step: int, lr: float, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One update, of this worker's share of a global batch that has so many tokens.

        Returns the two loss sums over the share, and on the last step the record's sums.
        """
        self._seed(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = self.tagger(batch.ids, batch.lengths, batch.word_features)
        sums = dual_loss(logits, batch)
        # The workers' gradients are summed, and the objective is a mean over the tokens of the global batch.
        (sums.total(self.config.alpha) / tokens).backward()
        self.workers.all_reduce_gradients(self.tagger, tokens, getattr(torch, self.config.gradient_dtype))
        if self.config.max_grad_norm:
            clip_gradients(self.tagger, self.config.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        losses = torch.stack(sums).detach().double()
        return losses, legacy_metrics.sums(logits, batch, losses) if last else None

    def _seed(self, step: int) -> None:
        """Makes a step's dropout depend on the step: a run that goes on from a checkpoint draws what it would have drawn."""
        parts = [self.config.seed, self.epoch, step, self.workers.rank]
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every kind of device, at each call
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _check(self, first_bad: torch.Tensor, now: int, steps: int) -> bool:
        """Whether a checkpoint is due; stops all workers together when the loss of one is no longer a finite number."""
        due = self.keeper is not None and self.keeper.should_save()
        flags = torch.stack([(first_bad >= 0).long(), torch.tensor(int(due), device=self.device)])
        bad, wanted = self.workers.sum(flags).tolist()
        if not bad:
            return bool(wanted)
        step = int(first_bad) if first_bad >= 0 else now
        lr = learning_rate(self.config, self.epoch * steps + step, steps)
        raise DivergedError(
            f"the loss is no longer a number since epoch {self.epoch + 1}, step {step + 1} of {steps} (lr {lr:g}); "
            f"train again with a lower training.lr or a smaller training.max_grad_norm (now {self.config.max_grad_norm:g})"
        )
