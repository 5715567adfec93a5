"""Boxes: formats, clipping, overlap. `xyxy` = left, top, right, bottom; `cxcywh` = centre, width, height."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Boxes = TypeVar("Boxes", np.ndarray, Tensor)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Convert (..., 4) boxes; any unit."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    parts = ((low + high) / 2, high - low)
    return torch.cat(parts, -1) if isinstance(boxes, Tensor) else np.concatenate(parts, -1)


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Convert (..., 4) boxes; any unit."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    parts = (centre - half, centre + half)
    return torch.cat(parts, -1) if isinstance(boxes, Tensor) else np.concatenate(parts, -1)


def clip(boxes: Boxes, width: float, height: float) -> Boxes:
    """xyxy boxes (..., 4) cut to the image [0, width] x [0, height]."""
    if isinstance(boxes, Tensor):
        limit = boxes.new_tensor([width, height, width, height])
        return torch.minimum(boxes.clamp(min=0), limit)
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) through a 3x3 matrix; box corners too, as boxes.reshape(-1, 2)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[:, :2] / moved[:, 2:]


def area(boxes: Boxes) -> Boxes:
    """Areas (...,) of xyxy boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap areas (n, m) of xyxy boxes a (n, 4) and b (m, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    return np.clip(high - low, 0, None).prod(-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of xyxy boxes a (n, 4) and b (m, 4); 0 where both are empty."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def ciou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU (n,) of paired cxcywh boxes a, b (n, 4), in [-1.5, 1] (Zheng et al., AAAI 2020, eq. 10-11).

    CIoU = IoU - d^2 / c^2 - alpha v, d the distance of the centres, c the diagonal of the box around both, v the
    difference of the aspect angles, alpha = v / (1 - IoU + v) taken as a constant.
    """
    (a_xy, a_wh), (b_xy, b_wh) = (a[..., :2], a[..., 2:4]), (b[..., :2], b[..., 2:4])
    a_low, a_high, b_low, b_high = a_xy - a_wh / 2, a_xy + a_wh / 2, b_xy - b_wh / 2, b_xy + b_wh / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    overlap = shared / (a_wh.prod(-1) + b_wh.prod(-1) - shared + eps)
    diagonal2 = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).square().sum(-1) + eps
    distance2 = (a_xy - b_xy).square().sum(-1)
    angle = torch.atan(b_wh[..., 0] / (b_wh[..., 1] + eps)) - torch.atan(a_wh[..., 0] / (a_wh[..., 1] + eps))
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        alpha = aspect / (1 - overlap + aspect + eps)
    return overlap - distance2 / diagonal2 - alpha * aspect
