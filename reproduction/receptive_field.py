"""Effective receptive fields: how much each input pixel moves what a head says about one cell (Luo et al., NeurIPS 2016).

The theoretical field says which pixels can reach a cell; this one, measured by gradients, says how much they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

FAINT = 0.01  # of the maximum: pixels below this hardly count


@dataclass(frozen=True)
class ReceptiveField:
    """An effective receptive field and its extent."""

    map: np.ndarray  # (H, W) float64, the largest value 1
    centre: tuple[float, float]  # x, y of the cell's centre in input pixels
    half_radius: float  # pixels: the circle around the centre with half of the map's sum
    share: float  # of the pixels: those above FAINT


def gradient_map(function: Callable[[Tensor], Tensor], images: Iterable[Tensor], seed: int = 0) -> np.ndarray:
    """Mean absolute gradient (H, W) of `function` with respect to its input, summed over the input's channels; the largest value is 1.

    function: (1, C, H, W) -> outputs of one cell in any shape; images: tensors (C, H, W) of one size. The outputs are added with random
    signs, other ones for each image: opposite effects of one pixel on two outputs do not cancel each other in the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(()), 0
    for image in images:
        pixels = image[None].detach().clone().requires_grad_(True)
        outputs = function(pixels)
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        (gradient,) = torch.autograd.grad((outputs * signs).sum(), pixels)
        total, count = total + gradient[0].abs().sum(0).double().cpu(), count + 1
    if not count:
        raise ValueError("at least one image is needed")
    largest = float(total.max())
    return (total / largest if largest > 0 else total).numpy()


def measure(field: np.ndarray, centre: tuple[float, float]) -> ReceptiveField:
    """The extent of a map (H, W) around a centre (x, y) in pixels."""
    y, x = np.mgrid[: field.shape[0], : field.shape[1]] + 0.5
    distance = np.hypot(x - centre[0], y - centre[1]).ravel()
    order = np.argsort(distance, kind="stable")
    energy = np.cumsum(field.ravel()[order])
    half = float(distance[order[np.searchsorted(energy, energy[-1] / 2)]])
    return ReceptiveField(field, centre, half, float((field > FAINT * field.max()).mean()))


def receptive_field(model: nn.Module, images: Iterable[Tensor], level: int = -1) -> ReceptiveField:
    """The effective receptive field of the regression branch (box logits of all anchors) of the centre cell of a level.

    model: images -> one RawMap per level, in evaluation mode (batch statistics would reach the whole image); images: (C, H, W) in [0, 1]
    of one size on the model's device, sides multiples of the largest stride; level: -1 is the coarsest.
    """
    images = list(images)
    if model.training:
        raise ValueError("the model is in training mode; evaluation mode was expected")
    cell = [0, 0]

    def centre_box(pixels: Tensor) -> Tensor:
        box: Tensor = model(pixels)[level].box  # (1, A, 4, h, w)
        cell[:] = box.shape[-1], box.shape[-2]
        return box[..., box.shape[-2] // 2, box.shape[-1] // 2]

    field = gradient_map(centre_box, images)
    height, width = field.shape
    columns, rows = cell
    return measure(field, ((columns // 2 + 0.5) * width / columns, (rows // 2 + 0.5) * height / rows))
