"""Checkpoints of a training on storage: a restart loses little work, and never reads an incomplete checkpoint.

    <folder>/checkpoint_epoch_0003               after epoch 3
    <folder>/checkpoint_epoch_0003_step_000400   400 steps into epoch 4
    <folder>/best_epoch_0002.safetensors         the weights of the best epoch, with its counts on the validation split

The two newest checkpoints are kept, and the best weights of both: if the newest is incomplete, the one before it is used. The
best weights are written before the checkpoint that counts on them, and older ones deleted after it. Ray's own checkpoints are
not used: their index is a single file, and a kill while it is written makes the run impossible to resume.
"""

import hashlib
import io
import json
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from distributed.train.shared_data import SharedData
from model import staging, storage
from model.aliases import current_weights
from model.config import Config
from model.errors import RunFailedError, StorageError, UserError
from model.network.device import processor
from model.training.communicator import Communicator
from model.training.loop import Training, TrainingState
from model.training.metrics import Counts
from model.training.progress import Progress

STATE, DIGEST = "state.pt", "seal.json"  # the files of a checkpoint
CheckpointRequest = Literal["save", "stop"]
SAVE: CheckpointRequest = "save"
STOP: CheckpointRequest = "stop"  # save first
MAX_CHECKPOINTS = 2
_SECONDS_BETWEEN_REQUESTS = 0.5
_ROUNDING = 1e-4  # of sums of weights that processors of different kinds have updated with the same gradients
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_PREFIX = "checkpoint_epoch_"
_BEST_PREFIX = "best_epoch_"
_BEST = "best.safetensors"  # earlier versions' name for the weights of any epoch
_COUNTS, _SHA256 = "counts", "sha256"


class StoppedError(Exception):
    """The training was stopped on request, after a checkpoint was saved."""


