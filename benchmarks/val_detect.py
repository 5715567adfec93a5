"""Rows `val` and `detect`: a validation pass and a detection run of this program and of YOLOv5: same network, weights, images and size."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import torch

import detect as detect_script
import models.yolo
import val as val_script
from benchmarks.data_pipeline import generated_set
from benchmarks.peer import PACKAGE, peer_model, require_peer
from benchmarks.timing import OURS, PEER, Program, Recipe, Row, Settings, alternate_processes
from data.dataset import scan
from data.images import read_image
from data.loader import evaluation_batches, single_thread
from models.foreign import Foreign, to_ours
from models.weights import load_weights
from models.yolo import build_model
from utils.checkpoint import save_checkpoint
from utils.runtime import select_device

SOURCE = Path("../shared/real")  # generated images where it is absent
NAMES = ["landslide"]
PASSING = ((1450, 0.001), (8, 0.25))  # so many predictions of an image score above so much, as a trained network's do
SIDE, VAL_BATCH, MANY = 640, 16, 8


def image_set(place: Path, count: int) -> Path:
    """A folder with `count` images of the source in even steps and their labels, because the peer writes a cache beside them."""
    if not (SOURCE / "images").is_dir():
        return generated_set(count, place)
    paths = sorted((SOURCE / "images").iterdir())
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for path in paths[:: max(1, len(paths) // count)][:count]:
        shutil.copy(path, place / "images")
        shutil.copy(SOURCE / "labels" / f"{path.stem}.txt", place / "labels")
    return place / "images"


def stretch_objectness(model: Any, folder: Path) -> None:
    """Scale and shift the objectness logits of the peer's random network until PASSING holds on the first images."""
    images = [torch.from_numpy(cv2.resize(read_image(path), (320, 320))).permute(2, 0, 1).float() / 255 for path in sorted(folder.iterdir())[:4]]
    with torch.no_grad():
        logits = model.eval()(torch.stack(images))[0][..., 4].flatten().logit()
        (many, low), (few, high) = ((logits.quantile(1 - count / 25_200), torch.tensor(score).logit()) for count, score in PASSING)
        scale = (high - low) / (few - many)
        for layer in model.model[-1].m:
            width = layer.out_channels // 3
            layer.weight[4::width] *= scale
            layer.bias[4::width] = layer.bias[4::width] * scale + low - many * scale


