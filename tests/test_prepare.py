"""Folders in any of five annotation forms become the same YOLO dataset; the real images give the boxes published with them."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.dataset import load_data, load_split
from data.formats import CocoImage, labels_from_mask, voc_from_labels, write_coco
from data.images import write_image
from data.labels import Labels, format_yolo, parse_yolo
from data.options import PrepareOptions
from data.prepare import prepare
from tests.conftest import REAL
from utils.errors import UserError

SIZES = [(60, 40), (48, 64), (50, 50), (64, 48), (40, 40), (44, 60), (52, 36), (60, 60), (38, 50), (46, 46)]


def masks() -> list[np.ndarray]:
    """A box-shaped landslide each, so that forms with and without outlines agree; the last image has none."""
    made = []
    for i, (width, height) in enumerate(SIZES):
        mask = np.zeros((height, width), np.uint8)
        if i < len(SIZES) - 1:
            mask[5 + i : 20 + i, 8 : 25 + i] = 255
        made.append(mask)
    return made


def folder(root: Path, form: str) -> Path:
    """Ten images annotated in one form."""
    coco = []
    (root / "images").mkdir(parents=True)
    for i, mask in enumerate(masks()):
        height, width = mask.shape
        labels, name = labels_from_mask(mask)[0], f"im{i}"
        write_image(root / "images" / f"{name}.png", np.full((height, width, 3), 20 * i, np.uint8))
        for place in {"mask": ["masks"], "polygon": ["polygon_coordinate"], "voc": ["annotations"], "yolo": ["labels"], "coco": []}[form]:
            (root / place).mkdir(exist_ok=True)
        if form == "mask":
            write_image(root / "masks" / f"{name}.png", np.repeat(mask[..., None], 3, 2))
        elif form == "polygon" and len(labels):
            points = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0]
            (root / "polygon_coordinate" / f"{name}.txt").write_text("".join(f"{x},{y}\n" for x, y in points.tolist()))
        elif form == "voc":
            text = voc_from_labels(labels, f"{name}.png", width, height, ["slide"])
            (root / "annotations" / f"{name}.xml").write_text(text)
        elif form == "yolo":
            (root / "labels" / f"{name}.txt").write_text(format_yolo(labels))
        coco.append(CocoImage(f"{name}.png", width, height, labels))
    if form == "coco":
        (root / "instances.json").write_text(write_coco(coco, ["landslide"]))
    return root


@pytest.mark.parametrize("form", ["mask", "polygon", "voc", "yolo", "coco"])
def test_every_form_gives_the_same_boxes(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", form)
    before = {path: path.read_bytes() for path in source.rglob("*.*")}
    assert prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "out"))) == 0
    assert before == {path: path.read_bytes() for path in source.rglob("*.*")}
    spec = load_data(tmp_path / "out/data.yaml")
    assert spec.names == ("landslide",)
    samples = {s.path.stem: s for split in spec.splits for s in load_split(spec, split, strict=True, quiet=True)[0]}
    assert len(samples) == 10
    for i, mask in enumerate(masks()):
        expected, found = labels_from_mask(mask)[0], samples[f"im{i}"].labels
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-5)
        assert form == "voc" or all(polygon is not None for polygon in found.polygons)
    told = capsys.readouterr().out
    assert "9 objects" in told and (f"10 {form}" in told or (form == "polygon" and "1 none, 9 polygon" in told))


def test_outlines_come_before_boxes_and_again_is_the_same(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", "mask")
    (source / "labels").mkdir()
    for i in range(10):
        (source / "labels" / f"im{i}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (source / "masks/im3.png").unlink()  # only this one falls back to its box
    for out in ("a", "b"):
        prepare(PrepareOptions(folder=str(source), out=str(tmp_path / out), jobs=1))
    read = [{p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*.*")} for out in ("a", "b")]
    assert read[0] == read[1]
    with (tmp_path / "a/manifest.csv").open() as file:
        forms = {row["source"]: row["annotation"] for row in csv.DictReader(file)}
    assert forms == {f"im{i}": "yolo" if i == 3 else "mask" for i in range(10)}


def test_several_classes(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", "yolo")
    (source / "labels/im0.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(UserError, match="class 1, but the dataset has 1 class"):
        prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "a")))
    prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "a"), names=["landslide", "rock: big"]))
    assert load_data(tmp_path / "a/data.yaml").names == ("landslide", "rock: big")


def test_coco_categories_become_the_names(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", "voc")
    shutil.rmtree(source / "annotations")
    labels = Labels.from_rows([(1, np.array([0.1, 0.1, 0.5, 0.5]), None)])
    images = [CocoImage(f"im{i}.png", *SIZES[i], labels) for i in range(10)]
    (source / "c.json").write_text(write_coco(images, ["crack", "slide"]))
    prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "a")))
    assert load_data(tmp_path / "a/data.yaml").names == ("crack", "slide")
    prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "b"), names=["landslide"]))  # slide is another word for it
    text = next((tmp_path / "b/labels").rglob("im4.txt")).read_text()
    assert parse_yolo(text, "x", 1).labels.classes.tolist() == [0]
    with pytest.raises(UserError, match="class 'slide'; one of rock was expected"):
        prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "d"), names=["rock"]))


def test_bad_folders(tmp_path: Path) -> None:
    def problem(change: object, form: str = "mask") -> str:
        source = folder(tmp_path / f"in{len(list(tmp_path.iterdir()))}", form)
        change(source)  # type: ignore[operator]
        with pytest.raises(UserError) as error:
            prepare(PrepareOptions(folder=str(source), out=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "no annotation of any image" in problem(lambda s: shutil.rmtree(s / "masks"))
    assert "im1.png: annotates no image" in problem(lambda s: (s / "images/im1.png").unlink())
    assert "the same name as" in problem(lambda s: shutil.copy(s / "images/im1.png", s / "images/im1.bmp"))
    assert "the mask is 60 x 40, the image 48 x 64" in problem(lambda s: shutil.copy(s / "masks/im0.png", s / "masks/im1.png"))
    assert "im2.txt:2: commas" in problem(lambda s: (s / "labels/im2.txt").write_text("0 .5 .5 .2 .2\n0,1,1,1,1\n"), "yolo")
    assert "names 'im5', which is no image" in problem(lambda s: (s / "images/im5.png").unlink(), "coco")
    assert "one COCO file was expected" in problem(lambda s: (s / "b.json").write_text("{}"), "coco")
    assert "says im2.png is (50, 50), it is (40, 40)" in problem(lambda s: shutil.copy(s / "images/im4.png", s / "images/im2.png"), "coco")
    with pytest.raises(UserError, match="no such folder"):
        prepare(PrepareOptions(folder=str(tmp_path / "none"), out=str(tmp_path / "out")))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REAL.is_dir():
        pytest.skip("the real images (../shared/real) are not here")
    out = tmp_path_factory.mktemp("real") / "out"
    prepare(PrepareOptions(folder=str(REAL), out=str(out)))
    return out


def test_real_masks_give_the_published_boxes(real: Path) -> None:
    spec = load_data(real / "data.yaml")
    samples = [sample for split in spec.splits for sample in load_split(spec, split, strict=True, quiet=True)[0]]
    assert len(samples) == 485 and sum(len(sample.labels) for sample in samples) == 793
    for sample in samples:
        published = parse_yolo((REAL / "labels" / f"{sample.path.stem}.txt").read_text(), "x", 1).labels.boxes
        np.testing.assert_allclose(np.sort(sample.labels.boxes, 0), np.sort(published, 0), atol=5e-6, err_msg=sample.path.name)


def test_real_groups_stay_together(real: Path) -> None:
    with (REAL / "manifest.csv").open(encoding="utf-8") as file:
        groups = {row["id"]: row["group"] for row in csv.DictReader(file)}
    sides: dict[str, set[str]] = {}
    for path in (real / "images").rglob("*.jpg"):
        sides.setdefault(groups[path.stem], set()).add(path.parent.name)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((REAL / "images" / path.name).read_bytes()).digest()
    assert max(map(len, sides.values())) == 1


def test_the_rule_without_eyes_finds_the_real_bijie_boxes(real: Path) -> None:
    from data.report import blind_scores

    spec = load_data(real / "data.yaml")
    samples = {split: load_split(spec, split, quiet=True)[0] for split in ("train", "test")}
    scores = blind_scores(samples["train"], samples["test"])
    assert scores["bijie*"]["coco_AP50"] > 60 and scores["hokkaido*"]["coco_AP50"] < 10
