"""Optimizers, learning-rate schedules and gradient clipping."""

import inspect
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from model.config import TrainingConfig
from model.network.tagger import Tagger


def make_optimizers(tagger: Tagger, config: TrainingConfig) -> list[Optimizer]:
    """Return an optimizer for the network, and one that updates only the rows of the embedding tables that a step touched.

    On the tables Adam is lazy: the moments of a row change only when the row is touched. Without `sparse_embedding` the
    tables are parameters like the others. The tagger is set to what the optimizers expect.
    """
    tagger.train_by_rows(config.sparse_embedding)
    tables: list[torch.Tensor] = [each.weight for each in tagger.tables]
    network = parameter_groups(tagger, config, [] if config.sparse_embedding else tables)
    if not config.sparse_embedding:
        tables = []
    if config.optimizer == "sgd":
        return [SGD(network, config.lr), *([SGD(tables, config.lr)] if tables else [])]
    if config.optimizer == "adamw":
        whole: Optimizer = AdamW(network, config.lr, weight_decay=config.weight_decay, fused=True)
    else:
        whole = Adam(network, config.lr, fused=True)
    return [whole, LazyAdam(tables, config.lr)] if tables else [whole]


def parameter_groups(tagger: Tagger, config: TrainingConfig, tables: list[torch.Tensor]) -> list[dict[str, Any]]:
    """Return the parameters of the network in groups of equal learning rate and weight decay.

    The layers of an encoder have `encoder_lr`, multiplied by `encoder_lr_decay` for each layer further down (Howard and
    Ruder, ACL 2018, section 3.2). Biases, norms and the tables do not decay.

    Args:
        tagger: whose parameters.
        config: of the optimizer.
        tables: those of the embedding tables that are trained like the others.
    """
    layers = tagger.encoder.layers() if tagger.encoder else []
    apart = {id(each) for each in (*(table.weight for table in tagger.tables), *chain.from_iterable(layers))}
    rest: list[torch.Tensor] = [each for each in tagger.parameters() if id(each) not in apart]
    groups = _by_decay(rest, 1.0, config, tables)
    for depth, layer in enumerate(reversed(layers)):
        groups += _by_decay(layer, config.encoder_lr / config.lr * config.encoder_lr_decay**depth, config)
    return groups


def _by_decay(
    parameters: Sequence[torch.Tensor], scale: float, config: TrainingConfig, tables: Sequence[torch.Tensor] = ()
) -> list[dict[str, Any]]:
    """Return groups whose learning rate is that of a step times a scale."""
    if config.optimizer != "adamw":
        return [{"params": [*parameters, *tables], "lr_scale": scale}]
    matrices, vectors = ([each for each in parameters if (each.dim() > 1) is wanted] for wanted in (True, False))
    groups = ({"params": matrices}, {"params": [*vectors, *tables], "weight_decay": 0.0})
    return [{**group, "lr_scale": scale} for group in groups if group["params"]]


class _Eager(Optimizer):
    """An optimizer whose methods are as they are inside torch's wrappers for torch.compile.

    The wrappers import the compiler, which takes 2 CPU seconds and 80 MB in each process; nothing here is compiled.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class SGD(_Eager, torch.optim.SGD):
    """Stochastic gradient descent."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Eager, torch.optim.Adam):
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Eager, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, algorithm 2)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class LazyAdam(_Eager):
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

    Constant: lr. Step: multiplied by `step_factor` after every `step_epochs`. Linear and cosine: rises linearly from 0 to lr
    over the fraction `warmup` of all steps, then falls to 0, linearly or along half a cosine (Loshchilov and Hutter, ICLR
    2017, without restarts).

    Args:
        config: schedule and budget.
        step: from 0, over all epochs.
        steps_per_epoch: global batches of an epoch.
    """
    if config.schedule == "step":
        return config.lr * config.step_factor ** (step // (config.step_epochs * steps_per_epoch))
    if config.schedule in ("linear", "cosine"):
        steps = config.epochs * steps_per_epoch
        warmup = config.warmup * steps
        if step < warmup:
            return config.lr * (step + 1) / math.ceil(warmup)
        done = (step - warmup) / max(steps - warmup, 1)
        return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
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
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