def write_weights(place: Path, folder: Path, settings: Settings) -> None:
    """YOLOv5s of one class as ours.pt and, where the peer is there, the same weights as peer.pt."""
    torch.manual_seed(0)
    config, weights = (model := build_model("models/yolov5s.yaml", len(NAMES))).config, model.state_dict()
    if settings.peer:
        theirs = peer_model("s", len(NAMES))
        stretch_objectness(theirs, folder)
        theirs.names = dict(enumerate(NAMES))
        config, weights = to_ours(Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
        torch.save({"model": theirs, "ema": None}, place / "peer.pt")
    save_checkpoint(place / "ours.pt", {"model": config.to_dict(), "names": NAMES, "imgsz": SIDE, "ema": weights})


def _settle(settings: Settings) -> None:
    os.environ["YOLO_VERBOSE"] = "false"  # no line per image
    if settings.threads:
        torch.set_num_threads(settings.threads)


def our_validation(place: Path, folder: Path, side: int, settings: Settings) -> Program:
    """val.py's own evaluation, images from disk."""
    _settle(settings)
    single_thread()
    device = select_device(settings.device)
    model = load_weights(place / "ours.pt", device).model.fuse().to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    samples, _ = scan(sorted(folder.iterdir()), len(NAMES), quiet=True)
    batches = evaluation_batches(samples, side, VAL_BATCH, model.stride)
    return lambda: val_script.evaluate(model, batches, NAMES, device)


def their_validation(place: Path, folder: Path, side: int, settings: Settings) -> Program:
    """The peer's evaluation."""
    _settle(settings)
    let_the_peer_load()
    loaders, evaluate = import_module(f"{PACKAGE}.utils.dataloaders"), import_module(f"{PACKAGE}.val").run
    model = torch.load(place / "peer.pt", weights_only=False)["model"].fuse().eval().to(select_device(settings.device))
    data = {"nc": len(NAMES), "names": dict(enumerate(NAMES)), "val": str(folder)}
    batches, _ = loaders.create_dataloader(str(folder), side, VAL_BATCH, 32, pad=0.5, rect=True, workers=0)
    more = {"imgsz": side, "half": False, "plots": False, "save_dir": place}
    return lambda: evaluate(data, None, VAL_BATCH, model=model, dataloader=batches, **more)


def our_detection(place: Path, folder: Path, side: int, batch_size: int, settings: Settings) -> Program:
    """detect.py from loading the weights to the last file."""
    _settle(settings)
    options = detect_script.Options(
        weights=str(place / "ours.pt"), source=str(folder), img=side, device=settings.device, batch_size=batch_size, save_txt=True,
        project=str(place), name=f"ours{batch_size}", exist_ok=True,
    )  # fmt: skip

    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            detect_script.main(options)

    return call


def their_detection(place: Path, folder: Path, side: int, settings: Settings) -> Program:
    """The peer's detection, likewise."""
    _settle(settings)
    let_the_peer_load()
    program = import_module(f"{PACKAGE}.detect").run
    more = {"device": settings.device, "save_txt": True, "project": str(place), "name": "theirs", "exist_ok": True}
    return lambda: program(weights=str(place / "peer.pt"), source=str(folder), imgsz=(side, side), **more)


def let_the_peer_load() -> None:
    """The peer looks for its classes in a top-level `models.yolo`, which is ours here; and its files are pickles, made by this benchmark."""
    require_peer()
    theirs = import_module(f"{PACKAGE}.models.yolo")
    for name in ("Detect", "Model"):
        setattr(models.yolo, name, getattr(theirs, name))
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def val(settings: Settings) -> Row:
    """A validation pass, images from disk, with NMS and metrics."""
    side, count = (64, 4) if settings.quick else (SIDE, 48)
    with tempfile.TemporaryDirectory() as root:
        place, folder = Path(root), image_set(Path(root) / "set", count)
        write_weights(place, folder, settings)
        programs: dict[str, Recipe] = {OURS: (our_validation, (place, folder, side, settings))}
        if settings.peer:
            programs[PEER] = (their_validation, (place, folder, side, settings))
        found = alternate_processes(programs, settings.rounds_or(3), count)
    return Row("val", "s/image", found[OURS], found.get(PEER), f"YOLOv5s, {count} images, {side} px, batch {VAL_BATCH}")


def detect(settings: Settings) -> Row:
    """A detection run with all files written: batch 1, the peer's only way; in the note ours in batches."""
    side, count = (64, 4) if settings.quick else (SIDE, 48)
    with tempfile.TemporaryDirectory() as root:
        place, folder = Path(root), image_set(Path(root) / "set", count)
        write_weights(place, folder, settings)
        programs: dict[str, Recipe] = {name: (our_detection, (place, folder, side, size, settings)) for name, size in ((OURS, 1), ("many", MANY))}
        if settings.peer:
            programs[PEER] = (their_detection, (place, folder, side, settings))
        found = alternate_processes(programs, settings.rounds_or(3), count)
    row = Row("detect", "s/image", found[OURS], found.get(PEER), f"YOLOv5s, {count} images, {side} px, batch 1")
    many = Row("detect", "s/image", found["many"], found.get(PEER))
    figure = f"ratio {many.ratio:.2f}" if many.ratio else str(many.ours)
    return Row(row.row, row.unit, row.ours, row.peer, f"{row.note}; ours in batches of {MANY}: {figure}")
