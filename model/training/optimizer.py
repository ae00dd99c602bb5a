"""Optimizers, learning-rate schedules and gradient clipping."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.adam import adam

from model.config import TrainingConfig
from model.network.tagger import Tagger


def make_optimizers(tagger: Tagger, config: TrainingConfig) -> list[Optimizer]:
    """Return an optimizer for the network, and one that updates only the rows of the embedding tables that a step touched.

    On the tables Adam is lazy: the moments of a row change only when the row is touched. Without `sparse_embedding` the
    tables are parameters like the others. The tagger is set to what the optimizers expect.
    """
    tagger.train_by_rows(config.sparse_embedding)
    table: list[torch.Tensor] = [each.weight for each in tagger.tables]
    network: list[torch.Tensor] = [each for each in tagger.parameters() if all(each is not one for one in table)]
    if not config.sparse_embedding:
        network, table = network + table, []
    if config.optimizer == "sgd":
        return [SGD(each, config.lr) for each in (network, table) if each]
    if config.optimizer == "adamw":
        whole: Optimizer = AdamW(network, config.lr, weight_decay=config.weight_decay, fused=True)
    else:
        whole = Adam(network, config.lr, fused=True)
    return [whole, LazyAdam(table, config.lr)] if table else [whole]


class LazyAdam(Optimizer):
    """Adam on the rows of tables that a step touched (Kingma and Ba, ICLR 2015, algorithm 1).

    The moments of other rows do not decay. Gradients have to be sparse and coalesced. torch's SparseAdam, which computes
    the same, takes three times as long.
    """

    def __init__(self, tables: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(tables, {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the touched rows once."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group)

    def _update(self, table: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state |= {"exp_avg": torch.zeros_like(table), "exp_avg_sq": torch.zeros_like(table)}
            state["step"] = torch.zeros((), device=table.device)
        state["step"] = state["step"].to(table.device)  # torch leaves a loaded `step` on the CPU
        rows = gradient.indices()[0]
        whole = [table, state["exp_avg"], state["exp_avg_sq"]]
        touched = [each.index_select(0, rows) for each in whole]
        adam(
            touched[:1], [gradient.values()], touched[1:2], touched[2:], [], [state["step"]], fused=True,
            amsgrad=False, weight_decay=0.0, maximize=False, **{name: group[name] for name in ("lr", "beta1", "beta2", "eps")},
        )  # fmt: skip
        for each, values in zip(whole, touched, strict=True):
            each.index_copy_(0, rows, values)


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Constant: lr. Step: multiplied by `step_factor` after every `step_epochs`. Cosine: rises linearly from 0 to lr over the
    fraction `warmup` of all steps, then falls to 0 along half a cosine (Loshchilov and Hutter, ICLR 2017, without restarts).

    Args:
        config: schedule and budget.
        step: from 0, over all epochs.
        steps_per_epoch: global batches of an epoch.
    """
    if config.schedule == "step":
        return config.lr * config.step_factor ** (step // (config.step_epochs * steps_per_epoch))
    if config.schedule == "cosine":
        steps = config.epochs * steps_per_epoch
        warmup = config.warmup * steps
        if step < warmup:
            return config.lr * (step + 1) / math.ceil(warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    return config.lr


def clip_gradients(module: nn.Module, limit: float) -> None:
    """Scale all gradients so that their common 2-norm is at most a limit; sparse ones must be coalesced."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    values = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    scale = (limit / (torch.nn.utils.get_total_norm(values) + 1e-12)).clamp(max=1.0)
    torch._foreach_mul_(values, scale)


def apply_gradients(optimizers: list[Optimizer], lr: float) -> None:
    """Update the weights with a learning rate, and clear their gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
