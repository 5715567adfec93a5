"""Rows `nms_*`: non-maximum suppression of one image's 25,200 predictions against YOLOv5's, and what each does with a batch of crowded images."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch

from benchmarks.peer import PACKAGE, require_peer
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure
from utils.heap import keep_heap
from utils.nms import nms

ROWS = 25_200  # predictions of an image of 640 px
OBJECTS = 20  # the predictions that pass crowd around so many places


def predictions(passing: int, conf: float, seed: int = 0) -> torch.Tensor:
    """(1, 25200, 6) of one class, of which `passing` score above `conf`."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 640, (ROWS, 2))
    chosen = rng.permutation(ROWS)[:passing]
    if passing < ROWS:
        centre[chosen] = rng.uniform(60, 580, (OBJECTS, 2))[rng.integers(OBJECTS, size=passing)] + rng.normal(0, 8, (passing, 2))
    score = rng.permutation(np.linspace(0.0, conf * 0.99, ROWS))
    score[chosen] = rng.permutation(np.linspace(conf * 1.01, 0.98, passing))
    return torch.from_numpy(np.column_stack([centre, rng.uniform(20, 90, (ROWS, 2)), score, np.ones(ROWS)])[None].astype(np.float32))


def _row(row: str, passing: int, conf: float, iou: float, max_det: int, rounds: int, calls: int, settings: Settings) -> Row:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_heap()  # as val.py and detect.py do; the peer gains as well
    image = predictions(passing, conf)
    ours = nms(image, conf, iou, max_det)[0]
    calls = 1 if settings.quick else calls
    programs: dict[str, Program] = {OURS: lambda: [nms(image, conf, iou, max_det) for _ in range(calls)]}
    note = f"{passing} of {ROWS} pass {conf:g}"
    if settings.peer:
        require_peer()
        theirs = import_module(f"{PACKAGE}.utils.general").non_max_suppression
        expected = theirs(image.clone(), conf, iou, max_det=max_det)[0].numpy()
        assert np.allclose(np.column_stack([ours.boxes, ours.scores]), expected[:, :5], atol=1e-4), "the two programs keep different boxes"
        # The peer writes into what it is given; it is given a copy, and so are we.
        programs = {
            OURS: lambda: [nms(image.clone(), conf, iou, max_det) for _ in range(calls)],
            PEER: lambda: [theirs(image.clone(), conf, iou, max_det=max_det) for _ in range(calls)],
        }
        note += "; the same boxes kept"
    return measure(row, "s/image", programs, settings.rounds_or(rounds), calls, note=note)


def nms_all(settings: Settings) -> Row:
    """Everything passes, as in the first epochs of a training; and of a batch of 16 such images none may come back empty."""
    row = _row("nms_all", ROWS, 0.001, 0.6, 300, 3, 1, settings)
    batch = predictions(ROWS, 0.001).repeat(2 if settings.quick else 16, 1, 1)
    dropped = sum(not len(found) for found in nms(batch, 0.001, 0.6))
    assert dropped == 0, f"{dropped} images lost their detections"
    note = f"{row.note}; of a batch of {len(batch)} ours drops 0 images"
    if settings.peer:
        theirs = import_module(f"{PACKAGE}.utils.general").non_max_suppression
        note += f", the peer {sum(not len(found) for found in theirs(batch, 0.001, 0.6))}"
    return Row(row.row, row.unit, row.ours, row.peer, note)


def nms_val(settings: Settings) -> Row:
    """As many as a trained network's validation lets pass."""
    return _row("nms_val", 1450, 0.001, 0.6, 300, 15, 10, settings)


def nms_detect(settings: Settings) -> Row:
    """As many as a detection lets pass."""
    return _row("nms_detect", 8, 0.5, 0.45, 1000, 15, 50, settings)
