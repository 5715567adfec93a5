"""Decoded predictions -> Detections: score filter, then greedy non-maximum suppression per class."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.boxes import clip, cxcywh_to_xyxy, transform
from utils.detections import Detections

MAX_CANDIDATES = 30_000  # boxes of one image that enter suppression, best first
FIRST_CHUNK = 512  # suppression starts with this many and takes more only while too few boxes are kept


@functools.cache
def _greedy() -> Callable[[Tensor, Tensor, float], Tensor]:
    """torchvision's NMS kernel, without the two seconds that importing the rest of torchvision takes."""
    spec = importlib.util.find_spec("torchvision")
    libraries = [
        path for place in (spec.submodule_search_locations or [] if spec else []) for path in Path(place).glob("_C*") if path.suffix in (".so", ".pyd")
    ]
    if libraries:
        torch.ops.load_library(libraries[0])
    else:
        import torchvision  # noqa: F401
    return torch.ops.torchvision.nms


def nms(
    predictions: Tensor,
    conf: float,
    iou: float,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
) -> list[Detections]:
    """Detections of each image, in the pixels of `predictions`.

    predictions: (B, N, 5 + nc) as decoded [cx, cy, w, h, objectness, class probabilities]. conf: lowest score (objectness x class)
    kept. iou: a box that overlaps a better one of its class by more is dropped. classes: keep only these. agnostic: suppress
    across classes. multi_label: a box counts once for each class above `conf`, not only for its best one.
    """
    return [_one_image(image, conf, iou, max_det, classes, agnostic, multi_label) for image in predictions]


def _one_image(rows: Tensor, conf: float, iou: float, max_det: int, classes: Sequence[int] | None, agnostic: bool, multi_label: bool) -> Detections:
    rows = rows[rows[:, 4] > conf].float()
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        index, labels = (scores > conf).nonzero(as_tuple=True)
        best = scores[index, labels]
    else:
        best, labels = scores.max(1) if len(scores) else (scores.sum(1), scores.sum(1).long())
        index = (best > conf).nonzero(as_tuple=True)[0]
        best, labels = best[index], labels[index]
    if classes is not None:
        wanted = (labels[:, None] == torch.tensor(list(classes), device=labels.device)).any(1)
        index, best, labels = index[wanted], best[wanted], labels[wanted]
    order = best.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    best, labels = best[order], labels[order]
    boxes = cxcywh_to_xyxy(rows[index[order], :4])
    keep = _suppress(boxes, best, None if agnostic else labels, iou, max_det)
    return Detections(boxes[keep].cpu().numpy(), best[keep].cpu().numpy(), labels[keep].cpu().numpy().astype(np.int64))


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float, max_det: int) -> Tensor:
    """Indices of the first `max_det` boxes that greedy suppression keeps; boxes are sorted by score.

    What greedy suppression keeps among the best k boxes does not depend on the rest, so it is tried on a few first.
    """
    if labels is not None and len(boxes):
        # Boxes of different classes are moved apart, so that one pass treats every class alone.
        # In double precision: a thousand classes further right, float32 would round small boxes.
        boxes, scores = boxes.double() + (labels * (boxes.max() - boxes.min() + 1).double())[:, None], scores.double()
    count = FIRST_CHUNK
    while True:
        keep = _greedy()(boxes[:count], scores[:count], iou)
        if len(keep) >= max_det or count >= len(boxes):
            return keep[:max_det]
        count *= 4


def to_image(found: Detections, matrix: np.ndarray, width: int, height: int) -> Detections:
    """Detections in pixels of a canvas -> in pixels of the image behind it, cut to it; `matrix` (3, 3) maps canvas to image without turning it."""
    corners = transform(matrix, found.boxes.astype(np.float64).reshape(-1, 2)).reshape(-1, 4)
    return Detections(clip(corners, width, height).astype(np.float32), found.scores, found.classes)
