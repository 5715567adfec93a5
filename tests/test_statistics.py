"""The bootstrap on made-up predictions whose answer is known, and against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from reproduction.statistics import coco_samples, draw_weights, interval, paper_samples
from utils.detections import Detections, Truth
from utils.metrics import COCO_IOUS, best_of_each_class, coco_ap, curve, match, paper_ap, score


def made_up(rng: np.random.Generator, images: int, classes: int = 1, noise: float = 6.0, shift: float = 0.0, rounded: bool = False) -> list[Detections]:
    """Detections of the objects of `truths(images)`: noisy boxes, some missing, some of nothing."""
    found = []
    for truth in truths(images, classes):
        seen = rng.random(len(truth.boxes)) < 0.85
        boxes = np.concatenate([truth.boxes[seen] + rng.normal(0, noise, (seen.sum(), 4)) + shift, rng.random((2, 4)) * 50 + (0, 0, 60, 60)])
        scores = np.concatenate([0.4 + 0.6 * rng.random(seen.sum()), 0.7 * rng.random(2)])
        scores = np.round(scores, 1) if rounded else scores
        order = np.argsort(-scores, kind="stable")
        kinds = np.concatenate([truth.classes[seen], rng.integers(classes, size=2)])
        found.append(Detections(boxes[order].astype(np.float32), scores[order].astype(np.float32), kinds[order]))
    return found


def truths(images: int, classes: int = 1) -> list[Truth]:
    rng = np.random.default_rng(42)
    result = []
    for _ in range(images):
        corner, count = rng.random((2, 2)) * 200, int(rng.integers(0, 3))
        boxes = np.concatenate([corner, corner + 60 + 40 * rng.random((2, 2))], 1)[:count]
        result.append(Truth(boxes.astype(np.float32), rng.integers(classes, size=count)))
    return result


def reference(found: list[Detections], truth: list[Truth], classes: int, weights: np.ndarray) -> tuple[float, float, float]:
    """Paper AP, AP50 and AP50:95 of one sample, by the curves that val.py's report is made of."""
    papers, cocos = [], []
    deployed, coco = match(found, truth), match([best_of_each_class(one) for one in found], truth, COCO_IOUS)
    for cls in range(classes):
        if curve(deployed, cls, 0, weights).positives:
            papers.append(paper_ap(curve(deployed, cls, 0, weights)))
            cocos.append([coco_ap(curve(coco, cls, level, weights)) for level in range(len(COCO_IOUS))])
    return (float(np.mean(papers)), float(np.mean(cocos, 0)[0]), float(np.mean(cocos))) if papers else (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("images", "classes", "rounded"), [(30, 1, False), (30, 1, True), (40, 3, True), (3, 2, False), (1, 1, False)])
def test_samples_are_the_reports_own_figures_on_the_drawn_images(images: int, classes: int, rounded: bool) -> None:
    found, truth = made_up(np.random.default_rng(1), images, classes, rounded=rounded), truths(images, classes)
    weights = draw_weights([str(i) for i in range(images)], 60)
    paper, coco = paper_samples(found, truth, classes, weights), coco_samples(found, truth, classes, weights)
    for number, row in enumerate(weights):
        np.testing.assert_allclose([paper[number], *coco[number]], reference(found, truth, classes, row), atol=1e-12)


def test_all_weights_one_is_the_plain_report() -> None:
    found, truth = made_up(np.random.default_rng(2), 50, 2), truths(50, 2)
    ones = np.ones((1, 50), np.float32)
    overall = score(found, truth, ["a", "b"]).overall
    assert paper_samples(found, truth, 2, ones)[0] == pytest.approx(overall.paper_ap, abs=1e-12)
    assert coco_samples(found, truth, 2, ones)[0] == pytest.approx([overall.coco_ap50, overall.coco_ap50_95], abs=1e-9)


