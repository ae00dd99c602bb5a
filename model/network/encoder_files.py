"""The files of a pretrained encoder in the Hugging Face layout: checking and loading them.

    config.json          the architecture
    model.safetensors    the weights
    tokenizer.json       the tokenizer, with offsets

Pickled weights are refused, since loading them can run any code.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from model import storage
from model.config import TaggerConfig
from model.data.subwords import MAX_WINDOW, SubwordTokenizer
from model.data.tokenizer import read_tokenizer
from model.errors import UserError, first_line
from model.network.encoder import Encoder, EncoderConfig, build_config, build_model, import_transformers, without_pooler
from model.network.encoder_location import CARD, CONFIG, TOKENIZER, WEIGHTS, local_folder

# Their position ids begin after the padding's.
_OFFSET_POSITIONS = set(
    "camembert data2vec-text esm ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split()
)
_ROUNDING = 1e-4  # of states, relative; that of encoders which hide the padding is below 1e-6
_COPIES_IN_TRAINING = 4  # weights, gradients and the two moments of Adam


class EncoderFiles(NamedTuple):
    """A pretrained encoder in memory.

    Attributes:
        config: the content of config.json.
        tokenizer: the content of tokenizer.json.
        weights: by name of the parameter or buffer in the model of `transformers`.
        digest: SHA-256 of model.safetensors.
        license: as the encoder's own card has it; None where it does not say.
    """

    config: EncoderConfig
    tokenizer: bytes
    weights: dict[str, npt.NDArray[np.generic]]
    digest: str
    license: str | None = None

    def build(self, config: TaggerConfig) -> Encoder:
        """Return the encoder with its pretrained weights."""
        model = build_model(self.config)
        # A copy, since the arrays may be in shared memory, which is read-only.
        model.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in self.weights.items()})
        return Encoder(config, model)

    def subwords(self) -> SubwordTokenizer:
        """Return what finds the sub-words of words."""
        return subword_tokenizer(self.tokenizer, self.config)

    def require_memory_to_train(self, location: str) -> None:
        """Raise UserError where the CPU of this machine has too little memory to train the encoder."""
        needed = _COPIES_IN_TRAINING * sum(each.nbytes for each in self.weights.values())
        what = "to train it on a CPU: weights, gradients and two moments of each"
        _require_memory(location, needed, what, "use a smaller encoder, or tagger.encoder_frozen=true")


def subword_tokenizer(content: bytes, config: EncoderConfig) -> SubwordTokenizer:
    """Return what finds the sub-words of words, given tokenizer.json and config.json. Raises UserError."""
    tokenizer = read_tokenizer(content, f"the encoder's {TOKENIZER}", "copy the file again")
    kind = build_config(config)
    rows = int(getattr(kind, "vocab_size", 0))
    ids = 1 + max(tokenizer.get_vocab().values(), default=-1)  # more than the size of a vocabulary with gaps
    if ids > rows:
        raise UserError(
            f"the encoder's {TOKENIZER} has ids of {ids:,} sub-words, and its {CONFIG} has room for {rows:,}: the files belong "
            f"to different encoders; copy all of them from one"
        )
    pad = int(kind.pad_token_id or 0)
    positions = int(getattr(kind, "max_position_embeddings", MAX_WINDOW))
    if positions < 0:  # XLNet's: any number
        positions = MAX_WINDOW
    if kind.model_type in _OFFSET_POSITIONS:
        positions -= pad + 1
    found = SubwordTokenizer(tokenizer, positions, pad)
    if found.layout.size < 1:
        raise UserError(
            f"the encoder has {max(positions, 0)} positions, which its {TOKENIZER} fills with special tokens; use an encoder "
            f"that reads longer texts"
        )
    return found


def load_encoder(location: str, digest: str | None = None) -> EncoderFiles:
    """Read a pretrained encoder.

    Args:
        location: path or URI of a folder, or a name on the hub.
        digest: that the weights must have; any where None.

    Raises:
        UserError: a file is missing, damaged or refused, the files do not belong together, the weights are not those of
            the digest, the architecture has no state for each sub-word, or the memory is too small.
    """
    transformers = import_transformers()
    with local_folder(location) as folder:
        config = _read_config(folder, location)
        found = _sha256(folder / WEIGHTS)
        if digest is not None and found != digest:
            raise UserError(
                f"{location}/{WEIGHTS}: has the SHA-256 {found[:12]}..., and the run was started with {digest[:12]}...; restore "
                f"the encoder, or start a new run"
            )
        _require_memory(location, (folder / WEIGHTS).stat().st_size, "to load it", "use a smaller encoder")
        model = _load_model(transformers, folder, location)
        tokenizer = (folder / TOKENIZER).read_bytes()
        license = _license(folder / CARD)
    weights = {name: each.numpy() for name, each in model.state_dict().items()}
    files = EncoderFiles(config, tokenizer, weights, found, license)
    _check_states(model, files, location)
    return files


def encoder_of(config: TaggerConfig) -> EncoderFiles | None:
    """Return the encoder that a run was started with; None for a tagger without one. Raises UserError."""
    return load_encoder(config.encoder, config.encoder_digest) if config.encoder else None


def read_encoder_config(location: str) -> EncoderConfig:
    """Return the content of an encoder's config.json. Raises UserError."""
    with local_folder(location, (CONFIG,)) as folder:
        return _read_config(folder, location)


