"""Anchors: what a head puts out, how it becomes boxes, how well anchors fit a dataset and how to fit them better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RawMap(NamedTuple):
    """Logits of one level, A anchors a cell; kept apart because the loss and the decoder use them apart."""

    box: Tensor  # (B, A, 4, H, W): x, y, w, h before the sigmoid
    obj: Tensor  # (B, A, H, W)
    cls: Tensor  # (B, A, nc, H, W)
    packed: Tensor | None = None  # (B, H, W, A, 5 + nc) where the three are views of it: box, objectness, classes


def decode_box(logits: Tensor, cell: Tensor, anchor: Tensor) -> Tensor:
    """cxcywh boxes (n, 4) in the unit of `anchor` from logits (n, 4), cells (n, 2) [x, y] and anchors (n, 2).

    centre = cell + 2 s - 0.5, size = anchor (2 s)^2, s = sigmoid(logit): YOLOv5's ranges (-0.5, 1.5) and (0, 4).
    """
    s = logits.sigmoid()
    return torch.cat([cell + 2 * s[..., :2] - 0.5, anchor * (2 * s[..., 2:]).square()], -1)


def grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Cell positions (2, H, W): x, then y."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y]).float()


def decode(maps: Sequence[RawMap], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Predictions (B, N, 5 + nc): cx, cy, w, h in pixels, objectness and class probabilities.

    `anchors` (L, A, 2) in pixels; N runs over levels, then anchors, then rows and columns of cells.
    """
    rows = []
    for raw, anchor, stride in zip(maps, anchors, strides, strict=True):
        batch, number, nc, height, width = raw.cls.shape
        s = raw.box.float().sigmoid()
        centre = (2 * s[:, :, :2] - 0.5 + grid(height, width, s.device)) * stride
        size = (2 * s[:, :, 2:]).square() * anchor[:, :, None, None].to(s)
        level = torch.cat([centre, size, raw.obj.float().sigmoid()[:, :, None], raw.cls.float().sigmoid()], 2)
        rows.append(level.permute(0, 1, 3, 4, 2).reshape(batch, number * height * width, 5 + nc))
    return torch.cat(rows, 1)


def best_ratio(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """For each object (n, 2) the best over anchors (k, 2) of min(w, 1/w, h, 1/h) side ratios: (n,) in (0, 1]."""
    ratio = sizes[:, None] / anchors[None]
    return np.minimum(ratio, 1 / ratio).min(2).max(1)


def best_possible_recall(sizes: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    """Share of objects (n, 2) that some anchor (k, 2) of the same unit may predict (side ratio below anchor_t)."""
    return float((best_ratio(sizes, anchors) > 1 / anchor_t).mean()) if len(sizes) else 1.0


def fit_anchors(sizes: np.ndarray, count: int, anchor_t: float, rng: np.random.Generator, rounds: int = 1000) -> np.ndarray:
    """Anchors (count, 2), small to large, for object sizes (n, 2): k-means in log space, then random search on the fit.

    The fit is the mean best ratio of the objects that an anchor covers (ratio above 1 / anchor_t).
    """
    sizes = sizes[(sizes >= 2).all(1)].astype(np.float64)
    distinct = np.unique(sizes, axis=0)
    if len(distinct) < count:
        raise ValueError(f"{len(distinct)} distinct object sizes, at least {count} are needed to fit {count} anchors")
    # Squared distance of logarithms is what a side ratio measures.
    points = np.log(sizes)
    centres = np.log(distinct)[rng.choice(len(distinct), count, replace=False)]
    for _ in range(30):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        for k in range(count):
            if (nearest == k).any():
                centres[k] = points[nearest == k].mean(0)
    sample = sizes if len(sizes) <= 5000 else sizes[rng.choice(len(sizes), 5000, replace=False)]

    def fit(anchors: np.ndarray) -> float:
        best = best_ratio(sample, anchors)
        return float((best * (best > 1 / anchor_t)).mean())

    anchors = np.exp(centres)
    score = fit(anchors)
    for _ in range(rounds):
        change = np.exp(rng.normal(0, 0.1, anchors.shape) * (rng.random(anchors.shape) < 0.5))
        candidate = np.maximum(anchors * change, 2.0)
        if (new := fit(candidate)) > score:
            anchors, score = candidate, new
    return anchors[np.argsort(anchors.prod(1))]
