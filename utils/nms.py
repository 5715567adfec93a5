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
FIRST_CHUNK = 512  # suppression starts with this many boxes and takes more only while too few are kept


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
    flat = predictions.flatten(0, 1)
    index, best, labels = _candidates(flat, conf, classes, multi_label)
    best, order = best.sort(descending=True, stable=True)
    order = order[: int((best > conf).sum())]
    counts = [len(order)]
    if len(predictions) != 1:
        image = torch.div(index[order], predictions.shape[1], rounding_mode="floor")
        by_image = image.argsort(stable=True)
        best, order, counts = best[by_image], order[by_image], torch.bincount(image, minlength=len(predictions)).tolist()
    start, found = 0, []
    for count in counts:
        own = slice(start, start + min(count, MAX_CANDIDATES))
        kinds = None if labels is None else labels[order[own]]
        boxes, keep = _suppress(flat, index[order[own]], best[own], None if agnostic else kinds, iou, max_det)
        kept = np.zeros(len(keep), np.int64) if kinds is None else kinds[keep].cpu().numpy()
        found.append(Detections(boxes.cpu().numpy(), best[own][keep].cpu().numpy(), kept))
        start += count
    return found


def _candidates(flat: Tensor, conf: float, classes: Sequence[int] | None, multi_label: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """What may pass the score filter among all rows (M, 5 + nc) of a batch: position in `flat`, score and class (k,), in the order of the rows.

    Score -1 where the class is not wanted; no classes where there is only one.
    """
    index = (flat[:, 4] > conf).nonzero().squeeze(1)
    rows = flat[index].float()
    if rows.shape[1] == 6:
        best = rows[:, 4] * rows[:, 5]
        return index, best if classes is None or 0 in classes else torch.full_like(best, -1), None
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label:
        position, labels = (scores > conf).nonzero(as_tuple=True)
        index, best = index[position], scores[position, labels]
    else:
        best, labels = scores.max(1)
    if classes is not None:
        best = best.masked_fill((labels[:, None] != torch.tensor(list(classes), device=labels.device)).all(1), -1)
    return index, best, labels


def _suppress(flat: Tensor, index: Tensor, scores: Tensor, labels: Tensor | None, iou: float, max_det: int) -> tuple[Tensor, Tensor]:
    """xyxy boxes of the first `max_det` rows that greedy suppression keeps, and their positions in `index`: rows of `flat`, by falling score.

    What greedy suppression keeps among the best k boxes does not depend on the rest, so it is tried on a few first. labels None: across classes.
    """
    count = FIRST_CHUNK
    while True:
        boxes, own = cxcywh_to_xyxy(flat[index[:count], :4].float()), scores[:count]
        apart = boxes
        if labels is not None and len(boxes):
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