def _license(card: Path) -> str | None:
    """Return the licence in the header of a model card."""
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines[:40] if line.startswith("license:")), None)


def with_digest(config: TaggerConfig) -> TaggerConfig:
    """Return the configuration of a new run: the encoder's location valid in every folder, and the digest of its weights.

    Raises:
        UserError: the encoder cannot be read, or has another digest than the configuration gives.
    """
    if config.encoder is None:
        return config
    location = storage.absolute(config.encoder) if storage.exists(config.encoder) else config.encoder
    files = load_encoder(location, config.encoder_digest)
    return config.model_copy(update={"encoder": location, "encoder_digest": files.digest})


def _read_config(folder: Path, location: str) -> EncoderConfig:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{location}/{CONFIG}: is damaged ({error}); copy the file again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{location}/{CONFIG}: names no model_type; it is not the configuration of an encoder")
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{location}: a {config['model_type']} translates one text into another; use an encoder such as BERT, RoBERTa, "
            f"DeBERTa-v3, ModernBERT, XLM-R or DistilBERT"
        )
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "return_dict")}


def _load_model(transformers: Any, folder: Path, location: str) -> Any:
    """Return the encoder of a folder, with all of its weights from there. Raises UserError."""
    try:
        with safe_open(folder / WEIGHTS, "pt"):  # a damaged file: the library's own error does not name it
            pass
        # Without the answer, transformers asks on the terminal whether to run code that comes with an encoder.
        model, info = transformers.AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            return_dict=True,  # whatever config.json says, as in older exports
            ignore_mismatched_sizes=True,  # the library's error does not name them
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise UserError(f"{location}/{WEIGHTS}: is damaged or incomplete ({error}); copy the file again") from None
    except Exception as error:  # of transformers, of torch, or of a package that the configuration asks for
        reason = first_line(error)
        raise UserError(
            f"{location}: cannot be loaded: {reason}; check that its files belong to one encoder, of an architecture that "
            f"transformers itself has"
        ) from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"{location}/{WEIGHTS}: lacks {len(missing)} of the weights that {CONFIG} describes, such as {missing[0]}; copy both "
            f"files from one encoder"
        )
    others = sorted(each for each in info["mismatched_keys"] if not each[0].startswith("pooler."))
    if others:
        name, found, described = others[0]
        raise UserError(
            f"{location}/{WEIGHTS}: {name} has the shape {tuple(found)}, and {CONFIG} describes {tuple(described)}; copy both "
            f"files from one encoder"
        )
    return without_pooler(model).eval()


def _check_states(model: Any, files: EncoderFiles, location: str) -> None:
    """Check that an encoder gives each sub-word a state, whatever is beside its text, and that its tokenizer fits.

    Raises:
        UserError: it does not.
    """
    try:
        pad = files.subwords().layout.pad
    except UserError as error:
        raise UserError(f"{location}: {error}") from None
    ids = torch.tensor([[0, 0, 0, pad, pad, pad]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    try:
        with torch.no_grad():
            alone, padded = (model(input_ids=ids[:, :n], attention_mask=mask[:, :n]).last_hidden_state for n in (3, 6))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        alone = padded = torch.empty(0)
    if alone.shape != (1, 3, getattr(model.config, "hidden_size", None)):
        problem = "gives no state for each sub-word"
    elif (padded[:, :3] - alone).norm() > _ROUNDING * alone.norm():  # FNet's and ConvBERT's, as in transformers
        problem = "gives a text other states beside a longer one, since it reads padding"
    else:
        return
    raise UserError(
        f"{location}: a {model.config.model_type} {problem}; use an encoder such as BERT, RoBERTa, DeBERTa-v3, ModernBERT, "
        f"XLM-R or DistilBERT"
    )


def _require_memory(location: str, needed: int, what: str, remedy: str) -> None:
    """Raise UserError where this machine has not as many bytes of memory left as an encoder needs."""
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{location}: needs {needed / 2**30:,.1f} GiB of memory {what}; this machine has {available / 2**30:,.1f} GiB "
            f"left; {remedy}"
        )


def available_memory() -> int | None:
    """Return the bytes of memory that are left on this machine; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
