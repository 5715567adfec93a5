"""Metrics: cases with known answers, slow references, and properties that hold for any input."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.metrics import pycocotools_aps
from utils import metrics
from utils.boxes import iou
from utils.detections import Detections, Truth


def found(rows: list[tuple[float, float, float, float, float, int]]) -> Detections:
    """Detections from (x1, y1, x2, y2, score, class) rows."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def there(rows: list[tuple[float, float, float, float, int]]) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 5)
    return Truth(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64))


def random_images(rng: np.random.Generator, images: int, classes: int = 2, ties: bool = False) -> tuple[list[Detections], list[Truth]]:
    """Objects on a coarse grid with detections shaken around them, and some out of the blue."""
    detections, truths = [], []
    for _ in range(images):
        objects = rng.integers(0, 5)
        low = rng.integers(0, 60, (objects, 2))
        boxes = np.concatenate([low, low + rng.integers(14, 40, (objects, 2))], 1)
        kinds = rng.integers(0, classes, objects)
        truths.append(Truth(boxes.astype(np.float32), kinds.astype(np.int64)))
        copies = rng.integers(0, objects, rng.integers(0, 8)) if objects else np.zeros(0, np.int64)
        shaken = boxes[copies] + rng.integers(-6, 7, (len(copies), 4))
        stray = rng.integers(0, 3)
        stray_low = rng.integers(0, 60, (stray, 2))
        all_boxes = np.concatenate([shaken, np.concatenate([stray_low, stray_low + rng.integers(5, 40, (stray, 2))], 1)])
        all_kinds = np.concatenate([kinds[copies], rng.integers(0, classes, stray)])
        scores = rng.random(len(all_boxes)).astype(np.float32)
        scores = (np.round(scores * 5) / 5).astype(np.float32) if ties else scores
        order = np.argsort(-scores, kind="stable")
        detections.append(Detections(all_boxes[order].astype(np.float32), scores[order], all_kinds[order].astype(np.int64)))
    return detections, truths


# ------------------------------------------------------------------------------------------------ slow references


def slow_match(detections: list[Detections], truths: list[Truth], threshold: float) -> list[list[int]]:
    """Per image and detection: the position of the object it hits in that image, or -1."""
    result = []
    for seen, real in zip(detections, truths, strict=True):
        overlap = iou(seen.boxes.astype(np.float64), real.boxes.astype(np.float64))
        hit, taken = [-1] * len(seen), set()
        for d in sorted(range(len(seen)), key=lambda d: -seen.scores[d]):
            best = -1
            for t in range(len(real.classes)):
                if t in taken or real.classes[t] != seen.classes[d] or overlap[d, t] < threshold:
                    continue
                if best < 0 or overlap[d, t] >= overlap[d, best]:
                    best = t
            if best >= 0:
                hit[d] = best
                taken.add(best)
        result.append(hit)
    return result


def slow_paper_ap(scored: list[tuple[float, bool]], positives: int, cut: float) -> float:
    """PAPER.md section 3, word by word, for (score, right) pairs."""
    scored = sorted((pair for pair in scored if pair[0] >= cut), reverse=True, key=lambda pair: pair[0])
    if not scored or not positives:
        return 0.0
    points = [(0.0, 1.0)]
    for score in sorted({s for s, _ in scored}, reverse=True):
        kept = [right for s, right in scored if s >= score]
        points.append((sum(kept) / positives, sum(kept) / len(kept)))
    points.append((1.0, 0.0))
    points = [(recall, max(p for _, p in points[i:])) for i, (recall, _) in enumerate(points)]

    def precision_at(recall: float) -> float:
        left = max(i for i, point in enumerate(points) if point[0] <= recall)
        if left == len(points) - 1:
            return points[-1][1]
        (r0, p0), (r1, p1) = points[left], points[left + 1]
        return p0 + (p1 - p0) * (recall - r0) / (r1 - r0)

    samples = [precision_at(k / 100) for k in range(101)]
    return sum((a + b) / 2 * 0.01 for a, b in itertools.pairwise(samples))


# -------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize("ties", [False, True])
def test_matching_equals_the_slow_reference(ties: bool) -> None:
    rng = np.random.default_rng(0)
    detections, truths = random_images(rng, 120, ties=ties)
    thresholds = (0.3, 0.5, 0.75)
    matches = metrics.match(detections, truths, thresholds)
    starts = np.cumsum([0, *(len(t.classes) for t in truths)])
    hits = 0
    for level, threshold in enumerate(thresholds):
        expected = [t if t < 0 else t + start for hit, start in zip(slow_match(detections, truths, threshold), starts, strict=False) for t in hit]
        assert matches.truth[level].tolist() == expected
        hits += sum(t >= 0 for t in expected)
    assert hits > 100  # the comparison is about something


