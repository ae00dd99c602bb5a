"""The configuration: one frozen tree, split by one question: does it change the numbers?

`tagger` and `training` do; `run` does not. The dotted names (`training.lr`) are the vocabulary of `--set`, of
configuration files and of everything that is saved. Defaults live here and nowhere else; they are those of the paper
(Zhang et al., EMNLP 2016) and of the record that this project started from.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.aliases import current_field, current_fields
from model.errors import UserError

# By dotted name; what a preset does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "record": {},  # the defaults are the record's own
    "best": {
        "tagger.cell": "gru",
        "tagger.bidirectional": True,
        "tagger.embedding_dim": 128,
        "tagger.keyword_hidden": 128,
        "tagger.keyphrase_hidden": 128,
        "tagger.window": 1,
        "tagger.rare_word_dropout": 1.0,
        "tagger.word_feature_dim": 64,
        "tagger.crf": True,
        "tagger.decoding": "spans",
        "training.lr": 3e-3,
        "training.schedule": "cosine",
        "training.global_batch_size": 32,
    },
}


Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]


class _Tree(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Section(_Tree):
    @model_validator(mode="before")
    @classmethod
    def _under_present_names(cls, values: Any) -> Any:
        return current_fields(_SECTIONS[cls], values) if isinstance(values, dict) else values


class TaggerConfig(_Section):
    """The joint-layer RNN."""

    cell: Literal["rnn", "gru", "lstm"] = "rnn"
    bidirectional: bool = False
    embedding_dim: PositiveInt = Field(300, description="size of a word's vector")
    keyword_hidden: PositiveInt = Field(300, description="size of the first recurrent layer, under the keyword head")
    keyphrase_hidden: PositiveInt = Field(
        300, description="size of the second recurrent layer, under the keyphrase head"
    )
    window: PositiveInt = Field(3, description="tokens seen at once, centred; odd")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="share of inputs dropped in training")
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of words read as <unk> in training"
    )
    rare_word_dropout: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="a word that stands n times in the training texts is read as <unk> with probability this / (this + n)",
    )
    word_feature_dim: Annotated[int, Field(ge=0)] = Field(
        0, description="size of the vector of each view of how a word is written: beginning, end, shape; 0: none"
    )
    crf: bool = Field(False, description="learn which tag follows which (a CRF); false: all legal ones alike")
    decoding: Literal["sequence", "spans"] = Field(
        "sequence",
        description="keyphrases are those of the likeliest tag sequence; or all spans above a probability, settled on valid",
    )
    pretrained_vectors: bool = Field(True, description="begin from the dataset's pretrained vectors, where it has them")
    cpu_kernels: bool = Field(True, description="recurrence on a CPU by our own few products; false: torch's")
    cpu_dropout: bool = Field(True, description="dropout on a CPU from random bytes; false: torch's")

    @model_validator(mode="after")
    def _odd_window(self) -> "TaggerConfig":
        if self.window % 2 == 0:
            raise ValueError(f"window is {self.window}, but must be odd: the token and as many on each side")
        return self

    @property
    def uses_word_features(self) -> bool:
        """Whether the tagger looks at how words are written, so that splits have to be loaded with their views."""
        return self.word_feature_dim > 0


class TrainingConfig(_Section):
    """The objective, the optimiser and the order of the data."""

    alpha: Fraction = Field(0.3, description="weight of the keyword loss; the keyphrase loss has 1 - alpha")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="learning rate")
    epochs: PositiveInt = Field(8, description="budget of passes over the training split")
    global_batch_size: PositiveInt = Field(64, description="texts of a global batch, over all workers")
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="adamw only; not on the embedding")
    schedule: Literal["constant", "step", "cosine"] = "constant"
    warmup: Fraction = Field(0.1, description="cosine only: share of all steps over which lr rises from 0")
    step_epochs: PositiveInt = Field(3, description="step only: epochs after which lr is multiplied by step_factor")
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(
        5.0, description="largest norm of the gradient; 0 for no limit"
    )
    patience: Annotated[int, Field(ge=0)] = Field(3, description="epochs without a better valid F1 to stop; 0: never")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of products; weights stay float32")
    gradient_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of gradients on their way between workers"
    )
    bucket_by_length: bool = Field(True, description="texts of similar length in a batch; false: batches at random")
    sparse_embedding: bool = Field(
        True, description="exchange and update the embedding rows of a step alone; false: the whole table at each step"
    )


class RunConfig(_Section):
    """Where and with what the run happens."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="default: made from the time"
    )
    storage: str = Field(
        default_factory=lambda: os.environ.get("TANDEM_STORAGE", "runs"),
        description="path or URI under which the run's folder lies; default: TANDEM_STORAGE, else runs",
    )
    workers: PositiveInt = Field(1, description="processes that share each batch")
    min_workers: PositiveInt | None = Field(
        None, description="go on with as few where nodes are lost; default: all of them"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where the cluster has a GPU per worker"
    )
    cpus_per_worker: PositiveInt | None = Field(
        None, description="default: the cluster's CPUs shared out on one machine, else 1"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        10.0, description="a checkpoint after each epoch, and inside one after so many minutes; 0: never inside"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="restarts after lost workers without getting further; 0: none at all"
    )
    wait_minutes: Annotated[float, Field(gt=0)] = Field(
        30.0, description="longest wait for the cluster to grant the workers, at the start or after nodes are lost"
    )
    wandb_project: str = Field("tandem", description="W&B project")

    @model_validator(mode="after")
    def _fewest_and_most(self) -> "RunConfig":
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers, which is {self.workers}")
        return self


