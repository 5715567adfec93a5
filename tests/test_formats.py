"""Foreign annotations: masks, polygon text, VOC XML, COCO JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.formats import (
    CocoImage,
    VocObject,
    labels_from_mask,
    labels_from_polygon_text,
    labels_from_voc,
    read_coco,
    read_mask,
    read_voc,
    region_outline,
    voc_from_labels,
    write_coco,
    write_voc,
)
from data.labels import Labels, format_yolo, parse_yolo
from utils.errors import UserError


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Regions of a mask, found pixel by pixel: the slow, obvious way."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            edge += around
        regions.append(region)
    return regions


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(2, 14), st.integers(2, 14)), elements=st.sampled_from([0, 0, 1])))
def test_boxes_of_a_mask_equal_a_flood_fill(mask: np.ndarray) -> None:
    labels, dropped = labels_from_mask(mask, min_share=0)
    height, width = mask.shape
    expected = {(min(x for _, x in r), min(y for y, _ in r), max(x for _, x in r) + 1, max(y for y, _ in r) + 1) for r in flood(mask)}
    found = np.round(labels.boxes * (width, height, width, height), 3)
    assert dropped == 0 and {tuple(row) for row in found.tolist()} == expected and len(labels) == len(flood(mask))
    for box, polygon in zip(labels.boxes, labels.polygons, strict=True):
        assert polygon is not None
        np.testing.assert_allclose(np.concatenate([polygon.min(0), polygon.max(0)]), box, atol=1e-6)


def test_specks_are_dropped_and_counted() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[10:30, 10:40], mask[50, 50], mask[80:82, 80:82] = 255, 255, 255
    labels, dropped = labels_from_mask(mask, min_share=0.0005)
    assert (len(labels), dropped) == (1, 2)
    np.testing.assert_allclose(labels.boxes, [[0.1, 0.1, 0.4, 0.3]], atol=1e-7)
    assert len(labels_from_mask(mask, min_share=0.0002)[0]) == 2


def test_the_outline_covers_the_region() -> None:
    mask = np.zeros((120, 160), np.uint8)
    cv2.ellipse(mask, (80, 60), (50, 30), 25, 0, 360, 1, -1)
    cv2.circle(mask, (80, 60), 8, 0, -1)  # a hole is filled: an outline has none
    outline = region_outline(mask > 0)
    # Drawn at eight times the size, so that pixel edges can be told from pixel centres.
    drawn = np.zeros((960, 1280), np.uint8)
    cv2.fillPoly(drawn, [outline.astype(np.int32) * 8], 1)
    cv2.circle(mask, (80, 60), 9, 1, -1)
    whole = cv2.resize(mask, (1280, 960), interpolation=cv2.INTER_NEAREST)
    overlap = np.logical_and(drawn, whole).sum() / np.logical_or(drawn, whole).sum()
    assert overlap > 0.97 and len(outline) < 120


def test_mask_polygon_yolo_round_trip() -> None:
    mask = np.zeros((90, 130), np.uint8)
    cv2.fillPoly(mask, [np.array([[10, 12], [70, 20], [90, 70], [30, 60]])], 255)
    labels, _ = labels_from_mask(mask)
    parsed = parse_yolo(format_yolo(labels), "a.txt", 1)
    assert not parsed.problems and parsed.clipped == 0
    np.testing.assert_allclose(parsed.labels.boxes, labels.boxes, atol=1e-5)


@pytest.mark.parametrize("text", ["10 12\n70,20\n(90, 70)\n30;60\n", "\ufeff10 12 70 20 90 70 30 60\r\n", "[10,12]\n[70,20]\n[90,70]\n[30,60]\n\n\n"])
def test_polygon_text(text: str) -> None:
    labels, _ = labels_from_polygon_text(text, "p.txt", 130, 90)
    np.testing.assert_allclose(labels.boxes * (130, 90, 130, 90), [[10, 12, 91, 71]], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3 4\n", "p.txt:3: a polygon of 2 points"), ("1 2\nx 4\n", "p.txt:2: 'x 4'"),
        ("1 2\n500 4\n5 6\n", "p.txt:2: point 500, 4"), ("1 2 3\n", "p.txt:1: 3 numbers"),
    ],
)
def test_bad_polygon_text(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labels_from_polygon_text(text, "p.txt", 130, 90)


def test_a_lossy_mask_is_cut_at_half(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for suffix, quality in ((".png", []), (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 60])):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(cv2.imencode(suffix, mask, quality)[1].tobytes())
        assert (read_mask(path.read_bytes(), path, 64, 64) == (mask > 0)).all()
    with pytest.raises(UserError, match="the mask is 64 x 64, the image 65 x 64"):
        read_mask(path.read_bytes(), path, 65, 64)


# ---------------------------------------------------------------------------------------------- VOC

boxes = st.tuples(*(st.integers(0, 40) for _ in range(2)), *(st.integers(41, 60) for _ in range(2)))


@given(st.lists(st.tuples(st.sampled_from(["slide", "a<b>&\"c", "山崩"]), boxes), max_size=4))
def test_voc_round_trip(objects: list[tuple[str, tuple[int, int, int, int]]]) -> None:
    written = tuple(VocObject(name, tuple(map(float, box))) for name, box in objects)  # type: ignore[arg-type]
    image = read_voc(write_voc("x & y.jpg", 60, 61, written).encode(), "x.xml")
    assert (image.filename, image.width, image.height, image.objects) == ("x & y.jpg", 60, 61, written)


def test_labels_to_voc_and_back() -> None:
    labels = Labels.from_rows([(1, np.array([0.1, 0.2, 0.5, 0.7]), None), (0, np.array([0, 0, 1, 1]), None)])
    names = ["landslide", "rock"]
    back = labels_from_voc(read_voc(voc_from_labels(labels, "a.jpg", 333, 217, names).encode(), "a.xml"), names, "a.xml")
    assert back.classes.tolist() == [1, 0]
    np.testing.assert_allclose(back.boxes, labels.boxes, atol=1e-5)


def voc(body: str = "", size: str = "<width>50</width><height>40</height>", head: str = "") -> bytes:
    return f"{head}<annotation><filename>a.jpg</filename><size>{size}</size>{body}</annotation>".encode()


def box_xml(xmin: object = 1, ymin: object = 2, xmax: object = 30, ymax: object = 20) -> str:
    return f"<object><name>slide</name><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha">' + "".join(
    f'<!ENTITY b{i} "{f"&b{i - 1};" * 10 if i else "&b;" * 10}">' for i in range(9)) + "]>"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (voc(head=BOMB), "document type or entity"),
        (voc(head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "document type or entity"),
        (voc().replace(b"a.jpg", b"../../etc/a.jpg"), "points into another folder"),
        (voc().replace(b"a.jpg", b"C:\\a.jpg"), "points into another folder"),
        (b"<annotation><size>", "not readable as XML"),
        (b"", "not readable as XML"),
        (b"\xff\xfe\x00<", "not readable as XML"),
        (b"<html></html>", "<annotation> was expected"),
        (voc(size="<width>50</width>"), "<size><height> is None"),
        (voc(size="<width>0</width><height>4</height>"), "<size> is 0 x 4"),
        (voc(size="<width>5.5</width><height>4</height>"), "a whole number"),
        (voc(box_xml(xmax="wide")), "<bndbox><xmax> is 'wide'"),
        (voc(box_xml(xmax="nan")), "finite"),
        (voc(box_xml(xmax=1)), "has no area"),
        (voc(box_xml(xmax=90)), "leaves the 50 x 40 image"),
    ],
)
def test_bad_voc(data: bytes, message: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UserError, match=message) as error:
        read_voc(data, "dir/a.xml")
    assert str(error.value).startswith("dir/a.xml") and time.perf_counter() - began < 1


def test_unknown_voc_class() -> None:
    with pytest.raises(UserError, match="class 'slide'; one of crack was expected"):
        labels_from_voc(read_voc(voc(box_xml()), "a.xml"), ["crack"], "a.xml")


# ---------------------------------------------------------------------------------------------- COCO


def some_images() -> list[CocoImage]:
    triangle = np.array([[0.1, 0.1], [0.5, 0.2], [0.3, 0.6]], np.float32)
    first = Labels.from_rows([(0, np.array([0.1, 0.1, 0.5, 0.6]), triangle), (1, np.array([0.2, 0.3, 0.9, 0.8]), None)])
    return [CocoImage("a.jpg", 200, 100, first), CocoImage("sub/山.png", 64, 48, Labels.from_rows([]))]


def test_coco_round_trip() -> None:
    back = read_coco(write_coco(some_images(), ["landslide", "rock"]).encode(), "c.json")
    assert back.names == ("landslide", "rock") and [i.filename for i in back.images] == ["a.jpg", "sub/山.png"] and back.crowds == 0
    labels, expected = back.images[0].labels, some_images()[0].labels
    assert labels.classes.tolist() == [0, 1] and len(back.images[1].labels) == 0
    np.testing.assert_allclose(labels.boxes, expected.boxes, atol=1e-5)
    found, given_ = labels.polygons[0], expected.polygons[0]
    assert found is not None and given_ is not None
    np.testing.assert_allclose(found, given_, atol=1e-5)


def test_pycocotools_reads_our_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    (tmp_path / "c.json").write_text(write_coco(some_images(), ["landslide", "rock"]), encoding="utf-8")
    coco = COCO(str(tmp_path / "c.json"))
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    np.testing.assert_allclose(found[0]["bbox"], [20, 10, 80, 50], atol=1e-3)
    assert coco.annToMask(found[0]).sum() == pytest.approx(found[0]["area"], rel=0.1)
    assert coco.annToMask(found[1]).sum() == pytest.approx(140 * 50, rel=0.01)


def test_crowds_are_left_out_and_many_polygons_give_the_box() -> None:
    content = json.loads(write_coco(some_images(), ["landslide", "rock"]))
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] *= 2
    back = read_coco(json.dumps(content).encode(), "c.json")
    assert back.crowds == 1 and len(back.images[0].labels) == 1 and back.images[0].labels.polygons == (None,)


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "x/../../a.jpg", "C:/a.jpg", "..\\a.jpg", ""])
def test_coco_file_names_stay_inside(name: str) -> None:
    content = json.loads(write_coco(some_images(), ["landslide", "rock"]))
    content["images"][0]["file_name"] = name
    with pytest.raises(UserError, match="leaves the image folder"):
        read_coco(json.dumps(content).encode(), "c.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "'images' is missing"),
        (lambda c: c["annotations"][0].update(image_id=9), "annotation number 0: KeyError"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotation number 0: KeyError"),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, 1]), "annotation number 1: ValueError"),
        (lambda c: c["annotations"][0].update(bbox=[150, 0, 100, 10]), "does not lie in the 200 x 100 image"),
        (lambda c: c["annotations"][0].update(bbox=[float("nan"), 0, 10, 10]), "does not lie"),
        (lambda c: c["images"][0].update(width=0), "image 1 is 0 x 100"),
    ],
)
def test_bad_coco(change: object, message: str) -> None:
    content = json.loads(write_coco(some_images(), ["landslide", "rock"]))
    change(content)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        read_coco(json.dumps(content).encode(), "c.json")


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(UserError, match="not readable as (COCO )?JSON"):
        read_coco(data, "c.json")