class StorageCheckpointer:
    """Saves checkpoints of one training. Every worker has one; rank 0 writes."""

    def __init__(
        self,
        folder: str,
        metric: str,
        communicator: Communicator,
        minutes: float = 0.0,
        on_note: Callable[[str], None] | None = None,
        request: Callable[[], CheckpointRequest | None] | None = None,
    ) -> None:
        """Create the checkpointer of a run or trial.

        Args:
            folder: of the run or trial, a path or URI.
            metric: name of the metric that ranks epochs.
            communicator: of the workers that train together.
            minutes: between checkpoints within an epoch; 0 for none there.
            on_note: called with a line about the checkpoint that the training resumes from.
            request: returns whether to save the training now, or to save and stop it; called on rank 0, about twice a second.
        """
        self.folder, self.metric, self.communicator = folder, metric, communicator
        self.interval_s = 60 * minutes if minutes else float("inf")
        self.on_note = on_note or (lambda text: None)
        self.request = request
        self.last_save = self.last_request = time.monotonic()
        self.stopping = False

    def restore(self, training: Training) -> None:
        """Resume from the newest complete checkpoint, if there is one, and delete newer ones and what kills left of others.

        Raises:
            RuntimeError: the workers do not see the same checkpoints; Ray restarts them.
        """
        if self.communicator.rank == 0:
            staging.remove_unfinished(self.folder, _PREFIX)
        not_whole = []
        for name in checkpoints(self.folder):
            try:
                state = load_checkpoint(storage.join(self.folder, name))
            except UserError as error:
                self.on_note(f"{error}; using the one before it")
                not_whole.append(name)
                continue
            training.restore(state)
            self.on_note(f"resuming from {name} with {self.communicator.size} worker(s)")
            break
        if self.communicator.rank == 0:
            prune_best(self.folder, self._best_epochs(training))
        position = torch.tensor([training.epoch, training.step], device=training.device)
        if not torch.equal(self.communicator.all_reduce(position), position * self.communicator.size):
            raise RuntimeError(f"{self.folder}: the workers do not see the same checkpoints")
        if self.communicator.rank == 0:
            for name in not_whole:  # they would count as the newest, and later ones be deleted
                storage.remove_directory(storage.join(self.folder, name))

    def should_save(self) -> bool:
        """Return whether the last checkpoint is old enough or a new one is requested; always False but on rank 0."""
        if self.communicator.rank:
            return False
        now, request = time.monotonic(), None
        if self.request and now - self.last_request > _SECONDS_BETWEEN_REQUESTS:
            self.last_request, request = now, self.request()
            self.stopping = self.stopping or request == STOP
        return self.stopping or request == SAVE or now - self.last_save > self.interval_s

    def save(self, training: Training) -> None:
        """Save the training: first the best weights, then the checkpoint, which relies on them.

        Raises:
            StoppedError: a stop was requested; raised on all workers.
            RuntimeError: the workers' weights differ; raised on all workers, and nothing is saved.
        """
        self._compare_weights(training)
        state = training.state()
        self.last_save = time.monotonic()
        if self.communicator.rank == 0:
            self._write(training, state)
        stopping = torch.tensor(int(self.stopping), device=training.device)
        if int(self.communicator.all_reduce(stopping)):
            raise StoppedError

    def _compare_weights(self, training: Training) -> None:
        """Check that all workers have the same weights. Raises RuntimeError.

        All of them apply the same sums of gradients, so their weights are equal to the last bit; those of processors of
        different kinds may differ by rounding.
        """
        if self.communicator.size == 1:
            return
        weights = training.tagger.state_dict()
        kind = torch.tensor([zlib.crc32(processor(training.device).encode())], device=training.device)
        found = self._gather(torch.cat([kind, weight_bits(weights)]))
        same = found == found[0]
        if not same[:, 0].all():
            sums = self._gather(weight_sums(weights))
            same[:, 1:] = torch.isclose(sums, sums[0], rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
        differ = (~same[:, 1:]).nonzero().tolist()
        if differ:
            worker, tensor = differ[0]
            raise RuntimeError(
                f"{self.folder}: the weights of worker {worker} differ from those of worker 0 in {list(weights)[tensor]} after "
                f"epoch {training.epoch}, step {training.step}: a gradient was lost or changed between them"
            )

    def _gather(self, own: torch.Tensor) -> torch.Tensor:
        """Return a tensor (N,) of each worker, (workers, N) on the CPU."""
        every = own.new_zeros(self.communicator.size, len(own))
        every[self.communicator.rank] = own
        return self.communicator.all_reduce(every).cpu()

    def _write(self, training: Training, state: TrainingState) -> None:
        best_epochs = self._best_epochs(training)
        if training.step == 0 and training.epoch in best_epochs:
            assert training.counts is not None
            save_best(self.folder, training.epoch, training.tagger.state_dict(), training.counts)
        name = f"{_PREFIX}{training.epoch:04d}" + (f"_step_{training.step:06d}" if training.step else "")
        with staging.staged_local_directory(storage.join(self.folder, name), DIGEST) as folder:
            save_checkpoint(folder, state)
        prune_checkpoints(self.folder, keep=MAX_CHECKPOINTS)
        prune_best(self.folder, best_epochs)

    def _best_epochs(self, training: Training) -> set[int]:
        """Return the best epoch of all that have ended, and the best before the last, which an older checkpoint counts on."""
        scores = [metrics[self.metric] for metrics in training.history]
        return {int(np.argmax(some)) + 1 for some in (scores, scores[:-1]) if some}


def resume_training(
    config: Config,
    data: SharedData,
    communicator: Communicator,
    device: torch.device,
    checkpointer: StorageCheckpointer,
    on_progress: Callable[[Progress], None] | None,
) -> Training:
    """Return a training in the state of its newest complete checkpoint, or at its start where there is none.

    Raises:
        UserError: the split, the encoder or the device cannot be used, or the memory is too small for the encoder.
    """
    if data.encoder and config.tagger.encoder and not config.tagger.encoder_frozen and device.type == "cpu":
        data.encoder.require_memory_to_train(config.tagger.encoder)
    train, valid = data.splits_for(config.tagger, device)
    training = Training(
        config.training,
        data.new_tagger(config.tagger, config.training.seed),
        train,
        valid,
        communicator,
        device,
        on_progress,
        checkpointer,
    )
    checkpointer.restore(training)
    return training


def weight_bits(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the bits of each weight tensor, read as whole numbers, (tensors,): one changed bit changes it."""
    return torch.stack([each.view(_INTEGERS[each.element_size()]).sum() for each in weights.values()])


def weight_sums(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the absolute values of each weight tensor, (tensors,) on their device."""
    return torch.stack([torch.linalg.vector_norm(each, 1, dtype=torch.float64) for each in weights.values()])


def checkpoints(folder: str) -> list[str]:
    """Return the names of a training's checkpoints, newest first."""
    names = [name for name in storage.list_directory(folder) if name.startswith(_PREFIX)]
    return sorted(names, key=_numbers, reverse=True)


def prune_checkpoints(folder: str, keep: int = 0) -> None:
    """Remove a training's checkpoints, except the newest `keep`."""
    for name in checkpoints(folder)[keep:]:
        storage.remove_directory(storage.join(folder, name))


def prune_best(folder: str, epochs: set[int]) -> None:
    """Remove the weights of all epochs but these, also what a kill left of weights or without their checkpoint."""
    names, keep = storage.list_directory(folder), {_best_name(epoch) for epoch in epochs}
    if not keep.issubset(names):
        keep.add(_BEST)
    for name in names:
        if (name == _BEST or name.startswith(_BEST_PREFIX)) and name not in keep:
            storage.remove(storage.join(folder, name))


def _best_name(epoch: int) -> str:
    return f"{_BEST_PREFIX}{epoch:04d}.safetensors"


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def save_best(folder: str, epoch: int, weights: dict[str, torch.Tensor], counts: Counts) -> None:
    """Save the weights of an epoch that is the best so far, and with them its counts on the validation split."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    tensors[_COUNTS] = torch.from_numpy(counts)
    storage.write(storage.join(folder, _best_name(epoch)), save(tensors, {_SHA256: _sha256(tensors)}))


def load_best(folder: str) -> tuple[dict[str, torch.Tensor], Counts]:
    """Return the weights and counts of the best epoch.

    Raises:
        FileNotFoundError: there are none.
        UserError: the file is damaged.
    """
    names = [name for name in storage.list_directory(folder) if re.fullmatch(rf"{_BEST_PREFIX}\d+\.safetensors", name)]
    place = storage.join(folder, max(names, key=_numbers, default=_BEST))
    content = storage.read(place)
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{place}: is damaged ({error}); copy it again, or train again") from error
    digest = header.get("__metadata__", {}).get(_SHA256)  # files of earlier versions have none
    if digest not in (None, _sha256(tensors)):
        raise UserError(f"{place}: is damaged: it does not match its own digest; copy it again, or train again")
    counts = tensors.pop(_COUNTS).numpy()
    return current_weights(tensors), counts


def _sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Return the digest of tensors with their names, shapes and types."""
    return hashlib.sha256(save(tensors)).hexdigest()


def save_checkpoint(folder: Path, state: TrainingState) -> None:
    """Write a state and its digest (size and SHA-256) into a local folder."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    (folder / STATE).write_bytes(content)
    digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / DIGEST).write_text(json.dumps(digest), "utf-8")


def load_checkpoint(location: str) -> TrainingState:
    """Read the state in a checkpoint folder.

    Raises:
        UserError: a file is missing, or the state does not match its digest.
        RunFailedError: the state matches its digest, but cannot be read here.
        StorageError: the storage does not answer.
    """
    try:
        content = storage.read(storage.join(location, STATE))
        digest = json.loads(storage.read(storage.join(location, DIGEST)))
        whole = len(content) == digest["bytes"] and hashlib.sha256(content).hexdigest() == digest["sha256"]
    except StorageError:  # the checkpoint may be whole
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{location}: is not a whole checkpoint: {error}") from error
    if not whole:
        raise UserError(f"{location}: is not a whole checkpoint: {STATE} does not match the digest in {DIGEST}")
    try:
        state: TrainingState = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; the checkpoint before it would not help
        problem = f"{location}: {STATE} is what was written, but torch cannot read it ({type(error).__name__})"
        raise RunFailedError(f"{problem}; is there enough memory, and is it the same version of torch?") from error
    return state
