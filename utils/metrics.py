"""Metrics: detections against truth -> matches -> P-R curve -> AP under a named protocol -> Report.

Two protocols stand side by side, because their numbers must not be mixed up:

- `paper`: detections after NMS at IoU 0.5, the P-R curve cut at confidence 0.5, closed with (0, 1) and (1, 0), made monotone and
  integrated over 101 recalls with straight lines between its points. The line from the last point to (1, 0) is part of the area, so that
  this AP may exceed the recall; a flawless detector reaches 0.995, for the curve ends at (1, 0) whatever happens.
- `coco`: detections from confidence 0.001 on after NMS at IoU 0.6; AP50 and AP50:95 by pycocotools, at most 100 detections per image.

A detection's match depends only on detections with higher scores. So one matching, done on all detections, serves every confidence
cut, every curve and (by weights per image) every bootstrap sample.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from utils.detections import Detections, Truth

PAPER_CONFIDENCE, PAPER_NMS_IOU = 0.5, 0.5
COCO_CONFIDENCE, COCO_NMS_IOU, COCO_MAX_DETECTIONS = 0.001, 0.6, 100
COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101)


# ------------------------------------------------------------------------------------------------------ matching


@dataclass(frozen=True)
class Matches:
    """Which detections hit which objects. All images lie end to end: n detections, m objects, at t IoU thresholds."""

    thresholds: tuple[float, ...]  # t of them
    image: np.ndarray  # (n,) int64, the image of each detection
    scores: np.ndarray  # (n,) float64
    classes: np.ndarray  # (n,) int64
    truth: np.ndarray  # (t, n) int64, the object each detection hits (0 to m - 1), -1 where it hits none
    truth_image: np.ndarray  # (m,) int64
    truth_classes: np.ndarray  # (m,) int64
    images: int

    def found(self, confidence: float, level: int = 0) -> np.ndarray:
        """(m,) bool: objects hit by a detection with score >= confidence, at the IoU threshold number `level`."""
        hit = self.truth[level, self.scores >= confidence]
        result = np.zeros(len(self.truth_classes), bool)
        result[hit[hit >= 0]] = True
        return result

    def per_image(self, confidence: float, level: int = 0) -> np.ndarray:
        """(images, 3) int64: true positives, false positives, missed objects of each image at this confidence."""
        used = self.scores >= confidence
        right = used & (self.truth[level] >= 0)
        lost = ~self.found(confidence, level)
        parts = (self.image[right], self.image[used & ~right], self.truth_image[lost])
        return np.stack([np.bincount(part, minlength=self.images) for part in parts], 1)


def match(detections: Sequence[Detections], truths: Sequence[Truth], thresholds: Sequence[float] = (0.5,)) -> Matches:
    """Match each image's detections to its objects: by falling score (equal scores in the given order), each detection takes
    the free object of its class with the highest IoU, if that is at least the threshold (equal IoU: the first object).
    """
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} images with detections, {len(truths)} with truth")
    image = np.repeat(np.arange(len(detections)), [len(d) for d in detections])
    truth_image = np.repeat(np.arange(len(truths)), [len(t.classes) for t in truths])
    scores = _joined([d.scores for d in detections], np.float64)
    classes, truth_classes = _joined([d.classes for d in detections], np.int64), _joined([t.classes for t in truths], np.int64)
    boxes = _joined([d.boxes for d in detections], np.float64, 4)
    truth_boxes = _joined([t.boxes for t in truths], np.float64, 4)

    hit = np.full((len(thresholds), len(scores)), -1, np.int64)
    taken = np.zeros((len(thresholds), len(truth_classes)), bool)
    detection, truth, overlap, turn = _candidates(image, scores, classes, boxes, truth_image, truth_classes, truth_boxes, min(thresholds, default=1.0))
    # In one turn each image plays at most one detection, so that all images can choose at once.
    bounds = np.searchsorted(turn, np.arange(turn.max(initial=-1) + 2))
    for start, end in itertools.pairwise(bounds):
        for level, threshold in enumerate(thresholds):
            free = start + np.flatnonzero((overlap[start:end] >= threshold) & ~taken[level, truth[start:end]])
            best = free[np.flatnonzero(np.diff(detection[free], prepend=-1))]  # the first free pair of each detection
            hit[level, detection[best]] = truth[best]
            taken[level, truth[best]] = True
    return Matches(tuple(thresholds), image, scores, classes, hit, truth_image, truth_classes, len(detections))


def _joined(parts: Sequence[np.ndarray], dtype: type, *shape: int) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype).reshape(-1, *shape) for part in parts] or [np.zeros((0, *shape), dtype)])


def _candidates(
    image: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    boxes: np.ndarray,
    truth_image: np.ndarray,
    truth_classes: np.ndarray,
    truth_boxes: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (detection, truth, IoU, turn) of one image and class with IoU >= threshold, in the order in which they may choose:
    by turn (the detection's rank in its image), then detection, then falling IoU."""
    first = np.searchsorted(truth_image, image, "left")
    count = np.searchsorted(truth_image, image, "right") - first
    detection = np.repeat(np.arange(len(image)), count)
    truth = np.arange(len(detection)) + np.repeat(first - (np.cumsum(count) - count), count)
    same = classes[detection] == truth_classes[truth]
    detection, truth = detection[same], truth[same]
    overlap = _paired_iou(boxes[detection], truth_boxes[truth])
    near = (overlap >= threshold) & (overlap > 0)
    detection, truth, overlap = detection[near], truth[near], overlap[near]

    players = np.unique(detection)
    players = players[np.lexsort((players, -scores[players], image[players]))]
    rank = np.arange(len(players)) - np.searchsorted(image[players], image[players], "left")
    turn = np.zeros(len(image), np.int64)
    turn[players] = rank
    order = np.lexsort((truth, -overlap, detection, turn[detection]))
    return detection[order], truth[order], overlap[order], turn[detection][order]


