"""What a detector found in one image, and what is really there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first."""

    boxes: np.ndarray  # (n, 4) float32, xyxy in pixels of the original image
    scores: np.ndarray  # (n,) float32 in [0, 1]
    classes: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Detections:
        """The detections that `keep` (a mask or indices) chooses."""
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


@dataclass(frozen=True)
class Truth:
    """Labelled objects of one image."""

    boxes: np.ndarray  # (m, 4) float32, xyxy in pixels of the original image
    classes: np.ndarray  # (m,) int64
