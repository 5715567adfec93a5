"""The watch over losses: sums, and a step that does nothing once a value was not finite, however long nobody looks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from utils.errors import Diverged
from utils.watch import Watch


def message(number: int, what: str) -> str:
    return f"{what} of batch {number}"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(("bad", "cause"), [(math.nan, "the loss"), (math.inf, "a gradient")])
def test_a_bad_value_stops_the_weights_until_somebody_looks(optimizer: str, bad: float, cause: str) -> None:
    layer, watch = nn.Linear(3, 2), Watch(torch.device("cpu"), every=5)
    steps = getattr(torch.optim, optimizer)(layer.parameters(), lr=0.1, fused=True)
    before = []
    for number in range(5):
        value = bad if number == 2 else 1.0
        losses = torch.ones(3, dtype=torch.float64) * (value if cause == "the loss" else 1.0)
        watch.add(losses, lambda what, number=number: message(number, what))  # type: ignore[misc]
        layer(torch.full((1, 3), value)).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
        watch.guard(steps, norm)
        steps.step()
        steps.zero_grad()
        before.append(layer.weight.detach().clone())
    assert not torch.equal(before[0], before[1])
    assert torch.equal(before[1], before[2]) and torch.equal(before[2], before[4]), "a step came after the bad batch"
    with pytest.raises(Diverged, match=f"^{cause} of batch 2$"):
        watch.look()


def test_sums_go_on_from_where_they_were() -> None:
    watch = Watch(torch.device("cpu"))
    assert watch.every == 1
    watch.start([1.0, 2.0, 3.0])
    for number in range(3):
        watch.add(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), lambda what, number=number: message(number, what))  # type: ignore[misc]
    total = [1.0, 2.0, 3.0]
    for _ in range(3):
        total = [a + b for a, b in zip(total, (0.1, 0.2, 0.3), strict=True)]
    assert watch.look() == total