def _paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (k,) of paired xyxy boxes (k, 4); 0 where both are empty."""
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return _ratio(shared, union)


# -------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """Counts of one class at every confidence where they change: k distinct scores, highest first.

    Detections of equal score enter together: no cut can tell them apart, and the order of the images changes nothing.
    """

    confidence: np.ndarray  # (k,)
    tp: np.ndarray  # (k,) true positives among detections with score >= confidence
    fp: np.ndarray  # (k,) false positives among them
    positives: float  # objects of the class

    @property
    def recall(self) -> np.ndarray:
        """(k,) in [0, 1], rising; 0 where the class has no object."""
        return self.tp / max(self.positives, 1e-12) if self.positives > 0 else np.zeros(len(self.tp))

    @property
    def precision(self) -> np.ndarray:
        """(k,) in [0, 1]."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def f1(self) -> np.ndarray:
        """(k,) in [0, 1], 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, self.tp + self.fp + self.positives)

    def at(self, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall, F1 (each of confidence's shape) of the detections with score >= confidence; 0 where there are none."""
        used = np.searchsorted(-self.confidence, -np.asarray(confidence), "right")
        return tuple(np.append(0.0, values)[used] for values in (self.precision, self.recall, self.f1))  # type: ignore[return-value]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result = np.zeros(np.shape(part), np.float64)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def curve(matches: Matches, cls: int, level: int = 0, weights: np.ndarray | None = None) -> Curve:
    """The curve of class `cls` at IoU threshold number `level`.

    `weights` (images,) >= 0 counts each image so many times: a bootstrap sample is np.bincount of the images drawn.
    """
    weights = np.ones(matches.images) if weights is None else np.asarray(weights, np.float64)
    own = np.flatnonzero(matches.classes == cls)
    own = own[np.argsort(-matches.scores[own], kind="stable")]
    scores, weight, right = matches.scores[own], weights[matches.image[own]], matches.truth[level, own] >= 0
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    tp, fp = np.cumsum(weight * right), np.cumsum(weight * ~right)
    # Images of weight 0 are not in the sample: a point that only they make would bend the curve.
    grown = np.diff((tp + fp)[last], prepend=0.0) > 0
    last = last[grown]
    positives = weights[matches.truth_image[matches.truth_classes == cls]].sum()
    return Curve(scores[last], tp[last], fp[last], float(positives))


