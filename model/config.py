"""The configuration of a run: a frozen tree of sections.

The sections `tagger` and `training` change results; `run` does not. The dotted names of fields (`training.lr`) are used
by `--set`, in configuration files and in everything that is saved. All defaults are defined here; they are those of the
paper (Zhang et al., EMNLP 2016) and of the recorded runs of its earlier implementation.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from model.aliases import current_field, current_fields
from model.errors import UserError

Tree = dict[str, Any]  # nested plain values, as YAML and JSON have them

Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16"]
Locations = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
PositiveInt = Annotated[int, Field(ge=1)]
SEEDS = 2**31  # training.seed is smaller
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Tree(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Section(_Tree):
    @model_validator(mode="before")
    @classmethod
    def _under_present_names(cls, values: object) -> object:
        return current_fields(_SECTIONS[cls], values) if isinstance(values, dict) else values


class TaggerConfig(_Section):
    """The joint-layer RNN, the pretrained encoder below it, or the encoder alone with the two heads."""

    encoder: str | None = Field(
        None,
        description="pretrained encoder in the Hugging Face layout: path, URI, or name on the hub; default: none",
    )
    encoder_digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the encoder's model.safetensors; set when a run starts"
    )
    encoder_frozen: bool = Field(
        False, description="do not train the encoder: compute its states once, and train what is above it"
    )
    pooling: Literal["first", "mean"] = Field(
        "first", description="state of a word: that of its first sub-word, or the mean over all of them"
    )
    keyword_layer: PositiveInt | None = Field(
        None,
        description="layer of the encoder that the keyword head reads, from 1, or that a recurrent layer reads beside the last "
        "one; default: the last one alone",
    )
    cell: Literal["rnn", "gru", "lstm", "none"] = Field(
        "rnn", description="recurrent cell; none: linear heads on the encoder"
    )
    bidirectional: bool = False
    embedding_dim: Annotated[int, Field(ge=0)] = Field(
        300, description="size of a word vector; 0: none, beside an encoder only"
    )
    keyword_hidden: PositiveInt = Field(300, description="size of the recurrent layer below the keyword head")
    keyphrase_hidden: PositiveInt = Field(300, description="size of the recurrent layer below the keyphrase head")
    window: PositiveInt = Field(3, description="tokens in the context window, centred; odd")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="probability of dropping an input")
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability of replacing a word by <unk> in training"
    )
    rare_word_dropout: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="replace a word that occurs n times in the training texts by <unk> with probability this / (this + n)",
    )
    word_feature_dim: Annotated[int, Field(ge=0)] = Field(
        0, description="size of the vector of each orthographic feature (prefix, suffix, shape); 0: no features"
    )
    crf: bool = Field(
        False, description="learn transition scores between tags (a CRF); false: all legal transitions score alike"
    )
    decoding: Literal["sequence", "spans"] = Field(
        "sequence",
        description="sequence: keyphrases of the most probable tag sequence; spans: all spans above a threshold, chosen on valid",
    )
    max_span_tokens: PositiveInt = Field(
        12, description="words of the longest keyphrase that decoding=spans can find; signs in scripts without spaces"
    )
    pretrained_vectors: bool = Field(True, description="initialize from the dataset's word vectors, if it has any")
    cpu_kernels: bool = Field(True, description="use packed recurrence on a CPU; false: torch's recurrence")
    cpu_dropout: bool = Field(True, description="draw dropout masks on a CPU from random bytes; false: torch's dropout")

    @model_validator(mode="after")
    def _consistent(self) -> "TaggerConfig":
        if self.window % 2 == 0:
            raise ValueError(f"window is {self.window}, but must be odd: the token and equally many on each side")
        for name, needs_encoder in (
            ("embedding_dim=0", not self.embedding_dim),
            ("cell=none", self.cell == "none"),
            ("encoder_frozen=true", self.encoder_frozen),
            ("keyword_layer", self.keyword_layer is not None),
        ):
            if needs_encoder and self.encoder is None:
                raise ValueError(f"{name} needs an encoder; add --set tagger.encoder=PATH-or-NAME")
        if self.word_feature_dim and not self.embedding_dim:
            raise ValueError("word_feature_dim needs word vectors; set embedding_dim, or word_feature_dim to 0")
        return self

    @property
    def uses_word_features(self) -> bool:
        """Return whether the tagger uses orthographic features, so that splits have to be loaded with them."""
        return self.word_feature_dim > 0


class TrainingConfig(_Section):
    """The objective, the optimizer and the order of the data."""

    alpha: Fraction = Field(0.3, description="weight of the keyword loss; the keyphrase loss has 1 - alpha")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="learning rate")
    encoder_lr: Annotated[float, Field(gt=0)] = Field(
        1e-4, description="learning rate of the last layer of a pretrained encoder; follows the same schedule"
    )
    encoder_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor from each layer of the encoder to the learning rate of the one below"
    )
    epochs: PositiveInt = Field(8, description="maximum number of passes over the training split")
    global_batch_size: PositiveInt = Field(64, description="texts per batch, over all workers")
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="adamw only; not applied to word vectors, word features, biases and norms"
    )
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    warmup: Fraction = Field(0.1, description="linear and cosine: fraction of all steps over which lr rises from 0")
    step_epochs: PositiveInt = Field(3, description="step only: epochs after which lr is multiplied by step_factor")
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(5.0, description="maximum gradient norm; 0: no limit")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="epochs without a better valid F1 before stopping; 0: never"
    )
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    precision: Precision = Field("float32", description="of matrix products; weights stay float32")
    accumulate: PositiveInt = Field(
        1, description="parts that a worker computes its share of a batch in, one after the other, to save memory"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the encoder's states again in the backward pass, to save memory"
    )
    gradient_dtype: Literal["float32", "bfloat16"] = Field("float32", description="of gradients between workers")
    gradient_sync: Literal["auto", "ddp", "flat"] = Field(
        "auto",
        description="ddp: DistributedDataParallel; flat: one all-reduce after the backward pass; auto: ddp on GPUs and for "
        "large networks",
    )
    teacher: Annotated[Locations, Field(min_length=1)] | None = Field(
        None,
        description="texts that teachers labeled, to learn from beside the training split: a folder made by `label`, or a list "
        "of them",
    )
    teacher_digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the teacher's labels; set when a run starts"
    )
    teacher_targets: Literal["soft", "hard"] = Field(
        "soft",
        description="what a labeled text teaches: the teacher's probabilities of both heads, or the tags that it finds most "
        "probable, as if they were gold",
    )
    teacher_weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="weight of the loss of a labeled text; that of a gold text is 1"
    )
    teacher_temperature: Annotated[float, Field(gt=0)] = Field(
        1.0,
        description="soft targets only: divides the logits of teacher and student; above 1 the distributions are flatter",
    )
    teacher_confidence: Fraction = Field(
        0.0, description="leave out labeled texts with a word whose tag the teacher finds less probable"
    )
    held_out_fold: str | None = Field(
        None,
        pattern=r"^[1-9]\d*/[1-9]\d*$",
        description="K/N: leave out every Nth text of the training split, from the Kth on, as in cross-validation",
    )
    data: Literal["memory", "stream", "auto"] = Field(
        "auto",
        description="memory: the training split lies in the memory of each node; stream: workers read it from storage; auto: "
        "stream from 200 million tokens on (1 GB)",
    )
    bucket_by_length: bool = Field(True, description="batch texts of similar length; false: random batches")
    sparse_embedding: bool = Field(
        True, description="exchange and update only the embedding rows of a step; false: the whole table at every step"
    )

    @field_validator("held_out_fold")
    @classmethod
    def _one_of_several(cls, fold: str | None) -> str | None:
        if fold is not None:
            number, folds = map(int, fold.split("/"))
            if not (1 <= number <= folds and folds > 1):
                raise ValueError("write the first of five folds as 1/5, the last as 5/5")
        return fold

    @property
    def needs_split_in_memory(self) -> str | None:
        """Return the name of a field that the training split has to be in memory for, if there is one."""
        wanted = ("teacher", "held_out_fold")
        return next((f"training.{name}" for name in wanted if getattr(self, name) is not None), None)


class RunConfig(_Section):
    """Where a run is stored and which resources it uses."""

    name: str | None = Field(None, description="default: derived from the time")
    storage: str = Field(
        default_factory=lambda: os.environ.get("TANDEM_STORAGE") or "runs",
        description="path or URI of the folder that contains the run's folder; default: TANDEM_STORAGE, else runs",
    )
    workers: PositiveInt = Field(1, description="processes that share each batch")
    min_workers: PositiveInt | None = Field(
        None, description="continue with as few workers when nodes are lost; default: all workers"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if the cluster has a GPU per worker")
    cpus_per_worker: PositiveInt | None = Field(None, description="default: CPUs per worker on one machine, else 1")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        10.0, description="minutes between checkpoints within an epoch; 0: only after each epoch"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="restarts after lost workers without getting further; 0: none at all"
    )
    wait_minutes: Annotated[float, Field(gt=0)] = Field(
        30.0, description="maximum wait for the cluster to start the workers, at first or after nodes are lost"
    )
    wandb_project: str | None = Field(
        None, description="W&B project; default: that of WANDB_PROJECT or W&B's settings file, else tandem"
    )

    @field_validator("name")
    @classmethod
    def _usable_as_a_folder(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError(
                "a name has at most 100 of the letters a to z and A to Z, digits, dots, '_' and '-', and begins with a letter "
                "or a digit"
            )
        return name

    @model_validator(mode="after")
    def _fewest_and_most(self) -> "RunConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers, which is {self.workers}")
        return self


_SECTIONS: dict[type[_Section], str] = {TaggerConfig: "tagger", TrainingConfig: "training", RunConfig: "run"}


class Config(_Tree):
    """The complete configuration of a run."""

    data: str = Field(description="path or URI of a dataset directory made by `prepare`")
    data_digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the dataset; set when a run starts"
    )
    tagger: TaggerConfig = TaggerConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _data_where_it_is_needed(self) -> "Config":
        name = self.training.needs_split_in_memory or ("tagger.encoder_frozen" if self.tagger.encoder_frozen else None)
        if name and self.training.data == "stream":
            raise ValueError(f"{name} needs the training split in memory; leave out training.data=stream")
        return self


def make_config(tree: Tree, where: str = "configuration") -> Config:
    """Return the configuration that a tree describes, validated.

    Args:
        tree: plain values; fields that are not named keep their defaults.
        where: source of the tree, for messages.

    Raises:
        UserError: a key is unknown or a value is not allowed; the message lists all of them.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_explain(each)}" for each in error.errors())) from None


