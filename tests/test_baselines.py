"""models/baselines: the comparison models count, learn, train, resume and detect like the others."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import train
import val
from models.baselines import boxes, efficientdet, ssd
from models.baselines.config import KINDS, BaselineConfig, FasterRCNNConfig, SSDConfig, baseline_from_dict
from models.detector import Detector
from models.publish import publish
from models.weights import build_detector, load_weights, new_detector, read_config
from tests.conftest import ROOT, make_picture
from utils.boxes import cxcywh_to_xyxy, iou
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.complexity import complexity
from utils.config import Hyp
from utils.errors import UserError
from utils.loss import loss_settings
from utils.nms import nms
from val import validate

needs_effdet = pytest.mark.skipif(importlib.util.find_spec("effdet") is None, reason="effdet is optional: pip install -r requirements-extra.txt")
ALL = [*(name for name in KINDS if name != "efficientdet_d0"), pytest.param("efficientdet_d0", marks=needs_effdet)]
SETTINGS = loss_settings(Hyp(), 1, 3, 128)
OBJECTS = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3], [0, 0, 0.2, 0.2, 0.25, 0.1], [1, 0, 0.6, 0.4, 0.5, 0.4]])
SSD_HEADS = ((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), (80, 40, 20, 10, 8, 6))  # channels, boxes of a cell, cells of a side at 640
TINY = {"faster_rcnn": "width: 0.0625\nanchor_sizes: [16, 32, 64]\n", "ssd": "width: 0.0625\n", "efficientdet_d0": ""}
HYP = "mosaic: 1.0\nmixup: 0.3\nwarmup_epochs: 1\nlr0: 0.0005\nmomentum: 0.9\nwarmup_bias_lr: 0.0005\n"


def yaml_of(name: str) -> Path:
    return ROOT / "models" / "baselines" / f"{name}.yaml"


def tiny(name: str, nc: int = 1) -> Detector:
    """A narrow one with the same layers; EfficientDet-D0 is small as it is."""
    config = read_config(yaml_of(name), nc)
    if isinstance(config, FasterRCNNConfig):
        config = replace(config, width=0.0625, anchor_sizes=(16.0, 32.0, 64.0))
    elif isinstance(config, SSDConfig):
        config = replace(config, width=0.0625)
    torch.manual_seed(0)
    return build_detector(config)


# ---------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_those_of_the_networks_in_the_paper(name: str) -> None:
    with torch.device("meta"):
        params = sum(p.numel() for p in new_detector(yaml_of(name), 1).parameters())
    assert abs(params / 1e6 - {"faster_rcnn": 136.68, "ssd": 23.75, "efficientdet_d0": 3.83}[name]) < 0.05


def gflops(name: str, imgsz: int) -> float:
    """Of the network at full size, counted without its memory."""
    with torch.device("meta"):
        model = new_detector(yaml_of(name), 1).eval()
    return complexity(model, imgsz).gflops


def test_gflops_of_ssd_differ_from_the_paper_by_the_background_class() -> None:
    assert gflops("ssd", 640) == pytest.approx(273.61, abs=0.01)
    column = sum(9 * channels * boxes * side**2 for channels, boxes, side in zip(*SSD_HEADS, strict=True))
    assert gflops("ssd", 640) - 2 * column / 1e9 == pytest.approx(273.2, abs=0.05)
    assert 23.7459 - sum(9 * channels * boxes for channels, boxes in zip(*SSD_HEADS[:2], strict=True)) / 1e6 == pytest.approx(23.6, abs=0.05)


@needs_effdet
def test_gflops_of_efficientdet_differ_from_the_paper_by_layers_that_thop_does_not_know() -> None:
    """thop counts a BatchNorm2d with 8 operations a value, and timm's class of normalisation and activation in one with none."""
    assert gflops("efficientdet_d0", 512) == pytest.approx(4.456, abs=0.001)
    assert gflops("efficientdet_d0", 640) == pytest.approx(6.962, abs=0.001)
    with torch.device("meta"):
        model, image = new_detector(yaml_of("efficientdet_d0"), 1).eval(), torch.zeros(1, 3, 640, 640)
    values: list[int] = []
    for module in model.modules():
        if type(module).__name__ == "BatchNormAct2d":
            module.register_forward_hook(lambda *call: values.append(call[2].numel()))
    model(image)
    assert 6.962 + 8 * sum(values) / 1e9 == pytest.approx(7.4, abs=0.01)


