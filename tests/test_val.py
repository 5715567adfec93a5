"""val.py: boxes on their way back to the original image, two lists for two protocols, every flag, and the same numbers from the file."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from data.dataset import Sample, load_data, load_split
from data.images import write_image
from data.labels import Labels
from data.loader import Batch, View, evaluation_batches
from models.builder import load_config
from models.yolo import DetectionModel
from utils.checkpoint import save_checkpoint
from utils.config import Hyp
from utils.detections import Detections
from utils.errors import UserError
from utils.loss import detection_loss, loss_settings
from utils.nms import nms, to_image
from val import Options, evaluate, first_images, truth_of, two_lists, validate

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


class Finder(nn.Module):
    """Stands in for a network: decodes to the bounding boxes of what is redder than green."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images

    def decode(self, images: Tensor) -> Tensor:
        rows = torch.zeros(len(images), 3, 6)
        for number, image in enumerate(images):
            mask = (image[0] > image[1]).numpy().astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            for slot, (x, y, w, h, area) in enumerate(sorted(stats[1:].tolist(), key=lambda row: -row[4])[:3]):
                if area > 60:
                    rows[number, slot] = torch.tensor([x + w / 2, y + h / 2, w, h, 0.9 - 0.1 * slot, 1.0])
        return rows


