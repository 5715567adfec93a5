"""Results of a part of the test images or of their objects: by source, by COCO's sizes, by the share of the image that a box covers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import DatasetSpec, Sample
from data.groups import read_groups
from data.report import LARGE, SMALL, prefix
from utils.detections import Detections, Truth
from utils.errors import UserError
from utils.metrics import COCO_IOUS, PAPER_CONFIDENCE, Curve, Matches, Operating, best_of_each_class, coco_ap, curve, match, paper_ap, score

INFINITE = float("inf")
SIZES = {"small": (0.0, SMALL), "medium": (SMALL, LARGE), "large": (LARGE, INFINITE)}  # box area in pixels
SHARES = {"<1 %": (0.0, 0.01), "1-5 %": (0.01, 0.05), "5-20 %": (0.05, 0.2), ">=20 %": (0.2, INFINITE)}  # box area / image area


def origins_and_clusters(spec: DatasetSpec, samples: Sequence[Sample], groups: str | None) -> tuple[list[str], list[str]]:
    """Per sample: the data source it comes from, and the name of the cluster that the bootstrap draws as one.

    Clusters are the groups of the CSV `groups`; else those of manifest.csv beside the dataset YAML (data.msld writes it: versions of one
    place); else every image is its own. Sources: the manifest's `origin`, else the letters that a file name begins with.
    Raises UserError for a CSV without the needed columns.
    """
    rows = _manifest(spec.source.parent / "manifest.csv")
    own = [rows.get(sample.path.resolve(), {}) for sample in samples]
    origins = [row.get("origin") or prefix(sample.path) for row, sample in zip(own, samples, strict=True)]
    if groups:
        given = read_groups(Path(groups), {sample.path.stem for sample in samples}, strict=False)
        if not given.group:
            raise UserError(f"--groups {groups}: names none of the test images ({samples[0].path.stem}, for example)")
        return origins, [given.of(sample.path.stem) for sample in samples]
    return origins, [row.get("group") or str(sample.path) for row, sample in zip(own, samples, strict=True)]


def _manifest(path: Path) -> dict[Path, dict[str, str]]:
    """Rows of data.msld's manifest.csv by image; empty where there is none, or another program's."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "group", "origin"} <= set(rows[0]):
        return {}
    return {(path.parent / row["file"]).resolve(): row for row in rows}


def measure_parts(
    detections: Sequence[Detections],
    coco_detections: Sequence[Detections],
    truths: Sequence[Truth],
    samples: Sequence[Sample],
    origins: Sequence[str],
    names: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """'source:NAME', 'size:NAME' and 'share:RANGE' -> a report as Report.to_dict gives it (of sizes and shares without its classes)."""
    result: dict[str, dict[str, Any]] = {}
    for origin in sorted(set(origins)):
        chosen = [i for i, one in enumerate(origins) if one == origin]
        found, coco = ([items[i] for i in chosen] for items in (detections, coco_detections))
        result[f"source:{origin}"] = score(found, [truths[i] for i in chosen], names, coco).to_dict()
    areas = np.array([sample.width * sample.height for sample in samples], np.float64)
    deployed, coco_matches = match(detections, truths), match([best_of_each_class(found) for found in coco_detections], truths, COCO_IOUS)
    pixels = [_areas(items) for items in (detections, [best_of_each_class(found) for found in coco_detections], truths)]
    shares = [area / areas[image] for area, image in zip(pixels, (deployed.image, coco_matches.image, deployed.truth_image), strict=True)]
    for kind, ranges, sizes in (("size", SIZES, pixels), ("share", SHARES, shares)):
        for name, (low, high) in ranges.items():
            inside = [(one >= low) & (one < high) for one in sizes]
            result[f"{kind}:{name}"] = _sized(deployed, coco_matches, inside, names)
    return result


def _areas(items: Sequence[Detections] | Sequence[Truth]) -> np.ndarray:
    """(n,) float64 box areas in pixels of all images end to end."""
    boxes = np.concatenate([np.zeros((0, 4)), *(item.boxes.astype(np.float64) for item in items)])
    result: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return result


def restrict(matches: Matches, level: int, detection_inside: np.ndarray, truth_inside: np.ndarray) -> Matches:
    """The matches, at one IoU threshold, as far as objects inside a range are concerned, by COCO's rule: detections of objects outside
    count neither as right nor as wrong, and of those that hit nothing only the ones inside are wrong.

    detection_inside (n,), truth_inside (m,): masks.
    """
    hit = matches.truth[level]
    right = hit >= 0
    keep = detection_inside.copy()
    keep[right] = truth_inside[hit[right]]
    number = np.append(np.cumsum(truth_inside) - 1, -1)  # the last entry stands for "hits nothing"
    return Matches(
        (matches.thresholds[level],),
        *(matches.image[keep], matches.scores[keep], matches.classes[keep]),
        truth=number[hit[keep]][None],
        truth_image=matches.truth_image[truth_inside],
        truth_classes=matches.truth_classes[truth_inside],
        images=matches.images,
    )


def _sized(deployed: Matches, coco: Matches, inside: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Report of the objects inside a range; `inside` masks the deployed detections, the coco detections and the objects."""
    own = restrict(deployed, 0, inside[0], inside[2])
    levels = [restrict(coco, level, inside[1], inside[2]) for level in range(len(coco.thresholds))]
    present = [cls for cls in range(len(names)) if (own.truth_classes == cls).any()]
    curves = [curve(own, cls) for cls in present]
    coco_aps = np.array([[coco_ap(curve(one, cls)) for one in levels] for cls in present]).reshape(len(present), len(levels))
    images = len(np.unique(own.truth_image))
    overall = {
        "name": "all",
        "images": images,
        "objects": len(own.truth_classes),
        "at_confidence": asdict(_operating(curves, PAPER_CONFIDENCE)),
        "paper": {"AP": _mean([paper_ap(one) for one in curves])},
        "coco": {"AP50": _mean(coco_aps[:, 0].tolist()), "AP50:95": _mean(coco_aps.mean(1).tolist())},
    }
    return {"images": images, "overall": overall, "classes": []}


def _operating(curves: Sequence[Curve], confidence: float) -> Operating:
    points = [tuple(float(value) for value in one.at(np.array(confidence))) for one in curves]
    used = [int(np.searchsorted(-one.confidence, -confidence, "right")) for one in curves]
    tp, fp = (round(sum(float(getattr(one, key)[n - 1]) for one, n in zip(curves, used, strict=True) if n)) for key in ("tp", "fp"))
    precision, recall, f1 = (_mean([point[i] for point in points]) for i in range(3))
    return Operating(confidence, precision, recall, f1, tp, fp, round(sum(one.positives for one in curves)) - tp)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
