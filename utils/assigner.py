"""Ground truth -> the anchors and cells that must predict it (YOLOv5's rule)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matches(NamedTuple):
    """n matched (object, anchor, cell) triples of one level."""

    image: Tensor  # (n,) long: position in the batch
    anchor: Tensor  # (n,) long
    y: Tensor  # (n,) long: cell row
    x: Tensor  # (n,) long: cell column
    box: Tensor  # (n, 4) cxcywh in cells, the centre counted from the cell's corner
    cls: Tensor  # (n,) long


def assign(targets: Tensor, anchors: Tensor, height: int, width: int, anchor_t: float) -> Matches:
    """Match the objects of a batch with one level.

    targets (N, 6): [image, class, cx, cy, w, h], the box in shares of the image. anchors (A, 2) in cells of this level, whose map is
    height x width cells. An anchor matches where no side ratio reaches `anchor_t`; beside the cell that holds the centre, the
    two neighbours nearest to it match too (those on the side of the centre's half, where they exist).
    """
    size = targets.new_tensor([width, height])
    centre, wh = targets[:, 2:4] * size, targets[:, 4:6] * size
    ratio = wh[:, None] / anchors[None]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t  # (N, A)

    # A neighbour takes part where the centre lies in the nearer half of its cell and the neighbour is inside the map.
    to_far_edge = size - centre
    near = (centre % 1 < 0.5) & (centre > 1)  # (N, 2): left, up
    far = (to_far_edge % 1 < 0.5) & (to_far_edge > 1)  # (N, 2): right, down
    taken = torch.cat([torch.ones_like(near[:, :1]), near, far], 1)  # (N, 5)
    step = targets.new_tensor([[0, 0], [-0.5, 0], [0, -0.5], [0.5, 0], [0, 0.5]])

    obj, anchor, side = (fits[:, :, None] & taken[:, None, :]).nonzero(as_tuple=True)
    cell = (centre[obj] + step[side]).floor()
    x, y = cell[:, 0].long().clamp(0, width - 1), cell[:, 1].long().clamp(0, height - 1)
    offset = centre[obj] - torch.stack([x, y], 1)
    return Matches(targets[obj, 0].long(), anchor, y, x, torch.cat([offset, wh[obj]], 1), targets[obj, 1].long())