def test_the_order_of_detections_within_an_image_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    detections, truths = random_images(rng, 40)
    shuffled = [d.select(rng.permutation(len(d))) for d in detections]
    first, second = metrics.match(detections, truths), metrics.match(shuffled, truths)
    assert np.array_equal(first.per_image(0.3), second.per_image(0.3))
    assert np.array_equal(first.found(0.3), second.found(0.3))


def test_greedy_takes_the_highest_free_iou_and_only_its_own_class() -> None:
    truth = there([(0, 0, 10, 10, 0), (4, 0, 14, 10, 0), (50, 50, 60, 60, 1)])
    seen = found(
        [
            (1, 0, 11, 10, 0.9, 0),  # object 0: IoU 9/11; object 1: 7/13
            (1, 0, 11, 10, 0.8, 0),  # object 0 is taken; object 1 is 7/13 = 0.538
            (50, 50, 60, 60, 0.7, 0),  # the right place, the wrong class
            (0, 0, 10, 10, 0.6, 0),  # everything near is taken
        ]
    )
    matches = metrics.match([seen], [truth], (0.5, 0.6))
    assert matches.truth.tolist() == [[0, 1, -1, -1], [0, -1, -1, -1]]
    assert matches.per_image(0.0).tolist() == [[2, 2, 1]]
    assert matches.per_image(0.75).tolist() == [[2, 0, 1]]
    assert matches.found(0.85).tolist() == [True, False, False]


def test_iou_exactly_at_the_threshold_counts() -> None:
    matches = metrics.match([found([(0, 0, 10, 5, 0.9, 0)])], [there([(0, 0, 10, 10, 0)])])
    assert matches.truth.tolist() == [[0]]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 images with detections, 2 with truth"):
        metrics.match([found([])], [there([]), there([])])


# ------------------------------------------------------------------------------------------------- paper protocol


def test_paper_ap_of_one_right_detection_of_two_objects_by_hand() -> None:
    # Points (0, 1), (0.5, 1), (1, 0): a plateau of area 0.5 and a triangle of area 0.25.
    curve = metrics.Curve(np.array([0.9]), np.array([1.0]), np.array([0.0]), 2.0)
    assert metrics.paper_ap(curve) == pytest.approx(0.75)


def test_paper_ap_of_a_flawless_detector_is_0_995() -> None:
    # The curve stays at 1 up to recall 0.99 and is 0 at recall 1: the last of 100 trapezoids is half full.
    curve = metrics.Curve(np.array([0.9, 0.8]), np.array([1.0, 2.0]), np.array([0.0, 0.0]), 2.0)
    assert metrics.paper_ap(curve) == pytest.approx(0.995)


def test_paper_ap_can_stand_above_the_recall() -> None:
    # The paper's own P and R: one point (0.9456, 0.9760) makes an AP near its 97.06, above the recall.
    curve = metrics.Curve(np.array([0.5]), np.array([9456.0]), np.array([9456.0 / 0.9760 - 9456.0]), 10000.0)
    assert 0.9456 < metrics.paper_ap(curve) == pytest.approx(0.9608, abs=1e-3)


def test_paper_ap_with_a_false_positive_first_by_hand() -> None:
    # One object; wrong at 0.9, right at 0.8: points (0, 0), (1, 0.5) -> after the envelope 0.5 up to recall 1, then 0 at 1.
    curve = metrics.Curve(np.array([0.9, 0.8]), np.array([0.0, 1.0]), np.array([1.0, 1.0]), 1.0)
    assert metrics.paper_ap(curve) == pytest.approx(0.5 * 0.995)


def test_paper_ap_ignores_what_lies_below_the_cut() -> None:
    both = metrics.Curve(np.array([0.9, 0.499]), np.array([1.0, 2.0]), np.array([0.0, 0.0]), 2.0)
    assert metrics.paper_ap(both) == pytest.approx(0.75)
    assert metrics.paper_ap(both, 0.4) == pytest.approx(0.995)
    at_the_cut = metrics.Curve(np.array([0.9, 0.5]), np.array([1.0, 2.0]), np.array([0.0, 0.0]), 2.0)
    assert metrics.paper_ap(at_the_cut) == pytest.approx(0.995)


