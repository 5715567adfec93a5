"""The paper's nine offline augmentations: one image and its labels -> a new image and labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.labels import Labels

# Bounds of what each technique draws.
SALT_SHARE = (0.005, 0.02)  # pixels turned white
GAUSS_SIGMA = (5.0, 20.0)  # grey levels
DARKER, BRIGHTER = (0.5, 0.8), (1.2, 1.6)  # factors
CONTRAST = ((0.5, 0.75), (1.3, 1.7))  # factors around the image's mean grey, below or above 1

Technique = Callable[[np.ndarray, Labels, np.random.Generator], tuple[np.ndarray, Labels]]


def rotate(quarters: int) -> Technique:
    """Clockwise rotation by 90 degrees x `quarters` (1, 2 or 3)."""

    def apply(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
        def turn(points: np.ndarray) -> np.ndarray:
            for _ in range(quarters):
                points = np.stack([1 - points[..., 1], points[..., 0]], -1)
            return points

        return np.ascontiguousarray(np.rot90(image, -quarters)), _moved(labels, turn)

    return apply


def flip(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """Left to right."""
    return np.ascontiguousarray(image[:, ::-1]), _moved(labels, lambda points: np.stack([1 - points[..., 0], points[..., 1]], -1))


def _moved(labels: Labels, move: Callable[[np.ndarray], np.ndarray]) -> Labels:
    """Labels whose points (in shares of the image) went through `move`, which maps axis-aligned boxes to such boxes."""
    corners = move(labels.boxes.reshape(-1, 2, 2).astype(np.float64))
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
    polygons = tuple(None if p is None else move(p.astype(np.float64)).astype(np.float32) for p in labels.polygons)
    return Labels(labels.classes, boxes, polygons)


def salt(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """Single pixels turned white."""
    white = rng.random(image.shape[:2], dtype=np.float32) < rng.uniform(*SALT_SHARE)
    return np.where(white[..., None], np.uint8(255), image), labels


def gauss(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """Gaussian noise, each channel of each pixel on its own."""
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(*GAUSS_SIGMA))
    return _levels(image + noise), labels


def darker(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """All levels times a factor below 1."""
    return _curve(image, np.arange(256) * rng.uniform(*DARKER)), labels


def brighter(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """All levels times a factor above 1, saturated."""
    return _curve(image, np.arange(256) * rng.uniform(*BRIGHTER)), labels


def contrast(image: np.ndarray, labels: Labels, rng: np.random.Generator) -> tuple[np.ndarray, Labels]:
    """Levels spread from, or drawn to, the image's mean."""
    factor = rng.uniform(*CONTRAST[int(rng.integers(2))])
    mean = float(image.mean())
    return _curve(image, (np.arange(256) - mean) * factor + mean), labels


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def _curve(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Each level replaced by `levels` (256,), rounded and saturated."""
    return np.take(_levels(levels), image)


# In the order of the paper; the names are the suffixes of the published files where those are known.
TECHNIQUES: dict[str, Technique] = {
    "rota_90": rotate(1),
    "rota_180": rotate(2),
    "rota_270": rotate(3),
    "flip": flip,
    "salt": salt,
    "gauss": gauss,
    "darker": darker,
    "brighter": brighter,
    "contrast": contrast,
}
DRAWN = 5  # different techniques for every positive
