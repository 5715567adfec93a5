"""The paper's figures on made-up runs: files that open, what is drawn where, inputs that are empty or odd."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.images import read_image, write_image
from reproduction import figures
from reproduction.figures import Marked, by_row, look, marked, picture, telling_images, worst_images
from reproduction.paper import STUDIES
from reproduction.receptive_field import measure
from reproduction.record import RunRecord
from reproduction.statistics import Interval
from tests.conftest import make_picture
from utils.detections import Detections, Truth
from utils.metrics import coco_ap, curve, match, paper_ap, score
from utils.plots import DETECTION, MISSED, TRUTH, WRONG

ABLATION = STUDIES["ablation"]
HEADER = "epoch, train/box_loss, train/obj_loss, metrics/mAP_0.5, metrics/AP_paper, val/box_loss, val/obj_loss"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A picture that makes numpy or matplotlib warn has met an input it was not thought for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def found(*rows: tuple[float, float, float, float, float]) -> Detections:
    """Detections from rows x1, y1, x2, y2, score."""
    table = np.array(sorted(rows, key=lambda row: -row[4]), np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4], np.zeros(len(table), np.int64))


def there(*boxes: tuple[float, float, float, float]) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Five pictures of 100 x 80."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{n} \u6ed1\u5761 $a_{{b$ with a rather long name.png" for n in range(5)]
    for path in paths:
        write_image(path, make_picture(rng, 100, 80, 1)[0])
    return tuple(map(str, paths))


TRUTHS = [there((10, 10, 50, 50)), there((10, 10, 50, 50), (60, 10, 90, 40)), there(), there((20, 20, 60, 60)), there((5, 5, 30, 30), (50, 50, 90, 75))]


def run(folder: Path, images: tuple[str, ...], row: str = "yolov5s", seed: int = 0, skill: int = 3, split: str = "main", epochs: int = 4) -> RunRecord:
    """A run that finds all objects of the first `skill` images and raises a false alarm in the third."""
    folder = folder / f"{row}-{split}-s{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "results.csv", "w", encoding="utf-8", newline="") as file:
        file.write(HEADER + "\n")
        csv.writer(file).writerows([[epoch, 0.1 / (epoch + 1), 0.05, epoch / 10, "", 0.1, 0.1] for epoch in range(epochs)])
    rng = np.random.default_rng([seed, skill])
    detections = [found(*((*box, 0.55 + 0.4 * rng.random()) for box in truth.boxes if n < skill)) for n, truth in enumerate(TRUTHS)]
    detections[2] = found((30, 30, 60, 60, 0.7), (0, 0, 20, 20, 0.2))
    report = score(detections, TRUTHS, ["landslide"]).to_dict()
    values = {"params": 7_012_822, "gflops": 15.8, "fps": 90.0 + seed, "seconds_per_epoch": 1.0, "groups": {}, "settings": {"shortened": []}}
    return RunRecord(row, seed, split, folder, report=report, images=images, clusters=images, detections=detections, coco_detections=detections,
                     truths=TRUTHS, **values)  # type: ignore[arg-type]  # fmt: skip


def opened(path: Path | None) -> np.ndarray:
    assert path is not None
    image = read_image(path)
    assert 0.01 < float((image < 250).any(2).mean()) < 0.99, "an empty sheet"
    return image


def near(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    return (np.abs(image.astype(int) - colour) < tolerance).all(2)


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# ---------------------------------------------------------------------------------------------------------- rows


def test_rows_stand_in_the_tables_order_whatever_the_order_of_the_runs(tmp_path: Path, images: tuple[str, ...]) -> None:
    records = [run(tmp_path, images, row, seed) for row in ("ls-yolo", "odh", "yolov5s") for seed in (2, 0, 1)]
    records.append(run(tmp_path, images, "odh", split="paper"))
    rows = by_row(records, ABLATION)
    assert list(rows) == ["yolov5s", "odh", "ls-yolo"]
    assert all([r.seed for r in runs] == [0, 1, 2] for runs in rows.values())
    assert list(by_row(records, ABLATION, "paper")) == ["odh"]


def test_every_row_has_a_look_of_its_own() -> None:
    for study in STUDIES.values():
        looks = [look(row.name, place) for place, row in enumerate(study.rows)]
        assert len(set(looks)) == len(looks)
    assert look("ls-yolo", 0) == look("ls-yolo", 9)


# -------------------------------------------------------------------------------------------------------- charts


def test_bars_grow_with_their_values(tmp_path: Path, images: tuple[str, ...]) -> None:
    """The bar's length in pixels follows the value, and the row keeps its colour."""
    ratio = {}
    for name, params in (("a", 7.0), ("b", 3.5)):
        panel = figures.Bars("Parameters", "millions", {"yolov5s": [params], "odh": [14.0]}, {})
        image = opened(figures.bar_panels([panel], ABLATION, tmp_path / f"{name}.png"))
        widths = [near(image, rgb(look(row).colour), 3).sum(1).max() for row in ("yolov5s", "odh")]
        ratio[name] = widths[0] / widths[1]
    assert ratio["a"] == pytest.approx(0.5, abs=0.02) and ratio["b"] == pytest.approx(0.25, abs=0.02)