scored_lists = st.lists(st.tuples(st.integers(0, 40).map(lambda n: n / 40), st.booleans()), max_size=30)


def curve_of(scored: list[tuple[float, bool]], positives: int) -> metrics.Curve:
    """A curve by way of `match`: every right detection lies on an object of its own image, every wrong one on nothing."""
    detections = [found([(0, 0, 10, 10, score, 0)]) for score, _ in scored]
    truths = [there([(0, 0, 10, 10, 0)] if right else []) for _, right in scored]
    missed = positives - sum(right for _, right in scored)
    matches = metrics.match([*detections, *[found([])] * missed], [*truths, *[there([(0, 0, 10, 10, 0)])] * missed])
    return metrics.curve(matches, 0)


@given(scored_lists, st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5]))
@settings(max_examples=150, deadline=None)
def test_paper_ap_equals_the_slow_reference(scored: list[tuple[float, bool]], missed: int, cut: float) -> None:
    positives = sum(right for _, right in scored) + missed
    fast = metrics.paper_ap(curve_of(scored, positives), cut)
    assert fast == pytest.approx(slow_paper_ap(scored, positives, cut), abs=1e-9)
    assert 0 <= fast <= 0.995 + 1e-12


@given(scored_lists.filter(lambda rows: any(not right for _, right in rows)), st.integers(0, 5), st.data())
@settings(max_examples=100, deadline=None)
def test_removing_a_false_positive_never_lowers_ap_or_precision(scored: list[tuple[float, bool]], missed: int, data: st.DataObject) -> None:
    wrong = data.draw(st.sampled_from([i for i, (_, right) in enumerate(scored) if not right]))
    positives = sum(right for _, right in scored) + missed
    before, after = curve_of(scored, positives), curve_of(scored[:wrong] + scored[wrong + 1 :], positives)
    assert metrics.coco_ap(after) >= metrics.coco_ap(before) - 1e-12
    assert metrics.paper_ap(after, 0.0) >= metrics.paper_ap(before, 0.0) - 1e-12
    confidence = np.linspace(0, 1, 21)
    still = np.searchsorted(-after.confidence, -confidence, "right") > 0  # a detector that says nothing has precision 0
    assert (after.at(confidence)[0] >= before.at(confidence)[0] - 1e-12)[still].all()


# ------------------------------------------------------------------------------------------ curves, F1, bootstrap


@pytest.mark.parametrize("ties", [False, True])
def test_image_order_changes_nothing(ties: bool) -> None:
    rng = np.random.default_rng(5)
    detections, truths = random_images(rng, 30, ties=ties)
    order = rng.permutation(30)
    reports = [metrics.score(d, t, ["a", "b"]) for d, t in ((detections, truths), ([detections[i] for i in order], [truths[i] for i in order]))]
    first, second = (r.overall for r in reports)
    assert first.chosen == second.chosen and first.best == second.best and first.paper_ap == second.paper_ap


def test_weights_equal_repeated_images() -> None:
    rng = np.random.default_rng(6)
    detections, truths = random_images(rng, 25, classes=1, ties=True)
    drawn = rng.integers(0, 25, 25)
    matches = metrics.match(detections, truths)
    weighted = metrics.curve(matches, 0, weights=np.bincount(drawn, minlength=25))
    repeated = metrics.curve(metrics.match([detections[i] for i in drawn], [truths[i] for i in drawn]), 0)
    assert weighted.positives == repeated.positives
    for name in ("confidence", "tp", "fp"):
        assert np.array_equal(getattr(weighted, name), getattr(repeated, name)), name
    assert metrics.paper_ap(weighted, 0.2) == metrics.paper_ap(repeated, 0.2) > 0


def test_curve_at_a_confidence_equals_counting() -> None:
    rng = np.random.default_rng(7)
    detections, truths = random_images(rng, 30, classes=1, ties=True)
    matches = metrics.match(detections, truths)
    curve = metrics.curve(matches, 0)
    for confidence in (0.0, 0.2, 0.21, 0.6, 1.0, 1.1):
        kept = [d.select(d.scores.astype(np.float64) >= confidence) for d in detections]
        tp = sum(t >= 0 for hit in slow_match(kept, truths, 0.5) for t in hit)
        seen, real = sum(map(len, kept)), sum(len(t.classes) for t in truths)
        expected = (tp / seen if seen else 0, tp / real, 2 * tp / (seen + real))
        assert [float(v) for v in curve.at(np.array(confidence))] == pytest.approx(expected)


