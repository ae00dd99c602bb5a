"""Optimisers, learning-rate schedules and gradient clipping."""

import math

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam

from model.config import TrainingConfig
from model.tagger import Tagger


def make_optimizers(tagger: Tagger, config: TrainingConfig) -> list[Optimizer]:
    """An optimiser for the network, and one for the embedding that updates only the rows that a step touched.

    Adam on the embedding is the lazy kind: the moments of a row stand still while the row is not touched.
    """
    table = [tagger.embedding.weight]
    network = [parameter for parameter in tagger.parameters() if parameter is not tagger.embedding.weight]
    if config.optimizer == "sgd":
        return [SGD(network, config.lr), SGD(table, config.lr)]
    if config.optimizer == "adamw":
        return [AdamW(network, config.lr, weight_decay=config.weight_decay, fused=True), SparseAdam(table, config.lr)]
    return [Adam(network, config.lr, fused=True), SparseAdam(table, config.lr)]


def lr_at(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over all epochs.

    constant: lr. step: multiplied by `step_factor` after every `step_epochs`. cosine: from 0 to lr in a straight line
    over the share `warmup` of all steps, then down to 0 along half a cosine.
    """
    if config.schedule == "step":
        return config.lr * config.step_factor ** (step // (config.step_epochs * steps_per_epoch))
    if config.schedule == "cosine":
        steps = config.epochs * steps_per_epoch
        rising = config.warmup * steps
        if step < rising:
            return config.lr * (step + 1) / math.ceil(rising)
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
    return config.lr


def clip_gradients(module: nn.Module, limit: float) -> None:
    """Scales all gradients so that their common 2-norm is at most `limit`; sparse ones must be coalesced."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in values]))
    scale = (limit / (norm + 1e-12)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
