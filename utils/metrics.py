"""Metrics: detections against truth -> matches -> P-R curve -> AP under a named protocol -> Report.

Two protocols stand side by side, because their numbers must not be mixed up:

- `paper`: detections after NMS at IoU 0.5, the P-R curve cut at confidence 0.5, closed with (0, 1) and (1, 0), made monotone and
  integrated over 101 recalls with straight lines between its points. The line from the last point to (1, 0) is part of the area, so that
  this AP may exceed the recall; a flawless detector reaches 0.995, for the curve ends at (1, 0) whatever happens.
- `coco`: detections from confidence 0.001 on after NMS at IoU 0.6; AP50 and AP50:95 by pycocotools' rule, at most 100 detections per image.

A detection's match depends only on detections with higher scores. So one matching, done on all detections, serves every confidence
cut, every curve and (by weights per image) every bootstrap sample.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from utils.detections import Detections, Truth

PAPER_CONFIDENCE, PAPER_NMS_IOU = 0.5, 0.5
COCO_CONFIDENCE, COCO_NMS_IOU, COCO_MAX_DETECTIONS = 0.001, 0.6, 100
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # to the last bit as COCO's evaluation makes them
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

    @functools.cached_property
    def hits(self) -> np.ndarray:
        """(t, n) bool: whether each detection hits an object."""
        return self.truth >= 0

    def found(self, confidence: float, level: int = 0) -> np.ndarray:
        """(m,) bool: objects hit by a detection with score >= confidence, at the IoU threshold number `level`."""
        hit = self.truth[level, self.scores >= confidence]
        result = np.zeros(len(self.truth_classes), bool)
        result[hit[hit >= 0]] = True
        return result

    def per_image(self, confidence: float, level: int = 0) -> np.ndarray:
        """(images, 3) int64: true positives, false positives, missed objects of each image at this confidence."""
        used = self.scores >= confidence
        right = used & self.hits[level]
        lost = ~self.found(confidence, level)
        parts = (self.image[right], self.image[used & ~right], self.truth_image[lost])
        return np.stack([np.bincount(part, minlength=self.images) for part in parts], 1)


def match(detections: Sequence[Detections], truths: Sequence[Truth], thresholds: Sequence[float] = (0.5,)) -> Matches:
    """Match each image's detections to its objects: by falling score (equal scores in the given order), each detection takes
    the free object of its class with the highest IoU, if that is at least the threshold (equal IoU: the last object, as in COCO's evaluation).
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
    pairs = _near_pairs(image, classes, boxes, truth_image, truth_classes, truth_boxes, min(thresholds, default=1.0))
    detection, truth, overlap, bounds = _in_turns(*pairs, image, scores)
    levels = np.array(thresholds, np.float64)[:, None]
    for start, end in itertools.pairwise(bounds.tolist()):
        level, pair = np.nonzero((overlap[start:end] >= levels) & ~taken[:, truth[start:end]])
        chooser, choice = detection[start + pair], truth[start + pair]
        first = np.flatnonzero((np.diff(chooser, prepend=-1) != 0) | (np.diff(level, prepend=-1) != 0))  # the best free object of each detection
        hit[level[first], chooser[first]] = choice[first]
        taken[level[first], choice[first]] = True
    return Matches(tuple(thresholds), image, scores, classes, hit, truth_image, truth_classes, len(detections))


def _joined(parts: Sequence[np.ndarray], dtype: type, *shape: int) -> np.ndarray:
    return np.concatenate(parts).astype(dtype).reshape(-1, *shape) if len(parts) else np.zeros((0, *shape), dtype)


def _near_pairs(
    image: np.ndarray,
    classes: np.ndarray,
    boxes: np.ndarray,
    truth_image: np.ndarray,
    truth_classes: np.ndarray,
    truth_boxes: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (detection, truth, IoU) of one image and class with IoU >= threshold and > 0, in the order of detections, then of objects."""
    first = np.searchsorted(truth_image, image, "left")
    count = np.searchsorted(truth_image, image, "right") - first
    detection = np.repeat(np.arange(len(image)), count)
    truth = np.arange(len(detection)) + np.repeat(first - (np.cumsum(count) - count), count)
    (left, top, right, bottom), (truth_left, truth_top, truth_right, truth_bottom) = boxes.T.copy(), truth_boxes.T.copy()
    # Most pairs lie apart: each step leaves fewer for the next.
    same = np.flatnonzero(classes[detection] == truth_classes[truth])
    detection, truth = detection[same], truth[same]
    width = np.minimum(right[detection], truth_right[truth]) - np.maximum(left[detection], truth_left[truth])
    meet = np.flatnonzero(width > 0)
    detection, truth, width = detection[meet], truth[meet], width[meet]
    height = np.minimum(bottom[detection], truth_bottom[truth]) - np.maximum(top[detection], truth_top[truth])
    meet = np.flatnonzero(height > 0)
    detection, truth, shared = detection[meet], truth[meet], width[meet] * height[meet]
    areas, truth_areas = (right - left) * (bottom - top), (truth_right - truth_left) * (truth_bottom - truth_top)
    overlap = shared / (areas[detection] + truth_areas[truth] - shared)
    near = np.flatnonzero(overlap >= threshold)
    return detection[near], truth[near], overlap[near]


def _in_turns(
    detection: np.ndarray, truth: np.ndarray, overlap: np.ndarray, image: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pairs (detection, truth, IoU) in the order in which they may choose, and where each turn begins (one more: the end).

    In one turn each image plays at most one detection, its next best, so that all images can choose at once. A detection's pairs stand
    by falling IoU, equal ones from the last object to the first.
    """
    players = detection[np.flatnonzero(np.diff(detection, prepend=-1))]
    players = players[np.lexsort((-scores[players], image[players]))]
    turn = np.arange(len(players)) - np.searchsorted(image[players], image[players], "left")
    place = np.zeros(len(image), np.int64)
    place[players[np.argsort(turn, kind="stable")]] = np.arange(len(players))
    order = np.lexsort((-overlap[::-1], place[detection[::-1]]))
    detection, truth, overlap = (values[::-1][order] for values in (detection, truth, overlap))
    ends = np.cumsum(np.bincount(turn))
    return detection, truth, overlap, np.searchsorted(place[detection], np.concatenate([[0], ends]))


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
    return curves(matches, cls, weights, (level,))[0]


def curves(matches: Matches, cls: int, weights: np.ndarray | None = None, levels: Sequence[int] | None = None) -> list[Curve]:
    """As `curve`, at several IoU thresholds (default: all) from one sorting."""
    own = np.flatnonzero(matches.classes == cls)
    own = own[np.argsort(-matches.scores[own])]  # equal scores enter together, so that their order does not matter
    scores, objects = matches.scores[own], matches.truth_image[matches.truth_classes == cls]
    weight = None if weights is None else np.asarray(weights, np.float64)[matches.image[own]]
    total = np.arange(1.0, len(own) + 1) if weight is None else np.cumsum(weight)
    last = np.flatnonzero(scores[:-1] != scores[1:])
    last = np.append(last, len(own) - 1) if len(own) else last
    if weight is not None:  # images of weight 0 are not in the sample: a point that only they make would bend the curve
        last = last[np.diff(total[last], prepend=0.0) > 0]
    positives = float(len(objects) if weights is None else np.asarray(weights, np.float64)[objects].sum())
    result = []
    for level in range(len(matches.thresholds)) if levels is None else levels:
        hits = matches.hits[level][own]
        tp = (np.cumsum(hits) if weight is None else np.cumsum(weight * hits))[last].astype(np.float64)
        result.append(Curve(scores[last], tp, total[last] - tp, positives))
    return result


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


def coco_aps(detections: Sequence[Detections], truths: Sequence[Truth], classes: int) -> np.ndarray:
    """(classes, 2) AP50 and AP50:95 by COCO's rule, at most 100 detections per image and class; 0 where a class has no object.

    The numbers of pycocotools' COCOeval for boxes (all areas), to the last digits: equal scores stay in the order of the images, as there.
    """
    matches = match([found if len(found) <= COCO_MAX_DETECTIONS else best_of_each_class(found) for found in detections], truths, COCO_IOUS)
    order = np.argsort(-matches.scores, kind="stable")
    kinds, hit = matches.classes[order], matches.hits[:, order]
    table = np.zeros((classes, 2))
    for cls in range(classes):
        positives = np.count_nonzero(matches.truth_classes == cls)
        own = np.flatnonzero(kinds == cls)
        if not positives or not len(own):
            continue
        tp = np.cumsum(hit[:, own], 1)
        precision = np.maximum.accumulate((tp / np.arange(1, len(own) + 1))[:, ::-1], 1)[:, ::-1]
        # A recall is first reached by the detection that makes this many hits.
        needed = np.searchsorted(np.arange(positives + 1) / positives, RECALLS, "left")
        reached = [np.append(row, 0.0)[np.searchsorted(hits, needed, "left")] for hits, row in zip(tp, precision, strict=True)]
        per_level = np.mean(reached, 1)
        table[cls] = per_level[0], per_level.mean()
    return table


def best_of_each_class(found: Detections) -> Detections:
    """The detections that are among the best COCO_MAX_DETECTIONS of their class."""
    order = np.lexsort((-found.scores, found.classes))
    kinds = found.classes[order]
    return found.select(np.sort(order[np.arange(len(found)) - np.searchsorted(kinds, kinds, "left") < COCO_MAX_DETECTIONS]))


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
        lines.append(f"coco: pycocotools' rule, detections from confidence {COCO_CONFIDENCE:g}, at most {COCO_MAX_DETECTIONS} per image")
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
    coco = coco_aps(detections if coco_detections is None else coco_detections, truths, len(names))
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
