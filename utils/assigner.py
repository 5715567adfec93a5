"""Ground truth -> the anchors and cells that must predict it (YOLOv5's rule)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Matches(NamedTuple):
    """All n = 5 A N candidate (object, anchor, cell) triples of each of L levels, and which of them are matches.

    The number of candidates follows from the number of objects alone: nothing waits for a GPU to count, and nothing is compiled anew.
    """

    valid: Tensor  # (L, n) bool: a match; what the other rows hold has no meaning, but is finite and inside the map
    place: Tensor  # (L, n) long: ((image * height + row) * width + column) * A + anchor, the position in maps flattened in this order
    anchor: Tensor  # (L, n, 2) the anchor's size in cells
    box: Tensor  # (L, n, 4) cxcywh in cells, the centre counted from the cell's corner
    cls: Tensor  # (L, n) long


def assign(targets: Tensor, anchors: Tensor, shapes: Sequence[tuple[int, int]], anchor_t: float) -> Matches:
    """Match the objects of a batch with every level.

    targets (N, 6): [image, class, cx, cy, w, h], the box in shares of the image; rows of size 0 match nothing. anchors (L, A, 2) in cells of
    their level; shapes: height, width of each level's map. An anchor matches where no side ratio reaches `anchor_t`; beside the
    cell that holds the centre, the two neighbours nearest to it match too (those on the side of the centre's half, where they exist).
    """
    size = _constant(tuple((float(width), float(height)) for height, width in shapes), targets.device)[:, None]  # (L, 1, 2)
    centre, wh = targets[:, 2:4] * size, targets[:, 4:6] * size  # (L, N, 2)
    ratio = wh[:, :, None] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(3) < anchor_t  # (L, N, A)

    # A neighbour takes part where the centre lies in the nearer half of its cell and the neighbour is inside the map.
    to_far_edge = size - centre
    near = (centre % 1 < 0.5) & (centre > 1)  # (L, N, 2): left, up
    far = (to_far_edge % 1 < 0.5) & (to_far_edge > 1)  # (L, N, 2): right, down
    taken = torch.cat([torch.ones_like(near[..., :1]), near, far], 2)  # (L, N, 5)
    step = _constant(((0.0, 0.0), (-0.5, 0.0), (0.0, -0.5), (0.5, 0.0), (0.0, 0.5)), targets.device)
    cell = torch.minimum((centre[:, :, None] + step).floor().clamp(min=0), size[:, :, None] - 1)  # (L, N, 5, 2)
    box = torch.cat([centre[:, :, None] - cell, wh[:, :, None].expand_as(cell)], 3)

    shape = (len(shapes), len(targets), anchors.shape[1], 5)

    def rows(values: Tensor) -> Tensor:
        return values.expand(*shape, *values.shape[4:]).flatten(1, 3)

    image, cls = (targets[:, column].long()[:, None, None] for column in (0, 1))
    x, y = cell.long()[:, :, None].unbind(4)  # (L, N, 1, 5)
    width, height = size.long()[..., None, None].unbind(2)  # (L, 1, 1, 1)
    place = ((image * height + y) * width + x) * shape[2] + torch.arange(shape[2], device=targets.device)[:, None]
    return Matches(rows(fits[..., None] & taken[:, :, None]), rows(place), rows(anchors[:, None, :, None]), rows(box[:, :, None]), rows(cls))


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A small table on the device, sent there once: each sending would wait for all that the device has yet to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
