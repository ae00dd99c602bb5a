"""What only a real GPU can show. Without one these tests are skipped; `make gpu-dry` checks devices without a card."""

import io
from pathlib import Path

import pytest
import torch
from helpers import SMALL, call
from test_process_group import processes

from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.network.device import resolve_device, seed_dropout
from model.network.tagger import new_tagger
from model.presets import preset_values
from model.training.evaluation import evaluate
from model.training.loop import Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
CPU = torch.device("cpu")

# Two processes on one card: gloo takes CUDA tensors, which NCCL would refuse.
SHARED_CARD = """
import json, torch, torch.distributed as dist
from torch import nn
from distributed.train.process_group import all_reduce_flat
dist.init_process_group("gloo")
weight = nn.Parameter(torch.zeros(1000, device="cuda:0"))
weight.grad = torch.full_like(weight, dist.get_rank() + 1.0)
all_reduce_flat([weight], torch.float32)
if dist.get_rank() == 0:
    print(json.dumps([str(weight.grad.device), float(weight.grad.min()), float(weight.grad.max())]))
dist.destroy_process_group()
"""


def training(data: str, preset: str, device: torch.device, optimizer: str = "adam") -> Training:
    """A small training without dropout, so that devices can be compared."""
    tagger, own = (dict(preset_values(preset).get(part, {})) for part in ("tagger", "training"))
    config = TaggerConfig(**{**tagger, **SMALL, "dropout": 0.0, "rare_word_dropout": 0.0, "word_dropout": 0.0})
    dataset = Dataset(data)
    train, valid = (dataset.load(split, config.uses_word_features) for split in ("train", "valid"))
    options = TrainingConfig(**{**own, "epochs": 2, "patience": 0, "optimizer": optimizer})
    return Training(options, new_tagger(config, dataset.info["words"], 0), train, valid, device=device)


@pytest.mark.parametrize("preset", ["record", "best"])
def test_a_training_on_a_gpu_follows_that_on_the_cpu(small_dataset: str, preset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    histories = []
    for device in (CPU, torch.device("cuda")):
        here = training(small_dataset, preset, device)
        histories.append(list(here.epochs()))
        assert device == CPU or all(each.device == torch.device("cuda:0") for each in here.tagger.parameters())
    for one, other in zip(*histories, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-3)
        assert one["valid/loss"] == pytest.approx(other["valid/loss"], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_training_is_resumed_on_a_gpu(small_dataset: str, optimizer: str):
    device = torch.device("cuda:0")
    first = training(small_dataset, "record", device, optimizer)
    first.run_epoch()
    state = io.BytesIO()
    torch.save(first.state(), state)
    state.seek(0)
    second = training(small_dataset, "record", device, optimizer)
    second.restore(torch.load(state, map_location="cpu", weights_only=True))
    assert second.run_epoch()["valid/loss"] == pytest.approx(first.run_epoch()["valid/loss"], rel=1e-3)


def test_evaluation_on_a_gpu_gives_the_figures_of_the_cpu(small_dataset: str):
    here = training(small_dataset, "best", CPU)
    here.run_epoch()
    on_cpu = evaluate(here.tagger, here.valid, CPU)
    device = resolve_device("cuda")
    on_gpu = evaluate(here.tagger.to(device), here.valid, device)
    assert on_gpu.keyphrase_loss == pytest.approx(on_cpu.keyphrase_loss, rel=1e-3)
    assert abs(on_gpu.counts - on_cpu.counts).sum() <= 0.01 * on_cpu.counts.sum()


def test_an_extraction_on_a_gpu_finds_what_the_cpu_finds(small_bundle: str):
    texts = "cheering for Giants in the rain\nno phrase here\n"
    on_cpu, on_gpu = (call("extract", small_bundle, "--device", device, stdin=texts) for device in ("cpu", "cuda"))
    assert on_gpu.exit_code == 0, on_gpu.stderr
    spans = [[part.rsplit(" ", 1)[0] for part in done.stdout.split("\t")] for done in (on_cpu, on_gpu)]
    assert spans[0] == spans[1]


def test_dropout_is_drawn_again_for_the_same_step():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    drawn = []
    for step in (1, 2, 1):
        seed_dropout(0, 0, step, 0, device)
        drawn.append(torch.rand(8, device=device))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_two_processes_on_one_card_sum_their_gradients_over_gloo(tmp_path: Path):
    assert processes(2, SHARED_CARD, tmp_path) == ["cuda:0", 3.0, 3.0]
