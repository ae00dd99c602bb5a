"""Fixtures: a small dataset directory, the command line, and the one Ray cluster that tests share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
os.environ["WANDB_MODE"] = "offline"
for name in ("RAY_ADDRESS", "TANDEM_STORAGE"):
    os.environ.pop(name, None)

# The small taggers of the tests gain nothing by more, and a worker with one CPU has one: the same bits come out.
torch.set_num_threads(1)

SMALL = {"embedding_dim": 24, "keyword_hidden": 24, "keyphrase_hidden": 24}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: those that start Ray or a process come last."""
    items.sort(key=lambda item: 2 * ("ray" in item.keywords) + ("command" in item.fixturenames))


def generated_dataset(folder: Path, count: int) -> str:
    """A dataset directory of `count` texts of the built-in corpus: 7 in 10 for training, 1 for validation, 2 for the test."""
    from jobs.demo_corpus import generate
    from model.prepare.builder import PrepareConfig, prepare

    files = {}
    for split, texts in generate(count).items():
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps({"text": t.text, "spans": t.spans}) + "\n" for t in texts))
    prepare(PrepareConfig([str(files["train"])], str(folder / "data"), [str(files["valid"])], [str(files["test"])]))
    return str(folder / "data")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset directory of 700 training, 100 validation and 200 test texts of the built-in corpus."""
    return generated_dataset(tmp_path_factory.mktemp("small"), 1000)


@pytest.fixture(scope="session")
def small_bundle(small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of a tagger trained for a few epochs on the small dataset, without Ray."""
    from model.config import make_config
    from model.data.dataset import Dataset
    from model.inference.bundle import save_bundle

    tree = {"data": small_dataset, "tagger": SMALL | {"dropout": 0.1}, "training": {"epochs": 6, "lr": 0.01}}
    config = make_config(tree)
    training = alone(config)
    metrics = {name.removeprefix("valid/"): value for name, value in training.history[-1].items()}
    location = str(tmp_path_factory.mktemp("bundle") / "bundle")
    save_bundle(location, config, Dataset(small_dataset).tokenizer_bytes(), training.tagger.state_dict(), metrics)
    return location


def alone(config: Any) -> Any:
    """The training of a configuration in this process, without Ray."""
    from model.data.dataset import Dataset
    from model.network.tagger import new_tagger
    from model.training.loop import Training

    dataset = Dataset(config.data)
    tagger = new_tagger(config.tagger, dataset.info["words"], config.training.seed)
    train, valid = (dataset.load(split, bool(config.tagger.word_feature_dim)) for split in ("train", "valid"))
    training = Training(config.training, tagger, train, valid)
    for _ in training.epochs():
        pass
    return training


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m jobs ...` as a user would."""

    def run(*arguments: str, stdin: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=ROOT,
            input=content,
            capture_output=True,
            env=os.environ | environment,
            timeout=240,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A local Ray with four CPUs by name, so that two workers fit on any machine; ends with the tests."""
    import ray

    from distributed.cluster.connection import connect

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield connect()
    ray.shutdown()


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


def counts_of(rate: float, seed: int, texts: int) -> Any:
    """Counts (texts, 8) of a tagger that finds a share of the keyphrases, one in each text, and says one thing of each."""
    counts = np.zeros((texts, 8), np.int64)
    right = np.random.default_rng(seed).random(texts) < rate
    counts[:, 0], counts[:, 1], counts[:, 2], counts[:, 3] = right, 1, 1, right
    return counts


def refused(run: Callable[[], Any], *parts: str) -> None:
    """Checks that a call is answered with a UserError whose message holds all the parts."""
    from model.errors import UserError

    with pytest.raises(UserError) as caught:
        run()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {caught.value}"
