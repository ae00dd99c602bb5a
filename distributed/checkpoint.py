"""Checkpoints of a training: one file with its own checksum, so that a part of one is never taken for whole."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from model import storage
from model.errors import UserError

STATE, SEAL = "state.pt", "seal.json"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes a state and its seal (size and SHA-256) into a local folder."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    (folder / STATE).write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / SEAL).write_text(json.dumps(seal), "utf-8")


def load_checkpoint(location: str) -> dict[str, Any]:
    """Reads a state.

    Raises:
        UserError: a file is missing, or the state is not what was sealed.
    """
    try:
        content, seal = (
            storage.read(storage.join(location, STATE)),
            json.loads(storage.read(storage.join(location, SEAL))),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{location}: is no whole checkpoint: {error}") from error
    if len(content) != seal["bytes"] or hashlib.sha256(content).hexdigest() != seal["sha256"]:
        raise UserError(f"{location}: is no whole checkpoint: {STATE} is not what its seal says")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