def paper_points(curve: Curve, confidence: float = PAPER_CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (k,) of the `paper` protocol's curve: cut, closed and made monotone; both empty without a detection or object."""
    keep = curve.confidence >= confidence
    if curve.positives <= 0 or not keep.any():
        return np.zeros(0), np.zeros(0)
    recall = np.concatenate([[0.0], curve.recall[keep], [1.0]])
    precision = np.concatenate([[1.0], curve.precision[keep], [0.0]])
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def paper_ap(curve: Curve, confidence: float = PAPER_CONFIDENCE) -> float:
    """AP in [0, 0.995] under the `paper` protocol; 0 where the class has no object or no detection.

    Where several points share a recall, the lowest counts: it is where the line to the next recall begins.
    """
    recall, precision = paper_points(curve, confidence)
    if not len(recall):
        return 0.0
    sampled = np.interp(RECALLS, recall, precision)
    return float(np.mean((sampled[1:] + sampled[:-1]) / 2))


def coco_ap(curve: Curve) -> float:
    """AP in [0, 1] at one IoU threshold by COCO's rule: the mean over 101 recalls of the best precision at that recall or beyond.

    What pycocotools computes from detections cut at 100 per image and class; a few microseconds, where a bootstrap needs thousands.
    """
    best = np.append(np.maximum.accumulate(curve.precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(curve.recall, RECALLS, "left")].mean()) if curve.positives > 0 else 0.0


def best_f1_confidence(curves: Sequence[Curve]) -> float:
    """The confidence at which the mean F1 of the classes is highest (of several, the highest; 0.5 where no F1 is above 0).

    Every cut between two neighbouring scores gives the same numbers: the one with the fewest digits is returned, so that
    the printed threshold reproduces them.
    """
    scores = np.concatenate([c.confidence for c in curves] or [np.zeros(0)])
    gain = np.concatenate([np.diff(c.f1, prepend=0.0) for c in curves] or [np.zeros(0)])
    order = np.argsort(-scores, kind="stable")
    scores, mean = scores[order], np.cumsum(gain[order])
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    scores, mean = scores[last], mean[last]
    if not len(scores) or mean.max() <= 0:
        return 0.5
    best = int(np.flatnonzero(mean >= mean.max() - 1e-9)[0])
    high, low = float(scores[best]), float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    for digits in range(2, 10):
        rounded = np.floor(high * 10**digits) / 10**digits
        if low < rounded <= high:
            return float(rounded)
    return high


# ------------------------------------------------------------------------------------------------- coco protocol


def pycocotools_ap(detections: Sequence[Detections], truths: Sequence[Truth], classes: int) -> np.ndarray:
    """(classes, 2) AP50 and AP50:95 by pycocotools' own COCOeval, at most 100 detections per image and class; 0 where a class has no object."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": number} for number in range(len(truths))]
    categories = [{"id": number} for number in range(classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        sides = []
        for annotations in (_annotations(truths, [np.zeros(len(t.classes)) for t in truths]), _annotations(detections, [d.scores for d in detections])):
            coco = COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
            sides.append(coco)
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


# -------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Operating:
    """What a detector does at one confidence, IoU 0.5."""

    confidence: float
    precision: float
    recall: float
    f1: float
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Scores:
    """Everything measured for one class, or for all of them. Shares in [0, 1]; 0 where a value has no meaning (see `objects`)."""

    name: str
    images: int  # images that hold such an object
    objects: int
    chosen: Operating  # at the confidence asked for
    best: Operating  # at the confidence of the best mean F1
    paper_ap: float
    coco_ap50: float
    coco_ap50_95: float


@dataclass(frozen=True)
class Report:
    """Result of a validation. `overall` holds the counts of all classes and the means over the classes that have objects."""

    images: int
    overall: Scores
    classes: tuple[Scores, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for report.json; the protocol of each AP is part of its name."""
        return {"images": self.images, "overall": _plain(self.overall), "classes": [_plain(scores) for scores in self.classes]}

    def table(self, notes: bool = True) -> str:
        """The report as text: a row for all classes, then, where there are several, one for each that was there or detected.

        Shares in %. With `notes` two lines below say what the protocols mean.
        """
        seen = [row for row in self.classes if row.objects or row.chosen.fp or row.best.fp]
        rows = [self.overall, *(seen if len(self.classes) > 1 else ())]
        name_width = max(9, *(len(row.name) for row in rows))
        chosen, best = (f"at confidence {self.overall.chosen.confidence:g}", f"at best F1, confidence {self.overall.best.confidence:g}")
        operating = f"{'P':>6} {'R':>6} {'F1':>6} {'TP':>6} {'FP':>6} {'FN':>6}"
        width = len(operating)
        lines = [
            f"{'':{name_width}} {'':>7} {'':>7} | {chosen:^{width}} | {best:^{width}} | {'paper':>6} | {'coco':^15}",
            f"{'class':{name_width}} {'images':>7} {'objects':>7} | {operating} | {operating} | {'AP':>6} | {'AP50':>7} {'AP50:95':>7}",
        ]
        lines.append("-" * len(lines[1]))
        for row in rows:
            images = self.images if row is self.overall else row.images
            cells = [f"{row.name:{name_width}} {images:7} {row.objects:7}"]
            for point in (row.chosen, row.best):
                shares = " ".join(_percent(share, row.objects, 6) for share in (point.precision, point.recall, point.f1))
                cells.append(f"{shares} {point.tp:6} {point.fp:6} {point.fn:6}")
            cells.append(_percent(row.paper_ap, row.objects, 6))
            cells.append(f"{_percent(row.coco_ap50, row.objects, 7)} {_percent(row.coco_ap50_95, row.objects, 7)}")
            lines.append(" | ".join(cells))
        if not notes:
            return "\n".join(lines)
        cut = self.overall.chosen.confidence
        lines.append(f"paper: P-R curve cut at confidence {cut:g}, closed at (0, 1) and (1, 0), IoU 0.5, straight lines, 101 recalls")
        lines.append(f"coco: pycocotools, detections from confidence {COCO_CONFIDENCE:g}, at most {COCO_MAX_DETECTIONS} per image")
        return "\n".join(lines)


def _percent(share: float, objects: int, width: int) -> str:
    return f"{100 * share:{width}.2f}" if objects else f"{'-':>{width}}"


def _plain(scores: Scores) -> dict[str, object]:
    return {
        "name": scores.name,
        "images": scores.images,
        "objects": scores.objects,
        "at_confidence": asdict(scores.chosen),
        "at_best_f1": asdict(scores.best),
        "paper": {"AP": scores.paper_ap},
        "coco": {"AP50": scores.coco_ap50, "AP50:95": scores.coco_ap50_95},
    }


def score(
    detections: Sequence[Detections],
    truths: Sequence[Truth],
    names: Sequence[str],
    coco_detections: Sequence[Detections] | None = None,
    confidence: float = PAPER_CONFIDENCE,
    matches: Matches | None = None,
) -> Report:
    """Measure the detections of some images against their truth, under both protocols.

    `detections`: after NMS at IoU 0.5 (the `paper` protocol), down to as low a score as the best F1 may need: they are cut at `confidence` here.
    `coco_detections`: from score 0.001 after NMS at IoU 0.6 (the `coco` protocol); None takes `detections` for both.
    `matches`: match(detections, truths), where the caller has it already. Classes are positions in `names`.
    """
    matches = match(detections, truths) if matches is None else matches
    coco = pycocotools_ap(detections if coco_detections is None else coco_detections, truths, len(names))
    curves = [curve(matches, cls) for cls in range(len(names))]
    best = best_f1_confidence([c for c in curves if c.positives])
    per_class = []
    for cls, (name, class_curve) in enumerate(zip(names, curves, strict=True)):
        holders = np.unique(matches.truth_image[matches.truth_classes == cls])
        points = (_operating(class_curve, confidence), _operating(class_curve, best))
        per_class.append(Scores(name, len(holders), int(class_curve.positives), *points, paper_ap(class_curve, confidence), *map(float, coco[cls])))
    return Report(len(truths), _overall(per_class, len(np.unique(matches.truth_image))), tuple(per_class))


def _operating(curve: Curve, confidence: float) -> Operating:
    used = int(np.searchsorted(-curve.confidence, -confidence, "right"))
    tp, fp = (round(float(counts[used - 1])) if used else 0 for counts in (curve.tp, curve.fp))
    precision, recall, f1 = (float(value) for value in curve.at(np.array(confidence)))
    return Operating(confidence, precision, recall, f1, tp, fp, round(curve.positives) - tp)


def _overall(classes: Sequence[Scores], images: int) -> Scores:
    present = [scores for scores in classes if scores.objects]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    def operating(all_points: Sequence[Operating], points: Sequence[Operating]) -> Operating:
        shares = (mean([p.precision for p in points]), mean([p.recall for p in points]), mean([p.f1 for p in points]))
        counts = (sum(p.tp for p in all_points), sum(p.fp for p in all_points), sum(p.fn for p in all_points))
        return Operating(all_points[0].confidence if all_points else 0.5, *shares, *counts)

    return Scores(
        "all",
        images,
        sum(scores.objects for scores in classes),
        operating([c.chosen for c in classes], [c.chosen for c in present]),
        operating([c.best for c in classes], [c.best for c in present]),
        mean([c.paper_ap for c in present]),
        mean([c.coco_ap50 for c in present]),
        mean([c.coco_ap50_95 for c in present]),
    )
