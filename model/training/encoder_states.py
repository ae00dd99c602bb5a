"""The states of a frozen encoder: computed once for each split on each node, and mapped into memory.

They are files below TANDEM_CACHE (default: ~/.cache/tandem), named by a digest of all that they depend on.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.config import TaggerConfig
from model.data.batching import collate, length_sorted_batches
from model.data.dataset import Split
from model.errors import UserError
from model.network.encoder import Encoder
from model.network.encoder_files import EncoderFiles

_BATCH = 256


def cache_folder() -> Path:
    """Return the folder of this node that encoder states are kept in."""
    return Path(os.environ.get("TANDEM_CACHE") or Path.home() / ".cache" / "tandem").expanduser() / "encoder-states"


def with_encoder_states(split: Split, files: EncoderFiles, config: TaggerConfig, device: torch.device) -> Split:
    """Return a split with the states of a frozen encoder, (tokens, outputs) float16, mapped into memory.

    Several processes of a node may call it at once: one computes, and the others wait for it.

    Args:
        split: with sub-words.
        files: the encoder.
        config: of the tagger.
        device: where to compute.

    Raises:
        UserError: the states cannot be written.
    """
    path = cache_folder() / f"{_digest(split, files, config)}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            states = _mapped(path)
            if states is None:
                _write(path, split, files.build(config).to(device).eval())
                states = np.load(path, mmap_mode="r")
    except OSError as error:
        raise UserError(
            f"{path.parent}: the states of the encoder cannot be written ({error}); set TANDEM_CACHE to a folder with "
            f"more space"
        ) from error
    return replace(split, encoder_states=states)


def _mapped(path: Path) -> npt.NDArray[np.float16] | None:
    """Return the states in a file; None where there is none, or where something has damaged it."""
    try:
        states: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return states


def _digest(split: Split, files: EncoderFiles, config: TaggerConfig) -> str:
    """Return a name for all that the states depend on."""
    assert split.subwords is not None
    of_encoder = json.dumps(files.config, sort_keys=True)  # the weights do not tell the heads of a layer
    found = hashlib.sha256(
        f"{files.digest} {of_encoder} {config.pooling} {config.keyword_layer} {split.subwords.layout}".encode()
    )
    for values in (split.begins, *split.subwords[:-1]):
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@torch.no_grad()
def _write(path: Path, split: Split, encoder: Encoder) -> None:
    """Write the states of a split; the file is complete as soon as it has its name."""
    unfinished = path.with_suffix(".unfinished")
    try:
        # Not through a memory map: on a full disk, a signal would end the process.
        with unfinished.open("wb") as file:
            about = {"descr": "<f2", "fortran_order": False, "shape": (len(split.ids), encoder.outputs)}
            np.lib.format.write_array_header_1_0(file, about)
            first = file.tell()
            for rows in length_sorted_batches(split.input_lengths, _BATCH):
                for row, states in zip(rows, _states(split, rows, encoder), strict=True):
                    begin, end = split.begins[row : row + 2]
                    file.seek(first + int(begin) * states[0].nbytes)
                    file.write(states[: end - begin].tobytes())
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave the name without the content
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _states(split: Split, rows: npt.NDArray[np.int64], encoder: Encoder) -> npt.NDArray[np.float16]:
    """Return the states of some texts, padded."""
    batch = collate(split, rows).to(next(encoder.parameters()).device)
    states: npt.NDArray[np.float16] = encoder(batch.encoder_inputs).half().cpu().numpy()
    return states