_SECTIONS: dict[type[_Section], str] = {TaggerConfig: "tagger", TrainingConfig: "training", RunConfig: "run"}


class Config(_Tree):
    """All of a run."""

    data: str = Field(description="dataset directory made by `prepare`, a path or URI")
    tagger: TaggerConfig = TaggerConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunConfig = RunConfig()


def make_config(tree: dict[str, Any], where: str = "configuration") -> Config:
    """A configuration from a tree of plain values.

    Raises:
        UserError: a key is unknown or a value is not allowed; all of them are named.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_explain(each)}" for each in error.errors())) from None


def read_config(path: str) -> dict[str, Any]:
    """The tree in a YAML or JSON file. Raises UserError."""
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML or JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no configuration; write for example `training: {{lr: 0.001}}`")
    return current_tree({name: value for name, value in tree.items() if value is not None})  # `training:` may be empty


def current_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree with the fields of its sections under their present names. Raises UserError for a field given twice."""
    return {name: current_fields(name, value) if isinstance(value, dict) else value for name, value in tree.items()}


def assign(tree: dict[str, Any], assignment: str) -> None:
    """Carries out `a.b=value` on a tree; the value is read as YAML (`1e-3`, `true`, `gru`).

    Raises:
        UserError: there is no '=', or the path leads through a value.
    """
    path, sign, value = assignment.partition("=")
    if not sign or not path:
        raise UserError(f"--set {assignment}: write it as --set training.lr=0.001")
    set_dotted(tree, path, parse_scalar(value))


def set_dotted(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Puts a value at its dotted name in a tree. Raises UserError where the name leads through a value."""
    *parents, leaf = current_field(dotted).split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{dotted}: {parent} is {json.dumps(tree)} and has no fields below it")
    tree[leaf] = value


def merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    """Puts all values of another tree in a tree."""
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            merge(tree[name], value)
        else:
            tree[name] = value


def parse_scalar(value: str) -> Any:
    """A value as it is typed: YAML, with `1e-3` for a number."""
    try:
        return float(value) if "e" in value.lower() else yaml.safe_load(value)  # YAML 1.1 takes 1e-3 for a string
    except ValueError:
        return yaml.safe_load(value)


def fields(tree: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted name with its pydantic field."""
    found: dict[str, Any] = {}
    for name, field in tree.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parent = path.rpartition(".")[0]
        near = [name for name in fields() if name.rpartition(".")[0] == parent] or list(fields())
        return f"{path} is unknown; known are {', '.join(near)}"
    if error["type"] == "missing":
        return f"{path} is missing; give the dataset directory with --data"
    return f"{path} is {json.dumps(error['input'], default=str)}: {error['msg'].removeprefix('Value error, ')}"


def preset_values(name: str) -> dict[str, Any]:
    """The values that a preset sets. Raises UserError where there is no such preset."""
    if name not in PRESETS:
        raise UserError(f"--preset {name}: is unknown; known are {', '.join(PRESETS)}")
    tree: dict[str, Any] = {}
    for dotted, value in PRESETS[name].items():
        set_dotted(tree, dotted, value)
    return tree
