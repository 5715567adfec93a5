"""utils/optim.py: the schedule against figures worked out by hand, and which parameter belongs to which group."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from utils.config import Hyp
from utils.optim import Schedule, make_optimizer, set_rates

HYP = Hyp()  # lr0 0.01, lrf 0.1, momentum 0.937, warm-up 3 epochs from momentum 0.8 and bias rate 0.1


def test_warm_up_by_hand() -> None:
    plan = Schedule(HYP, epochs=100, batches=100, batch_size=16)
    assert plan.warmup == 300 and plan.accumulate == 4
    # First batch: weights stand still, biases move at 0.1, every batch is a step.
    assert plan.at(0) == (0.0, 0.1, 0.8, 1)
    # Batch 150, in epoch 1: target 0.01 * (1 - 0.9 / 100) = 0.00991, half-way.
    rate, bias, momentum, accumulate = plan.at(150)
    assert (rate, bias) == pytest.approx((0.00991 / 2, (0.1 + 0.00991) / 2)) and momentum == pytest.approx((0.8 + 0.937) / 2)
    assert accumulate == 2  # 1 + 3 / 2 = 2.5, to even
    # Batch 299, in epoch 2: target 0.01 * (1 - 0.9 * 2 / 100) = 0.00982.
    rate, bias, momentum, accumulate = plan.at(299)
    assert rate == pytest.approx(0.00982 * 299 / 300) and bias == pytest.approx(0.1 + (0.00982 - 0.1) * 299 / 300)
    assert momentum == pytest.approx(0.8 + 0.137 * 299 / 300) and accumulate == 4
    assert plan.at(300) == pytest.approx((0.00973, 0.00973, 0.937, 4))


@pytest.mark.parametrize(("epoch", "linear", "cosine"), [(0, 1.0, 1.0), (25, 0.775, 1 - 0.9 * (1 - math.sqrt(0.5)) / 2), (50, 0.55, 0.55), (100, 0.1, 0.1)])
def test_linear_and_cosine_by_hand(epoch: int, linear: float, cosine: float) -> None:
    assert Schedule(HYP, 100, 10, 16).factor(epoch) == pytest.approx(linear)
    assert Schedule(HYP, 100, 10, 16, cosine=True).factor(epoch) == pytest.approx(cosine)


def test_rates_are_those_of_the_epoch_and_fall() -> None:
    for cosine in (False, True):
        plan = Schedule(HYP, 20, 50, 64, cosine)
        rates = [plan.at(batch)[0] for batch in range(plan.warmup, 1000)]
        assert rates == sorted(rates, reverse=True) and rates[-1] >= HYP.lr0 * HYP.lrf
        assert len({plan.at(batch) for batch in range(500, 550)}) == 1, "one epoch, one rate"


@pytest.mark.parametrize(
    ("size", "accumulate", "decay"), [(1, 64, 5e-4), (16, 4, 5e-4), (24, 3, 5e-4 * 72 / 64), (40, 2, 5e-4 * 80 / 64), (64, 1, 5e-4), (256, 1, 2e-3)]
)
def test_accumulation_and_weight_decay_for_the_nominal_batch(size: int, accumulate: int, decay: float) -> None:
    plan = Schedule(HYP, 10, 100, size)
    assert plan.accumulate == accumulate and plan.weight_decay == pytest.approx(decay)
    whole = Schedule(Hyp(nominal_batch=size), 10, 100, size)
    assert (whole.accumulate, whole.weight_decay) == (1, HYP.weight_decay), "another nominal batch"


@pytest.mark.parametrize(("epochs", "batches", "warmup"), [(300, 379, 1137), (300, 10, 100), (3, 30, 30), (1, 2, 0), (1, 1, 0)])
def test_length_of_the_warm_up(epochs: int, batches: int, warmup: int) -> None:
    plan = Schedule(HYP, epochs, batches, 16)
    assert plan.warmup == warmup
    assert plan.at(warmup) == (HYP.lr0 * plan.factor(warmup // batches), HYP.lr0 * plan.factor(warmup // batches), HYP.momentum, 4)
    assert Schedule(Hyp(warmup_epochs=0), epochs, batches, 16).warmup == 0


def test_the_schedule_depends_on_nothing_but_the_batch_number() -> None:
    plan = Schedule(HYP, 10, 20, 16)
    forwards = [plan.at(batch) for batch in range(200)]
    assert [plan.at(batch) for batch in reversed(range(200))] == forwards[::-1]


# ---------------------------------------------------------------------------------------------- parameter groups


class Small(nn.Module):
    """A convolution with and one without bias, normalisation, and a weight that is nobody's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv1d(1, 1, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0](self.norm(self.conv(x)))


def names(model: nn.Module, group: dict[str, object]) -> set[str]:
    wanted = {id(p) for p in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_three_groups(name: str) -> None:
    model = Small()
    optimizer = make_optimizer(model, name, HYP, 0.002)
    decayed, plain, biases = optimizer.param_groups
    assert names(model, decayed) == {"conv.weight", "inner.0.weight", "inner.1.weight"}
    assert names(model, plain) == {"norm.weight"} and names(model, biases) == {"norm.bias", "inner.0.bias"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.002, 0.0, 0.0]
    set_rates(optimizer, 0.03, 0.07, 0.81)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03, 0.07]
    for group in optimizer.param_groups:
        assert group.get("momentum") == 0.81 if name == "SGD" else group["betas"] == (0.81, 0.999)


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = Small()
    model.norm.requires_grad_(False)
    optimizer = make_optimizer(model, "SGD", HYP, 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    assert "norm.weight" not in set().union(*(names(model, group) for group in optimizer.param_groups))


def test_an_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="one of SGD, Adam, AdamW"):
        make_optimizer(Small(), "Lion", HYP, 0.0)


def test_sgd_steps_as_the_formula_says() -> None:
    """v <- m v + (g + decay w); w <- w - rate (g + decay w + m v), with Nesterov's look-ahead; biases at their own rate without decay."""
    torch.manual_seed(0)
    model = Small()
    optimizer = make_optimizer(model, "SGD", HYP, 0.1)
    expected = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in expected.items()}
    for rate, bias_rate, momentum in ((0.1, 0.3, 0.8), (0.05, 0.2, 0.9), (0.02, 0.02, 0.937)):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        set_rates(optimizer, rate, bias_rate, momentum)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue  # inner.1 takes no part
            bias, decay = name.endswith("bias"), 0.0 if "norm" in name or name.endswith("bias") else 0.1
            gradient = parameter.grad.double() + decay * expected[name]
            speed[name] = momentum * speed[name] + gradient
            expected[name] = expected[name] - (bias_rate if bias else rate) * (gradient + momentum * speed[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-4, atol=1e-4)
