"""utils/draw.py: lines stand where the boxes are, labels inside the picture, in any script."""

from __future__ import annotations

import numpy as np
import pytest

from utils.detections import Detections
from utils.draw import class_colour, draw_boxes, draw_detections, line_width

GREY = np.full((120, 160, 3), 60, np.uint8)


def changed(image: np.ndarray, original: np.ndarray = GREY) -> np.ndarray:
    return (image != original).any(2)


def test_a_box_is_drawn_along_its_edges_only() -> None:
    drawn = draw_boxes(GREY, np.array([[30.0, 20.0, 110.0, 90.0]]), [""], [(255, 0, 0)], 2)
    mask = changed(drawn)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == pytest.approx((29, 110, 19, 90), abs=2)
    assert mask[20, 30:110].all() and mask[89, 31:110].all() and mask[20:90, 30].all() and mask[20:90, 109].all()
    assert not mask[25:85, 35:105].any()
    assert (GREY == 60).all(), "the image given is left as it was"


@pytest.mark.parametrize("box", [[0, 0, 40, 30], [150, 0, 160, 20], [-20, -20, 300, 300], [80, 110, 90, 119], [5.5, 5.5, 5.6, 5.6]])
@pytest.mark.parametrize("text", ["landslide 0.91", "滑坡 0.91", "a very long name that is wider than the whole picture 0.91"])
def test_labels_stay_inside_the_picture(box: list[float], text: str) -> None:
    plain = draw_boxes(GREY, np.array([box]), [""], [(0, 255, 0)], 1)
    labelled = draw_boxes(GREY, np.array([box]), [text], [(0, 255, 0)], 1)
    assert labelled.shape == GREY.shape
    rows, columns = np.nonzero(changed(labelled, plain))
    assert np.ptp(rows) >= 6 and np.ptp(columns) >= 40, "the strip is there, whole and readable"


def test_a_picture_smaller_than_a_label() -> None:
    tiny = np.zeros((4, 5, 3), np.uint8)
    assert draw_boxes(tiny, np.array([[0, 0, 5, 4]]), ["landslide"], [(255, 0, 0)]).shape == tiny.shape


def test_texts_differ_and_non_ascii_is_more_than_question_marks() -> None:
    pictures = [draw_boxes(GREY, np.array([[10, 60, 150, 110]]), [text], [(255, 0, 0)], 2) for text in ("slide", "glide", "éboulement", "eboulement", "Ж", "Ю")]
    for i, a in enumerate(pictures):
        for b in pictures[i + 1 :]:
            assert changed(a, b).any()


def test_switches_and_order() -> None:
    found = Detections(np.array([[20, 40, 80, 90], [20, 40, 80, 90]], np.float32), np.array([0.9, 0.3], np.float32), np.array([0, 1]))
    names = ("landslide", "rockfall")
    full, no_scores, bare = (draw_detections(GREY, found, names, 2, **switches) for switches in ({}, {"show_scores": False}, {"show_labels": False}))
    assert tuple(full[65, 20]) == class_colour(0), "the better one is on top"
    assert changed(full, no_scores).any() and changed(no_scores, bare).any()
    assert not changed(bare)[:35].any() and changed(full)[:38].any()


def test_colours_and_widths() -> None:
    colours = np.array([class_colour(i) for i in range(12)], float)
    apart = np.abs(colours[:, None] - colours[None]).sum(2) + 1000 * np.eye(12)
    assert apart.min() > 20
    assert line_width(GREY) == 2 and line_width(np.zeros((4000, 3000, 3), np.uint8)) == 10
