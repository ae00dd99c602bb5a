"""What speed is measured against: what the machine can do at most, and the hand-made loop that the project began with."""

import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig, TrainingConfig
from model.data.batching import epoch_batches
from model.data.dataset import Split
from model.data.labels import O
from model.data.tokenizer import PAD
from model.network.cells import CELLS
from model.training.loop import Training

PADDED_TO = 128
_SECONDS = 0.6  # that a lane is timed for at least
_ROWS = 2048  # of the product that stands for the machine's best


def timed(work: Iterator[float], device: torch.device) -> float:
    """The rate per second at which work is done; each of its pieces counts what it gives."""
    began, done = time.perf_counter(), 0.0
    while time.perf_counter() - began < _SECONDS:
        done += next(work)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def flops_per_token(config: TaggerConfig) -> int:
    """Floating-point operations of a training step's products for each token; backward is twice forward."""
    directions = 2 if config.bidirectional else 1
    outputs1, outputs2 = directions * config.keyword_hidden, directions * config.keyphrase_hidden
    layer1 = outputs1 * CELLS[config.cell].gates * (config.window * config.embedding_dim + config.keyword_hidden)
    layer2 = outputs2 * CELLS[config.cell].gates * (outputs1 + config.keyphrase_hidden)
    return 3 * 2 * (layer1 + layer2 + 2 * outputs1 + 5 * outputs2)


def gemm_roofline(config: TaggerConfig, precision: torch.dtype, device: torch.device) -> Iterator[float]:
    """The ceiling: tokens, if training were one large matrix product of the first layer's shape, and nothing else."""
    inputs = config.window * config.embedding_dim
    a = torch.randn(_ROWS, inputs, device=device).to(precision)
    outputs = CELLS[config.cell].gates * config.keyword_hidden
    b = torch.randn(inputs, outputs, device=device).to(precision)
    while True:
        torch.mm(a, b)
        yield 2 * _ROWS * inputs * outputs / flops_per_token(config)


def training_steps(training: Training) -> Iterator[int]:
    """Steps of a training for ever, from one epoch's batches; gives the tokens of each global batch."""
    config, lengths = training.config, training.train.lengths
    batches = epoch_batches(lengths, config.global_batch_size, config.seed, 0, config.bucket_by_length)
    training.tagger.train()
    for step, rows in cycle(enumerate(batches)):
        tokens = int(lengths[rows].sum())
        training.train_step(training.local_batch(rows), tokens, step, config.lr, last=False)
        yield tokens


class ReferenceTagger(nn.Module):
    """The record's model as its summaries and the paper let one rebuild it; torch's own modules, nothing left out."""

    def __init__(self, config: TaggerConfig, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, config.embedding_dim, padding_idx=PAD)
        self.first = nn.RNN(config.window * config.embedding_dim, config.keyword_hidden, batch_first=True)
        self.second = nn.RNN(config.keyword_hidden, config.keyphrase_hidden, batch_first=True)
        self.keyword, self.keyphrase = nn.Linear(config.keyword_hidden, 2), nn.Linear(config.keyphrase_hidden, 5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids (B, T, W) -> logits (B, T, 2) and (B, T, 5)."""
        h1, _ = self.first(self.dropout(self.embedding(ids).flatten(2)))
        h2, _ = self.second(h1)
        return self.keyword(h1), self.keyphrase(h2)


def reference_steps(
    tagger: TaggerConfig, config: TrainingConfig, split: Split, words: int, device: torch.device
) -> Iterator[int]:
    """Steps as the record made them, for ever; gives the tokens of each batch, padding not counted.

    Every text is padded to 128 tokens; windows and labels are Python lists; Adam goes over the whole embedding table; the
    figures of each batch are counted in Python, text by text.
    """
    module = ReferenceTagger(tagger, words).to(device)
    adam = torch.optim.Adam(module.parameters(), config.lr)
    order = np.random.default_rng(config.seed).permutation(len(split))
    starts = range(0, len(order) - config.global_batch_size + 1, config.global_batch_size)
    for start in cycle(starts):
        texts = [_text(split, row) for row in order[start : start + config.global_batch_size]]
        ids = torch.tensor([_windows(words_of, tagger.window) for words_of, _ in texts], device=device)
        tags = torch.tensor([labels + [O] * (PADDED_TO - len(labels)) for _, labels in texts], device=device)
        keyword, keyphrase = module(ids)
        heads = ((keyword, (tags != O).long()), (keyphrase, tags))
        losses = [F.cross_entropy(logits.flatten(0, 1), gold.flatten()) for logits, gold in heads]
        adam.zero_grad()
        (config.alpha * losses[0] + (1 - config.alpha) * losses[1]).backward()
        adam.step()
        for logits, gold in heads:
            _count(logits.argmax(-1).tolist(), gold.tolist())
        yield sum(len(labels) for _, labels in texts)


def _text(split: Split, row: int) -> tuple[list[int], list[int]]:
    part = slice(split.begins[row], min(split.begins[row + 1], split.begins[row] + PADDED_TO))
    return split.ids[part].tolist(), split.tags[part].tolist()


def _windows(ids: list[int], size: int) -> list[list[int]]:
    around = [PAD] * (size // 2)
    padded = around + ids + [PAD] * (PADDED_TO - len(ids)) + around
    return [padded[at : at + size] for at in range(PADDED_TO)]


def _count(predicted: list[list[int]], gold: list[list[int]]) -> tuple[int, int, int, int]:
    """Texts wholly right, and tags found, predicted and gold."""
    exact = found = made = wanted = 0
    for row, want in zip(predicted, gold, strict=True):
        exact += row == want
        for tag, right in zip(row, want, strict=True):
            found += tag == right != O
            made += tag != O
            wanted += right != O
    return exact, found, made, wanted