def test_bar_figures(tmp_path: Path, images: tuple[str, ...]) -> None:
    for draw, seeds in ((figures.metric_bars, 3), (figures.cost_bars, 1)):
        records = [run(tmp_path, images, row, seed, 2 + seed) for row in ("yolov5s", "msfe", "ls-yolo") for seed in range(seeds)]
        path = draw(records, ABLATION, tmp_path / f"{draw.__name__}.png", "SHORTENED")
        image = opened(path)
        assert all(near(image, rgb(look(row).colour), 3).any() for row in ("yolov5s", "msfe", "ls-yolo"))
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_axis_starts_above_zero_only_for_shares_far_from_it() -> None:
    cases = [([96, 97], True, 95), ([86, 97], True, 80), ([96, 97], False, 0), ([20, 97], True, 0), ([99.9, 99.95], True, 95), ([0, 0], True, 0)]
    for values, zoom, expected in cases:
        low, high = figures._limits(np.array(values, float), np.array(values, float), zoom)
        assert low == expected and low < high and high >= max(values)


def test_difference_plot_greys_what_may_be_nothing(tmp_path: Path) -> None:
    rows = {"odh": Interval(1.0, -0.5, 2.5), "wdh": Interval(-2.0, -3.0, -1.0)}
    image = opened(figures.difference_plot({"AP (paper)": rows}, ABLATION, tmp_path / "a.png", "note"))
    assert near(image, rgb(look("wdh").colour), 3).any() and not near(image, rgb(look("odh").colour), 3).any()
    assert near(image, rgb(figures.GREY), 3).any()


@pytest.mark.parametrize("epochs", [0, 9])
def test_training_curves(tmp_path: Path, images: tuple[str, ...], epochs: int) -> None:
    """Also where a column was never measured (AP of the paper), of runs of different length, and without a results.csv."""
    records = [run(tmp_path, images, row, seed, epochs=max(1, epochs - seed)) for row in ("yolov5s", "ls-yolo") for seed in (0, 1)]
    if not epochs:
        for record in records:
            (record.folder / "results.csv").unlink()
    image = opened(figures.training_curves(figures.row_lines(records, ABLATION), tmp_path / "a.png", "SHORTENED"))
    assert near(image, rgb(look("ls-yolo").colour), 3).any() == (epochs > 0)


def test_curves_of_runs_of_different_length_end_with_the_shorter_one() -> None:
    runs = [{"epoch": np.arange(n, dtype=float), "a": np.arange(n) * k * 1.0} for n, k in ((3, 1), (5, 3))]
    runs[1]["a"][1] = np.nan
    epochs, values = figures._stacked(runs, "a")
    assert epochs.tolist() == [0, 2] and values.tolist() == [[0, 2], [0, 6]]
    assert figures._stacked(runs, "b")[0].size == 0 and figures._stacked([], "a")[0].size == 0


def test_pr_curves_enclose_the_ap_they_state(tmp_path: Path, images: tuple[str, ...]) -> None:
    record = run(tmp_path, images, skill=4)
    matches = match(record.detections, record.truths)
    one = curve(matches, 0)
    paper, coco = (figures._precision(record, protocol) for protocol in ("paper", "coco"))
    assert np.mean((paper[1:] + paper[:-1]) / 2) == pytest.approx(paper_ap(one)) == pytest.approx(record.report["overall"]["paper"]["AP"])
    assert coco.mean() == pytest.approx(coco_ap(one)) == pytest.approx(record.report["overall"]["coco"]["AP50"])
    lines = figures.seed_lines([record, run(tmp_path, images, seed=1)])
    image = opened(figures.pr_curves(lines, tmp_path / "a.png", "SHORTENED"))
    assert all(near(image, rgb(line.look.colour), 3).any() for line in lines)


def test_pr_curves_of_a_run_that_found_nothing(tmp_path: Path, images: tuple[str, ...]) -> None:
    nothing = replace(run(tmp_path, images), detections=[found()] * 5, coco_detections=[found()] * 5)
    assert not figures._precision(nothing, "paper").any() and not figures._precision(nothing, "coco").any()
    opened(figures.pr_curves(figures.seed_lines([nothing]), tmp_path / "a.png"))


# ---------------------------------------------------------------------------------------------- images with boxes


