"""A rule without eyes: guess the box of an image from its width and height alone, to see what AP a dataset gives away.

Where landslide crops are cut around the landslide, the image's size tells where the box must be. The rule looks up the training images
nearest in size and lets their boxes vote, each carried over in two ways: as margins in pixels, or as shares of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.boxes import iou
from utils.detections import Detections

NEIGHBOURS = 25


@dataclass(frozen=True)
class NoPixelRule:
    """The training images that vote."""

    sizes: np.ndarray  # (n, 2) float64, width and height in pixels
    boxes: np.ndarray  # (n, 4) float64, xyxy in pixels of the largest object; NaN where there is none

    @staticmethod
    def fit(sizes: np.ndarray, boxes: Sequence[np.ndarray]) -> NoPixelRule:
        """`sizes` (n, 2) in pixels, `boxes` one (k, 4) array in pixels per image."""
        largest = np.full((len(boxes), 4), np.nan)
        for i, found in enumerate(boxes):
            if len(found):
                largest[i] = found[np.argmax((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]))]
        return NoPixelRule(np.asarray(sizes, np.float64), largest)

    def guess(self, width: float, height: float) -> Detections:
        """At most one detection; its score is the share of the nearest training images that the winning box would have hit at IoU 0.5."""
        size = np.array([width, height], np.float64)
        distance = np.abs(np.log(self.sizes / size)).sum(1)
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        with_object = near[~np.isnan(self.boxes[near, 0])]
        best_box, best_score = np.zeros(4), 0.0
        for carried in (self._margins(with_object, size), self._shares(with_object, size)):
            carried = np.clip(carried, 0, np.tile(size, 2))
            if not len(carried):
                continue
            votes = (iou(carried, carried) >= 0.5).sum(1) / len(near)
            if votes.max() > best_score:
                # Of the boxes with most votes the one that the others overlap best.
                top = np.flatnonzero(votes == votes.max())
                best_box, best_score = carried[top[int(np.argmax(iou(carried[top], carried).mean(1)))]], float(votes.max())
        found = best_score > 0 and bool((best_box[2:] > best_box[:2]).all())
        boxes = best_box[None].astype(np.float32) if found else np.zeros((0, 4), np.float32)
        return Detections(boxes, np.full(len(boxes), best_score, np.float32), np.zeros(len(boxes), np.int64))

    def _margins(self, index: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Boxes (k, 4) that keep the neighbours' margins in pixels; those that would vanish are left out."""
        carried = np.concatenate([self.boxes[index, :2], size - (self.sizes[index] - self.boxes[index, 2:])], 1)
        return carried[(carried[:, 2:] > carried[:, :2]).all(1)]

    def _shares(self, index: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Boxes (k, 4) that keep the neighbours' places as shares of the image."""
        return self.boxes[index] * np.tile(size / self.sizes[index], 2)
