"""How much of a difference is noise: AP on bootstrap samples of the test images, and the intervals that follow.

A sample draws as many sources as there are, with replacement; all images of a source (its augmented versions) come along, for they are no
independent witnesses. It is a row of weights, how often each image counts, and the same rows are laid on every model: the differences are
paired. A detection's match does not depend on other images, so matching is done once per model, and what remains is sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.detections import Detections, Truth
from utils.metrics import COCO_IOUS, PAPER_CONFIDENCE, RECALLS, Matches, best_of_each_class, match

RESAMPLES = 1000
LEVEL = 0.95  # of the intervals
CHUNK = 50  # samples at a time: their weights stay in the processor's cache


@dataclass(frozen=True)
class Interval:
    """A difference and where it may well lie, in the unit of what was compared."""

    value: float
    low: float
    high: float
    seed_error: float | None = None  # standard error of the difference over seeds, where both sides have several

    @property
    def within_seeds(self) -> bool:
        """Whether training again with other seeds may well undo the difference: it is below twice its standard error over seeds."""
        return self.seed_error is not None and abs(self.value) < 2 * self.seed_error

    @property
    def holds_zero(self) -> bool:
        """Whether there may be no difference at all."""
        return self.low <= 0 <= self.high


def draw_weights(clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples, images) float32: how often each image is in each bootstrap sample. `clusters` names the source of every image."""
    _, source = np.unique(np.asarray(clusters, str), return_inverse=True)
    count = int(source.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(count, size=count), minlength=count)[source] for _ in range(resamples)]
    return np.array(drawn, np.float32).reshape(resamples, len(source))


def interval(value: float, samples: np.ndarray) -> Interval:
    """The percentile interval (95 %) of bootstrap samples (b,) around the value measured on the images as they are."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def paper_samples(detections: Sequence[Detections], truths: Sequence[Truth], classes: int, weights: np.ndarray, cut: float = PAPER_CONFIDENCE) -> np.ndarray:
    """(b,) AP in [0, 0.995] under the `paper` protocol for every row of `weights` (b, images): utils.metrics.paper_ap of the weighted curve."""
    matches = match([found.select(found.scores >= cut) for found in detections], truths)
    return _mean_of_classes(np.stack([_paper_class(matches, cls, weights) for cls in range(classes)]), matches, weights)


def coco_samples(detections: Sequence[Detections], truths: Sequence[Truth], classes: int, weights: np.ndarray) -> np.ndarray:
    """(b, 2) AP50 and AP50:95 in [0, 1] under the `coco` protocol for every row of `weights` (b, images): utils.metrics.coco_ap of the curves.

    Equal scores enter together, where the report takes them in the order of the images: no sample depends on how images are named.
    """
    matches = match([best_of_each_class(found) for found in detections], truths, COCO_IOUS)
    return _mean_of_classes(np.stack([_coco_class(matches, cls, weights) for cls in range(classes)]), matches, weights)


def _mean_of_classes(values: np.ndarray, matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes (first axis) that have objects in a sample; 0 where none has."""
    present = np.stack([_positives(matches, cls, weights) > 0 for cls in range(len(values))]).astype(np.float64)
    present = present.reshape(*present.shape, *[1] * (values.ndim - 2))
    result: np.ndarray = (values * present).sum(0) / np.maximum(present.sum(0), 1)
    return result


def _positives(matches: Matches, cls: int, weights: np.ndarray) -> np.ndarray:
    """(b,) weighted objects of a class."""
    count = np.bincount(matches.truth_image[matches.truth_classes == cls], minlength=matches.images)
    result: np.ndarray = weights.astype(np.float64) @ count
    return result


def _by_score(matches: Matches, cls: int) -> tuple[np.ndarray, np.ndarray]:
    """(detections of the class by falling score, number of the group of equal scores that each belongs to)."""
    own = np.flatnonzero(matches.classes == cls)
    own = own[np.argsort(-matches.scores[own], kind="stable")]
    return own, np.cumsum(np.diff(matches.scores[own], prepend=np.inf) != 0) - 1


def _chunks(weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their weights as (images, rows)) of a few samples at a time."""
    for start in range(0, len(weights), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, np.ascontiguousarray(weights[rows].T)


def _sums(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """(groups, b) float64: sums of the rows of `values` (n, b) that belong to each group; `group` (n,) never falls."""
    result = np.zeros((groups, values.shape[1]))
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if len(starts):
        result[group[starts]] = np.add.reduceat(values, starts, axis=0)
    return result


def _paper_class(matches: Matches, cls: int, weights: np.ndarray) -> np.ndarray:
    """(b,) paper AP of one class, from matches of detections that are already cut."""
    own, group = _by_score(matches, cls)
    positives, result = _positives(matches, cls, weights), np.zeros(len(weights))
    if not len(own):
        return result
    right, points = matches.truth[0, own] >= 0, int(group[-1]) + 1
    for rows, part in _chunks(weights):
        counts = part[matches.image[own]]
        tp, used = (np.cumsum(_sums(values, which, points), 0) for values, which in ((counts[right], group[right]), (counts, group)))
        recall = (tp / np.maximum(positives[rows], 1)).T
        # Where nothing is drawn yet, the point falls on the curve's start (0, 1).
        precision = np.divide(tp, used, out=np.ones_like(tp), where=used > 0).T
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        for number in range(part.shape[1]):
            if used[-1, number] > 0 and positives[rows][number] > 0:
                x, y = np.concatenate([[0.0], recall[number], [1.0]]), np.concatenate([[1.0], envelope[number], [0.0]])
                sampled = np.interp(RECALLS, x, y)
                result[rows.start + number] = np.mean((sampled[1:] + sampled[:-1]) / 2)
    return result


def _coco_class(matches: Matches, cls: int, weights: np.ndarray) -> np.ndarray:
    """(b, 2) AP50 and AP50:95 of one class.

    Precision is highest at a group of equal scores that holds a hit; only there is it needed, and all that follows the last hit is left out.
    """
    own, group = _by_score(matches, cls)
    positives, result = _positives(matches, cls, weights), np.zeros((len(weights), len(matches.thresholds)))
    hits = matches.truth[:, own] >= 0
    with_hit = np.unique(group[hits.any(0)])
    if not len(with_hit):
        return result[:, :2]
    point = np.searchsorted(with_hit, group)  # the first point at or behind each detection
    seen = point < len(with_hit)
    own, point, hits = own[seen], point[seen], hits[:, seen]
    for rows, part in _chunks(weights):
        counts = part[matches.image[own]]
        used = np.cumsum(_sums(counts, point, len(with_hit)), 0)
        for level, hit in enumerate(hits):
            tp = np.cumsum(_sums(counts[hit], point[hit], len(with_hit)), 0)
            precision = np.divide(tp, used, out=np.zeros_like(tp), where=used > 0)
            envelope = np.maximum.accumulate(precision[::-1], 0)[::-1]
            recall = (tp / np.maximum(positives[rows], 1)).T.copy()
            best = np.concatenate([envelope, np.zeros((1, envelope.shape[1]))]).T
            for number in range(part.shape[1]):
                if positives[rows][number] > 0:
                    result[rows.start + number, level] = best[number, np.searchsorted(recall[number], RECALLS, "left")].mean()
    return np.stack([result[:, 0], result.mean(1)], 1)