def test_best_f1_is_the_best_of_all_thresholds_and_its_printed_value_reproduces_it() -> None:
    rng = np.random.default_rng(8)
    detections, truths = random_images(rng, 60, classes=3)
    curves = [metrics.curve(metrics.match(detections, truths), cls) for cls in range(3)]
    best = metrics.best_f1_confidence(curves)
    every = np.unique(np.concatenate([c.confidence for c in curves]))
    mean = np.mean([c.at(every)[2] for c in curves], 0)
    reached = np.mean([float(c.at(np.array(best))[2]) for c in curves])
    assert reached == pytest.approx(mean.max()) and reached > 0.2
    assert float(f"{best:g}") == best


def test_best_f1_confidence_has_few_digits() -> None:
    curve = metrics.Curve(np.array([0.876543, 0.412345, 0.31]), np.array([1.0, 2.0, 2.0]), np.array([0.0, 0.0, 5.0]), 2.0)
    assert metrics.best_f1_confidence([curve]) == 0.41
    crowded = metrics.Curve(np.array([0.412345, 0.412341]), np.array([2.0, 2.0]), np.array([0.0, 5.0]), 2.0)
    assert metrics.best_f1_confidence([crowded]) == 0.412345 - 0.000001 or 0.412341 < metrics.best_f1_confidence([crowded]) <= 0.412345
    assert metrics.best_f1_confidence([]) == 0.5


# -------------------------------------------------------------------------------------------------- coco protocol


def test_coco_ap_by_hand() -> None:
    # Two objects, one found (IoU 0.8) and one wrong detection above it. AP50: precision 0.5 up to recall 0.5 = 51 of 101 samples.
    seen = found([(70, 70, 90, 90, 0.9, 0), (0, 0, 10, 8, 0.8, 0)])
    real = there([(0, 0, 10, 10, 0), (30, 30, 50, 50, 0)])
    ap50, ap50_95 = metrics.coco_aps([seen], [real], 1)[0]
    assert ap50 == pytest.approx(0.5 * 51 / 101)
    assert ap50_95 == pytest.approx(0.5 * 51 / 101 * 7 / 10)  # found at IoU 0.50, 0.55 ... 0.80


def test_coco_ap_of_a_flawless_detector_is_one() -> None:
    boxes = [(0, 0, 10, 10), (20, 20, 50, 60)]
    seen = found([(*box, 0.9 - i / 10, i) for i, box in enumerate(boxes)])
    real = there([(*box, i) for i, box in enumerate(boxes)])
    assert metrics.coco_aps([seen] * 3, [real] * 3, 2) == pytest.approx(np.ones((2, 2)))


def test_coco_keeps_a_hundred_detections_of_an_image() -> None:
    strays = [(200, 200, 210, 210, 0.9, 0)] * 100
    last = [(0, 0, 10, 10, 0.5, 0)]
    real = there([(0, 0, 10, 10, 0)])
    assert metrics.coco_aps([found(strays[:99] + last)], [real], 1)[0, 0] == pytest.approx(1 / 100)
    assert metrics.coco_aps([found(strays + last)], [real], 1)[0, 0] == 0