def test_gflops_of_the_paper_for_faster_rcnn_are_those_of_600_regions_at_640() -> None:
    """Convolutions at full size, and fc6, fc7 and the outputs for every region."""
    with torch.device("meta"):
        model = new_detector(yaml_of("faster_rcnn"), 1).eval()
    stages = torch.nn.Sequential(*list(model.layers.values())[:-2], model.layers["rpn"].head.conv)  # type: ignore[union-attr, arg-type]
    maps = complexity(stages, 640).gflops + 2 * 40**2 * 512 * (9 + 36) / 1e9
    region = 2 * (512 * 49 * 4096 + 4096 * 4096 + 4096 * (2 + 8)) / 1e9
    assert maps + 300 * region == pytest.approx(329.93, abs=0.01)
    assert maps + 600 * region == pytest.approx(401.7, abs=0.06)


def test_gflops_of_faster_rcnn_hold_every_region() -> None:
    """The figures of the full network follow from those of any width: convolutions and, for every region, fc6, fc7 and the two outputs."""
    config = replace(FasterRCNNConfig(), width=0.0625)
    few, many = (complexity(build_detector(replace(config, proposals=count)).eval(), 320).gflops for count in (20, 120))
    region = 32 * 49 * 256 + 256 * 256 + 256 * (2 + 8)
    assert (many - few) * 1e9 == pytest.approx(100 * 2 * region, rel=1e-3)


# ---------------------------------------------------------------------------------------------- boxes

side = st.floats(0.5, 500)
place = st.floats(-200, 800)
box = st.tuples(place, place, side, side)


@given(st.lists(st.tuples(box, box), min_size=1, max_size=8), st.sampled_from([(1.0, 1.0), (0.1, 0.2)]))
def test_decode_inverts_encode(pairs: list[tuple[Any, Any]], variance: tuple[float, float]) -> None:
    wanted, anchors = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in range(2))
    growth = (wanted[:, 2:] / anchors[:, 2:]).max()
    found = boxes.decode(boxes.encode(wanted, anchors, variance), anchors, variance)
    if growth < 62:
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(found).all()


