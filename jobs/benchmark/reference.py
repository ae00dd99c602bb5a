"""Baselines for speed: the machine's matrix-multiplication ceiling, and a plain PyTorch loop like that of the record."""

import time
from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig, TrainingConfig
from model.data.batching import Batch, prefetch
from model.data.dataset import Split
from model.data.labels import O
from model.data.tokenizer import PAD
from model.network.cells import CELLS
from model.training.loop import Training

PADDED_TO = 128
_SECONDS = 0.6  # least duration of a timing
_ITEMS_BETWEEN_SYNCS = 20  # of a GPU: a sync after each small item would be timed with it
_SECONDS_BETWEEN_SYNCS = 0.05
_ROWS = {"cpu": 2048, "cuda": 65_536}  # of the matrix product of the ceiling; a small one would not fill a GPU


def timed(work: Iterator[float], device: torch.device) -> float:
    """Return the rate per second of some work; each item of `work` is the amount that was just done."""
    began, done = time.perf_counter(), 0.0
    while time.perf_counter() - began < _SECONDS:
        done += _items(work) if device.type == "cuda" else next(work)
    return done / (time.perf_counter() - began)


def _items(work: Iterator[float]) -> float:
    """Do some items on a GPU, and wait for it once, after the last. Return their amount."""
    began, done = time.perf_counter(), 0.0
    for amount in islice(work, _ITEMS_BETWEEN_SYNCS):
        done += amount
        if time.perf_counter() - began > _SECONDS_BETWEEN_SYNCS:
            break
    torch.cuda.synchronize()
    return done


def flops_per_token(config: TaggerConfig) -> int:
    """Return the floating-point operations per token of a training step's matrix products; backward takes twice forward."""
    directions = 2 if config.bidirectional else 1
    keyword, keyphrase = directions * config.keyword_hidden, directions * config.keyphrase_hidden
    keyword_rnn = keyword * CELLS[config.cell].gates * (config.window * config.embedding_dim + config.keyword_hidden)
    keyphrase_rnn = keyphrase * CELLS[config.cell].gates * (keyword + config.keyphrase_hidden)
    return 3 * 2 * (keyword_rnn + keyphrase_rnn + 2 * keyword + 5 * keyphrase)


def gemm_roofline(
    config: TaggerConfig, precision: torch.dtype, device: torch.device, tf32: bool = False
) -> Iterator[float]:
    """Yield the tokens that one large matrix product of the first layer's shape is worth, as if training were nothing else.

    Args:
        config: the shape.
        precision: of the factors.
        device: that multiplies.
        tf32: multiply float32 numbers in TF32, as cuDNN does in a recurrence; only on a GPU.
    """
    inputs, rows = config.window * config.embedding_dim, _ROWS[device.type]
    a = torch.randn(rows, inputs, device=device).to(precision)
    outputs = CELLS[config.cell].gates * config.keyword_hidden
    b = torch.randn(inputs, outputs, device=device).to(precision)
    while True:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.mm(a, b)
        torch.set_float32_matmul_precision(before)
        yield 2 * rows * inputs * outputs / flops_per_token(config)


def training_steps(training: Training) -> Iterator[int]:
    """Take training steps without end over the batches of one epoch. Yield the tokens of each global batch.

    As in training, the next batch is assembled while a GPU computes.
    """
    batches = list(training.texts.batches(0))
    training.tagger.train()
    tokens = [texts.tokens for texts in batches]

    def assemble(step: int) -> tuple[int, list[Batch]]:
        return step, training.local_batches(batches[step], step)

    assembled = (prefetch if training.device.type == "cuda" else map)(assemble, cycle(range(len(batches))))
    for step, local in assembled:
        training.train_step(local, tokens[step], step, training.config.lr)
        yield tokens[step]


class ReferenceTagger(nn.Module):
    """The record's model, reconstructed from its summaries and the paper, with torch's own modules."""

    def __init__(self, config: TaggerConfig, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, config.embedding_dim, padding_idx=PAD)
        self.first = nn.RNN(config.window * config.embedding_dim, config.keyword_hidden, batch_first=True)
        self.second = nn.RNN(config.keyword_hidden, config.keyphrase_hidden, batch_first=True)
        self.keyword, self.keyphrase = nn.Linear(config.keyword_hidden, 2), nn.Linear(config.keyphrase_hidden, 5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keyword logits (B, T, 2) and keyphrase logits (B, T, 5) of ids (B, T, W)."""
        h1, _ = self.first(self.dropout(self.embedding(ids).flatten(2)))
        h2, _ = self.second(h1)
        return self.keyword(h1), self.keyphrase(h2)


def reference_steps(
    tagger: TaggerConfig, config: TrainingConfig, split: Split, words: int, device: torch.device
) -> Iterator[int]:
    """Take training steps as the record did, without end. Yield the tokens of each batch, without padding.

    Every text is padded to 128 tokens, context windows and labels are Python lists, Adam updates the whole embedding table,
    and the metrics of each batch are counted in Python, text by text.
    """
    module = ReferenceTagger(tagger, words).to(device)
    adam = torch.optim.Adam(module.parameters(), config.lr)
    order = np.random.default_rng(config.seed).permutation(len(split))
    starts = range(0, len(order) - config.global_batch_size + 1, config.global_batch_size)
    for start in cycle(starts):
        texts = [_text(split, row) for row in order[start : start + config.global_batch_size]]
        ids = torch.tensor([_windows(sentence, tagger.window) for sentence, _ in texts], device=device)
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
    margin = [PAD] * (size // 2)
    padded = margin + ids + [PAD] * (PADDED_TO - len(ids)) + margin
    return [padded[i : i + size] for i in range(PADDED_TO)]


def _count(predicted: list[list[int]], gold: list[list[int]]) -> tuple[int, int, int, int]:
    """Count texts that are entirely correct, and correct, predicted and gold tags other than O."""
    exact = correct = positives = gold_positives = 0
    for row, gold_row in zip(predicted, gold, strict=True):
        exact += row == gold_row
        for tag, gold_tag in zip(row, gold_row, strict=True):
            correct += tag == gold_tag != O
            positives += tag != O
            gold_positives += gold_tag != O
    return exact, correct, positives, gold_positives