def test_coco_ap_of_a_curve_equals_coco_aps_where_scores_differ() -> None:
    """Detections of one score enter a curve together, but COCO's evaluation one by one."""
    detections, truths = random_images(np.random.default_rng(9), 80, classes=3)
    matches = metrics.match(detections, truths, metrics.COCO_IOUS)
    own = np.array([[metrics.coco_ap(metrics.curve(matches, cls, level)) for level in range(10)] for cls in range(3)])
    found = metrics.coco_aps(detections, truths, 3)
    assert found.min() > 0.05
    assert np.stack([own[:, 0], own.mean(1)], 1) == pytest.approx(found, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 4), st.booleans(), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_coco_aps_equal_pycocotools(seed: int, images: int, classes: int, ties: bool, copies: int) -> None:
    """Ties of scores and of IoU, objects that stand twice, empty images, missing classes, more than 100 detections of a class in an image."""
    rng = np.random.default_rng(seed)
    detections, truths = random_images(rng, images, classes, ties)
    truths = [Truth(np.repeat(t.boxes, 1 + i % 2, 0), np.repeat(t.classes, 1 + i % 2)) for i, t in enumerate(truths)]
    detections = [d.select(np.repeat(np.arange(len(d)), copies if i % 3 == 0 else 1)) for i, d in enumerate(detections)]
    np.testing.assert_allclose(metrics.coco_aps(detections, truths, classes), pycocotools_aps(detections, truths, classes), rtol=0, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- report


def test_report_of_a_case_by_hand() -> None:
    seen = [found([(0, 0, 10, 10, 0.9, 0), (80, 80, 90, 90, 0.6, 0), (30, 30, 50, 50, 0.3, 0)]), found([(5, 5, 9, 9, 0.2, 0)])]
    real = [there([(0, 0, 10, 10, 0), (30, 30, 50, 50, 0)]), there([])]
    report = metrics.score(seen, real, ["landslide"])
    assert report.images == 2
    (scores,) = report.classes
    assert (scores.objects, scores.images) == (2, 1)
    assert scores.chosen == metrics.Operating(0.5, 0.5, 0.5, 0.5, 1, 1, 1)
    assert (scores.best.confidence, scores.best.tp, scores.best.fp, scores.best.fn) == (0.3, 2, 1, 0)
    assert scores.best.f1 == pytest.approx(0.8)
    # Points (0, 1), (0.5, 1), (0.5, 0.5), (1, 0): at recall 0.5 the curve falls from 1 to 0.5, on a grid point.
    assert scores.paper_ap == pytest.approx(0.49 + (1 + 0.5) / 2 * 0.01 + 0.5 * 0.5 / 2)
    # Recall 0.5 at precision 1 (51 samples), recall 1 at precision 2/3 (50 samples).
    assert scores.coco_ap50 == pytest.approx((51 + 50 * 2 / 3) / 101) == scores.coco_ap50_95
    assert report.overall.chosen == scores.chosen and report.overall.paper_ap == scores.paper_ap


def test_two_lists_for_two_protocols() -> None:
    real = [there([(0, 0, 10, 10, 0)])]
    nothing, right = [found([])], [found([(0, 0, 10, 10, 0.9, 0)])]
    report = metrics.score(nothing, real, ["a"], coco_detections=right)
    assert (report.overall.paper_ap, report.overall.coco_ap50) == (0, pytest.approx(1))


EDGE_CASES = {
    "no images": ([], []),
    "no truth, no detections": ([found([])], [there([])]),
    "no truth": ([found([(0, 0, 5, 5, 0.9, 0)])], [there([])]),
    "no detections": ([found([])], [there([(0, 0, 5, 5, 0)])]),
    "an empty class": ([found([(0, 0, 5, 5, 0.9, 0), (0, 0, 5, 5, 0.9, 1)])], [there([(0, 0, 5, 5, 0)])]),
    "boxes without area": ([found([(3, 3, 3, 3, 0.9, 0)])], [there([(3, 3, 3, 3, 0)])]),
}


@pytest.mark.parametrize("case", EDGE_CASES)
def test_edge_cases_give_plain_finite_numbers(case: str) -> None:
    report = metrics.score(*EDGE_CASES[case], ["a", "b"])

    def check(value: object) -> None:
        if isinstance(value, dict):
            for part in value.values():
                check(part)
        elif isinstance(value, list):
            for part in value:
                check(part)
        elif not isinstance(value, str):
            assert isinstance(value, (int, float)) and math.isfinite(value), value

    check(json.loads(json.dumps(report.to_dict())))
    assert "nan" not in report.table()


def test_a_class_without_objects_is_left_out_of_the_means_but_its_wrong_detections_count() -> None:
    report = metrics.score(*EDGE_CASES["an empty class"], ["a", "b"])
    assert report.overall.paper_ap == report.classes[0].paper_ap == pytest.approx(0.995)
    assert (report.overall.chosen.precision, report.overall.chosen.fp) == (1, 1)
    assert report.table().splitlines()[-3].split()[:3] == ["b", "0", "0"] and "-" in report.table().splitlines()[-3]


def test_table_names_both_protocols_and_both_thresholds() -> None:
    rng = np.random.default_rng(10)
    report = metrics.score(*random_images(rng, 40), ["landslide", "rockfall"], confidence=0.35)
    table = report.table()
    for words in ("at confidence 0.35", f"confidence {report.overall.best.confidence:g}", "paper", "coco", "AP50:95", "landslide", "rockfall", "all"):
        assert words in table
    lines = table.splitlines()
    assert len({len(line) for line in lines[:6]}) == 1  # the columns are straight
    assert f"{100 * report.overall.paper_ap:.2f}" in lines[3]
