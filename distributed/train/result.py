"""The result of a run: its bundle, and what `train --json` prints and result.json contains."""

import json
import statistics
from dataclasses import asdict, dataclass, fields

from distributed.train.checkpoint import load_best
from distributed.train.runs import run_folder
from model import storage
from model.config import Config
from model.data.dataset import Dataset
from model.errors import UserError
from model.inference.bundle import save_bundle
from model.network.encoder_files import encoder_of
from model.training.device_usage import usage_of
from model.training.loop import SELECTION_METRIC, Metrics

_FILE = "result.json"


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        name: of the run.
        bundle: location of the finished tagger.
        epochs: that were trained.
        best_epoch: the one whose weights the bundle has.
        seconds: in all, since the start or the last resume.
        tokens_per_s: in training; the median over epochs.
        valid: metrics of the best epoch on the validation split, such as `keyphrase_f1`.
        peak_memory_mb, utilization: of the workers' devices, see `DeviceUsage`; None in runs of earlier versions.
    """

    name: str
    bundle: str
    epochs: int
    best_epoch: int
    seconds: float
    tokens_per_s: float
    valid: Metrics
    peak_memory_mb: float | None = None
    utilization: float | None = None

    def as_json(self) -> dict[str, object]:
        """Return the fields, with the metrics also at the top level, where `train`, `evaluate` and `tune` all have them."""
        return asdict(self) | self.valid


def read_result(folder: str) -> TrainResult | None:
    """Return the result of a finished run; None while it is not finished. Raises UserError where the file is damaged."""
    place = storage.join(folder, _FILE)
    if not storage.exists(place):
        return None
    try:
        saved = json.loads(storage.read(place))
        return TrainResult(**{field.name: saved[field.name] for field in fields(TrainResult) if field.name in saved})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{place}: is damaged ({error}); delete it, and finish the run with `train --resume`"
        ) from error


def read_history(folder: str) -> list[Metrics]:
    """Return the metrics of a run's epochs; none before the first ends. Raises UserError where the file is damaged."""
    place = storage.join(folder, "metrics.jsonl")
    if not storage.exists(place):
        return []
    try:
        history = [json.loads(line) for line in storage.read(place).splitlines()]
        _ = [metrics["epoch"] + metrics[SELECTION_METRIC] + metrics["train/tokens_per_s"] for metrics in history]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{place}: is damaged ({error}); copy it again, or train again") from error
    return history


def write_result(config: Config, seconds: float) -> TrainResult:
    """Write the bundle of a run from its best epoch, then its result, which marks it as finished."""
    assert config.run.name is not None
    folder = run_folder(config)
    weights, _ = load_best(folder)
    history = read_history(folder)
    if not history:
        raise UserError(f"{folder}: has no metrics.jsonl; copy it again, or train again")
    best = max(history, key=lambda metrics: metrics[SELECTION_METRIC])
    valid = {
        name.removeprefix("valid/"): value
        for name, value in best.items()
        if name.startswith(("valid/keyphrase_", "valid/keyword_")) and not name.endswith("_loss")
    }
    bundle = storage.join(folder, "bundle")
    tokenizer, encoder = Dataset(config.data).tokenizer_bytes(), encoder_of(config.tagger)
    save_bundle(bundle, config, tokenizer, weights, {"split": "valid", **valid}, encoder)
    speed = statistics.median(metrics["train/tokens_per_s"] for metrics in history)
    usage = usage_of(history)
    result = TrainResult(
        config.run.name,
        bundle,
        len(history),
        int(best["epoch"]),
        round(seconds, 3),
        round(speed, 1),
        valid,
        **(asdict(usage) if usage else {}),
    )
    storage.write(storage.join(folder, _FILE), json.dumps(result.as_json(), indent=2).encode())
    return result
