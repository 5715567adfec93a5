"""The rows whose work the `ultralytics` package does too, for `--peer ultralytics`: training pictures, NMS, AP and start-up.

It has no YOLOv5 with the paper's anchor-based head and no LS-YOLO, so rows that run or train a network would compare different networks.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_pipeline import BATCH, HYP, SIDE, image_set, our_batches
from benchmarks.metrics import CLASSES, made_up, our_aps
from benchmarks.nms import DETECT, EVERYTHING, VALIDATE, Crowd, predictions
from benchmarks.startup import ROOT, processes_in_turn
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure
from data.images import write_image
from data.loader import single_thread
from models.yolo import build_model
from utils.checkpoint import save_checkpoint
from utils.config import load_hyp
from utils.heap import keep_heap
from utils.metrics import COCO_IOUS, match
from utils.nms import nms

PACKAGE = "ultralytics"


def _part(name: str) -> Any:
    """A module of the package."""
    return importlib.import_module(f"{PACKAGE}.{name}")


def pipeline_ram(settings: Settings) -> Row:
    """Images decoded in memory on both sides."""
    return _pipeline("pipeline_ram", settings, "ram")


def pipeline_disk(settings: Settings) -> Row:
    """Every picture from JPEG files."""
    return _pipeline("pipeline_disk", settings, "")


def _pipeline(name: str, settings: Settings, keep: str) -> Row:
    batch = 4 if settings.quick else BATCH
    with tempfile.TemporaryDirectory() as place:
        folder, note = image_set(Path(place, "set"), 12 if settings.quick else None)
        programs = {OURS: our_batches(folder, keep, batch), PEER: their_batches(folder, keep, batch)}
        torch.set_num_threads(1)
        single_thread()
        return measure(name, "s/picture", programs, settings.rounds_or(40), batch, 3, note)


def their_batches(folder: Path, keep: str, batch: int) -> Program:
    """A function that makes the next batch with the peer's dataset class and the same augmentation strengths."""
    hyp = load_hyp(HYP)
    same = ("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "mosaic", "mixup", "copy_paste")
    settings = {name: getattr(hyp, name) for name in same} | {"task": "detect", "imgsz": SIDE, "cache": keep or False}
    data = {"names": {0: "landslide"}, "nc": 1, "channels": 3}
    dataset = _part("data.build").build_yolo_dataset(_part("cfg").get_cfg(overrides=settings), str(folder), batch, data, mode="train")
    order = np.random.default_rng(0)
    return lambda: dataset.collate_fn([dataset[int(index)] for index in order.integers(len(dataset), size=batch)])


def nms_all(settings: Settings) -> Row:
    """Everything passes."""
    return _nms("nms_all", EVERYTHING, settings)


def nms_val(settings: Settings) -> Row:
    """As many as a trained network's validation lets pass."""
    return _nms("nms_val", VALIDATE, settings)


def nms_detect(settings: Settings) -> Row:
    """As many as a detection lets pass."""
    return _nms("nms_detect", DETECT, settings)


def _nms(name: str, crowd: Crowd, settings: Settings) -> Row:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_heap()
    ours = predictions(crowd.passing, crowd.conf)
    theirs = ours[..., :5].transpose(1, 2).contiguous()  # its networks give no objectness, and attributes before places
    limits, suppress = (crowd.conf, crowd.iou), _part("utils.nms").non_max_suppression
    calls = 1 if settings.quick else crowd.calls
    kept, expected = nms(ours, *limits, crowd.max_det)[0], suppress(theirs.clone(), *limits, max_det=crowd.max_det)[0].numpy()
    assert np.allclose(np.column_stack([kept.boxes, kept.scores]), expected[:, :5], atol=1e-4), "the two programs keep different boxes"
    programs: dict[str, Program] = {
        OURS: lambda: [nms(ours.clone(), *limits, crowd.max_det) for _ in range(calls)],
        PEER: lambda: [suppress(theirs.clone(), *limits, max_det=crowd.max_det) for _ in range(calls)],
    }
    return measure(name, "s/image", programs, settings.rounds_or(crowd.rounds), calls, note=f"{crowd.passing} pass {crowd.conf:g}; the same boxes kept")


def ap(settings: Settings) -> Row:
    """From matches to AP at ten thresholds and the confidence of the best F1; the peer's AP is defined otherwise, the note says how far apart they are."""
    keep_heap()
    detections, truths = made_up(200 if settings.quick else 10_000)
    matches = match(detections, truths, COCO_IOUS)
    compute, hits = _part("utils.metrics").ap_per_class, matches.truth.T >= 0
    programs: dict[str, Program] = {
        OURS: lambda: our_aps(matches),
        PEER: lambda: compute(hits, matches.scores, matches.classes, matches.truth_classes, names=dict(enumerate("abc"))),
    }
    apart = np.abs(our_aps(matches) - compute(hits, matches.scores, matches.classes, matches.truth_classes)[5]).max()
    note = f"{len(matches.scores)} detections, {CLASSES} classes, ten thresholds; AP up to {apart:.3f} apart"
    return measure("ap", "s", programs, settings.rounds_or(15), note=note)


def startup(settings: Settings) -> Row:
    """YOLOv5s of random weights on one image of 640 px; the time is mostly that of imports."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_image(folder / "image.jpg", torch.randint(0, 256, (640, 640, 3), dtype=torch.uint8).numpy())
        model = build_model("models/yolov5s.yaml", 1)
        save_checkpoint(folder / "ours.pt", {"model": model.config.to_dict(), "names": ["landslide"], "imgsz": 640, "ema": model.state_dict()})
        _part("models").YOLO("yolov5s.yaml", verbose=False).save(folder / "peer.pt")
        more = f"imgsz=640, device={settings.device!r}, save=True, save_txt=True, project={place!r}, name='peer', exist_ok=True"
        call = f"from ultralytics import YOLO; YOLO({str(folder / 'peer.pt')!r}).predict({str(folder / 'image.jpg')!r}, {more})"
        flags = ["--img", "640", "--device", settings.device, "--save-txt", "--project", place, "--exist-ok", "--name", OURS]
        commands = {
            OURS: (["detect.py", "--weights", str(folder / "ours.pt"), "--source", str(folder / "image.jpg"), *flags], ROOT),
            PEER: (["-c", call], folder),
        }
        return processes_in_turn(commands, folder, settings, "process start to end, one image; YOLOv5s, the peer's with a head of its own")
