"""Smooth random fields over an endless plane: a value depends on the seed and the place alone, so blocks of one scene fit together."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# Side of a tile of noise in lattice cells, which then repeats, and how much of it is kept twice so that most windows are one slice.
SIDE, AGAIN = 1024, 576
CHANNELS = 16  # independent fields of a scene
# Side of the tree-crown tile and distance of its crowns, in tile pixels.
CROWN_TILE, CROWN_STEP = 512, 8

# Smoothing of the lattice, scaled so that the values keep their spread: (1, 4, 1) has a root of squares of sqrt(18).
_SOFT = np.array([1, 4, 1], np.float32) / np.sqrt(np.float32(18))

Window = tuple[int, int, int, int]  # left, top, width, height in pixels of the plane; left and top may be negative


@lru_cache(maxsize=8)
def _octave(period: int) -> np.ndarray:
    """Value noise (SIDE, SIDE) float32 in about [-1, 1] that repeats without a seam, with features `period` cells wide."""
    raw = np.random.default_rng([20230417, period]).random((SIDE // period, SIDE // period), dtype=np.float32) * 2 - 1
    # Neighbours share a little: a lattice of wholly free values shows its rows and columns after interpolation.
    soft = cv2.sepFilter2D(np.pad(raw, 4, mode="wrap"), cv2.CV_32F, _SOFT, _SOFT)
    big = cv2.resize(soft, (soft.shape[1] * period, soft.shape[0] * period), interpolation=cv2.INTER_CUBIC)
    return big[4 * period : 4 * period + SIDE, 4 * period : 4 * period + SIDE]


@lru_cache(maxsize=16)
def noise_tile(octaves: int, gain: float, ridged: bool) -> np.ndarray:
    """Sum (SIDE + AGAIN, SIDE + AGAIN) float32 of octaves of period 2^(octaves-1) to 1, weights gain^k, scaled to about [-1, 1].

    It repeats after SIDE; `ridged` folds each octave at 0 into crests. It is drawn once for all scenes, which cut their own windows.
    """
    total, weights = np.zeros((SIDE, SIDE), np.float32), 0.0
    for k in range(octaves):
        layer = _octave(1 << (octaves - 1 - k))
        total += gain**k * (1 - 2 * np.abs(layer) if ridged else layer)
        weights += gain**k
    return np.pad(total / np.float32(weights), ((0, AGAIN), (0, AGAIN)), mode="wrap")


def _enlarged(field: np.ndarray, times: int) -> np.ndarray:
    """Field (h, w) -> (h * times, w * times), smooth; `times` is a power of two."""
    # A large cubic enlargement costs more than a small one and two smooth doublings, and looks the same.
    doublings = 2 if times >= 8 else 0
    if times >> doublings > 1:
        field = cv2.resize(field, (field.shape[1] * (times >> doublings), field.shape[0] * (times >> doublings)), interpolation=cv2.INTER_CUBIC)
    for _ in range(doublings):
        field = cv2.pyrUp(field)
    return field


class Noise:
    """The noise of one scene: numbers for its choices, and a place on the tiles of noise for each `channel`, that is for each field."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.numbers = rng.random((256, 4), dtype=np.float32)
        self.origins: list[list[int]] = rng.integers(0, SIDE, (CHANNELS, 2)).tolist()

    def fractal(self, window: Window, period: int, octaves: int, channel: int, gain: float = 0.5, ridged: bool = False) -> np.ndarray:
        """Sum (h, w) float32 of octaves of falling period, weights gain^k, scaled to about [-1, 1]; `ridged` folds each at 0 into crests.

        `period`, the widest, is a power of two in pixels. The field may be a view of what other scenes use: it is not to be written to.
        """
        octaves = min(octaves, period.bit_length())
        finest = period >> (octaves - 1)
        left, top, width, height = window
        room = 2 if finest > 1 else 0  # cells around, for the interpolation
        x, y = left // finest - room, top // finest - room
        columns, rows = -(-(left + width) // finest) + room - x, -(-(top + height) // finest) + room - y
        field = _enlarged(_cut(noise_tile(octaves, gain, ridged), x + self.origins[channel][0], y + self.origins[channel][1], columns, rows), finest)
        x, y = left - x * finest, top - y * finest
        return field[y : y + height, x : x + width]


def _cut(tile: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Window of a tile of noise that repeats for ever."""
    left, top = left % SIDE, top % SIDE
    if left + width <= len(tile) and top + height <= len(tile):
        return tile[top : top + height, left : left + width]
    return tile[np.ix_(np.arange(top, top + height) % SIDE, np.arange(left, left + width) % SIDE)]


@lru_cache(maxsize=1)
def crown_tile() -> tuple[np.ndarray, np.ndarray]:
    """Tree crowns seen from above on a tile that repeats without a seam: height (n, n) in [0, 1] and each crown's own random number in [0, 1]."""
    cells = CROWN_TILE // CROWN_STEP
    rng = np.random.default_rng(20230417)
    centre = rng.random((cells, cells, 2), dtype=np.float32)
    radius = rng.uniform(0.45, 1.0, (cells, cells)).astype(np.float32)
    own = rng.random((cells, cells), dtype=np.float32)
    place = (np.arange(CROWN_TILE, dtype=np.float32) + 0.5) / CROWN_STEP
    cell = np.arange(CROWN_TILE) // CROWN_STEP
    height, number = np.zeros((CROWN_TILE, CROWN_TILE), np.float32), np.zeros((CROWN_TILE, CROWN_TILE), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns = ((cell + dy) % cells)[:, None], ((cell + dx) % cells)[None, :]
            x = place[None, :] - (cell + dx)[None, :] - centre[rows, columns, 0]
            y = place[:, None] - (cell + dy)[:, None] - centre[rows, columns, 1]
            r = radius[rows, columns]
            bump = (1 - (x * x + y * y) / (r * r)) * (0.4 + 0.6 * r)
            above = bump > height
            height[above] = bump[above]
            number[above] = np.broadcast_to(own[rows, columns], bump.shape)[above]
    return np.sqrt(height), number


@lru_cache(maxsize=32)
def _scaled_crowns(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The crown tile scaled to `side` pixels, in [0, 255] uint8, and repeated so that most windows are one slice."""
    scaled = []
    for field, how in zip(crown_tile(), (cv2.INTER_AREA if side < CROWN_TILE else cv2.INTER_LINEAR, cv2.INTER_NEAREST), strict=True):
        wide = np.pad(field, CROWN_TILE // 4, mode="wrap")  # repeated around before scaling, so that the seam is smoothed too
        inner = slice(side // 4, side // 4 + side)
        small = np.round(cv2.resize(wide, (side * 3 // 2, side * 3 // 2), interpolation=how)[inner, inner] * 255).astype(np.uint8)
        scaled.append(np.tile(small, (1 - (-AGAIN // side),) * 2))
    return scaled[0], scaled[1]


def crowns(window: Window, diameter: float, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tree crowns (height, own number), each (h, w) uint8, about `diameter` pixels wide; not to be written to."""
    side = max(int(round(CROWN_TILE * diameter / (1.4 * CROWN_STEP) / 32)) * 32, 64)
    left, top = (window[0] + shift[0]) % side, (window[1] + shift[1]) % side
    height, number = _scaled_crowns(side)
    if max(left + window[2], top + window[3]) <= len(height):
        rows, columns = slice(top, top + window[3]), slice(left, left + window[2])
        return height[rows, columns], number[rows, columns]
    inner = np.ix_(np.arange(top, top + window[3]) % side, np.arange(left, left + window[2]) % side)
    return height[inner], number[inner]