def slow_match(objects: np.ndarray, anchors: np.ndarray, threshold: float) -> list[int]:
    overlap = iou(objects, anchors)
    index = [int(overlap[:, n].argmax()) if overlap[:, n].max() >= threshold else -1 for n in range(len(anchors))]
    taken: set[int] = set()
    for number in range(len(objects)):
        best = int(overlap[number].argmax())
        if best not in taken:
            index[best] = number
            taken.add(best)
    return index


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=50)
def test_matching_against_the_slow_way(seed: int, objects: int, anchors: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (cxcywh_to_xyxy(rng.uniform(20, 80, (n, 4))) for n in (objects, anchors))
    assert boxes.match(torch.from_numpy(a), torch.from_numpy(b)).tolist() == slow_match(a, b, 0.5)
    assert set(boxes.match(torch.zeros(0, 4), torch.from_numpy(b)).tolist()) == {-1}


def test_anchors_stand_on_cell_centres_in_the_order_of_the_heads() -> None:
    sizes = [torch.tensor([[8.0, 4.0], [5.0, 5.0]]), torch.tensor([[16.0, 20.0]])]
    found = boxes.grid_anchors([(2, 3), (1, 1)], sizes, 20, 60)
    wanted = [(10 + 20 * x, 5 + 10 * y, *size) for y in range(2) for x in range(3) for size in sizes[0].tolist()] + [(30, 10, 16, 20)]
    assert found.tolist() == [list(map(float, row)) for row in wanted]


def test_objects_of_an_image_are_those_with_an_area() -> None:
    targets = torch.tensor([[1, 2, 0.5, 0.5, 0.5, 1.0], [0, 0, 0.5, 0.5, 0.0, 0.2], [-1, 0, 0.5, 0.5, 0.5, 0.5]])
    first, second = boxes.objects_of(targets, 2, 100, 200)
    assert len(first.boxes) == 0 and second.classes.tolist() == [2] and second.boxes.tolist() == [[50, 0, 150, 100]]


@pytest.mark.parametrize("name", ["ssd", pytest.param("efficientdet_d0", marks=needs_effdet)])
def test_perfect_logits_decode_to_the_objects(name: str) -> None:
    """Offsets and classes set to what the loss asks for: the loss is all but 0, and NMS finds the objects and nothing else."""
    module: Any = {"ssd": ssd, "efficientdet_d0": efficientdet}[name]
    model = tiny(name, nc=2).eval()
    targets = OBJECTS.clone()
    targets[1, 1] = 1
    with torch.no_grad():
        raw = model(torch.rand(2, 3, 128, 256))
        variance = ssd.VARIANCE if name == "ssd" else (1.0, 1.0)
        for image, own in enumerate(boxes.objects_of(targets, 2, 128, 256)):
            index = boxes.match(own.boxes, cxcywh_to_xyxy(raw.anchors))
            positive = (index >= 0).nonzero()[:, 0]
            centred = torch.cat([(own.boxes[:, :2] + own.boxes[:, 2:]) / 2, own.boxes[:, 2:] - own.boxes[:, :2]], 1)
            raw.offsets[image, positive] = boxes.encode(centred[index[positive]], raw.anchors[positive], variance)
            raw.logits[image] = torch.tensor([20.0, -20, -20]) if name == "ssd" else -20.0
            raw.logits[image, positive] = -20.0
            raw.logits[image, positive, own.classes[index[positive]] + (name == "ssd")] = 20.0
        assert module is not None and float(model.loss(raw, targets, SETTINGS).total) < 1e-3
        found = nms(model.decode(raw), 0.5, 0.5)
    for image, one in enumerate(found):
        own = targets[targets[:, 0] == image]
        wanted = cxcywh_to_xyxy(own[:, 2:].numpy()) * (256, 128, 256, 128)
        order = np.argsort(one.classes)
        assert one.classes[order].tolist() == own[:, 1].tolist()
        np.testing.assert_allclose(one.boxes[order], wanted, atol=0.01)


# ---------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loss_is_finite_with_gradients_everywhere_even_without_objects(name: str, dtype: torch.dtype | None) -> None:
    model = tiny(name, nc=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(2, 3, 128, 256).contiguous(memory_format=torch.channels_last)
    for targets in (OBJECTS, OBJECTS[:0]):
        for training in (True, False):
            model.train(training).zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                raw = model(images)
            terms = model.loss(raw, targets, SETTINGS)
            assert torch.isfinite(terms.total) and float(terms.total.detach()) == pytest.approx(2 * float(sum(terms[1:])), rel=1e-4)
            assert (float(terms.box) > 0) == bool(len(targets)) and model.training == training
            terms.total.backward()
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
            assert all(module.training == training for module in model.modules())
    with torch.no_grad():
        rows = model.decode(model(images))
    assert rows.shape[0] == 2 and rows.shape[1] <= boxes.KEPT and rows.shape[2] == 7 and rows.dtype == torch.float32
    assert torch.isfinite(rows).all() and ((rows[..., 4:] >= 0) & (rows[..., 4:] <= 1)).all()


LEARN = {"faster_rcnn": (80, 64, 1e-3), "ssd": (80, 64, 2e-3), "efficientdet_d0": (20, 128, 2e-3)}


@pytest.mark.parametrize("name", ALL)
def test_it_learns_two_pictures(name: str) -> None:
    """The loss falls to less than a fifth, and the best detection of each picture is its object."""
    steps, pixels, rate = LEARN[name]
    rng = np.random.default_rng(0)
    pictures = [make_picture(rng, pixels, pixels, 1) for _ in range(2)]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in pictures]).float() / 255
    targets = torch.tensor([[index, *row] for index, (_, rows) in enumerate(pictures) for row in rows])
    model = tiny(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        terms = model.loss(model(images), targets, SETTINGS)
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
        losses.append(terms.total.item())
    assert np.mean(losses[-5:]) < losses[0] / 5
    model.train(name == "efficientdet_d0")  # its averages of batch statistics need hundreds of steps
    with torch.no_grad():
        found = nms(model.decode(model(images)), 0.001, 0.5)
    for index, one in enumerate(found):
        truth = cxcywh_to_xyxy(targets[index : index + 1, 2:].numpy()) * pixels
        assert iou(one.boxes[:1], truth).item() > 0.5


def test_small_and_long_images_have_all_levels() -> None:
    """Maps that end before the last level are enlarged instead of failing."""
    model = tiny("ssd").eval()
    with torch.no_grad():
        for height, width in ((32, 32), (32, 640), (320, 64)):
            raw = model(torch.rand(1, 3, height, width))
            assert raw.offsets.shape[1] == len(raw.anchors) and torch.isfinite(model.decode(raw)).all()


# ---------------------------------------------------------------------------------------------- settings and files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("baseline: sdd\n", r"x\.yaml:1: unknown baseline 'sdd' \(did you mean 'ssd'"),
        ("baseline: ssd\nwidht: 1\n", r"x\.yaml:2: unknown setting of ssd 'widht' \(did you mean 'width'"),
        ("baseline: ssd\nproposals: 3\n", r"x\.yaml:2: unknown setting of ssd"),
        ("baseline: ssd\nscales: [0.1, 0.2]\n", "7 were expected"),
        ("baseline: ssd\nscales: 3\n", r"x\.yaml:2: scales is 3, a list"),
        ("baseline: ssd\nwidth: 0\n", r"x\.yaml:2: width is 0, 0.01 to 4"),
        ("baseline: faster_rcnn\nproposals: 1.5\n", r"x\.yaml:2: proposals is 1.5, a whole number"),
        ("baseline: faster_rcnn\nanchor_sizes: []\n", r"x\.yaml:2: anchor_sizes"),
        ("baseline: faster_rcnn\nanchor_sizes: [a]\n", r"x\.yaml:2: anchor_sizes"),
        ("nc: 1\nbaseline: [ssd]\n", r"x\.yaml:2: unknown baseline"),
    ],
)
def test_wrong_settings_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_config(path)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_settings_survive_the_checkpoint(kind: type[BaselineConfig]) -> None:
    config = kind(nc=3)
    assert baseline_from_dict(config.to_dict(), "best.pt") == config
    with pytest.raises(UserError, match=r"best\.pt:model: unknown setting"):
        baseline_from_dict({**config.to_dict(), "layers": []}, "best.pt")
    assert read_config(yaml_of(config.baseline)) == kind()  # a YAML states the defaults


