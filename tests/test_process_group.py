"""What crosses workers, between real processes over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from encoders import tiny_encoder
from helpers import ROOT
from nodes import free_port

# Its processes are forks, so that torch is imported once.
_RANKS = """
import os, torch
import model.training.loop, distributed.train.process_group
torch.set_num_threads(1)
ranks = range(1, int(os.environ["WORLD_SIZE"]))
os.environ["RANK"] = str(next((rank for rank in ranks if os.fork() == 0), 0))
"""

# Each rank has gradients of its own.
SUMS = """
import json, torch, torch.distributed as dist
from torch import nn
from distributed.train.process_group import all_reduce_flat
dist.init_process_group("gloo")
found = []
for kind in (torch.float32, torch.bfloat16):
    tensors = [nn.Parameter(torch.zeros(*shape)) for shape in ((7, 5), (3, 5), (3,))]
    whole = [torch.zeros_like(tensor) for tensor in tensors]
    for rank in range(2):
        generator = torch.Generator().manual_seed(rank)
        for tensor, total in zip(tensors, whole):
            gradient = torch.randn(tensor.shape, generator=generator)
            total += gradient
            if rank == dist.get_rank():
                tensor.grad = gradient
    all_reduce_flat(tensors, kind)
    found.append(max(float((tensor.grad - total).abs().max()) for tensor, total in zip(tensors, whole)))
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""

# Weights after some steps, by both ways to sum gradients, and by each with a resume in between by the other.
WAYS = """
import gc, json, sys, torch, weakref, torch.distributed as dist
from distributed.train.process_group import DdpSync, FlatSync, TorchCommunicator
from helpers import SMALL
from model.config import make_config, merge
from model.data.batching import epoch_batches
from model.data.dataset import Dataset
from model.network.tagger import new_tagger
from model.presets import preset_values
from model.training.loop import Training
from model.training.training_texts import GlobalBatch

dist.init_process_group("gloo")
found, group = {}, TorchCommunicator()  # one serves all trials of a sweep
dataset = Dataset(sys.argv[1])
for preset in ("record", "best"):
    split = dataset.load("train", preset == "best")
    def training(way):
        tree = {"data": sys.argv[1]}
        merge(tree, preset_values(preset))
        merge(tree, {"tagger": SMALL, "training": {"gradient_sync": way, "accumulate": 2, "global_batch_size": 16}})
        config = make_config(tree)
        made = Training(config.training, new_tagger(config.tagger, dataset.info["words"], 0), split, split, group)
        assert isinstance(made.sync, {"ddp": DdpSync, "flat": FlatSync, "auto": FlatSync}[way])
        made.tagger.train()
        return made

    def take(made, first, last):
        batches = epoch_batches(made.train.lengths, 16, 0, 0)
        for step in range(first, last):
            tokens = int(made.train.lengths[batches[step]].sum())
            made.train_step(made.local_batches(GlobalBatch(made.train, batches[step]), step), tokens, step, 1e-2)
        return made

    after = {way: take(training(way), 0, 6).tagger.state_dict() for way in ("flat", "ddp", "auto")}
    for first, then in (("flat", "ddp"), ("ddp", "flat")):
        resumed = training(then)
        resumed.restore(take(training(first), 0, 3).state())
        resumed.tagger.train()
        after[f"{first}, {then}"] = take(resumed, 3, 6).tagger.state_dict()
    flat = after.pop("flat")
    done = [take(training(way), 0, 1) for way in ("flat", "ddp")]
    alive = [weakref.ref(each.tagger.embedding.weight) for each in done]
    done.clear(), gc.collect()
    assert not any(table() is not None for table in alive), "the communicator keeps the tables of finished trainings"
    found[preset] = {
        way: max(float((one - flat[name]).abs().max()) for name, one in weights.items()) if list(weights) == list(flat) else -1
        for way, weights in after.items()
    }
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""

# What each of two workers says when a checkpoint is due, by what worker 1 has otherwise: nothing, the last bit of a weight,
# and on a processor of another kind a rounded or a different weight.
APART = """
import json, sys, torch, torch.distributed as dist
from distributed.train import checkpoint
from distributed.train.checkpoint import StorageCheckpointer, checkpoints
from distributed.train.process_group import TorchCommunicator
from helpers import SMALL
from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.network.tagger import new_tagger
from model.training.loop import Training

