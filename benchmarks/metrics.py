"""Rows `matching`, `ap` and `coco`: metrics of 100,000 detections in 10,000 images against YOLOv5's functions and pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch

from benchmarks.peer import PACKAGE, require_peer
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure
from utils.detections import Detections, Truth
from utils.heap import keep_heap
from utils.metrics import COCO_IOUS, COCO_MAX_DETECTIONS, Matches, best_f1_confidence, coco_aps, curves, match, paper_ap

CLASSES = 3
DETECTIONS = 10  # per image
CELL = 160.0  # pixels: objects of an image stand apart, one in a cell of a 4 x 4 grid


def made_up(images: int, seed: int = 0) -> tuple[list[Detections], list[Truth]]:
    """1 to 5 objects an image, and detections that lie the nearer at them the surer they are, so that all rules of matching agree."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        count = int(rng.integers(1, 6))
        cells = rng.permutation(16)[:count]
        centre = (np.stack([cells % 4, cells // 4], 1) + 0.5) * CELL
        half = rng.uniform(15, 45, (count, 2))
        boxes, kinds = np.concatenate([centre - half, centre + half], 1), rng.integers(CLASSES, size=count)
        own = rng.integers(count, size=DETECTIONS)
        shift = np.sort(rng.uniform(0, 1, DETECTIONS))[:, None] * half[own]  # towards the lower right, each further than the one before
        scores = np.sort(rng.uniform(0.001, 1, DETECTIONS))[::-1]
        found = np.where(rng.random(DETECTIONS) < 0.95, kinds[own], (kinds[own] + 1) % CLASSES)
        detections.append(Detections((boxes[own] + np.tile(shift, 2)).astype(np.float32), scores.astype(np.float32), found.astype(np.int64)))
        truths.append(Truth(boxes.astype(np.float32), kinds.astype(np.int64)))
    return detections, truths


def _size(settings: Settings) -> int:
    """Images of a row; and the allocator is set as val.py and train.py set it, from which the peer gains as well."""
    keep_heap()
    return 200 if settings.quick else 10_000


def their_matching(detections: Sequence[Detections], truths: Sequence[Truth]) -> Callable[[], torch.Tensor]:
    """The peer's matching image by image, as its validation calls it: (n, 10) bool of all detections."""
    require_peer()
    process = import_module(f"{PACKAGE}.val").process_batch
    levels = torch.linspace(0.5, 0.95, 10)
    tables = [torch.from_numpy(np.column_stack([d.boxes, d.scores, d.classes]).astype(np.float32)) for d in detections]
    labels = [torch.from_numpy(np.column_stack([t.classes, t.boxes]).astype(np.float32)) for t in truths]
    return lambda: torch.cat([process(table, label, levels) for table, label in zip(tables, labels, strict=True)])


def matching(settings: Settings) -> Row:
    """Detections to objects at ten IoU thresholds; the same hits."""
    detections, truths = made_up(_size(settings))
    programs: dict[str, Program] = {OURS: lambda: match(detections, truths, COCO_IOUS)}
    if settings.peer:
        programs[PEER] = theirs = their_matching(detections, truths)
        ours = match(detections, truths, COCO_IOUS).truth.T >= 0
        assert np.array_equal(ours, theirs().numpy()), "the two programs match differently"
    return measure("matching", "s", programs, settings.rounds_or(3), note=f"{len(truths)} images, ten thresholds; equal hits")


def our_aps(matches: Matches) -> np.ndarray:
    """(classes, 10) AP; the confidence of the best F1 is found as well, as the peers do."""
    per_class = [curves(matches, cls) for cls in range(CLASSES)]
    best_f1_confidence([levels[0] for levels in per_class])
    return np.array([[paper_ap(one, 0.0) for one in levels] for levels in per_class])


def ap(settings: Settings) -> Row:
    """From matches to AP at ten thresholds and the confidence of the best F1; the same AP."""
    detections, truths = made_up(_size(settings))
    matches = match(detections, truths, COCO_IOUS)
    programs: dict[str, Program] = {OURS: lambda: our_aps(matches)}
    if settings.peer:
        require_peer()
        compute, hits, names = import_module(f"{PACKAGE}.utils.metrics").ap_per_class, matches.truth.T >= 0, dict(enumerate("abc"))
        programs[PEER] = theirs = lambda: compute(hits, matches.scores, matches.classes, matches.truth_classes, names=names)
        assert np.allclose(our_aps(matches), theirs()[5], rtol=0, atol=1e-6), "the two programs disagree on AP"
    return measure("ap", "s", programs, settings.rounds_or(15), note=f"{len(matches.scores)} detections, {CLASSES} classes, ten thresholds; equal AP")


def coco(settings: Settings) -> Row:
    """COCO's AP50 and AP50:95 from lists of detections; the same numbers as pycocotools gives."""
    detections, truths = made_up(_size(settings))
    assert np.allclose(coco_aps(detections, truths, CLASSES), pycocotools_aps(detections, truths, CLASSES), rtol=0, atol=1e-9)
    programs: dict[str, Program] = {OURS: lambda: coco_aps(detections, truths, CLASSES), PEER: lambda: pycocotools_aps(detections, truths, CLASSES)}
    return measure("coco", "s", programs, settings.rounds_or(3), note="peer: pycocotools, one area range, one limit of detections; equal to 1e-9")


def pycocotools_aps(detections: Sequence[Detections], truths: Sequence[Truth], classes: int) -> np.ndarray:
    """(classes, 2) AP50 and AP50:95 by pycocotools' own COCOeval, at most 100 detections per image and class; 0 where a class has no object."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": number} for number in range(len(truths))]
    categories = [{"id": number} for number in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        sides = []
        for annotations in (_annotations(truths, [np.zeros(len(t.classes)) for t in truths]), _annotations(detections, [d.scores for d in detections])):
            side = COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.params.maxDets = [COCO_MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        if not images or not classes:
            return np.zeros((classes, 2))
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # IoU thresholds, recalls, classes; -1 where a class has no object
    precision = np.clip(precision, 0, None).mean(1)
    return np.stack([precision[0], precision.mean(0)], 1)


def _annotations(items: Sequence[Detections | Truth], scores: Sequence[np.ndarray]) -> list[dict[str, object]]:
    """COCO annotations, numbered from 1 (pycocotools takes number 0 for 'not matched')."""
    result: list[dict[str, object]] = []
    for image, (item, item_scores) in enumerate(zip(items, scores, strict=True)):
        boxes = np.asarray(item.boxes, np.float64).reshape(-1, 4)
        sizes = boxes[:, 2:] - boxes[:, :2]
        rows = zip(np.concatenate([boxes[:, :2], sizes], 1).tolist(), sizes.prod(1).tolist(), item_scores.tolist(), item.classes.tolist(), strict=True)
        for box, area, score, cls in rows:
            result.append({"id": len(result) + 1, "image_id": image, "category_id": cls, "bbox": box, "area": area, "iscrowd": 0, "score": score})
    return result
