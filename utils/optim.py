"""Optimizers in three parameter groups; learning rate and momentum as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from utils.config import Hyp

OPTIMIZERS = ("SGD", "Adam", "AdamW")
MIN_WARMUP_STEPS = 100


@dataclass(frozen=True)
class Schedule:
    """Learning rates, momentum and accumulation of every batch, computed from its number alone.

    Warm-up lasts `warmup_epochs` epochs, at least 100 batches but at most a third of the run: the rates rise linearly from 0 (biases fall
    from warmup_bias_lr), the momentum from warmup_momentum, the accumulation from 1. Afterwards the rate goes from lr0 to
    lr0 * lrf over the epochs, linearly or along a cosine.
    """

    hyp: Hyp
    epochs: int
    batches: int  # per epoch
    batch_size: int
    cosine: bool = False

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step after warm-up."""
        return max(round(self.hyp.nominal_batch / self.batch_size), 1)

    @property
    def weight_decay(self) -> float:
        """Weight decay scaled to the images a step really sees."""
        return self.hyp.weight_decay * self.batch_size * self.accumulate / self.hyp.nominal_batch

    @property
    def warmup(self) -> int:
        """Batches of warm-up."""
        if self.hyp.warmup_epochs == 0:
            return 0
        wanted = max(round(self.hyp.warmup_epochs * self.batches), MIN_WARMUP_STEPS)
        return min(wanted, self.epochs * self.batches // 3)

    def factor(self, epoch: int) -> float:
        """Learning rate of an epoch over lr0, without warm-up."""
        x = epoch / self.epochs
        shape = (1 - math.cos(math.pi * x)) / 2 if self.cosine else x
        return 1 + (self.hyp.lrf - 1) * shape

    def at(self, batch: int) -> tuple[float, float, float, int]:
        """(rate, rate of the biases, momentum, accumulation) for batch number `batch`, counted over the whole run."""
        hyp, target = self.hyp, self.hyp.lr0 * self.factor(batch // self.batches)
        if batch >= self.warmup:
            return target, target, hyp.momentum, self.accumulate
        x = batch / self.warmup
        bias = hyp.warmup_bias_lr + (target - hyp.warmup_bias_lr) * x
        momentum = hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * x
        return target * x, bias, momentum, max(round(1 + (self.accumulate - 1) * x), 1)


def make_optimizer(model: nn.Module, name: str, hyp: Hyp, weight_decay: float) -> torch.optim.Optimizer:
    """SGD (Nesterov), Adam or AdamW over three groups: weights with decay, normalisation weights without, biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (biases if key == "bias" else plain if isinstance(module, _NormBase) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]
    if name == "SGD":
        sgd = torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0, fused=True)
        for group in groups:
            for parameter in group["params"]:  # type: ignore[attr-defined]
                # The fused step wants all buffers or none, but a box branch has no gradient before its first object. Zero is the same start.
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r}, one of {', '.join(OPTIMIZERS)} was expected")
    return getattr(torch.optim, name)(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rate: float, bias_rate: float, momentum: float) -> None:
    """Write the schedule's figures into the three groups (weights, normalisation, biases)."""
    for group, lr in zip(optimizer.param_groups, (rate, rate, bias_rate), strict=True):
        group["lr"] = lr
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])