def first_problem(error: ValidationError) -> str:
    """Return the first problem that pydantic found, in a line; the first line of its own message is a count."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), message]))


def read_config(path: str) -> Tree:
    """Read the tree in a YAML or JSON file. Raises UserError if it cannot be read or parsed."""
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not YAML or JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: contains no configuration; write for example `training: {{lr: 0.001}}`")
    tree = current_tree({name: value for name, value in tree.items() if value is not None})  # `training:` may be empty
    _require_sections(tree, path)
    return tree


def _require_sections(tree: Tree, where: str) -> None:
    """Raise UserError where a section has a value instead of fields."""
    for name in _SECTIONS.values():
        if not isinstance(tree.get(name, {}), dict):
            raise UserError(f"{where}: {name} is {tree[name]!r}, but it is a section; give its fields values")


def current_tree(tree: Tree) -> Tree:
    """Return a tree with the fields of its sections under their present names. Raises UserError for a field given twice."""
    return {name: current_fields(name, value) if isinstance(value, dict) else value for name, value in tree.items()}


def assign(tree: Tree, assignment: str) -> None:
    """Apply the assignment `a.b=value` to a tree; the value is parsed as YAML (`1e-3`, `true`, `gru`).

    Raises:
        UserError: there is no '=', the value cannot be parsed, or the path leads through a value.
    """
    path, sign, value = assignment.partition("=")
    if not sign or not path:
        raise UserError(f"--set {assignment}: write it as --set training.lr=0.001")
    set_dotted(tree, path, parse_scalar(value, f"--set {path}"))
    _require_sections(tree, f"--set {assignment}")


def set_dotted(tree: Tree, dotted: str, value: object) -> None:
    """Set the value of a dotted name in a tree. Raises UserError if the name leads through a value."""
    *parents, leaf = current_field(dotted).split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{dotted}: {parent} is {json.dumps(tree)} and has no fields below it")
    tree[leaf] = value


def merge(tree: Tree, other: Tree) -> None:
    """Set all values of another tree in a tree, recursively."""
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            merge(tree[name], value)
        else:
            tree[name] = value


def parse_scalar(value: str, where: str) -> Any:
    """Parse a value as YAML, with `1e-3` as a number. Raises UserError, with `where` it stands, if it is not YAML."""
    with suppress(ValueError):
        if "e" in value.lower():  # YAML 1.1 takes 1e-3 for a string
            return float(value)
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"{where}: {value} is not a value in YAML; quote a text, as in '\"*\"'") from None


def fields(tree: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return all fields by dotted name."""
    found: dict[str, FieldInfo] = {}
    for name, field in tree.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def _explain(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parent, _, last = path.rpartition(".")
        if path in fields():  # a key with a dot
            return f"{path} is unknown as one key; write it in its section, as {parent}: {{{last}: ...}}"
        if elsewhere := [name for name in fields() if name.rpartition(".")[2] == last]:
            return f"{path} is unknown; write {' or '.join(elsewhere)}"
        section = [name for name in fields() if parent and name.rpartition(".")[0] == parent]
        near = section or list(Config.model_fields)
        return f"{path} is unknown; known are {', '.join(near)}"
    if error["type"] == "missing":
        return f"{path} is missing; give the dataset directory with --data"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict):  # fields that do not go together, which the message names
        return f"{path}: {message}" if path else message
    return f"{path} is {json.dumps(error['input'], default=str)}: {message}"
