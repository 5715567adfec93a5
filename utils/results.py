"""Detections on disk: YOLO text rows and COCO results JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.detections import Detections
from utils.errors import UserError

LARGEST = 1e9  # pixels: what is larger is no box, and may not even fit a number of the machine


def label_rows(found: Detections, width: int, height: int, scores: bool) -> str:
    """YOLO rows `class cx cy w h [score]` in shares of the image, six significant digits."""
    low, high = found.boxes[:, :2].astype(np.float64), found.boxes[:, 2:].astype(np.float64)
    columns = [(low + high) / 2 / (width, height), (high - low) / (width, height), *([found.scores[:, None]] if scores else [])]
    rows = zip(found.classes, np.concatenate(columns, 1), strict=True)
    return "".join(" ".join([str(int(cls)), *(f"{value:.6g}" for value in values)]) + "\n" for cls, values in rows)


def image_id(path: str | Path) -> int | str:
    """The name of an image in COCO results: the file's stem, as a number where it is digits only."""
    stem = Path(path).stem
    return int(stem) if stem.isascii() and stem.isdigit() else stem


def image_ids(paths: Sequence[Path]) -> list[int | str]:
    """The `image_id` of each image. Raises UserError where two images share one: their detections could not be told apart."""
    seen: dict[int | str, Path] = {}
    for path in paths:
        other = seen.setdefault(image_id(path), path)
        if other is not path:
            raise UserError(f"{path} and {other} share the image_id {image_id(path)!r} of COCO results; rename one")
    return list(seen)


def write_coco_results(path: str | Path, detections: Sequence[Detections], ids: Sequence[int | str]) -> None:
    """Write a COCO results file: image_id, category_id (the class number from 0), bbox (left, top, width, height in pixels), score.

    Numbers stand there in full, so that reading the file gives the very same float32 detections.
    """
    rows = []
    for key, found in zip(ids, detections, strict=True):
        boxes = found.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, cls in zip(boxes.tolist(), found.scores, found.classes.tolist(), strict=True):
            rows.append(json.dumps({"image_id": key, "category_id": cls, "bbox": box, "score": float(str(score))}, ensure_ascii=False))
    Path(path).write_text("[" + ",\n".join(rows) + "]\n", encoding="utf-8")


def read_coco_results(path: str | Path, ids: Sequence[int | str], classes: int, single_class: bool = False) -> tuple[list[Detections], int]:
    """Detections of each image in `ids`, best score first, and how many rows belong to other images.

    category_id must be a class number, 0 to classes - 1 (with `single_class` all are taken for class 0). Raises UserError naming the
    row for anything that is not a COCO result, and where no row belongs to any of the images.
    """
    rows = _read_list(path)
    position = {key: number for number, key in enumerate(ids)}
    found: list[list[tuple[float, int, list[float]]]] = [[] for _ in ids]
    unknown = 0
    for number, row in enumerate(rows, 1):
        key, cls, box, score = _checked(row, f"{path}: result {number}", classes, single_class)
        if key in position:
            found[position[key]].append((score, cls, box))
        else:
            unknown += 1
    if rows and unknown == len(rows):
        examples = f"image_id {rows[0]['image_id']!r} for example, while the dataset has {ids[0]!r}" if ids else "the dataset has no image"
        raise UserError(f"{path}: none of its {len(rows)} results belongs to an image of the dataset ({examples})")
    return [_detections(sorted(items, key=lambda item: -item[0])) for items in found], unknown


def _read_list(path: str | Path) -> list[dict[str, object]]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path}: is not a text file; a COCO results JSON was expected") from None
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: is not readable as JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: a list of results [{{image_id, category_id, bbox, score}}, ...] was expected, this is a COCO {type(rows).__name__}")
    return rows


def _checked(row: object, where: str, classes: int, single_class: bool) -> tuple[int | str, int, list[float], float]:
    """(image, class, xyxy box, score) of one result."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object with image_id, category_id, bbox and score was expected")
    for name in ("image_id", "category_id", "bbox", "score"):
        if name not in row:
            raise UserError(f"{where}: has no {name!r}")
    cls, box, score = row["category_id"], row["bbox"], row["score"]
    if not isinstance(cls, int) or isinstance(cls, bool) or (not single_class and not 0 <= cls < classes):
        raise UserError(f"{where}: category_id is {cls!r}; a class number from 0 to {classes - 1} was expected")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box) or box[2] < 0 or box[3] < 0:
        raise UserError(f"{where}: bbox is {box!r}; [left, top, width, height] in pixels was expected")
    if not _is_finite(score) or not 0 <= score <= 1:
        raise UserError(f"{where}: score is {score!r}; a number from 0 to 1 was expected")
    if not isinstance(row["image_id"], (int, str)):
        raise UserError(f"{where}: image_id is {row['image_id']!r}; the stem of a file name was expected")
    key = row["image_id"]
    key = int(key) if isinstance(key, str) and len(key) < 256 and key.isascii() and key.isdigit() else key
    return key, 0 if single_class else cls, [box[0], box[1], box[0] + box[2], box[1] + box[3]], score


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _detections(items: Sequence[tuple[float, int, list[float]]]) -> Detections:
    return Detections(
        np.array([box for _, _, box in items], np.float32).reshape(-1, 4),
        np.array([score for score, _, _ in items], np.float32),
        np.array([cls for _, cls, _ in items], np.int64),
    )
