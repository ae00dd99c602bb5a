"""What a training split on storage costs: `make streaming`.

A dataset of a million texts is prepared, and its files are repeated until they are as many texts as asked for. A process
trains on it for some seconds, once with the training split in memory and once from storage, in turns. The tagger is small, so
that reading shows: it trains several times as fast as the presets. Peak memory is that of the process, which holds torch, the
tagger and the data.

With --ray-data it also trains on the batches of Ray Data's streaming_split, with a local shuffle buffer as large as a window, and
without word features. `ray_mb` is then what Ray's processes hold beside it at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from scale import ROOT, peak_mb, write

from model import storage

if TYPE_CHECKING:
    from model.data.dataset import Dataset
    from model.training.training_texts import GlobalBatch

PREPARED = 1_000_000
SMALL = {"embedding_dim": 16, "keyword_hidden": 16, "keyphrase_hidden": 16, "window": 1}
FEATURES = {"word_feature_dim": 16, "rare_word_dropout": 1.0}  # what `best` reads beside the ids


def prepared(folder: Path, texts: int) -> Path:
    """Prepare a dataset of some texts, all of them for training but a few."""
    from model.prepare.builder import PrepareConfig, prepare

    paths = write(folder / "texts", texts)
    (folder / "valid.tsv").write_text("".join(Path(paths[0]).read_text().splitlines(keepends=True)[:1000]))
    prepare(PrepareConfig(paths, str(folder / "data"), [str(folder / "valid.tsv")], [str(folder / "valid.tsv")]))
    return folder / "data"


def repeated(data: Path, folder: Path, times: int) -> Path:
    """Return a dataset whose training split has all files of another one several times."""
    from model.data.dataset import part_name

    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("train"))
    (folder / "train").mkdir()
    info = json.loads((data / "dataset.json").read_text())
    train = info["splits"]["train"]
    for number in range(times * train["parts"]):
        os.link(data / "train" / part_name(number % train["parts"]), folder / "train" / part_name(number))
    for name in ("rows", "tokens", "keyphrases", "parts"):
        train[name] *= times
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def ray_batches(dataset: "Dataset") -> "Iterator[GlobalBatch]":
    """Yield what streaming_split gives one worker, in batches of 64 texts."""
    import ray
    from ray.data import DataContext

    from model.training.training_texts import WINDOW_TEXTS, GlobalBatch

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    DataContext.get_current().enable_progress_bars = False
    columns = dataset._columns(word_features=False, subwords=None)
    files = ray.data.read_parquet(storage.join(dataset.location, "train"), columns=columns).randomize_block_order()
    [worker] = files.streaming_split(1, equal=True)
    for table in worker.iter_batches(
        batch_size=64, batch_format="pyarrow", local_shuffle_buffer_size=WINDOW_TEXTS, local_shuffle_seed=0
    ):
        split = dataset._arrays(table, word_features=False, subwords=None)
        yield GlobalBatch(split, np.arange(len(split)))


def measure(location: str, way: str, features: bool, seconds: float) -> dict[str, Any]:
    """Train in this process, on one core."""
    import torch

    from distributed.train.shared_data import SharedData
    from model.config import TaggerConfig, TrainingConfig
    from model.data.dataset import Dataset
    from model.training.loop import Training

    torch.set_num_threads(1)
    began = time.monotonic()
    config = TaggerConfig(**SMALL | (FEATURES if features else {}))
    fields = TrainingConfig(global_batch_size=64, data="memory" if way == "memory" else "stream")
    shared = SharedData.load(location, config, fields)
    training = Training(fields, shared.new_tagger(config, 0), shared.train, shared.valid)
    training.tagger.train()
    started, done = None, 0
    batches = ray_batches(Dataset(location)) if way == "ray data" else training.texts.batches(0)
    for step, texts in enumerate(batches):
        training.train_step(training.local_batches(texts, step), texts.tokens, step, 1e-3)
        if started is None:
            started = time.monotonic()
            continue
        done += texts.tokens
        if time.monotonic() - started > seconds:
            break
    return {
        "texts": len(shared.train),
        "data": way,
        "features": features,
        "start_s": round(started - began, 1),
        "tokens_per_s": round(done / (time.monotonic() - started)),
        "peak_mb": peak_mb(os.getpid()),
        "ray_mb": round(sum(each.memory_full_info().uss for each in psutil.Process().children(recursive=True)) / 1e6),
    }


def fits(data: Path, features: bool) -> bool:
    """Whether a training split, and the files that it is read from, lie in half of this machine's memory."""
    train = json.loads((data / "dataset.json").read_text())["splits"]["train"]
    files = sum(path.stat().st_size for path in (data / "train").iterdir())
    return train["tokens"] * (17 if features else 5) + 2 * files < psutil.virtual_memory().total / 2


def in_process(**asked: Any) -> dict[str, Any]:
    """The result of a measurement in a process of its own."""
    command = [sys.executable, __file__, "--in", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def campaign(data: Path, asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure each size in all ways, given a dataset of a million texts."""
    rows = []
    for size in asked.millions:
        location = str(repeated(data, folder / f"data-{size}", size))
        for features in (False, True):
            for _ in range(asked.repeats):
                ways = ["memory", "stream"] if fits(Path(location), features) else ["stream"]
                ways += ["ray data"] if asked.ray_data and not features else []
                for way in ways:
                    rows.append(in_process(location=location, way=way, features=features, seconds=asked.seconds))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each size, kind of tagger and way: the median of the rates, the largest of the peaks."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["texts"], row["features"], row["data"]), []).append(row)
    return [
        {
            **same[0],
            "tokens_per_s": statistics.median(row["tokens_per_s"] for row in same),
            "peak_mb": max(row["peak_mb"] for row in same),
        }
        for same in found.values()
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 30])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--ray-data", action="store_true", help="also measure Ray Data's streaming_split")
    parser.add_argument("--in", dest="inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(measure(**json.loads(asked.inside))))
        return
    with tempfile.TemporaryDirectory(prefix="streaming-") as folder:
        data = prepared(Path(folder), PREPARED)
        rows = summary(campaign(data, asked, Path(folder)))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
