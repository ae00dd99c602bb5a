"""Where a bundle is. It imports no torch, so that a command can look before it waits for that."""

from model import storage
from model.errors import UserError


def require_bundle(location: str) -> None:
    """Raise UserError where there is nothing at a location, or the folder of a run or sweep."""
    if not storage.exists(location):
        raise UserError(f"{location}: no such bundle; `python -m jobs train` writes one into the run's folder")
    inner = storage.join(location, "bundle")
    if storage.exists(inner):
        raise UserError(f"{location}: is the folder of a run or sweep, not a bundle; give {inner}")
