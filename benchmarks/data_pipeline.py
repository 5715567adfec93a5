"""Rows `pipeline_ram`, `pipeline_disk` and `pipeline_cached`: training pictures of one process, made into batches, against YOLOv5's dataset class.

640 px, mosaic 1.0, mixup 0.1, copy-paste 0.1 and the rest of data/hyps/ls-yolo.yaml. The images: those of `../shared/real` where it is
there (boxes only, so that the peer's copy-paste leaves them alone and ours does not) and 200 generated JPEGs of 640 to 1024 px (polygons).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.peer import PACKAGE, require_peer
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure
from data.dataset import ImageStore, scan
from data.images import SUFFIXES, write_image
from data.loader import Pictures, TrainBatches, single_thread
from utils.config import load_hyp

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "real"
HYP = ROOT / "data" / "hyps" / "ls-yolo.yaml"
SIDE, BATCH = 640, 16


def pipeline_ram(settings: Settings) -> Row:
    """Images decoded in memory on both sides; the peer keeps them already resized to 640 px."""
    return _row("pipeline_ram", settings, "ram", "ram")


def pipeline_disk(settings: Settings) -> Row:
    """Every picture from JPEG files, which the system has in its page cache."""
    return _row("pipeline_disk", settings, "", "")


def pipeline_cached(settings: Settings) -> Row:
    """Ours from the mapped file of decoded images (--cache disk), the peer from JPEG files, its usual way."""
    return _row("pipeline_cached", settings, "disk", "")


def _row(name: str, settings: Settings, ours: str, theirs: str) -> Row:
    batch = 4 if settings.quick else BATCH
    with tempfile.TemporaryDirectory() as place:
        os.environ["LSYOLO_CACHE"] = str(Path(place, "cache"))
        folder, note = image_set(Path(place, "set"), 12 if settings.quick else None)
        programs = {OURS: our_batches(folder, ours, batch)}
        if settings.peer:
            programs[PEER] = their_batches(folder, theirs, batch)
        torch.set_num_threads(1)
        single_thread()  # as train.py; the peer's OpenCV gets one thread too, and gains from the allocator's setting as well
        return measure(name, "s/picture", programs, settings.rounds_or(40), batch, 3, note)


def image_set(place: Path, count: int | None = None) -> tuple[Path, str]:
    """(folder of the images, what they are): a copy, because the peer writes a cache beside them. count: only so many of each kind."""
    folder = generated_set(200 if count is None else count, place)
    note = "generated images"
    if (REAL / "images").is_dir():
        note = "real and generated images"
        for path in sorted((REAL / "images").iterdir())[:count]:
            shutil.copy(path, folder)
            shutil.copy((REAL / "labels" / path.stem).with_suffix(".txt"), place / "labels")
    return folder, note


def generated_set(count: int, place: Path) -> Path:
    """Noise with coloured ellipses as objects, JPEGs of 640 to 1024 px a side, each labelled by its outline; the folder of the images."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for number in range(count):
        width, height = rng.integers(640, 1025, 2).tolist()
        image = cv2.resize(rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        rows = []
        for _ in range(int(rng.integers(1, 6))):
            centre, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.03, 0.15, 2)
            outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(image, [np.round(outline * (width, height)).astype(np.int32)], rng.integers(0, 255, 3).tolist())
            rows.append("0 " + " ".join(f"{value:.6f}" for value in outline.ravel()))
        write_image(place / "images" / f"generated_{number}.jpg", image)
        (place / "labels" / f"generated_{number}.txt").write_text("\n".join(rows) + "\n")
    return place / "images"


def our_batches(folder: Path, keep: str, batch: int) -> Program:
    """A function that makes the next batch. keep: 'ram', 'disk' or ''."""
    samples, _ = scan(sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), 1, folder.parent.name, quiet=True)
    store = ImageStore(samples)
    if keep:
        store.keep(keep, quiet=True)
    pictures = Pictures(samples, store, load_hyp(HYP))
    sampler = TrainBatches(samples, batch, SIDE, 32, 0)

    def endless() -> Iterator[object]:
        while True:
            for draws in sampler:
                if len(draws) == batch:
                    yield pictures.__getitems__(draws)
            sampler.epoch += 1

    batches = endless()
    return lambda: next(batches)


def their_batches(folder: Path, keep: str, batch: int) -> Program:
    """The same with the peer's dataset class. keep: 'ram' or ''."""
    require_peer()
    dataset_class = import_module(f"{PACKAGE}.utils.dataloaders").LoadImagesAndLabels
    dataset = dataset_class(str(folder), SIDE, batch, augment=True, hyp=asdict(load_hyp(HYP)), cache_images=keep or False)
    order = np.random.default_rng(0)
    return lambda: dataset.collate_fn([dataset[int(index)] for index in order.integers(len(dataset), size=batch)])