dist.init_process_group("cpu:gloo")
data, group, said, saved = Dataset(sys.argv[1]), TorchCommunicator(), [], []
train = data.load("train")
for bit, added, alike in ((0, 0.0, True), (1, 0.0, True), (0, 1e-7, False), (0, 0.01, False)):
    tagger = new_tagger(TaggerConfig(**SMALL), data.info["words"], 0)
    training = Training(TrainingConfig(), tagger, train, train, group)
    if not alike:
        checkpoint.processor = lambda device: f"processor {group.rank}"
    if group.rank:
        tagger.embedding.weight.data.view(torch.int32)[7, 1] ^= bit
        tagger.keyphrase_head.bias.data[0] += added
    folder = f"{sys.argv[2]}/{len(said)}"
    try:
        StorageCheckpointer(folder, "valid/keyphrase_f1", group).save(training)
        said.append(None)
    except RuntimeError as error:
        said.append(str(error))
    saved.append(len(checkpoints(folder)))
every = [None, None]
dist.all_gather_object(every, said)
if group.rank == 0:
    print(json.dumps([every, saved]))
dist.destroy_process_group()
"""


# Steps of a tagger whose encoder has parameters that no state depends on.
UNUSED = """
import json, sys, torch.distributed as dist
from distributed.train.process_group import TorchCommunicator
from model.config import TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.network.encoder_files import load_encoder
from model.network.tagger import new_tagger
from model.training.loop import Training

dist.init_process_group("gloo")
encoder = load_encoder(sys.argv[2])
split = Dataset(sys.argv[1]).load("valid", subwords=encoder.subwords())
config = TaggerConfig(encoder=sys.argv[2], cell="none", embedding_dim=0)
tagger = new_tagger(config, 50, 0, encoder=encoder)
training = Training(TrainingConfig(global_batch_size=8, gradient_sync="ddp"), tagger, split, split, TorchCommunicator())
metrics = training.run_epoch()
if dist.get_rank() == 0:
    print(json.dumps([training.texts.steps, metrics["train/loss"]]))
dist.destroy_process_group()
"""


def processes(count: int, script: str, *arguments: str, first: str = "") -> Any:
    """What rank 0 of some processes prints; `first` is run once, before they part."""
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | group
    command = [sys.executable, "-c", first + _RANKS + script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_gradients_are_summed_over_two_processes():
    exact, rounded = processes(2, SUMS)
    assert exact < 1e-6 < rounded < 0.05


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2])
def test_ddp_gives_the_weights_of_one_all_reduce_and_resumes_it(small_dataset: str, count: int):
    for preset in processes(count, WAYS, small_dataset, first="import torch._dynamo  # for DDP").values():
        assert set(preset) == {"ddp", "auto", "flat, ddp", "ddp, flat"}
        assert all(0 <= off < 1e-6 for off in preset.values()), preset


def test_ddp_waits_for_no_parameter_that_the_states_do_not_depend_on(small_dataset: str, tmp_path: Path):
    encoder = tiny_encoder(tmp_path, "xlnet")
    steps, loss = processes(2, UNUSED, small_dataset, encoder, first="import torch._dynamo  # for DDP")
    assert steps > 2 and loss > 0


def test_workers_whose_weights_differ_save_no_checkpoint(small_dataset: str, tmp_path: Path):
    said, saved = processes(2, APART, small_dataset, str(tmp_path))
    for same, bit, rounded, different in said:  # by both workers, so that neither waits for the other
        assert same is None and "weights of worker 1 differ from those of worker 0 in embedding.weight" in bit
        assert (
            rounded is None and "weights of worker 1 differ from those of worker 0 in keyphrase_head.bias" in different
        )
    assert saved == [1, 0, 1, 0]
