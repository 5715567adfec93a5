"""Detections on disk: exact round trips, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from utils.detections import Detections
from utils.errors import UserError
from utils.results import image_id, image_ids, label_rows, read_coco_results, write_coco_results


def some(rng: np.random.Generator, count: int, classes: int = 3) -> Detections:
    low = rng.random((count, 2)) * 900
    scores = np.sort(rng.random(count))[::-1].astype(np.float32)
    return Detections(np.concatenate([low, low + rng.random((count, 2)) * 100], 1).astype(np.float32), scores, rng.integers(0, classes, count))


def test_coco_results_read_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    detections = [some(rng, count) for count in (0, 1, 50, 300)]
    ids = image_ids([Path("a.jpg"), Path("x/007.png"), Path("滑坡.tif"), Path("b.c.jpg")])
    assert ids == ["a", 7, "滑坡", "b.c"]
    write_coco_results(tmp_path / "p.json", detections, ids)
    back, unknown = read_coco_results(tmp_path / "p.json", ids, 3)
    assert unknown == 0
    for before, after in zip(detections, back, strict=True):
        for name in ("boxes", "scores", "classes"):
            assert np.array_equal(getattr(before, name), getattr(after, name)) and getattr(before, name).dtype == getattr(after, name).dtype, name


def test_rows_are_plain_coco_results(tmp_path: Path) -> None:
    write_coco_results(tmp_path / "p.json", [Detections(np.array([[1, 2, 11, 22.5]], np.float32), np.array([0.25], np.float32), np.array([2]))], ["a"])
    assert json.loads((tmp_path / "p.json").read_text()) == [{"image_id": "a", "category_id": 2, "bbox": [1, 2, 10, 20.5], "score": 0.25}]
    write_coco_results(tmp_path / "none.json", [], [])
    assert read_coco_results(tmp_path / "none.json", [], 1) == ([], 0)


def test_rows_come_in_any_order_and_of_other_images(tmp_path: Path) -> None:
    rows = [("b", 0.2), ("007", 0.5), ("b", 0.9), ("elsewhere", 0.9)]
    rows = [{"image_id": key, "category_id": 0, "bbox": [0, 0, 5, 5], "score": value} for key, value in rows]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (seven, b), unknown = read_coco_results(tmp_path / "p.json", [7, "b"], 1)
    assert seven.scores.tolist() == [0.5] and b.scores == pytest.approx([0.9, 0.2]) and unknown == 1


def test_single_class_takes_any_category(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "category_id": 17, "bbox": [0, 0, 5, 5], "score": 1}]))
    (found,), _ = read_coco_results(tmp_path / "p.json", [1], 1, single_class=True)
    assert found.classes.tolist() == [0]


GOOD = {"image_id": "a", "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{]", r"p\.json:1: is not readable as JSON"),
        ("[" * 100000, r"p\.json: is not readable as JSON"),
        ("{}", r"a list of results .* was expected"),
        ("[3]", r"result 1: an object"),
        ([GOOD, {k: v for k, v in GOOD.items() if k != "score"}], r"p\.json: result 2: has no 'score'"),
        ([GOOD | {"category_id": 1}], r"result 1: category_id is 1; a class number from 0 to 0"),
        ([GOOD | {"category_id": "0"}], r"category_id is '0'"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"bbox is \[1, 2, 3\]"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], r"bbox is"),
        ([GOOD | {"bbox": [1, 2, float("nan"), 4]}], r"bbox is"),
        ([GOOD | {"score": 1.5}], r"score is 1\.5; a number from 0 to 1"),
        ([GOOD | {"score": float("nan")}], r"score is nan"),
        ([GOOD | {"image_id": [1]}], r"image_id is \[1\]"),
        ([GOOD | {"image_id": "z"}], r"none of its 1 results belongs to an image of the dataset \(image_id 'z' for example, while the dataset has 'a'\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "p.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_coco_results(tmp_path / "p.json", ["a"], 1)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        read_coco_results(tmp_path / "gone.json", ["a"], 1)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="is not a text file"):
        read_coco_results(tmp_path / "b.json", ["a"], 1)


def test_images_that_share_an_id_are_refused() -> None:
    assert image_id("a/12.jpg") == 12 and image_id("12a.jpg") == "12a" and image_id("².jpg") == "²"
    with pytest.raises(UserError, match=r"image_id 7 of COCO results"):
        image_ids([Path("x/007.jpg"), Path("y/7.png")])


def test_label_rows() -> None:
    found = Detections(np.array([[10, 20, 30, 60]], np.float32), np.array([0.5], np.float32), np.array([3]))
    assert label_rows(found, 100, 200, False) == "3 0.2 0.2 0.2 0.2\n"
    assert label_rows(found, 100, 200, True) == "3 0.2 0.2 0.2 0.2 0.5\n"
    assert label_rows(found.select(np.zeros(0, int)), 100, 200, True) == ""
