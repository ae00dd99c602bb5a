"""Helpers that tests and campaigns share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from jobs.__main__ import app
from model.config import TrainingConfig
from model.training.communicator import NoSync
from model.training.metrics import KEYPHRASE, Column

# Ray begins these with the first trainer or dataset and keeps them for all others.
OF_THE_CLUSTER = ("_AutoscalingCoordinatorActor", "_StatsActor", "ActorLocationTracker")


ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
HAS_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no instructions for bfloat16")
SMALL = {"embedding_dim": 24, "keyword_hidden": 24, "keyphrase_hidden": 24}


def start_ray(cpus: int, dashboard: bool = False, **options: Any) -> None:
    """Starts a quiet Ray of this process alone, with as many CPUs by name on any machine."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=cpus, include_dashboard=dashboard, **quiet, **options)


def generated_dataset(folder: Path, count: int) -> str:
    """A dataset directory of `count` texts of the built-in corpus: 7 in 10 for training, 1 for validation, 2 for the test."""
    from jobs.corpora.tweets import generate
    from model.prepare.builder import PrepareConfig, prepare

    files = {}
    for split, texts in generate(count).items():
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps({"text": t.text, "spans": t.spans}) + "\n" for t in texts))
    prepare(PrepareConfig([str(files["train"])], str(folder / "data"), [str(files["valid"])], [str(files["test"])]))
    return str(folder / "data")


def without_digests(file: Path) -> None:
    """Make the dataset.json of a dataset or the config.json of a bundle one of earlier versions, whose files may change."""
    about = json.loads(file.read_text("utf-8"))
    kept = {name: value for name, value in about.items() if name not in ("sha256", "tokenizer_sha256")}
    file.write_text(json.dumps(kept), "utf-8")


def alone(config: Any, on_epoch: Callable[[Any], None] = lambda training: None, communicator: Any = None) -> Any:
    """The training of a configuration in this process, without Ray; a worker with one CPU ends with the same bits."""
    from distributed.train.shared_data import SharedData
    from model.training.loop import Training

    data = SharedData.load(config.data, config.tagger, config.training)
    tagger = data.new_tagger(config.tagger, config.training.seed)
    train, valid = data.splits_for(config.tagger, torch.device("cpu"))
    training = Training(config.training, tagger, train, valid, communicator)
    for _ in training.epochs():
        on_epoch(training)
    return training


def best_weights(config: Any, communicator: Any = None) -> dict[str, Any]:
    """The weights of the best epoch of a configuration, trained in this process."""
    kept: dict[str, Any] = {}

    def keep(training: Any) -> None:
        if training.best == training.epoch - 1:
            kept.update({name: weight.clone() for name, weight in training.tagger.state_dict().items()})

    alone(config, keep, communicator)
    return kept


class Half:
    """One of two workers whose exchange is left out: shows what each would compute from its own share."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def sync_gradients(self, module: torch.nn.Module, config: TrainingConfig) -> NoSync:
        return NoSync(module)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


# Its processes are forks, so that torch is imported once.
_TOGETHER = """
import json, os, sys, warnings
import torch, torch.distributed as dist
from helpers import best_weights
from distributed.train.process_group import TorchCommunicator
from model.config import make_config
from safetensors.torch import save_file

