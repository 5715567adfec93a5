"""Smooth random fields over an endless plane: a value depends on the seed and the place alone, so blocks of one scene fit together."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# Side of the table of random lattice values; a power of two, because indices wrap by a bit mask.
TABLE = 256
# Side of the tree-crown tile and distance of its crowns, in tile pixels.
CROWN_TILE, CROWN_STEP = 512, 8

# Smoothing of the lattice, scaled so that the values keep their spread: (1, 4, 1) has a root of squares of sqrt(18).
_SOFT = np.array([1, 4, 1], np.float32) / np.sqrt(np.float32(18))

Window = tuple[int, int, int, int]  # left, top, width, height in pixels of the plane; left and top may be negative


class Noise:
    """Value noise from one table of random numbers; `channel` picks independent fields."""

    def __init__(self, rng: np.random.Generator) -> None:
        raw = np.pad(rng.random((TABLE, TABLE), dtype=np.float32) * 2 - 1, 2, mode="wrap")
        # Neighbours share a little: a lattice of wholly free values shows its rows and columns after interpolation.
        self.table = cv2.sepFilter2D(raw, cv2.CV_32F, _SOFT, _SOFT)[2:-2, 2:-2].copy()
        self._wide = np.tile(self.table, (2, 2))  # so that most pieces are one slice

    def octave(self, window: Window, period: int, channel: int) -> np.ndarray:
        """Field (h, w) float32 in about [-1, 1] whose features are `period` (a whole number of pixels) wide."""
        left, top, width, height = window
        if period >= 32 and period % 8 == 0:
            # A few lattice cells enlarged at once would be mostly thrown away: enlarge them 8 times, cut, and enlarge the rest of the way.
            step = period // 8
            corner = (left // step - 2, top // step - 2)
            coarse = (*corner, (left + width) // step + 3 - corner[0], (top + height) // step + 3 - corner[1])
            big = cv2.resize(self.octave(coarse, 8, channel + 7 * step), (coarse[2] * step, coarse[3] * step), interpolation=cv2.INTER_CUBIC)
            x, y = left - corner[0] * step, top - corner[1] * step
            return big[y : y + height, x : x + width]
        first_x, first_y = left // period - 2, top // period - 2
        last_x, last_y = (left + width) // period + 3, (top + height) // period + 3
        lattice = self._piece(first_x + 197 * channel + 31 * period, first_y + 311 * channel + 67 * period, last_x - first_x, last_y - first_y)
        if period > 1:
            lattice = cv2.resize(lattice, (lattice.shape[1] * period, lattice.shape[0] * period), interpolation=cv2.INTER_CUBIC)
        x, y = left - first_x * period, top - first_y * period
        return lattice[y : y + height, x : x + width]

    def _piece(self, column: int, row: int, columns: int, rows: int) -> np.ndarray:
        """(rows, columns) of the table, which repeats for ever, from (row, column) on."""
        row, column = row % TABLE, column % TABLE
        if rows <= TABLE and columns <= TABLE:
            return self._wide[row : row + rows, column : column + columns]
        repeat = (-(-(row + rows) // TABLE), -(-(column + columns) // TABLE))
        return np.tile(self.table, repeat)[row : row + rows, column : column + columns]

    def fractal(self, window: Window, period: int, octaves: int, channel: int, gain: float = 0.5, ridged: bool = False) -> np.ndarray:
        """Sum (h, w) float32 of octaves of falling period, weights gain^k, scaled to about [-1, 1]; `ridged` folds each at 0 into crests."""
        finest = max(period >> (octaves - 1), 1)
        step = max(finest // 4, 1)
        if step > 1:
            # Nothing finer than `finest` is in the sum: draw it on a grid `step` times coarser and enlarge it once.
            left, top, width, height = window
            first_x, first_y = left // step - 2, top // step - 2
            coarse = (first_x, first_y, (left + width) // step + 3 - first_x, (top + height) // step + 3 - first_y)
            small = self.fractal(coarse, period // step, octaves, channel, gain, ridged)
            big = cv2.resize(small, (coarse[2] * step, coarse[3] * step), interpolation=cv2.INTER_CUBIC)
            x, y = left - first_x * step, top - first_y * step
            return big[y : y + height, x : x + width]
        total, weights = np.zeros((window[3], window[2]), np.float32), 0.0
        for k in range(octaves):
            if period >> k < 1:
                break
            layer = self.octave(window, period >> k, channel + k)
            total += gain**k * (1 - 2 * np.abs(layer) if ridged else layer)
            weights += gain**k
        return total / np.float32(weights)


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
    """The crown tile scaled to `side` pixels and repeated twice each way."""
    height, number = crown_tile()
    wide = CROWN_TILE // 4  # repeated around before scaling, so that the seam is smoothed too
    height, number = np.pad(height, wide, mode="wrap"), np.pad(number, wide, mode="wrap")
    whole, inner = (side * 3 // 2, side * 3 // 2), slice(side // 4, side // 4 + side)
    height = cv2.resize(height, whole, interpolation=cv2.INTER_AREA if side < CROWN_TILE else cv2.INTER_LINEAR)
    number = cv2.resize(number, whole, interpolation=cv2.INTER_NEAREST)
    return np.tile(height[inner, inner], (2, 2)), np.tile(number[inner, inner], (2, 2))


def crowns(window: Window, diameter: float, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tree crowns (height in [0, 1], own number in [0, 1]), each (h, w) float32, about `diameter` pixels wide."""
    side = max(int(round(CROWN_TILE * diameter / (1.4 * CROWN_STEP) / 16)) * 16, 64)
    height, number = _scaled_crowns(side)
    row, column = (window[1] + shift[1]) % side, (window[0] + shift[0]) % side
    inner = (slice(row, row + window[3]), slice(column, column + window[2]))
    repeat = (-(-inner[0].stop // side), -(-inner[1].stop // side))
    if max(repeat) <= 2:
        return height[inner], number[inner]
    return np.tile(height[:side, :side], repeat)[inner], np.tile(number[:side, :side], repeat)[inner]
