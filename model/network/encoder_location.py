"""Where a pretrained encoder is: a folder, a URI, or a name on the Hugging Face hub; and what its folder must hold."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model import storage
from model.errors import UserError

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
FILES = (CONFIG, WEIGHTS, TOKENIZER)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@contextmanager
def local_folder(location: str, needed: tuple[str, ...] = FILES) -> Iterator[Path]:
    """Yield a local folder with the files of an encoder, and with its card if it has one.

    Args:
        location: path or URI of a folder, or a name on the hub.
        needed: some of FILES; others are not copied.

    Raises:
        UserError: a file is not to be had.
    """
    if storage.is_remote(location):
        with tempfile.TemporaryDirectory(prefix="tandem-encoder-") as scratch:
            present = storage.list_directory(location)
            _check_files(present, needed, location)
            for name in {*needed, CARD} & set(present):
                (Path(scratch) / name).write_bytes(storage.read(storage.join(location, name)))
            yield Path(scratch)
        return
    here = storage.exists(location)
    folder = Path(storage.absolute(location)) if here else _from_hub(location, needed)
    paths = list(folder.iterdir()) if folder.is_dir() else []
    if broken := [path.name for path in paths if path.name in needed and path.is_symlink() and not path.exists()]:
        raise UserError(f"{location}/{broken[0]}: is a link to a file that is not there; copy the folder with `cp -rL`")
    _check_files([path.name for path in paths if path.is_file()], needed, location, of_hub=not here)
    yield folder


def _from_hub(name: str, needed: tuple[str, ...]) -> Path:
    """Return the folder of an encoder from the hub, or from its cache where HF_HUB_OFFLINE is set or there is no network."""
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"tagger.encoder {name}: no such folder; give one with {', '.join(FILES)}, or a name on the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*needed, CARD]))
    except Exception as error:  # of the hub's, of its HTTP library or of the operating system
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"tagger.encoder {name}: no such folder, and it cannot be had from the hub ({reason}); copy {', '.join(FILES)} "
            f"of the encoder into a folder, and give its path"
        ) from None


def _check_files(present: list[str], needed: tuple[str, ...], location: str, of_hub: bool = False) -> None:
    for name in needed:
        if name not in present:
            raise UserError(_missing(location, name, present, of_hub))


def _missing(location: str, name: str, present: list[str], of_hub: bool) -> str:
    """Return why a file is missing, and what to do about it."""
    found = f"{location}: has no {name}"
    if name == WEIGHTS and f"{WEIGHTS}.index.json" in present:
        return f"{found}, but weights in several files; save it again with save_pretrained(DIR, max_shard_size='50GB')"
    if name == WEIGHTS and any(each.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt")) for each in present):
        return (
            f"{found}, but weights in a format that is not read: loading a pickle can run any code; save it again where you "
            f"trust it: AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if name == TOKENIZER and {"vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model"} & set(
        present
    ):
        return f"{found}, but a tokenizer without offsets; convert it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    if of_hub and name != CONFIG:  # what is there in its place was not asked for
        return (
            f"{found} on the hub, or in its cache; where you trust it, save it with one, and give the folder: "
            f"AutoModel.from_pretrained({location!r}).save_pretrained(DIR), and the same with AutoTokenizer"
        )
    return f"{found}; an encoder's folder needs {', '.join(FILES)}"