def checkpoint(path: Path, name: str) -> Detector:
    model = tiny(name, 2).eval()
    save_checkpoint(path, {"model": model.config.to_dict(), "names": ["rock", "滑坡"], "imgsz": 128, "ema": model.state_dict()})
    return model


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_gives_the_same_detections(name: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "best.pt", name)
    loaded = load_weights(tmp_path / "best.pt")
    assert loaded.names == ("rock", "滑坡") and loaded.model.config == model.config and not loaded.model.training
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        first, second = (one.decode(one(images)) for one in (model, loaded.model.fuse()))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 4.0}, "shape"), ({"anchor_sizes": [1.0] * 16}, "shape"), ({"nc": 65536}, "class names"), ({"width": 1e9}, "width")],
)
def test_a_description_of_a_giant_takes_no_memory(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    checkpoint(path, "faster_rcnn")
    content = load_checkpoint(path)
    save_checkpoint(path, {**content, "model": {**content["model"], **change}})
    with pytest.raises(UserError, match=words):
        load_weights(path)


def test_without_effdet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "effdet", None)
    with pytest.raises(UserError, match="pip install effdet"):
        new_detector(yaml_of("efficientdet_d0"))


# ---------------------------------------------------------------------------------------------- through the scripts


@pytest.fixture(scope="module")
def hyp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hyp") / "hyp.yaml"
    path.write_text(HYP, encoding="utf-8")
    return path


def cfg(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"baseline: {name}\n{TINY[name]}", encoding="utf-8")
    return path


