"""data/labels.py: good rows are kept, wrong ones told by line, and what is written reads back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels import OUTSIDE, Labels, format_yolo, parse_yolo

GOOD = "1 0.5 0.5 0.2 0.4\n"
GOOD_BOX = [0.4, 0.3, 0.6, 0.7]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1 0.5 0.5 0.2", "4 columns; 5 (class cx cy w h) or"),
        ("1 0.5 0.5 0.2 0.4 0.9", "6 columns"),
        ("1", "1 columns"),
        ("1 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 columns"),
        ("1 nan 0.5 0.2 0.4", "a value is not finite"),
        ("1 0.5 0.5 inf 0.4", "a value is not finite"),
        ("nan 0.5 0.5 0.2 0.4", "a value is not finite"),
        ("1 -0.5 0.5 0.2 0.4", "reaches from (-0.6, 0.3)"),
        ("1 320 240 100 80", "shares of the image from 0 to 1 were expected"),
        ("1 0.5 1.2 0.2 0.4", "reaches from"),
        ("1 0.5 0.5 0 0.4", "width 0 and height 0.4 must be above 0"),
        ("1 0.5 0.5 0.2 -0.4", "must be above 0"),
        ("1 -0.05 0.5 0.1 0.4", "has no area inside the image"),
        ("1 0.5 0.5 1e-12 0.4", "has no area inside the image"),
        ("2 0.5 0.5 0.2 0.4", "class 2, but the dataset has 2 classes (0 to 1)"),
        ("15 0.5 0.5 0.2 0.4", "class 15, but the dataset has 2 classes"),
        ("-1 0.5 0.5 0.2 0.4", "class -1 is not a whole number from 0"),
        ("0.5 0.5 0.5 0.2 0.4", "class 0.5 is not a whole number from 0"),
        ("1,0.5,0.5,0.2,0.4", "commas; the numbers must be separated by spaces"),
        ("1 0,5 0,5 0,2 0,4", "commas"),
        ("slide 0.5 0.5 0.2 0.4", "'slide' is not a number"),
        ("1 0.5 0.5 0.2 0.4x", "'0.4x' is not a number"),
        ("1 0.5 0.5 0.5 0.5 0.5 0.5", "has no area inside the image"),
        ("1 0.1 0.1 0.9 0.1 0.5 1.4", "reaches from (0.1, 0.1) to (0.9, 1.4)"),
        ("<html>", "1 columns"),
        ("\x00\x00\x00", "1 columns"),
    ],
)
def test_a_wrong_row_is_told_and_the_others_kept(row: str, reason: str) -> None:
    found = parse_yolo(f"{GOOD}{row}\n0 0.25 0.25 0.5 0.5\n", "dir/a b.txt", 2)
    assert len(found.problems) == 1 and found.problems[0].startswith("dir/a b.txt:2: ") and reason in found.problems[0]
    assert found.labels.classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.labels.boxes, [GOOD_BOX, [0, 0, 0.5, 0.5]], atol=1e-6)
    assert (found.clipped, found.duplicates) == (0, 0)


def test_the_message_says_class_when_there_is_one() -> None:
    assert "the dataset has 1 class (0 to 0)" in parse_yolo("3 0.5 0.5 0.2 0.4", "a", 1).problems[0]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.rstrip("\n"),
        "\ufeff" + GOOD,
        "1 0.5 0.5 0.2 0.4\r\n",
        "\n\n   \n" + GOOD + "\n",
        "  1\t0.5   0.5 0.2\t0.4  \n",
        "1.0 .5 5e-1 2.0e-1 0.40\n",
        "+1 0.5 0.5 0.2 0.4\n",
    ],
)
def test_ways_to_write_the_same_row(text: str) -> None:
    found = parse_yolo(text, "a", 2)
    assert not found.problems and found.labels.classes.tolist() == [1]
    np.testing.assert_allclose(found.labels.boxes, [GOOD_BOX], atol=1e-6)
    assert found.labels.boxes.dtype == np.float32 and found.labels.classes.dtype == np.int64 and found.labels.polygons == (None,)


def test_lines_are_counted_as_an_editor_does() -> None:
    found = parse_yolo("\ufeff\r\n1 0.5 0.5 0.2 0.4\r\n\r\nbad\r\n9 0.5 0.5 0.1 0.1\r\n", "a", 2)
    assert [problem.split(": ")[0] for problem in found.problems] == ["a:4", "a:5"]


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "   \r\n  "])
def test_no_rows_is_no_problem(text: str) -> None:
    found = parse_yolo(text, "a", 1)
    assert len(found.labels) == 0 and found.labels.boxes.shape == (0, 4) and not found.problems


@pytest.mark.parametrize(
    ("row", "box", "clipped"),
    [
        ("0 0.5 0.5 1 1", [0, 0, 1, 1], 0),
        ("0 0.5 0.5 1.000001 1", [0, 0, 1, 1], 0),  # rounding of six digits
        ("0 0.05 0.5 0.2 0.5", [0, 0.25, 0.15, 0.75], 1),
        ("0 0.98 0.98 0.1 0.1", [0.93, 0.93, 1, 1], 1),
        ("0 0.5 0.5 1.2 1.2", [0, 0, 1, 1], 1),
        ("0 -0.05 0.2 0.5 0.2 0.3 0.8", [0, 0.2, 0.5, 0.8], 1),
    ],
)
def test_a_little_outside_is_cut_and_counted(row: str, box: list[float], clipped: int) -> None:
    found = parse_yolo(row, "a", 1)
    assert not found.problems and found.clipped == clipped
    np.testing.assert_allclose(found.labels.boxes, [box], atol=1e-6)
    assert found.labels.boxes.min() >= 0 and found.labels.boxes.max() <= 1
    assert all(p is None or (p.min() >= 0 and p.max() <= 1) for p in found.labels.polygons)


@pytest.mark.parametrize("row", ["0 0.05 0.5 0.32 0.5", "0 1.06 0.98 0.1 0.1", "0 0.5 0.5 1.21 1", "0 -0.11 0.2 0.5 0.2 0.3 0.8"])
def test_more_than_a_tenth_outside_is_wrong(row: str) -> None:
    assert OUTSIDE == 0.1 and "shares of the image" in parse_yolo(row, "a", 1).problems[0]


def test_duplicate_rows_are_dropped_and_counted() -> None:
    found = parse_yolo(GOOD + "1 0.50 0.5 0.2 0.400\n" + "0 0.5 0.5 0.2 0.4\n" + GOOD, "a", 2)
    assert found.duplicates == 2 and found.labels.classes.tolist() == [1, 0] and not found.problems
    outside = parse_yolo("0 0.98 0.5 0.1 0.1\n" * 3, "a", 1)
    assert (outside.duplicates, outside.clipped, len(outside.labels)) == (2, 1, 1), "a clipped box counts once"


def test_polygons_keep_their_points() -> None:
    found = parse_yolo("1 0.1 0.2 0.5 0.15 0.4 0.6\n" + GOOD, "a", 2)
    outline, none = found.labels.polygons
    assert none is None and outline is not None and outline.dtype == np.float32
    np.testing.assert_allclose(outline, [[0.1, 0.2], [0.5, 0.15], [0.4, 0.6]], atol=1e-6)
    np.testing.assert_allclose(found.labels.boxes, [[0.1, 0.15, 0.5, 0.6], GOOD_BOX], atol=1e-6)


share = st.floats(0, 1)


@st.composite
def labels(draw: st.DrawFn) -> Labels:
    """Objects at least a thousandth wide and high, as boxes and polygons."""
    rows: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    for _ in range(draw(st.integers(0, 5))):
        x0, y0 = draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99))
        box = np.array([x0, y0, draw(st.floats(x0 + 1e-3, 1)), draw(st.floats(y0 + 1e-3, 1))], np.float32)
        polygon = None
        if draw(st.booleans()):
            inner = [[draw(st.floats(float(box[0]), float(box[2]))), draw(st.floats(float(box[1]), float(box[3])))] for _ in range(draw(st.integers(1, 4)))]
            polygon = np.array([[box[0], box[1]], [box[2], box[3]], *inner], np.float32)
        rows.append((draw(st.integers(0, 4)), box, polygon))
    return Labels.from_rows(rows)


@given(labels())
def test_what_is_written_reads_back(original: Labels) -> None:
    found = parse_yolo(format_yolo(original), "a", 5)
    assert not found.problems and found.clipped == 0 and len(found.labels) == len(original) - found.duplicates
    if found.duplicates:
        return
    assert np.array_equal(found.labels.classes, original.classes)
    np.testing.assert_allclose(found.labels.boxes, original.boxes, atol=1.1e-6)
    for a, b in zip(found.labels.polygons, original.polygons, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            np.testing.assert_allclose(a, b, atol=6e-7)


@given(st.text(alphabet="0123456789.-+e nafi\t\n\r,x", max_size=80))
def test_any_text_gives_labels_inside_the_image(text: str) -> None:
    found = parse_yolo(text, "a", 3)
    rows = sum(bool(line.strip()) for line in text.splitlines())
    assert len(found.labels) + len(found.problems) + found.duplicates == rows
    boxes = found.labels.boxes
    assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((found.labels.classes >= 0) & (found.labels.classes < 3)).all()


def test_writing_boxes_and_polygons() -> None:
    polygon = np.array([[0.1, 0.2], [0.5, 0.2], [0.3, 0.6]], np.float32)
    text = format_yolo(Labels.from_rows([(0, np.array(GOOD_BOX), None), (3, np.array([0.1, 0.2, 0.5, 0.6]), polygon)]))
    assert text == "0 0.500000 0.500000 0.200000 0.400000\n3 0.100000 0.200000 0.500000 0.200000 0.300000 0.600000\n"
    assert format_yolo(Labels.from_rows([])) == ""
