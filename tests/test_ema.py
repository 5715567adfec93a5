"""utils/ema.py: the average is the formula's, whatever the model does meanwhile."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from utils.ema import EMA


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def step(model: nn.Module) -> None:
    """Change parameters and statistics as training does."""
    model.train()(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_formula_over_many_updates() -> None:
    model = make_model()
    ema = EMA(model)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for update in range(1, 31):
        step(model)
        ema.update()
        keep = 0.9999 * (1 - math.exp(-update / 2000))
        for name, value in model.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value.double() if value.is_floating_point() else value.double()
    assert ema.updates == 30
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
    assert ema.model.state_dict()["1.num_batches_tracked"] == 30, "whole numbers are copied"


def test_the_shadow_is_apart_from_the_model() -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    ema = EMA(model)
    step(model)
    assert all(torch.equal(value, before[name]) for name, value in ema.model.state_dict().items()), "nothing moves without update()"
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    after = copy.deepcopy(model.state_dict())
    ema.update()
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items()), "update() leaves the model alone"


def test_weights_loaded_later_are_averaged_too() -> None:
    """A resumed run fills model and shadow after the EMA is made."""
    first, second = make_model(), make_model()
    ema_first, ema_second = EMA(first), EMA(second)
    for _ in range(3):
        step(first)
        ema_first.update()
    second.load_state_dict(first.state_dict())
    ema_second.model.load_state_dict(ema_first.model.state_dict())
    ema_second.updates = ema_first.updates
    state = torch.get_rng_state()
    step(first)
    torch.set_rng_state(state)
    step(second)
    ema_first.update()
    ema_second.update()
    assert all(torch.equal(a, b) for a, b in zip(ema_first.model.state_dict().values(), ema_second.model.state_dict().values(), strict=True))