@pytest.fixture
def few_images(tiny_data: Path, tmp_path: Path) -> Path:
    """Six images to train on and six to validate on; the YAML."""
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    for path in [path for split in ("train", "val") for path in sorted((tmp_path / "data" / "images" / split).iterdir())[6:]]:
        path.unlink()
    return tmp_path / "data" / "data.yaml"


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than these runs."""
    monkeypatch.setattr(train, "conclude", lambda *_: None)
    monkeypatch.setattr(train, "plot_labels", lambda *_: None)


@pytest.mark.parametrize("name", ["faster_rcnn", "ssd"])
def test_resumed_equals_uninterrupted(name: str, few_images: Path, hyp: Path, tmp_path: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first of two epochs: the regions that Faster R-CNN samples are the same too."""
    same: dict[str, Any] = {"hyp": str(hyp), "device": "cpu", "project": str(tmp_path), "optimizer": "AdamW"}
    options = train.Options(cfg=str(cfg(tmp_path, name)), data=str(few_images), epochs=2, batch_size=3, imgsz=64, **same)
    train.train(replace(options, name="whole"))
    finish = train.finish_epoch

    def stop(*arguments: Any) -> bool:
        finish(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "finish_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(replace(options, name="cut"))
    monkeypatch.setattr(train, "finish_epoch", finish)
    resume = train.Options(resume=str(tmp_path / "cut" / "weights" / "last.pt"), device="cpu")
    train.train(resume)
    first, second = (load_checkpoint(tmp_path / run / "weights" / "last.pt") for run in ("whole", "cut"))
    assert all(torch.equal(first[key][item], second[key][item]) for key in ("weights", "ema") for item in first[key])
    assert (tmp_path / "whole" / "results.csv").read_bytes() == (tmp_path / "cut" / "results.csv").read_bytes()
    (tmp_path / f"{name}.yaml").write_text(f"baseline: {name}\nwidth: 0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match="layers are no longer those"):
        train.prepare(resume)


def run_script(*words: object) -> str:
    result = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_train_val_and_detect_as_a_user_runs_them(few_images: Path, hyp: Path, tmp_path: Path) -> None:
    common = ["--device", "cpu", "--project", tmp_path]
    flags = ["--cfg", cfg(tmp_path, "ssd"), "--data", few_images, "--hyp", hyp, "--epochs", 1, "--batch-size", 6, "--imgsz", 64, "--freeze", 2]
    run_script("train.py", *flags, *common, "--amp", "bf16", "--name", "t")
    last = tmp_path / "t" / "weights" / "last.pt"
    assert "GFLOPs at 64 px" in run_script("val.py", "--weights", last, "--data", few_images, *common, "--name", "v")
    assert (tmp_path / "v" / "report.json").exists()
    run_script("detect.py", "--weights", last, "--source", few_images.parent / "images" / "val", *common, "--name", "d", "--save-csv")
    assert (tmp_path / "d" / "predictions.csv").exists() and len(list((tmp_path / "d").glob("*.png"))) == 6


def test_a_published_one_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is optional: pip install -r requirements-extra.txt")
    model = checkpoint(tmp_path / "best.pt", "faster_rcnn")
    publish(tmp_path / "best.pt", tmp_path / "a.safetensors")
    loaded = load_weights(tmp_path / "a.safetensors").model
    assert loaded.config == model.config and all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())


@needs_effdet
def test_efficientdet_trains_and_is_measured(few_images: Path, hyp: Path, tmp_path: Path, no_plots: None) -> None:
    flags: dict[str, Any] = {"data": str(few_images), "device": "cpu", "project": str(tmp_path), "batch_size": 3}
    training = train.Options(cfg=str(yaml_of("efficientdet_d0")), hyp=str(hyp), epochs=1, imgsz=128, optimizer="AdamW", noval=True, name="t", **flags)
    folder = train.train(training)
    found = validate(val.Options(weights=str(folder / "weights" / "last.pt"), name="v", **flags))
    assert len(found.detections) == 6 and all(math.isfinite(value) for value in (found.report.overall.paper_ap, found.report.overall.coco_ap50))
    with pytest.raises(UserError, match="multiple of 128"):
        train.prepare(replace(training, imgsz=64))


def test_weights_of_another_number_of_classes_are_taken_over_where_they_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = checkpoint(tmp_path / "best.pt", "ssd")
    model = train.new_model(train.Options(weights=str(tmp_path / "best.pt")), 1)
    head = "layers.head.boxes.classification_head"
    fitting = [key for key in old.state_dict() if not key.startswith(head)]
    assert f"{len(fitting)} of {len(old.state_dict())} tensors" in capsys.readouterr().out and model.nc == 1
    own: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(own[key], old.state_dict()[key]) for key in fitting)
