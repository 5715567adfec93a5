"""detect.py: every source, every flag, known answers in the image's own pixels, and what happens to broken images."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import detect
from data.images import read_image, write_image
from detect import Loaded, Options, Outcome, Target, batches, find_images, load, run_detection
from models.builder import load_config
from models.yolo import DetectionModel
from utils.checkpoint import save_checkpoint
from utils.detections import Detections
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RED = (250, 20, 20)


class RedFinder(nn.Module):
    """Stands in for a network: decodes to the bounding box of what is red, and to one box that is too weak to keep."""

    stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32 and float(images.min()) >= 0 and float(images.max()) <= 1
        self.batch_sizes.append(len(images))
        return images

    def decode(self, images: Tensor) -> Tensor:
        rows = torch.zeros(len(images), 2, 7)
        for i, (red, green, _) in enumerate(images):
            y, x = torch.nonzero((red > 0.6) & (green < 0.3), as_tuple=True)
            if len(x):
                x0, y0, x1, y1 = x.min(), y.min(), x.max() + 1, y.max() + 1
                rows[i, 0] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.9, 0.0, 1.0])
            rows[i, 1] = torch.tensor([10.0, 10.0, 5.0, 5.0, 0.2, 1.0, 0.0])
        return rows


def picture(path: Path, width: int, height: int, box: tuple[int, int, int, int] | None = None) -> Path:
    image = np.full((height, width, 3), 90, np.uint8)
    if box:
        image[box[1] : box[3], box[0] : box[2]] = RED
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)
    return path


# ---------------------------------------------------------------------------------------------- sources


def test_every_kind_of_source(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", "滑坡 1.png"):
        picture(tmp_path / name, 20, 20)
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("\ufeffb.png\r\n\n" + str(tmp_path / "sub" / "c.png") + "\n", encoding="utf-8")
    assert [t.path.name for t in find_images(str(tmp_path))] == ["a.JPG", "b.png", "滑坡 1.png"]
    assert [t.path.name for t in find_images(str(tmp_path / "滑坡 1.png"))] == ["滑坡 1.png"]
    assert [t.path.name for t in find_images(str(tmp_path / "*.png"))] == ["b.png", "滑坡 1.png"]
    assert [t.path.name for t in find_images(str(tmp_path / "**" / "*.png"))] == ["b.png", "c.png", "滑坡 1.png"]
    assert [t.path.name for t in find_images(str(tmp_path / "list.txt"))] == ["b.png", "c.png"]
    (tmp_path / "empty").mkdir()
    for source, reason in [
        ("", "missing"),
        (str(tmp_path / "no.jpg"), "no such"),
        (str(tmp_path / "empty"), "no images"),
        (str(tmp_path / "x*.png"), "no images"),
    ]:
        with pytest.raises(UserError, match=reason):
            find_images(source)


def test_images_of_one_stem_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a-2.png", "b.png"):
        picture(tmp_path / name, 20, 20)
    assert [t.name for t in find_images(str(tmp_path))] == ["a-2", "a", "a-3", "b"]


# ---------------------------------------------------------------------------------------------- geometry and batches


@pytest.mark.parametrize(
    ("width", "height", "shape"), [(810, 1080, (640, 480)), (1280, 720, (384, 640)), (61, 61, (640, 640)), (3000, 20, (32, 640)), (333, 500, (640, 448))]
)
def test_letterbox_is_the_smallest_canvas_of_whole_strides(tmp_path: Path, width: int, height: int, shape: tuple[int, int]) -> None:
    loaded = load(Target(picture(tmp_path / "a.png", width, height), "a"), 640, 32)
    assert loaded.canvas.shape[:2] == shape and loaded.image.shape[:2] == (height, width)
    grey = (loaded.canvas == 114).all(2)
    assert max(shape) == 640 and not grey.all(1)[shape[0] // 2] and abs(int(grey.all(1)[: shape[0] // 2].sum()) - int(grey.all(1)[shape[0] // 2 :].sum())) <= 1
    found = Detections(np.array([[0, 0, *shape[::-1]]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    np.testing.assert_allclose(detect.to_image(found, loaded.matrix, width, height).boxes, [[0, 0, width, height]], atol=1e-3)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 7))
def test_batches_hold_one_shape_and_every_image_once(kinds: list[int], size: int) -> None:
    images = [Loaded(Target(Path(str(i)), str(i)), np.zeros((1, 1, 3)), np.zeros((kind + 1, 8, 3)), np.eye(3)) for i, kind in enumerate(kinds)]
    taken = 0

    def counted() -> object:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    given_out: list[str] = []
    for batch in batches(counted(), size):  # type: ignore[arg-type]
        assert 1 <= len(batch) <= size and len({image.canvas.shape for image in batch}) == 1
        given_out += [image.target.name for image in batch]
        assert taken - len(given_out) < 4 * size, "no more than four batches wait"
    assert sorted(given_out, key=int) == [str(i) for i in range(len(images))]


def detected(folder: Path, sizes: dict[str, tuple[int, int, tuple[int, int, int, int] | None]], **flags: object) -> tuple[Outcome, Path, RedFinder]:
    for name, (width, height, box) in sizes.items():
        picture(folder / "in" / name, width, height, box)
    out = folder / "out"
    (out / "labels").mkdir(parents=True)
    model = RedFinder()
    options = Options(**flags)  # type: ignore[arg-type]
    outcome = run_detection(model, ("rock", "slide/fall"), find_images(str(folder / "in")), 320, out, options)  # type: ignore[arg-type]
    return outcome, out, model


def test_known_objects_come_out_in_the_pixels_of_their_image(tmp_path: Path) -> None:
    """Enlarged, reduced, wide, tall, odd-sized, and one without object; through the whole pipeline."""
    sizes = {
        "a.png": (200, 100, (50, 20, 150, 80)), "b.png": (100, 200, (0, 0, 100, 200)), "c.png": (333, 77, (100, 10, 233, 70)),
        "d.png": (640, 480, (600, 400, 640, 480)), "e.png": (160, 160, None), "f.png": (200, 100, (10, 10, 60, 90)), "g.png": (200, 100, (5, 5, 195, 95)),
    }  # fmt: skip
    outcome, out, model = detected(tmp_path, sizes, batch_size=2, save_txt=True, save_conf=True, save_crop=True, save_csv=True, save_json=True)
    assert outcome.images == 7 and not outcome.broken and outcome.objects == {1: 6}
    assert sorted(model.batch_sizes) == [1, 1, 1, 1, 1, 2]
    rows = {row["image_id"]: row for row in json.loads((out / "predictions.json").read_text())}
    for name, (width, height, box) in sizes.items():
        stem = Path(name).stem
        assert (out / name).is_file()
        if box is None:
            assert stem not in rows and not (out / "labels" / f"{stem}.txt").exists()
            assert (read_image(out / name) == read_image(tmp_path / "in" / name)).all(), "nothing found, nothing drawn"
            continue
        # One canvas pixel is this many image pixels, and a resized edge is soft over one of either.
        tolerance = max(1.0, max(width, height) / 320)
        left, top, wide, high = rows[stem]["bbox"]
        np.testing.assert_allclose([left, top, left + wide, top + high], box, atol=tolerance)
        values = [float(word) for word in (out / "labels" / f"{stem}.txt").read_text().split()]
        assert values[0] == 1 and values[5] == pytest.approx(0.9)
        np.testing.assert_allclose(np.array(values[1:5]) * [width, height, width, height], [left + wide / 2, top + high / 2, wide, high], atol=0.01)
        crop = read_image(out / "crops" / "slide_fall" / f"{stem}-1.jpg")
        np.testing.assert_allclose(crop.shape[:2], (high, wide), atol=2)
        assert np.abs(np.median(crop.reshape(-1, 3), 0) - RED).max() < 12
        assert (read_image(out / name) != read_image(tmp_path / "in" / name)).any()
    table = list(csv.reader((out / "predictions.csv").open(encoding="utf-8", newline="")))
    assert table[0] == ["image", "class", "name", "score", "left", "top", "right", "bottom"] and len(table) == 7
    assert {row[2] for row in table[1:]} == {"slide/fall"}


def test_filters_and_switches(tmp_path: Path) -> None:
    sizes = {"a.png": (200, 100, (50, 20, 150, 80))}
    low, out, _ = detected(tmp_path / "1", sizes, conf_thres=0.1)
    assert low.objects == {0: 1, 1: 1} and not list((out / "labels").iterdir()) and not (out / "predictions.json").exists()
    assert detected(tmp_path / "2", sizes, conf_thres=0.1, classes=[0])[0].objects == {0: 1}
    assert detected(tmp_path / "3", sizes, conf_thres=0.1, max_det=1)[0].objects == {1: 1}
    outcome, out, _ = detected(tmp_path / "4", sizes, nosave=True)
    assert outcome.objects == {1: 1} and not (out / "a.png").exists()
    pictures = []
    for number, flags in enumerate(({}, {"line_thickness": 9}, {"hide_labels": True}, {"hide_conf": True})):
        pictures.append(read_image(detected(tmp_path / f"p{number}", sizes, **flags)[1] / "a.png"))
    assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


def test_broken_images_are_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {f"{i}.png": (200, 100, (50, 20, 150, 80)) for i in range(9)}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "3x.jpg").write_bytes(b"<html>")
    picture(tmp_path / "in" / "5x.png", 50, 50)
    (tmp_path / "in" / "5x.png").write_bytes((tmp_path / "in" / "5x.png").read_bytes()[:60])
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    outcome, out, _ = detected(tmp_path, sizes, batch_size=4)
    assert outcome.images == 9 and outcome.objects == {1: 9} and len(list(out.glob("*.png"))) == 9
    assert len(outcome.broken) == 2 and "3x.jpg" in outcome.broken[0] and "5x.png" in outcome.broken[1]
    assert all(path.read_bytes() == content for path, content in before.items())


# ---------------------------------------------------------------------------------------------- the program itself


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained network, as train.py would save it."""
    torch.manual_seed(0)
    config = dataclasses.replace(load_config(ROOT / "models" / "ls-yolo.yaml", nc=2), width_multiple=0.125)
    model = DetectionModel(config)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, {"model": config.to_dict(), "names": ["rock", "slide"], "imgsz": 64, "ema": model.state_dict()})
    return path


