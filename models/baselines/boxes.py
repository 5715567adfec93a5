"""What the comparison models share: anchors on a grid, matching, box offsets, targets and predictions in the form of the interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from utils.boxes import cxcywh_to_xyxy

LARGEST_GROWTH = math.log(1000 / 16)  # of a side over its anchor's, so that no exponential overflows
KEPT = 3000  # predictions of an image that go on to NMS, best first
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as all three networks were published with


class Objects(NamedTuple):
    """The labelled objects of one image."""

    boxes: Tensor  # (m, 4) xyxy in pixels
    classes: Tensor  # (m,)


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with ImageNet's mean and deviation taken out."""
    mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (images - mean) / deviation


def objects_of(targets: Tensor, images: int, height: int, width: int) -> list[Objects]:
    """Targets (N, 6) [image, class, cx, cy, w, h in shares] of each image; boxes without an area are left out."""
    boxes = cxcywh_to_xyxy(targets[:, 2:6]).float() * targets.new_tensor([width, height, width, height]).float()
    real = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)
    return [Objects(boxes[own], targets[own, 1].long()) for own in ((targets[:, 0] == image) & real for image in range(images))]


def grid_anchors(shapes: Sequence[tuple[int, int]], sizes: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Anchors (N, 4), cxcywh in pixels of a height x width image: those of each level's `sizes` (A, 2) around every cell's centre.

    shapes: rows and columns of each level. N runs over levels, then rows, columns and sizes.
    """
    levels = []
    for (rows, columns), size in zip(shapes, sizes, strict=True):
        y = (torch.arange(rows, device=size.device) + 0.5) * (height / rows)
        x = (torch.arange(columns, device=size.device) + 0.5) * (width / columns)
        level = torch.stack(torch.broadcast_tensors(x[None, :, None], y[:, None, None], size[:, 0], size[:, 1]), -1)
        levels.append(level.reshape(-1, 4))
    return torch.cat(levels)


def match(boxes: Tensor, anchors: Tensor, threshold: float = 0.5) -> Tensor:
    """Index (N,) of the object each anchor (N, 4) stands for, -1: none; boxes (m, 4), both xyxy.

    An anchor takes the object it overlaps most, from IoU `threshold` on; every object also takes the anchor that overlaps it most.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, device=anchors.device)
    overlap = box_iou(boxes, anchors)
    best, index = overlap.max(0)
    index = torch.where(best >= threshold, index, -1)
    # Backwards and one at a time: of two objects with the same best anchor the first has it, on every device.
    for number, anchor in reversed(list(enumerate(overlap.argmax(1).tolist()))):
        index[anchor] = number
    return index


def encode(boxes: Tensor, anchors: Tensor, variance: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Offsets (..., 4) of boxes from anchors, both cxcywh: shift over size and logarithm of the growth, each divided by its variance."""
    shift = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / variance[0]
    return torch.cat([shift, (boxes[..., 2:] / anchors[..., 2:]).log() / variance[1]], -1)


def decode(offsets: Tensor, anchors: Tensor, variance: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Boxes (..., 4), cxcywh: the inverse of `encode`."""
    centre = anchors[..., :2] + offsets[..., :2] * variance[0] * anchors[..., 2:]
    return torch.cat([centre, anchors[..., 2:] * (offsets[..., 2:] * variance[1]).clamp(max=LARGEST_GROWTH).exp()], -1)


def predictions(boxes: Tensor, objectness: Tensor, classes: Tensor) -> Tensor:
    """The best rows (B, at most KEPT, 5 + nc) of boxes (B, N, 4) cxcywh, objectness (B, N) and class probabilities (B, N, nc)."""
    score = objectness * classes.max(2).values
    best = score.topk(min(KEPT, score.shape[1])).indices[..., None]
    rows = torch.cat([boxes, objectness[..., None], classes], 2)
    return rows.gather(1, best.expand(-1, -1, rows.shape[2]))
