"""Annotations: read, check and write YOLO text files (boxes and polygons)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# A box or point that leaves the image by at most this share of its side is cut to the image and counted as clipped;
# beyond it the row is wrong (pixels instead of shares, say).
OUTSIDE = 0.1


@dataclass(frozen=True)
class Labels:
    """Objects of one image, in shares of its width and height."""

    classes: np.ndarray  # (n,) int64
    boxes: np.ndarray  # (n, 4) float32, xyxy in [0, 1]
    polygons: tuple[np.ndarray | None, ...]  # per object its outline (k, 2) in [0, 1], or None where only the box is known

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def from_rows(rows: Iterable[tuple[int, np.ndarray, np.ndarray | None]]) -> Labels:
        """Labels from (class, xyxy box, polygon or None) rows."""
        rows = list(rows)
        return Labels(
            np.array([row[0] for row in rows], np.int64).reshape(-1),
            np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
            tuple(row[2] for row in rows),
        )


@dataclass
class Parsed:
    """Labels of one file and what was wrong with it."""

    labels: Labels
    problems: list[str] = field(default_factory=list)  # 'file:line: reason' of every row left out
    clipped: int = 0  # boxes that left the image a little and were cut
    duplicates: int = 0  # rows that repeat an earlier one, dropped


def parse_yolo(text: str, path: str | Path, classes: int) -> Parsed:
    """Read YOLO rows: `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, in shares of the image.

    `classes` is the number of class names. Wrong rows are left out and reported as 'file:line: reason'; good rows are kept.
    """
    found: dict[tuple[float, ...], tuple[int, np.ndarray, np.ndarray | None]] = {}
    result = Parsed(Labels.from_rows([]))
    for line, row in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not row.strip():
            continue
        try:
            values = _numbers(row)
            cls, box, polygon, clipped = _object(values, classes)
        except ValueError as reason:
            result.problems.append(f"{path}:{line}: {reason}")
            continue
        if tuple(values) in found:
            result.duplicates += 1
            continue
        found[tuple(values)] = (cls, box, polygon)
        result.clipped += clipped
    result.labels = Labels.from_rows(found.values())
    return result


def _numbers(row: str) -> list[float]:
    if "," in row:
        raise ValueError("commas; the numbers must be separated by spaces")
    words = row.split()
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(f"{len(words)} columns; 5 (class cx cy w h) or a class and at least 3 x y points were expected")
    try:
        values = [float(word) for word in words]
    except ValueError:
        bad = next(word for word in words if not _is_number(word))
        raise ValueError(f"{bad!r} is not a number") from None
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    return values


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _object(values: list[float], classes: int) -> tuple[int, np.ndarray, np.ndarray | None, bool]:
    """(class, xyxy box, polygon, was clipped) of one row, or ValueError with the reason."""
    cls = values[0]
    if cls != int(cls) or cls < 0:
        raise ValueError(f"class {cls:g} is not a whole number from 0")
    if cls >= classes:
        raise ValueError(f"class {int(cls)}, but the dataset has {classes} class{'es' if classes != 1 else ''} (0 to {classes - 1})")
    points = np.array(values[1:], np.float64)
    polygon: np.ndarray | None = None
    if len(points) == 4:
        if points[2] <= 0 or points[3] <= 0:
            raise ValueError(f"width {points[2]:g} and height {points[3]:g} must be above 0")
        corners = np.concatenate([points[:2] - points[2:] / 2, points[:2] + points[2:] / 2])  # not by utils.boxes: that loads torch
    else:
        polygon = points.reshape(-1, 2)
        corners = np.concatenate([polygon.min(0), polygon.max(0)])
    if corners.min() < -OUTSIDE or corners.max() > 1 + OUTSIDE:
        raise ValueError(f"reaches from ({corners[0]:g}, {corners[1]:g}) to ({corners[2]:g}, {corners[3]:g}); shares of the image from 0 to 1 were expected")
    box = np.clip(corners, 0, 1).astype(np.float32)
    if (box[2:] <= box[:2]).any():
        raise ValueError("has no area inside the image")
    # Rounding to six digits, as most tools write, moves an edge by up to 1e-6: that is no clipping.
    clipped = bool(np.abs(box - corners).max() > 2e-6)
    if polygon is not None:
        polygon = np.clip(polygon, 0, 1).astype(np.float32)
    return int(cls), box, polygon, clipped


def format_yolo(labels: Labels) -> str:
    """The YOLO text of `labels`: polygons where they are known, else boxes; read back it gives equal labels to 1e-6."""
    lines = []
    for cls, box, polygon in zip(labels.classes, labels.boxes.astype(np.float64), labels.polygons, strict=True):
        centre_size = np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])
        numbers = centre_size if polygon is None else np.asarray(polygon, np.float64).ravel()
        lines.append(" ".join([str(int(cls)), *(f"{value:.6f}" for value in numbers)]) + "\n")
    return "".join(lines)
