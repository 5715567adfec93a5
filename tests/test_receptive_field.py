"""Effective receptive fields against what convolution arithmetic says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.heads import DecoupledLevel
from models.yolo import build_model
from reproduction.receptive_field import gradient_map, measure, receptive_field
from tests.conftest import ROOT
from utils.anchors import RawMap


class Stack(nn.Module):
    """Convolutions with positive weights, no activation: every pixel of the theoretical field counts."""

    def __init__(self, layers: list[tuple[int, int, int]]) -> None:
        super().__init__()
        channels = [3, *[4] * len(layers)]
        self.layers = nn.Sequential(
            *(nn.Conv2d(a, 4, k, s, d * (k // 2), d) for a, (k, s, d) in zip(channels[:-1], layers, strict=True))  # kernel, stride, dilation
        )
        for layer in self.layers:
            nn.init.uniform_(layer.weight, 0.1, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[RawMap]:
        y = self.layers(x)[:, None]
        return [RawMap(y, y[:, :, 0], y[:, :, :0])]


def theoretical(layers: list[tuple[int, int, int]]) -> int:
    """Side of the receptive field of one output."""
    side, jump = 1, 1
    for kernel, stride, dilation in layers:
        side += (kernel - 1) * dilation * jump
        jump *= stride
    return side


@pytest.mark.parametrize("layers", [[(3, 1, 1)], [(3, 1, 1)] * 4, [(3, 2, 1), (3, 1, 1)], [(5, 1, 1), (3, 2, 1), (3, 2, 1), (3, 1, 2)]])
def test_support_equals_the_theoretical_field(layers: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    field = receptive_field(Stack(layers).eval(), torch.rand(3, 3, 64, 80))
    rows, columns = np.flatnonzero(field.map.any(1)), np.flatnonzero(field.map.any(0))
    side = theoretical(layers)
    dense = all(dilation == 1 for _, _, dilation in layers)
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (side, side)
    assert not dense or (field.map > 0).sum() == side**2
    assert field.map.max() == 1 and field.map.min() == 0
    jump = int(np.prod([stride for _, stride, _ in layers]))
    assert field.centre == (40 + jump / 2, 32 + jump / 2)
    assert rows[0] <= field.centre[1] <= rows[-1] + 1 and columns[0] <= field.centre[0] <= columns[-1] + 1


def test_random_signs_keep_opposite_outputs_apart() -> None:
    """Two outputs that move against each other: their plain sum would not depend on the image at all."""
    field = gradient_map(lambda x: torch.stack([x[..., 2, 3], -x[..., 2, 3]]), torch.rand(8, 1, 5, 6))
    assert field[2, 3] == 1 and field.sum() == 1


def test_the_map_is_the_mean_over_the_images() -> None:
    images = torch.rand(4, 1, 6, 6)
    field = gradient_map(lambda x: (x**2)[..., 1:3, 1:3].sum(), images)
    mean = images[:, 0, 1:3, 1:3].double().mean(0)
    assert np.allclose(field[1:3, 1:3], mean / mean.max()) and field.sum() == pytest.approx(field[1:3, 1:3].sum())


def test_measures_of_known_maps() -> None:
    field = np.zeros((21, 21))
    field[10, 10] = 1
    assert (measure(field, (10.5, 10.5)).half_radius, measure(field, (10.5, 10.5)).share) == (0, 1 / 441)
    y, x = np.mgrid[:401, :401] + 0.5
    disc = (np.hypot(x - 200.5, y - 200.5) <= 150).astype(float)
    assert measure(disc, (200.5, 200.5)).half_radius == pytest.approx(150 / 2**0.5, abs=1)
    bell = np.exp(-((x - 200.5) ** 2 + (y - 200.5) ** 2) / (2 * 30**2))
    assert measure(bell, (200.5, 200.5)).half_radius == pytest.approx(30 * (2 * np.log(2)) ** 0.5, abs=1)
    assert measure(bell, (200.5, 200.5)).share == pytest.approx(np.pi * 30**2 * 2 * np.log(100) / 401**2, rel=0.01)


def test_half_radius_grows_with_the_map() -> None:
    y, x = np.mgrid[:99, :99] + 0.5
    radii = [measure(np.exp(-(np.hypot(x - 49.5, y - 49.5) ** 2) / width), (49.5, 49.5)).half_radius for width in (10, 50, 250)]
    assert radii == sorted(radii) and len(set(radii)) == 3


@pytest.mark.parametrize("context", ["weighted", "concat", "adaptive"])
def test_cem_sees_further_than_the_plain_head(context: str) -> None:
    """3x3 against the 11x11 that dilation 5 spans, in the feature map that the head reads."""
    sides = {}
    for name in ("conv", context):
        torch.manual_seed(0)
        level = DecoupledLevel(8, 3, 1, name).eval()
        field = gradient_map(lambda x, level=level: level(x).box[..., 15, 15], torch.randn(4, 8, 31, 31))  # type: ignore[misc]
        rows = np.flatnonzero(field.any(1))
        sides[name] = rows[-1] - rows[0] + 1
    assert sides == {"conv": 3, context: 11}


def test_whole_models_in_order_of_their_dilation() -> None:
    """YOLOv5s with the plain decoupled head and with the weighted CEM: the same backbone, a wider field."""
    fields = []
    for row in ("odh", "wdh"):
        torch.manual_seed(0)
        model = build_model(ROOT / "models" / "ablation" / f"{row}.yaml").eval()
        fields.append(receptive_field(model, torch.rand(2, 3, 128, 128), 0))
    assert fields[0].map.shape == (128, 128)
    assert fields[1].half_radius > fields[0].half_radius
    assert fields[1].share > fields[0].share


def test_refuses_training_mode_and_no_image() -> None:
    with pytest.raises(ValueError, match="training mode"):
        receptive_field(Stack([(3, 1, 1)]).train(), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one image"):
        receptive_field(Stack([(3, 1, 1)]).eval(), [])