def test_marked_tells_right_from_wrong_and_missed(tmp_path: Path, images: tuple[str, ...]) -> None:
    record = run(tmp_path, images, skill=4)
    matches = match(record.detections, record.truths)
    contents = [marked(record, matches, index) for index in range(5)]
    assert [content.words for content in contents] == ["1 right", "2 right", "1 wrong", "1 right", "2 missed"]
    assert len(contents[2].detections) == 1  # the one below the operating point is not shown
    empty = Marked(found(), there(), np.zeros(0, bool), np.zeros(0, bool))
    assert empty.words == "nothing there, nothing found"


def test_picture_has_the_papers_colours_at_the_right_places() -> None:
    seen, truth, first = found((60, 20, 95, 50, 0.9), (5, 60, 30, 75, 0.8)), there((55, 20, 90, 50), (10, 10, 40, 40)), np.array([True, False])
    content = Marked(seen, truth, right=first, found=first)
    image = picture(np.full((80, 100, 3), 128, np.uint8), content)
    scale = figures.SMALL_PICTURE / 100
    assert image.shape == (320, 400, 3)
    for (x, y), colour in {(60, 40): DETECTION, (5, 70): WRONG, (55, 40): TRUTH, (10, 30): MISSED}.items():
        around = image[int(y * scale), int(x * scale) - 3 : int(x * scale) + 4]
        assert near(around[None], colour).any(), (x, y)


def test_scores_are_left_out_where_they_would_hide_the_image() -> None:
    few, many = (found(*((4 * n, 50, 4 * n + 3, 60, 0.9) for n in range(count))) for count in (figures.MOST_SCORES, figures.MOST_SCORES + 1))
    labels = []
    for detections in (few, many):
        content = Marked(detections, there(), np.ones(len(detections), bool), np.zeros(0, bool))
        labels.append(near(picture(np.full((80, 100, 3), 128, np.uint8), content)[:196], DETECTION).sum())  # above the boxes
    assert labels[0] > 500 and labels[1] == 0


def test_worst_images_by_errors_then_by_the_surest_wrong_detection() -> None:
    truths = [there((0, 0, 10, 10)), there(), there(), there((0, 0, 10, 10), (20, 20, 30, 30)), there()]
    seen = [found(), found((0, 0, 5, 5, 0.6)), found((0, 0, 5, 5, 0.9)), found(), found((0, 0, 5, 5, 0.4))]
    matches = match(seen, truths)
    assert worst_images(matches, 9) == [3, 2, 1, 0]
    assert worst_images(matches, 2) == [3, 2]


def test_telling_images_are_those_on_which_the_runs_differ(tmp_path: Path, images: tuple[str, ...]) -> None:
    runs = [run(tmp_path, images, row, 0, skill) for row, skill in (("yolov5s", 1), ("ls-yolo", 4))]
    assert telling_images(runs, 2) == [3, 1]  # one object: image 3 (0 is right in both); several: image 1 (4 is wrong in both)
    assert telling_images(runs, 4) == [3, 0, 1, 4]
    assert len(telling_images(runs, 50)) == 4  # without the one that holds nothing


def test_side_by_side_and_failures(tmp_path: Path, images: tuple[str, ...]) -> None:
    runs = [run(tmp_path, images, row, 0, skill) for row, skill in (("yolov5s", 1), ("ls-yolo", 4))]
    image = opened(figures.side_by_side(runs, [0, 3, 4], ABLATION, tmp_path / "a.png"))
    assert all(near(image, colour).any() for colour in (TRUTH, DETECTION, MISSED, WRONG))  # at least in the legend
    opened(figures.failure_cases(runs[0], tmp_path / "b.png", 3))
    perfect = [found(*((*box, 0.9) for box in truth.boxes)) for truth in TRUTHS]
    assert figures.failure_cases(replace(runs[0], detections=perfect), tmp_path / "c.png") is None
    with pytest.raises(ValueError, match="different images"):
        figures.side_by_side([runs[0], replace(runs[1], images=images[:1])], [0], ABLATION, tmp_path / "d.png")


# ----------------------------------------------------------------------------------------------- receptive fields


def test_receptive_fields_are_bright_in_their_centre(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64] + 0.5
    fields = {}
    for name, width in (("O-DH", 20.0), ("W-DH", 200.0)):
        bell = np.exp(-((x - 32) ** 2 + (y - 32) ** 2) / width)
        fields[name] = measure(bell / bell.max(), (32, 32))
    image = opened(figures.receptive_fields(fields, tmp_path / "a.png", "P4"))
    dark = near(image, (0, 0, 3), 12)
    halves = dark[:, : image.shape[1] * 45 // 100].sum(), dark[:, image.shape[1] * 45 // 100 :].sum()
    assert halves[0] > 1.2 * halves[1] > 0


def test_a_field_of_zeros_draws(tmp_path: Path) -> None:
    opened(figures.receptive_fields({"a": measure(np.zeros((8, 8)), (4, 4))}, tmp_path / "a.png"))
