"""Exponential moving average of the weights, which is what is validated, saved as best and used."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A float32 shadow of a model: shadow <- d shadow + (1 - d) weights, d = 0.9999 (1 - exp(-updates / 2000))."""

    def __init__(self, model: Model, decay: float = 0.9999, ramp: float = 2000.0) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp, self.updates = decay, ramp, 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        # state_dict tensors share memory with the modules, so the pairs stay good as long as nothing rebinds a parameter.
        self._float = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._whole = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the model's present weights."""
        self.updates += 1
        keep = self.decay * (1 - math.exp(-self.updates / self.ramp))
        shadow, weights = [a for a, _ in self._float], [b for _, b in self._float]
        torch._foreach_lerp_(shadow, weights, 1 - keep)
        for a, b in self._whole:
            a.copy_(b)
