"""What a training keeps on storage, so that a restart costs little and never takes a part for the whole.

    <folder>/checkpoint_epoch_0003               after epoch 3
    <folder>/checkpoint_epoch_0003_step_000400   400 steps into epoch 4
    <folder>/best.safetensors                    the weights of the best epoch, with its counts on the validation split

The two newest checkpoints stay: should the newest not be whole, the one before it is used. Ray's own checkpoints are not:
their register is one file that a kill can cut in half, after which a run cannot go on.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from model import staging, storage
from model.aliases import current_weights
from model.errors import UserError
from model.training.communicator import Communicator
from model.training.loop import Training
from model.training.metrics import Counts
from model.training.state import TrainingState

STATE, DIGEST = "state.pt", "seal.json"
KEPT = 2
KEEP, STOP = "keep", "stop"  # what a training may be asked for from outside
_SECONDS_BETWEEN_LOOKS = 0.5
_PREFIX = "checkpoint_epoch_"
_BEST, _COUNTS = "best.safetensors", "counts"


class StoppedError(Exception):
    """The training was asked to stop, and has been kept."""


class StorageCheckpointer:
    """Keeps one training, on all of its workers; rank 0 writes."""

    def __init__(
        self,
        folder: str,
        metric: str,
        communicator: Communicator,
        minutes: float = 0.0,
        note: Callable[[str], None] | None = None,
        asked: Callable[[], str | None] | None = None,
    ) -> None:
        """
        Args:
            folder: of the run or trial, a path or URI.
            metric: that ranks epochs.
            communicator: of the workers that train together.
            minutes: of an epoch after which it is kept even inside; 0 for never.
            note: told, on rank 0, what a training goes on from.
            asked: whether the training shall be kept now (KEEP), or kept and stopped (STOP); asked on rank 0, about twice a
                second.
        """
        self.folder, self.metric, self.communicator = folder, metric, communicator
        self.seconds = 60 * minutes if minutes else float("inf")
        self.note = note or (lambda text: None)
        self.asked = asked
        self.kept = self.looked = time.monotonic()
        self.stopping = False

    def restore(self, training: Training) -> None:
        """Goes on from the newest whole checkpoint, if there is one.

        Raises:
            RuntimeError: the workers do not see the same checkpoints; Ray begins them again.
        """
        for name in checkpoints(self.folder):
            try:
                state = load_checkpoint(storage.join(self.folder, name))
            except UserError as error:
                self.note(f"{error}; the one before it is used")
                continue
            training.restore(state)
            self.note(f"going on from {name} with {self.communicator.size} worker(s)")
            break
        place = torch.tensor([training.epoch, training.step], device=training.device)
        if not torch.equal(self.communicator.all_reduce(place), place * self.communicator.size):
            raise RuntimeError(f"{self.folder}: the workers do not see the same checkpoints")

    def should_save(self) -> bool:
        """Whether the last checkpoint is long enough ago, or one is asked for. Rank 0 speaks for all."""
        if self.communicator.rank:
            return False
        now, asked = time.monotonic(), None
        if self.asked and now - self.looked > _SECONDS_BETWEEN_LOOKS:
            self.looked, asked = now, self.asked()
            self.stopping = self.stopping or asked == STOP
        return self.stopping or asked == KEEP or now - self.kept > self.seconds

    def save(self, training: Training) -> None:
        """Keeps the training as it is: the best weights first, then the checkpoint that counts on them.

        Raises:
            StoppedError: the training shall stop; on all workers.
        """
        state = training.state()
        self.kept = time.monotonic()
        if self.communicator.rank == 0:
            self._write(training, state)
        stopping = torch.tensor(int(self.stopping), device=training.device)
        if int(self.communicator.all_reduce(stopping)):
            raise StoppedError

    def _write(self, training: Training, state: TrainingState) -> None:
        if training.step == 0 and training.epoch:
            scores = [metrics[self.metric] for metrics in training.history]
            if np.argmax(scores) == training.epoch - 1:
                assert training.counts is not None
                keep_best(self.folder, training.tagger.state_dict(), training.counts)
        name = f"{_PREFIX}{training.epoch:04d}" + (f"_step_{training.step:06d}" if training.step else "")
        with staging.staged_local_directory(storage.join(self.folder, name), DIGEST) as folder:
            save_checkpoint(folder, state)
        prune_checkpoints(self.folder, but=KEPT)


def checkpoints(folder: str) -> list[str]:
    """The names of a training's checkpoints, newest first."""
    return sorted((name for name in storage.list_directory(folder) if name.startswith(_PREFIX)), reverse=True)


def prune_checkpoints(folder: str, but: int = 0) -> None:
    """Removes a training's checkpoints, but for the newest."""
    for name in checkpoints(folder)[but:]:
        storage.remove_directory(storage.join(folder, name))


def keep_best(folder: str, weights: dict[str, torch.Tensor], counts: Counts) -> None:
    """Keeps the weights of the best epoch, and with them its counts on the validation split."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    storage.write(storage.join(folder, _BEST), save(tensors | {_COUNTS: torch.from_numpy(counts)}))


def load_best(folder: str) -> tuple[dict[str, torch.Tensor], Counts]:
    """What `keep_best` kept. Raises FileNotFoundError."""
    tensors = load(storage.read(storage.join(folder, _BEST)))
    counts = tensors.pop(_COUNTS).numpy()
    return current_weights(tensors), counts


def save_checkpoint(folder: Path, state: TrainingState) -> None:
    """Writes a state and its seal (size and SHA-256) into a local folder."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    (folder / STATE).write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / DIGEST).write_text(json.dumps(seal), "utf-8")


def load_checkpoint(location: str) -> TrainingState:
    """Reads a state.

    Raises:
        UserError: a file is missing, or the state is not what was sealed.
    """
    try:
        content, seal = (
            storage.read(storage.join(location, STATE)),
            json.loads(storage.read(storage.join(location, DIGEST))),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{location}: is no whole checkpoint: {error}") from error
    if len(content) != seal["bytes"] or hashlib.sha256(content).hexdigest() != seal["sha256"]:
        raise UserError(f"{location}: is no whole checkpoint: {STATE} is not what its seal says")
    state: TrainingState = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
