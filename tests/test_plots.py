"""Pictures: files that open, pixels where they must be, inputs that are empty or odd."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils import metrics, plots
from utils.detections import Detections, Truth
from utils.draw import class_colour
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
COLUMNS = (
    "epoch, train/box_loss, train/obj_loss, train/cls_loss, metrics/precision, metrics/recall, metrics/mAP_0.5, metrics/mAP_0.5:0.95, "
    "metrics/AP_paper, val/box_loss, val/obj_loss, val/cls_loss, x/lr0, x/lr1, x/lr2"
)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A picture that makes numpy or matplotlib warn has met an input it was not thought for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def opened(path: Path) -> np.ndarray:
    """The RGB image in a file."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, path
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def inked(image: np.ndarray) -> float:
    """Share of pixels that are not white."""
    return float((image < 250).any(2).mean())


def near(image: np.ndarray, color: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    return (np.abs(image.astype(int) - color) < tolerance).all(2)


def test_importing_draws_in_neither_opencv_nor_matplotlib() -> None:
    code = "import sys, utils.plots; print([name for name in ('cv2', 'matplotlib', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_charts_leave_pyplot_alone(tmp_path: Path) -> None:
    code = "import sys; from utils.plots import plot_labels as plot; plot([], [], ['a'], sys.argv[1]); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------------- results


def test_read_results_takes_empty_cells_for_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(f"{COLUMNS}\n0, 0.1, 0.2, 0, , , , , , , , , 0.01, 0.01, 0.1\n1, 0.05, 0.1, 0, 0.5, 0.4, 0.3, 0.2, 0.1, 1, 2, 3, 0.01, 0.01, 0.1\n")
    columns = plots.read_results(path)
    assert list(columns) == COLUMNS.split(", ")
    assert np.isnan(columns["metrics/AP_paper"][0]) and columns["metrics/AP_paper"][1] == 0.1
    plots.plot_results(path, tmp_path / "results.png")
    assert inked(opened(tmp_path / "results.png")) > 0.01


def test_results_picture_shows_the_values(tmp_path: Path) -> None:
    """The same run with other losses looks different, and one epoch or --noval draws as well."""
    pictures = []
    for name, loss in (("a", 0.1), ("b", 0.2)):
        rows = "\n".join(f"{epoch}, {loss / (epoch + 1)}, 0.2, 0, , , , , , , , , 0.01, 0.01, 0.1" for epoch in range(1 if name == "a" else 9))
        (tmp_path / f"{name}.csv").write_text(f"{COLUMNS}\n{rows}\n")
        plots.plot_results(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
        pictures.append(opened(tmp_path / f"{name}.png"))
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()


def test_results_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        plots.read_results(tmp_path / "gone.csv")
    (tmp_path / "empty.csv").write_text(COLUMNS + "\n")
    with pytest.raises(UserError, match=r"empty\.csv: holds no epoch"):
        plots.read_results(tmp_path / "empty.csv")


# -------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize("objects", [0, 1, 500])
def test_labels_picture(tmp_path: Path, objects: int) -> None:
    rng = np.random.default_rng(0)
    low = rng.random((objects, 2)) * 0.6
    boxes = np.concatenate([low, low + 0.05 + rng.random((objects, 2)) * 0.3], 1)
    names = ["landslide"] if objects < 2 else [f"class {n}" for n in range(40)]
    plots.plot_labels(boxes, rng.integers(0, len(names), objects), names, tmp_path / "labels.png")
    assert inked(opened(tmp_path / "labels.png")) > 0.01


@pytest.mark.parametrize("classes", [1, 3, 30])
def test_curve_pictures(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(1)
    curves = []
    for _ in range(classes):
        tp = np.cumsum(rng.random(60) < 0.7)
        curves.append(metrics.Curve(np.sort(rng.random(60))[::-1], tp.astype(float), np.arange(1, 61) - tp.astype(float), 50.0))
    curves[-1] = metrics.Curve(np.zeros(0), np.zeros(0), np.zeros(0), 5.0) if classes == 3 else curves[-1]
    paths = plots.plot_curves(curves, [f"class {n}" for n in range(classes)], tmp_path, 0.5, 0.31)
    assert [path.name for path in paths] == ["PR_curve.png", "P_curve.png", "R_curve.png", "F1_curve.png"]
    for path in paths:
        assert near(opened(path), plots.PALETTE[0]).any(), path.name


def test_curve_pictures_without_any_object(tmp_path: Path) -> None:
    for path in plots.plot_curves([metrics.Curve(np.zeros(0), np.zeros(0), np.zeros(0), 0.0)], ["a"], tmp_path, 0.5, 0.5):
        opened(path)


# --------------------------------------------------------------------------------------------------------- boxes


def test_mosaic_puts_each_image_and_its_boxes_in_its_cell() -> None:
    images = [np.full((100, 120, 3), 20 * n, np.uint8) for n in range(5)]
    boxes = [np.array([[20.0, 30, 80, 70]])] * 5
    sheet = plots.mosaic(images, boxes, [np.array([0])] * 5, ["a"], [f"{n}.jpg" for n in range(5)], [np.array([0.5])] * 5)
    step_h, step_w = 100 + plots.LINE + plots.GAP, 120 + plots.GAP
    assert sheet.shape == (2 * step_h + plots.GAP, 3 * step_w + plots.GAP, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        y, x = plots.GAP + row * step_h, plots.GAP + column * step_w
        assert (sheet[y + 50, x + 50] == 20 * number).all()
        assert near(sheet[y + 69 : y + 71, x + 25 : x + 75], class_colour(0)).any(0).all()  # the box's lower edge
        assert (sheet[y + 100 : y + 100 + plots.LINE, x : x + 120] < 100).any()  # the caption
    assert (sheet[step_h + plots.GAP :, 2 * step_w + plots.GAP :] == 255).all()  # the empty cell


def test_mosaic_shrinks_to_its_side_and_stops_at_its_most() -> None:
    images = [np.zeros((400, 400, 3), np.uint8)] * 20
    nothing = [np.zeros((0, 4))] * 20
    sheet = plots.mosaic(images, nothing, [np.zeros(0, int)] * 20, ["a"], side=800, most=16)
    assert sheet.shape == (4 * 206 + 6, 4 * 206 + 6, 3)


def test_error_picture_has_the_papers_colours() -> None:
    image = np.full((700, 700, 3), 128, np.uint8)
    truth = Truth(np.array([[50, 50, 200, 200], [400, 50, 600, 200]], np.float32), np.zeros(2, np.int64))
    seen = Detections(np.array([[60, 60, 210, 210], [50, 400, 200, 600]], np.float32), np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))
    picture = plots.error_picture(image, seen, truth, np.array([True, False]), np.array([True, False]), "a.jpg")
    assert picture.shape[1] == 700 and picture.shape[0] == 700 + 2 * plots.LINE
    expected = {(50, 120): plots.TRUTH, (400, 120): plots.MISSED, (210, 120): plots.DETECTION, (50, 500): plots.WRONG}
    for (x, y), color in expected.items():
        assert near(picture[y : y + 1, x - 2 : x + 3], color).any(), (x, y)
        assert near(picture[705:], color).sum() > 50  # and the legend explains it


def test_error_picture_enlarges_small_images_and_draws_nothing_where_nothing_is() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    truth = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    picture = plots.error_picture(np.full((61, 50, 3), 128, np.uint8), nothing, truth, np.zeros(0, bool), np.zeros(0, bool))
    assert picture.shape[1] == 550 and (picture[: 61 * 11] == 128).all()
