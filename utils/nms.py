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
    index, best, labels = _candidates(predictions.flatten(0, 1), conf, classes, multi_label)
    order = best.argsort(descending=True, stable=True)
    counts = [len(order)]
    if len(predictions) != 1:
        image = torch.div(index, predictions.shape[1], rounding_mode="floor")
        order = order[image[order].argsort(stable=True)]
        counts = torch.bincount(image, minlength=len(predictions)).tolist()
    found = []
    for own in order.split(counts):
        own = own[:MAX_CANDIDATES]
        scores, kinds = best[own], labels[own]
        boxes, keep = _suppress(predictions.flatten(0, 1), index[own], scores, None if agnostic else kinds, iou, max_det)
        found.append(Detections(boxes.cpu().numpy(), scores[keep].cpu().numpy(), kinds[keep].cpu().numpy()))
    return found


def _candidates(flat: Tensor, conf: float, classes: Sequence[int] | None, multi_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What passes the score filter among all rows (M, 5 + nc) of a batch: position in `flat`, score and class (k,), in the order of the rows."""
    index = (flat[:, 4] > conf).nonzero()[:, 0]
    rows = flat[index].float()
    if rows.shape[1] == 6:
        best, labels = rows[:, 4] * rows[:, 5], torch.zeros_like(index)
    else:
        scores = rows[:, 5:] * rows[:, 4:5]
        if multi_label:
            position, labels = (scores > conf).nonzero(as_tuple=True)
            index, best = index[position], scores[position, labels]
        else:
            best, labels = scores.max(1)
    passed = best > conf
    if classes is not None:
        passed &= (labels[:, None] == torch.tensor(list(classes), device=labels.device)).any(1)
    return index[passed], best[passed], labels[passed]


def _suppress(flat: Tensor, index: Tensor, scores: Tensor, labels: Tensor | None, iou: float, max_det: int) -> tuple[Tensor, Tensor]:
    """xyxy boxes of the first `max_det` rows that greedy suppression keeps, and their positions in `index`: rows of `flat`, by falling score.

    What greedy suppression keeps among the best k boxes does not depend on the rest, so it is tried on a few first.
    """
    count = FIRST_CHUNK
    while True:
        boxes, own = cxcywh_to_xyxy(flat[index[:count], :4].float()), scores[:count]
        apart = boxes
        if labels is not None and len(boxes) and flat.shape[1] > 6:
            # Boxes of different classes are moved apart, so that one pass treats every class alone.
            # In double precision: a thousand classes further right, float32 would round small boxes.
            apart, own = boxes.double() + (labels[:count] * (boxes.max() - boxes.min() + 1).double())[:, None], own.double()
        keep = _greedy()(apart, own, iou)
        if len(keep) >= max_det or count >= len(index):
            keep = keep[:max_det]
            return boxes[keep], keep
        count *= 4


def to_image(found: Detections, matrix: np.ndarray, width: int, height: int) -> Detections:
    """Detections in pixels of a canvas -> in pixels of the image behind it, cut to it; `matrix` (3, 3) maps canvas to image without turning it."""
    corners = transform(matrix, found.boxes.astype(np.float64).reshape(-1, 2)).reshape(-1, 4)
    return Detections(clip(corners, width, height).astype(np.float32), found.scores, found.classes)