@pytest.fixture(scope="module")
def samples(tiny_data: Path) -> list[Sample]:
    return load_split(load_data(tiny_data), "val", quiet=True)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow untrained network whose objectness bias makes it see things everywhere, as train.py would save it."""
    torch.manual_seed(0)
    config = dataclasses.replace(load_config(ROOT / "models" / "ls-yolo.yaml", nc=1), width_multiple=0.125, depth_multiple=0.1)
    model = DetectionModel(config)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("_out.weight"):
                parameter *= 20  # so that boxes and scores differ from cell to cell
            elif name.endswith("obj_out.bias"):
                parameter += 4
            elif name.endswith("cls_out.bias"):
                parameter += 20
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, {"model": config.to_dict(), "names": ["landslide"], "imgsz": 160, "ema": model.state_dict()})
    return path


# ------------------------------------------------------------------------------------------------------ evaluate


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Pictures of many shapes with two red rectangles each, and one without."""
    folder, rng, result = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), []
    for number, (width, height) in enumerate([(200, 120), (90, 160), (64, 64), (301, 77), (160, 161), (128, 96), (50, 300)]):
        image, rows = np.full((height, width, 3), (60, 110, 60), np.uint8), []
        for half in range(2 if number else 0):  # one in the left half and one in the right half
            w, h = int(rng.integers(width // 5, width // 3)), int(rng.integers(height // 5, height // 2))
            x, y = half * width // 2 + int(rng.integers(2, width // 2 - w - 2)), int(rng.integers(2, height - h - 2))
            image[y : y + h, x : x + w] = (220, 40, 40)
            rows.append((0, np.array([x / width, y / height, (x + w) / width, (y + h) / height]), None))
        write_image(folder / f"{number}.png", image)
        result.append(Sample(folder / f"{number}.png", width, height, Labels.from_rows(rows)))
    return result


@pytest.mark.parametrize("rect", [True, False])
@pytest.mark.parametrize("imgsz", [128, 320])
def test_boxes_come_back_in_pixels_of_the_original_image(shapes: list[Sample], rect: bool, imgsz: int) -> None:
    model = Finder().train()
    found = evaluate(model, evaluation_batches(shapes, imgsz, 3, 32, rect), ["landslide"], CPU)  # type: ignore[arg-type]
    overall = found.report.overall
    assert found.report.images == 7 and (overall.chosen.tp, overall.chosen.fp, overall.chosen.fn) == (12, 0, 0)
    assert overall.coco_ap50 == pytest.approx(1) and overall.coco_ap50_95 > 0.7
    for sample, detections, truth in zip(shapes, found.detections, found.truths, strict=True):
        order = [int(np.abs(detections.boxes - box).sum(1).argmin()) for box in truth.boxes]
        pixel = max(sample.width, sample.height) / imgsz  # one pixel of the network, in the image's own
        assert np.abs(detections.boxes[order] - truth.boxes).max(initial=0) <= max(1.0, pixel) + 0.01, sample.path
    assert model.training and found.times.load > 0 and found.times.nms > 0
    assert all(math.isnan(value) for value in found.losses)


def test_boxes_are_cut_to_the_image() -> None:
    matrix = np.array([[2.0, 0, -20], [0, 2, -40], [0, 0, 1]])
    found = Detections(np.array([[0, 0, 30, 30], [20, 30, 500, 500]], np.float32), np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64))
    moved = to_image(found, matrix, 100, 60)
    assert moved.boxes.tolist() == [[0, 0, 40, 20], [20, 20, 100, 60]] and moved.boxes.dtype == np.float32


def test_truth_is_in_pixels() -> None:
    labels = Labels.from_rows([(2, np.array([0.1, 0.2, 0.5, 0.6]), None)])
    truth = truth_of(Sample(Path("a.jpg"), 200, 100, labels))
    assert truth.boxes == pytest.approx(np.array([[20, 20, 100, 60]])) and truth.classes.tolist() == [2]


def test_losses_are_means_per_image(weights: Path, samples: list[Sample]) -> None:
    from models.weights import load_weights

    model = load_weights(weights).model
    settings = loss_settings(Hyp(), 1, 3, 160)
    found = evaluate(model, evaluation_batches(samples, 160, 6, 32), ["landslide"], CPU, settings)
    total = torch.zeros(3)
    with torch.no_grad():
        for batch in evaluation_batches(samples, 160, 6, 32):  # 6 + 6 + 4 images
            terms = detection_loss(model(batch.images.float() / 255), batch.targets, model.anchors, model.strides, settings)
            total += torch.stack([terms.box, terms.obj, terms.cls]) * len(batch.views)
    assert found.losses == pytest.approx((total / len(samples)).tolist(), rel=1e-5)
    assert found.losses[0] > 0 and found.losses[1] > 0
    assert next(model.parameters()).requires_grad  # nothing the model keeps for training has changed


def test_the_deployed_list_cut_at_a_score_is_what_nms_from_there_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, size = torch.rand(2, 300, 2, generator=generator) * 100, torch.rand(2, 300, 2, generator=generator) * 30 + 10
    predictions = torch.cat([centre, size, torch.rand(2, 300, 4, generator=generator)], 2)
    deployed, coco = two_lists(predictions, 0.001, 0.5, 300, False)
    for mine, expected in zip(deployed, nms(predictions, 0.5, 0.5), strict=True):
        cut = mine.select(mine.scores > 0.5)
        assert len(cut) > 5 and np.array_equal(cut.boxes, expected.boxes) and np.array_equal(cut.scores, expected.scores)
    assert [len(one) for one in coco] > [len(one) for one in deployed]


def test_single_class_counts_every_class_as_one() -> None:
    predictions = torch.tensor([[[50.0, 50, 20, 20, 0.9, 0.1, 0.8], [50, 50, 20, 20, 0.8, 0.7, 0.1], [10, 10, 8, 8, 0.5, 0.9, 0.1]]])
    for (found,) in two_lists(predictions, 0.001, 0.5, 300, True):
        assert found.classes.tolist() == [0, 0] and found.scores == pytest.approx([0.72, 0.45])


def test_first_images_keeps_the_targets_of_those_images() -> None:
    views = tuple(View(n, Path(f"{n}.jpg"), 8, 8, np.eye(3)) for n in range(3))
    targets = torch.tensor([[0, 0, 0.5, 0.5, 1, 1], [2, 0, 0.5, 0.5, 1, 1], [1, 0, 0.5, 0.5, 1, 1.0]])
    batch = first_images(Batch(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), targets, views), 2)
    assert batch.images.shape == (2, 3, 8, 8) and batch.targets[:, 0].tolist() == [0, 1] and batch.views == views[:2]


# -------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def run_folder(tiny_data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run with every output leaves."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {"by_prefix": ["00", "01"], "save_json": True, "save_txt": True, "save_conf": True, "plots": True, "gallery": True}
    options = Options(weights=str(weights), data=str(tiny_data), img=150, batch_size=6, conf_thres=0.4, workers=0, device="cpu", project=str(folder), **flags)
    validate(options)
    return folder / "exp"