def test_main_gives_2_after_finishing_the_rest(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in" / "a.png", 70, 40)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    options = Options(
        weights=str(weights), source=str(tmp_path / "in"), device="cpu", conf_thres=0.001, project=str(tmp_path / "runs"), save_txt=True, half=True
    )
    assert detect.main(options) == 2
    said = capsys.readouterr()
    assert "b.png" in said.err and "1 of 2 images" in said.err and "bfloat16" in said.out
    assert "1 image, 1 skipped: " in said.out and "ms waiting for data" in said.out
    assert (tmp_path / "runs" / "exp" / "a.png").is_file()
    assert detect.main(dataclasses.replace(options, source=str(tmp_path / "in" / "a.png"))) == 0
    assert (tmp_path / "runs" / "exp2" / "a.png").is_file()
    assert detect.main(dataclasses.replace(options, source=str(tmp_path / "in" / "a.png"), exist_ok=True)) == 0
    assert not (tmp_path / "runs" / "exp3").exists()


def test_batching_changes_nothing(tmp_path: Path, weights: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(5):
        write_image(tmp_path / f"{i}.png", rng.integers(0, 255, (40 + 20 * (i % 2), 64, 3), np.uint8))
    found = []
    for size in (1, 4):
        options = Options(
            weights=str(weights), source=str(tmp_path / "*.png"), device="cpu", conf_thres=0.0003, max_det=20, batch_size=size, img=64, save_json=True,
            nosave=True, agnostic_nms=True, project=str(tmp_path / "runs"), name=f"b{size}",
        )  # fmt: skip
        assert detect.main(options) == 0
        found.append(sorted(json.loads((tmp_path / "runs" / f"b{size}" / "predictions.json").read_text()), key=lambda row: (row["image_id"], -row["score"])))
    assert len(found[0]) == len(found[1]) > 5
    for a, b in zip(*found, strict=True):
        assert a["image_id"] == b["image_id"]
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=0.01)
        assert a["score"] == pytest.approx(b["score"], abs=2e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"weights": ""}, "--weights is missing"),
        ({"weights": "no.pt"}, "no.pt"),
        ({"conf_thres": 1.5}, "--conf-thres is 1.5"),
        ({"iou_thres": -0.1}, "--iou-thres"),
        ({"batch_size": 0}, "--batch-size"),
        ({"img": 0}, "--img"),
        ({"classes": [2]}, "classes 0 to 1"),
        ({"source": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, weights: Path, flags: dict[str, object], reason: str) -> None:
    picture(tmp_path / "a.png", 32, 32)
    options = Options(weights=str(weights), source=str(tmp_path / "a.png"), device="cpu", project=str(tmp_path / "runs"))
    with pytest.raises(UserError, match=reason):
        detect.main(dataclasses.replace(options, **flags))  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


def test_the_command_line(tmp_path: Path, weights: Path) -> None:
    """Every flag by its name, in one run of the script, with an image that cannot be read."""
    picture(tmp_path / "in" / "滑坡.png", 70, 40)
    (tmp_path / "in" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    command = [sys.executable, str(ROOT / "detect.py"), "--weights", str(weights), "--source", str(tmp_path / "in"), "--imgsz", "64"]
    command += ["--conf-thres", "0.0003", "--iou-thres", "0.5", "--max-det", "7", "--device", "cpu", "--half", "--classes", "0", "1", "--agnostic-nms"]
    command += ["--cuda-graphs"]
    command += ["--batch-size", "2", "--save-txt", "--save-conf", "--save-crop", "--save-csv", "--save-json", "--line-thickness", "1", "--hide-labels"]
    command += ["--hide-conf", "--project", str(tmp_path / "runs"), "--name", "滑坡", "--exist-ok"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 images could not be read") and "Traceback" not in done.stderr
    out = tmp_path / "runs" / "滑坡"
    assert (out / "滑坡.png").is_file() and (out / "predictions.csv").is_file() and (out / "predictions.json").is_file()
    rows = (out / "labels" / "滑坡.txt").read_text().splitlines()
    assert 0 < len(rows) <= 7 and all(len(row.split()) == 6 for row in rows)