warnings.simplefilter("ignore")
config, size, folder = make_config(json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
if config.training.gradient_sync == "ddp":
    import torch._dynamo  # DDP needs it
if config.tagger.encoder:
    import transformers
rank = next((rank for rank in range(1, size) if os.fork() == 0), 0)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
weights = best_weights(config, TorchCommunicator())
assert config.training.gradient_sync == "ddp" or "torch._dynamo" not in sys.modules, "a training needs no compiler"
if rank == 0:
    save_file(weights, f"{folder}/weights.safetensors")
dist.destroy_process_group()
"""


def best_weights_together(config: Any, workers: int, folder: Path) -> dict[str, Any]:
    """The weights of the best epoch of a configuration, trained without Ray by some processes with one thread each."""
    from safetensors.torch import load_file

    folder.mkdir()
    arguments = [json.dumps(config.model_dump()), str(workers), str(folder)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", _TOGETHER, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "weights.safetensors")


def has_weights(bundle: str, wanted: dict[str, Any]) -> bool:
    """Whether a bundle has these weights to the last bit."""
    from safetensors.torch import load_file

    found = load_file(Path(bundle) / "weights.safetensors")
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def f1_curve(config: Any) -> list[float]:
    """The F1 of each epoch of a configuration, trained in this process."""
    return [metrics["valid/keyphrase_f1"] for metrics in alone(config).history]


def without_measurements(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an epoch without those that a clock or a device gives."""
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("train/seconds", "train/tokens_per_s") and not name.startswith("device/")
    }


def trained_tokenizer(texts: Iterable[str], min_frequency: int = 1, max_words: int = 1_000_000) -> Any:
    """A tokenizer whose vocabulary the tokenizers library itself has made of some texts."""
    from tokenizers import trainers

    from model.data.tokenizer import SPECIAL, new_tokenizer

    tokenizer = new_tokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_words, min_frequency=min_frequency, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A new one: in the trained one the special words would be found in a text that happens to hold them.
    return new_tokenizer(tokenizer.get_vocab())


def any_texts() -> Any:
    """A strategy of texts: characters of all planes, and often those that tokenizers fail on; many decomposed."""
    import unicodedata

    from hypothesis import strategies as st

    nasty = [
        *" \t\n\xa0\u2028.,!#@&'-_/:;<>$09azAZßİıſéÅ½²٣",
        *"\xad\u200b\u200c\u200d\u200f\u2060\ufeff\ufe0f\u0301\u0323\u0327\u0345\u0640\u3099\U000e0061",
        *"अ\u094dकि한ᄒ\u1161\u11abσς我々ーがパｶﾞﾟกำที่เ๑ๆຂຳកុ\u17d2មြ\u1039ာ။𠮷😀👩🏽🇩🇪’‐‑–ﬁＧ",
        *[
            "http://",
            "HTTPS://x",
            "httpſ://",
            "www.",
            "@ann",
            "@小",
            "<url>",
            "&amp;",
            "U.S.",
            "don't",
            "3.5",
            ":)",
            "...",
        ],
    ]
    characters = st.one_of(st.sampled_from(nasty), st.characters(exclude_categories=["Cs"]))
    texts = st.lists(characters, max_size=20).map("".join)
    return st.one_of(texts, texts.map(lambda text: unicodedata.normalize("NFD", text)))


def counts_of(rate: float, seed: int, texts: int) -> Any:
    """Counts (texts, 8) of a tagger that finds a share of the keyphrases, one in each text, and says one thing of each."""
    counts = np.zeros((texts, 8), np.int64)
    right = np.random.default_rng(seed).random(texts) < rate
    keyphrase = counts[:, KEYPHRASE]
    keyphrase[:, Column.CORRECT] = keyphrase[:, Column.EXACT] = right
    keyphrase[:, Column.PREDICTED] = keyphrase[:, Column.GOLD] = 1
    return counts


def refused(run: Callable[[], Any], *parts: str) -> None:
    """Checks that a call is answered with a UserError whose message holds all the parts."""
    from model.errors import UserError

    with pytest.raises(UserError) as caught:
        run()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {caught.value}"


def call(*arguments: str, stdin: str | None = None):
    """A command in this process: fast, for what does not start Ray."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def last_json(stdout: str) -> dict:
    return json.loads(stdout.strip().splitlines()[-1])


@contextmanager
def disk_of(size: str, place: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; empty where it is gone or a zombie."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def sources() -> list[Path]:
    """The Python files of the product."""
    return [path for top in ("model", "distributed", "jobs") for path in sorted((ROOT / top).rglob("*.py"))]