def report_of(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_report_says_what_was_measured_and_how(run_folder: Path) -> None:
    report = report_of(run_folder)
    assert report["imgsz"] == 160  # 150 rounded up to a multiple of the stride
    assert report["params"] == sum(p.numel() for p in DetectionModel(narrow()).fuse().parameters())
    for key in ("gflops", "fps", "speed_ms", "weights", "data", "task", "max_det", "paper_nms_iou", "coco_nms_iou"):
        assert report[key], key
    overall = report["overall"]
    assert isinstance(overall, dict)
    assert overall["at_confidence"]["confidence"] == 0.4 and overall["at_confidence"]["fp"] > 20
    assert set(overall["paper"]) == {"AP"} and set(overall["coco"]) == {"AP50", "AP50:95"}


def test_groups_are_parts_of_the_whole(run_folder: Path) -> None:
    report = report_of(run_folder)
    parts, whole = [part["overall"] for part in report["groups"].values()], report["overall"]  # type: ignore[attr-defined]
    assert [part["images"] for part in report["groups"].values()] == [10, 6]  # type: ignore[attr-defined]
    for key in ("tp", "fp", "fn"):
        assert sum(part["at_confidence"][key] for part in parts) == whole["at_confidence"][key]  # type: ignore[index]


def narrow():  # type: ignore[no-untyped-def]
    return dataclasses.replace(load_config(ROOT / "models" / "ls-yolo.yaml", nc=1), width_multiple=0.125, depth_multiple=0.1)


def test_predictions_read_back_give_the_same_numbers(run_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    validate(Options(predictions=str(run_folder / "predictions.json"), data=str(tiny_data), conf_thres=0.4, project=str(tmp_path), gallery=True, plots=True))
    again, first = report_of(tmp_path / "exp"), report_of(run_folder)
    for key in ("images", "overall", "classes"):
        assert again[key] == first[key]
    assert (tmp_path / "exp" / "gallery" / "errors.csv").read_bytes() == (run_folder / "gallery" / "errors.csv").read_bytes()


def test_pycocotools_itself_agrees_about_the_written_file(run_folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    truths = [truth_of(sample) for sample in samples]
    annotations: list[dict[str, object]] = []
    for sample, truth in zip(samples, truths, strict=True):
        for x0, y0, x1, y1 in truth.boxes.tolist():
            bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
            annotations.append({"id": len(annotations) + 1, "image_id": int(sample.path.stem), "category_id": 0, "iscrowd": 0, "bbox": bbox, "area": area})
    content = {"images": [{"id": int(sample.path.stem)} for sample in samples], "categories": [{"id": 0}], "annotations": annotations}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    coco_truth = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco_truth, coco_truth.loadRes(str(run_folder / "predictions.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    coco = report_of(run_folder)["overall"]["coco"]  # type: ignore[index]
    assert coco["AP50:95"] == pytest.approx(evaluation.stats[0], abs=1e-9) and coco["AP50"] == pytest.approx(evaluation.stats[1], abs=1e-9)
    assert coco["AP50"] > 0


def test_labels_hold_the_deployed_detections(run_folder: Path, samples: list[Sample]) -> None:
    overall = report_of(run_folder)["overall"]
    files = list((run_folder / "labels").iterdir())
    rows = [line.split() for file in files for line in file.read_text().splitlines()]
    counts = overall["at_confidence"]  # type: ignore[index]
    assert len(rows) == counts["tp"] + counts["fp"] and all(len(row) == 6 and float(row[5]) >= 0.4 for row in rows)
    assert {file.stem for file in files} <= {sample.path.stem for sample in samples}
    assert all(0 <= float(value) <= 1 for row in rows for value in row[1:])


def test_gallery_ranks_by_errors(run_folder: Path) -> None:
    with open(run_folder / "gallery" / "errors.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [int(row["errors"]) for row in rows]
    counts = report_of(run_folder)["overall"]["at_confidence"]  # type: ignore[index]
    assert len(rows) == 16 and errors == sorted(errors, reverse=True)
    for name, key in (("right", "tp"), ("wrong", "fp"), ("missed", "fn")):
        assert sum(int(row[name]) for row in rows) == counts[key]
    pictures = sorted(path.name for path in (run_folder / "gallery").glob("*.jpg"))
    assert pictures == sorted(f"{int(row['rank']):03}_{Path(row['image']).stem}.jpg" for row in rows if int(row["errors"]))


def test_pictures_are_there(run_folder: Path) -> None:
    names = {f"{word}_curve.png" for word in ("PR", "P", "R", "F1")} | {f"val_batch{n}_{kind}.png" for n in range(3) for kind in ("labels", "pred")}
    assert {path.name for path in run_folder.glob("*.png")} == names


def test_no_output_is_written_unasked(weights: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(weights=str(weights), data=str(tiny_data), task="train", workers=0, device="cpu", project=str(tmp_path), name="n")
    validate(dataclasses.replace(options, square=True, single_cls=True, half=True))
    assert [path.name for path in (tmp_path / "n").iterdir()] == ["report.json"]
    out = capsys.readouterr().out
    for words in ("paper", "coco", "AP50:95", "ms NMS", "GFLOPs", "FPS", "bfloat16"):
        assert words in out


def test_a_flawless_file_of_another_detector(samples: list[Sample], tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"image_id": int(sample.path.stem), "category_id": 0, "bbox": [*box[:2], *(box[2:] - box[:2])], "score": 0.75}
        for sample in samples
        for box in truth_of(sample).boxes.astype(float)
    ]
    (tmp_path / "theirs.json").write_text(json.dumps([*rows, {"image_id": "other", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 0.9}]))
    found = validate(Options(predictions=str(tmp_path / "theirs.json"), data=str(tiny_data), project=str(tmp_path), name="n", exist_ok=True))
    overall = found.report.overall
    assert (overall.chosen.f1, overall.coco_ap50_95) == (1, pytest.approx(1)) and overall.paper_ap == pytest.approx(0.995)
    assert "1 of other images left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": ""}, "--weights is missing"),
        ({"conf_thres": 1.5}, "--conf-thres is 1.5; 0 to 1 was expected"),
        ({"iou_thres": -0.1}, "--iou-thres is -0.1"),
        ({"batch_size": 0}, "--batch-size is 0; at least 1"),
        ({"max_det": 0}, "--max-det is 0"),
        ({"img": 0}, "--img is 0"),
        ({"workers": -1}, "--workers is -1"),
        ({"task": "test"}, "has no 'test'"),
        ({"weights": "gone.pt"}, "gone.pt: no such checkpoint"),
        ({"data": "gone.yaml"}, "gone.yaml: no such file"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], words: str, weights: Path, tiny_data: Path, tmp_path: Path) -> None:
    options = Options(weights=str(weights), data=str(tiny_data), workers=0, device="cpu", project=str(tmp_path))
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        validate(dataclasses.replace(options, **changes))  # type: ignore[arg-type]


def test_a_prefix_that_no_image_has_is_named(run_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    options = Options(predictions=str(run_folder / "predictions.json"), data=str(tiny_data), project=str(tmp_path), by_prefix=["01,x", "sw_"])
    with pytest.raises(UserError, match=r"--by-prefix sw_: no image is named so"):
        validate(options)


def test_other_classes_than_the_weights_know_are_refused(weights: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(tiny_data.read_text().replace("{0: landslide}", "[landslide, rock]") + f"path: {tiny_data.parent}\n")
    with pytest.raises(UserError, match=r"knows 1 classes, .*two\.yaml names 2"):
        validate(Options(weights=str(weights), data=str(tmp_path / "two.yaml"), workers=0, device="cpu", project=str(tmp_path)))


def test_the_script_ends_with_2_for_a_wrong_file_and_helps_without_torch(tmp_path: Path) -> None:
    def script(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)

    done = script("val.py", "--data", str(tmp_path / "no.yaml"), "--predictions", "x.json")
    assert done.returncode == 2 and "no.yaml: no such file" in done.stderr and "Traceback" not in done.stderr
    code = "import runpy, sys; sys.argv = ['val.py', '--help']\ntry: runpy.run_path('val.py', None, '__main__')\nfinally: print('torch' in sys.modules)"
    done = script("-c", code)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False")
    assert all(f"--{field.name.replace('_', '-')}" in done.stdout for field in dataclasses.fields(Options))
