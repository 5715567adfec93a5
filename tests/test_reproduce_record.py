"""Records of finished runs: what is written is read back, and half a record is none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reproduction.record import ARRAYS, RECORD, RunRecord, load_record, load_records, save_record
from utils.detections import Detections, Truth
from utils.errors import UserError


def some(rng: np.random.Generator, count: int) -> Detections:
    return Detections(rng.random((count, 4)).astype(np.float32), -np.sort(-rng.random(count)).astype(np.float32), rng.integers(2, size=count))


def make_record(folder: Path, counts: tuple[int, ...] = (2, 0, 3)) -> RunRecord:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    found, coco = ([some(rng, count + extra) for count in counts] for extra in (0, 1))
    truths = [Truth(one.boxes, one.classes) for one in found]
    images = tuple(f"é/{i}.jpg" for i in range(len(counts)))
    lists: dict[str, Any] = {"images": images, "clusters": images, "detections": found, "coco_detections": coco, "truths": truths}
    settings = {"epochs": 3, "shortened": ["3 epochs instead of 300"]}
    return RunRecord("msfe", 1, "main", folder, settings, {"images": 3}, {"size:small": {}}, 7, 1.5, 9.0, 2.5, **lists)


def same(a: RunRecord, b: RunRecord) -> bool:
    for key in ("detections", "coco_detections", "truths"):
        for one, other in zip(getattr(a, key), getattr(b, key), strict=True):
            assert type(one) is type(other)
            for name in vars(one):
                left, right = getattr(one, name), getattr(other, name)
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
    empty = {"detections": [], "coco_detections": [], "truths": []}
    return replace(a, **empty) == replace(b, **empty)


@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0), (0, 4), ()])
def test_what_is_written_is_read_back(tmp_path: Path, counts: tuple[int, ...]) -> None:
    record = make_record(tmp_path / "runs" / "msfe-main-s1", counts)
    save_record(record)
    assert same(load_record(record.folder), record)
    assert [one.name for one in load_records(tmp_path)] == ["msfe-main-s1"]
    assert not list(record.folder.glob("*.part"))


def test_an_unknown_time_is_no_number_in_json(tmp_path: Path) -> None:
    record = replace(make_record(tmp_path), seconds_per_epoch=math.nan)
    save_record(record)
    assert json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))["seconds_per_epoch"] is None
    assert math.isnan(load_record(tmp_path).seconds_per_epoch)


def test_half_a_record_is_none(tmp_path: Path) -> None:
    record = make_record(tmp_path / "runs" / "a")
    save_record(record)
    arrays, text = (record.folder / ARRAYS).read_bytes(), (record.folder / RECORD).read_bytes()
    (record.folder / RECORD).unlink()  # killed after the arrays
    assert load_records(tmp_path) == []
    with pytest.raises(UserError, match="not finished"):
        load_record(record.folder)
    for bad_text, bad_arrays in ((text[:-5], arrays), (text, arrays[:-5]), (text, b""), (b"[]", arrays), (text.replace(b'"seed"', b'"sead"'), arrays)):
        (record.folder / RECORD).write_bytes(bad_text)
        (record.folder / ARRAYS).write_bytes(bad_arrays)
        with pytest.raises(UserError, match="start the campaign again"):
            load_record(record.folder)