def test_nothing_found_and_nothing_there() -> None:
    nothing = [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))] * 4
    weights = draw_weights(list("abcd"), 5)
    empty = [Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))] * 4
    for found, truth in ((nothing, truths(4)), (made_up(np.random.default_rng(0), 4), empty)):
        assert (paper_samples(found, truth, 1, weights) == 0).all() and (coco_samples(found, truth, 1, weights) == 0).all()


def test_identical_models_differ_by_exactly_nothing() -> None:
    found, truth = made_up(np.random.default_rng(3), 60), truths(60)
    weights = draw_weights([str(i) for i in range(60)], 200)
    again = [Detections(one.boxes.copy(), one.scores.copy(), one.classes.copy()) for one in found]
    for samples in (paper_samples, coco_samples):
        difference = samples(again, truth, 1, weights) - samples(found, truth, 1, weights)
        assert (difference == 0).all()
        assert interval(0.0, difference.reshape(len(weights), -1)[:, 0]).holds_zero


def test_two_noise_versions_of_one_model_do_not_differ_but_a_shifted_copy_does() -> None:
    images = 250
    truth, weights = truths(images), draw_weights([str(i) for i in range(images)], 400)
    first, second, shifted = (made_up(np.random.default_rng(seed), images, shift=shift) for seed, shift in ((10, 0.0), (11, 0.0), (10, 14.0)))
    ones = np.ones((1, images), np.float32)
    for samples in (paper_samples, lambda *a: coco_samples(*a)[:, 1]):
        values = [float(samples(found, truth, 1, ones)[0]) for found in (first, second, shifted)]
        drawn = [samples(found, truth, 1, weights) for found in (first, second, shifted)]
        noise = interval(values[1] - values[0], drawn[1] - drawn[0])
        real = interval(values[2] - values[0], drawn[2] - drawn[0])
        assert noise.low < noise.value < noise.high and noise.holds_zero
        assert real.low < real.value < real.high and not real.holds_zero and real.high < 0
        # Pairing is worth it: the unpaired interval of a small shift is wider.
        unpaired = interval(0.0, drawn[2] - np.roll(drawn[0], 1))
        assert unpaired.high - unpaired.low > real.high - real.low


def test_weights_are_draws_of_whole_sources() -> None:
    clusters = ["a", "b", "a", "c", "d", "c"]
    weights = draw_weights(clusters, 500)
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 5])
    np.testing.assert_array_equal(weights[:, [0, 1, 3, 4]].sum(1), 4)  # four sources are drawn
    assert abs(weights.mean() - 1) < 0.1 and weights.std() > 0.5
    np.testing.assert_array_equal(draw_weights(clusters, 500), weights)
    assert (draw_weights(clusters, 500, seed=1) != weights).any()


def test_images_that_repeat_each_other_widen_the_interval() -> None:
    """Six versions of every image say no more than one: the interval of the six together is that of the one."""
    images = 40
    truth, first, second = truths(images), *(made_up(np.random.default_rng(seed), images) for seed in (5, 6))
    widths: list[float] = []
    for copies, clusters in ((1, range(images)), (6, list(range(images)) * 6), (6, range(6 * images))):
        weights = draw_weights([f"{one:04}" for one in clusters], 400)
        drawn = [paper_samples(found * copies, truth * copies, 1, weights) for found in (first, second)]
        found = interval(0.0, drawn[1] - drawn[0])
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)
    assert widths[2] < 0.6 * widths[0]


def test_best_of_each_class_keeps_a_hundred_of_each_class() -> None:
    rng = np.random.default_rng(0)
    scores, classes = np.sort(rng.random(350))[::-1].astype(np.float32), rng.integers(2, size=350)
    kept = best_of_each_class(Detections(rng.random((350, 4)).astype(np.float32), scores, classes))
    for cls in range(2):
        np.testing.assert_array_equal(kept.scores[kept.classes == cls], scores[classes == cls][:100])
    assert (np.diff(kept.scores) <= 0).all()
