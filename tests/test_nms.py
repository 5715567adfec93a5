"""utils/nms.py against greedy suppression written out as loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import nms as module
from utils.nms import nms


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two xyxy boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference(
    rows: np.ndarray,
    conf: float,
    iou: float,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
) -> list[tuple[np.ndarray, float, int]]:
    """(box, score, class) of what is kept in one image, best first."""
    found = []
    for cx, cy, w, h, objectness, *probabilities in rows:
        scores = [np.float32(objectness) * np.float32(p) for p in probabilities]
        for cls, score in enumerate(scores):
            if score > conf and (multi_label or cls == int(np.argmax(scores))) and (classes is None or cls in classes):
                found.append((np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]), float(score), cls))
    kept: list[tuple[np.ndarray, float, int]] = []
    for box, score, cls in sorted(found, key=lambda item: -item[1]):
        if all(overlap(box, other) <= iou for other, _, other_cls in kept if agnostic or cls == other_cls):
            kept.append((box, score, cls))
    return kept[:max_det]


def crowd(seed: int, count: int, classes: int, places: int = 12) -> np.ndarray:
    """Decoded predictions (count, 5 + classes) that crowd around a few places, as a detector's do; all scores differ."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 320, (places, 2))[rng.integers(places, size=count)] + rng.normal(0, 6, (count, 2))
    objectness = rng.permutation(np.linspace(0.01, 0.99, count))
    return np.concatenate([centre, rng.uniform(20, 80, (count, 2)), objectness[:, None], rng.uniform(0.1, 1, (count, classes))], 1).astype(np.float32)


def check(rows: np.ndarray, **settings: object) -> int:
    found = nms(torch.from_numpy(rows)[None], **settings)[0]  # type: ignore[arg-type]
    expected = reference(rows, **settings)  # type: ignore[arg-type]
    assert found.classes.tolist() == [cls for _, _, cls in expected]
    np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, np.array([box for box, _, _ in expected]).reshape(-1, 4), atol=1e-3)
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)
    return len(expected)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("wanted", [None, [0, 2], [1], []])
def test_equals_the_loops(classes: int, agnostic: bool, multi_label: bool, wanted: list[int] | None) -> None:
    rows = crowd(3, 150, classes)
    kept = check(rows, conf=0.2, iou=0.45, classes=wanted, agnostic=agnostic, multi_label=multi_label)
    assert kept == 0 if wanted == [] or (classes == 1 and wanted == [1]) else 0 < kept < 150


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 4), st.sampled_from([0.001, 0.25, 0.6]), st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.booleans())
def test_equals_the_loops_for_any_crowd(seed: int, count: int, classes: int, conf: float, iou: float, multi_label: bool) -> None:
    check(crowd(seed, count, classes, 4), conf=conf, iou=iou, multi_label=multi_label)


@pytest.mark.parametrize("max_det", [1, 5, 300])
def test_more_boxes_than_one_chunk(max_det: int) -> None:
    rows = crowd(5, 1300, 2, 400)
    kept = check(rows, conf=0.001, iou=0.3, max_det=max_det)
    assert kept == max_det, "so many stand apart that every limit is reached"


def test_a_chunk_of_copies_does_not_hide_what_comes_after_it() -> None:
    rows = np.tile(np.array([[50, 50, 40, 40, 0.9, 1.0]], np.float32), (module.FIRST_CHUNK + 40, 1))
    rows[:, 4] = np.linspace(0.9, 0.8, len(rows))
    rows[-1, :2] = 200  # the weakest of all stands alone
    assert check(rows, conf=0.1, iou=0.5) == 2


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(crowd(6, 700, 2, 40))[None]
    whole = nms(rows, 0.01, 0.4)[0]
    for size in (1, 7, 699, 700, 701):
        monkeypatch.setattr(module, "FIRST_CHUNK", size)
        found = nms(rows, 0.01, 0.4)[0]
        assert np.array_equal(found.boxes, whole.boxes) and np.array_equal(found.scores, whole.scores)


def test_only_the_best_candidates_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CANDIDATES", 10)
    rows = crowd(7, 60, 1)
    best = rows[np.argsort(-(rows[:, 4] * rows[:, 5]))[:10]]
    found, expected = nms(torch.from_numpy(rows)[None], 0.01, 0.5)[0], reference(best, 0.01, 0.5)
    np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], rtol=1e-6)


def test_images_of_a_batch_do_not_mix_and_may_be_empty() -> None:
    rows = crowd(8, 40, 2)
    empty = rows.copy()
    empty[:, 4] = 0
    first, nothing, again = nms(torch.from_numpy(np.stack([rows, empty, rows])), 0.2, 0.5)
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.classes.dtype == np.int64
    assert len(first) > 0 and np.array_equal(first.boxes, again.boxes)
    assert [len(found) for found in nms(torch.zeros(2, 0, 7), 0.2, 0.5)] == [0, 0]


def test_thresholds_are_exclusive_and_input_is_left_alone() -> None:
    rows = torch.tensor([[[50.0, 50, 40, 40, 0.5, 1.0], [70, 50, 40, 40, 0.75, 1.0]]])  # IoU of the two: 1 / 3
    before = rows.clone()
    assert len(nms(rows, 0.5, 0.5)[0]) == 1, "a score equal to conf is out"
    assert len(nms(rows, 0.4, 0.34)[0]) == 2 and len(nms(rows, 0.4, 0.33)[0]) == 1
    assert torch.equal(rows, before)


def test_half_precision_and_values_that_are_not_finite() -> None:
    rows = torch.from_numpy(crowd(9, 50, 2))
    assert len(nms(rows.half()[None], 0.3, 0.5)[0]) == pytest.approx(len(nms(rows[None], 0.3, 0.5)[0]), abs=2)
    rows[:5, 4] = float("nan")
    found, expected = nms(rows[None], 0.3, 0.5)[0], nms(rows[None, 5:], 0.3, 0.5)[0]
    assert np.array_equal(found.boxes, expected.boxes), "a score that is no number is no detection"
