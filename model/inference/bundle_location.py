"""Where a bundle is. It imports no torch, so that a command can look before it waits for that."""

from pyarrow.fs import FileType

from model import storage
from model.errors import UserError


def require_bundle(location: str) -> None:
    """Raise UserError where there is nothing at a location, or a file, or the folder of a run or sweep."""
    found = storage.file_type(location)
    if found == FileType.NotFound:
        raise UserError(f"{location}: no such bundle; `python -m jobs train` writes one into the run's folder")
    if found == FileType.File:
        raise UserError(f"{location}: is a file, not a bundle; give the folder of one, such as runs/NAME/bundle")
    inner = storage.join(location, "bundle")
    if storage.exists(inner):
        raise UserError(f"{location}: is the folder of a run or sweep, not a bundle; give {inner}")
