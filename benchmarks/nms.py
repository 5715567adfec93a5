"""Rows `nms_*`: non-maximum suppression of one image's 25,200 predictions against YOLOv5's, and what each does with a batch of crowded images."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch

from benchmarks.peer import PACKAGE, require_peer
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure
from utils.heap import keep_heap
from utils.nms import nms

ROWS = 25_200  # predictions of an image of 640 px
OBJECTS = 20  # the predictions that pass crowd around so many places


@dataclass(frozen=True)
class Crowd:
    """How many predictions pass, the limits of NMS, and how long it is measured."""

    passing: int
    conf: float
    iou: float
    max_det: int
    rounds: int
    calls: int  # a round


EVERYTHING, VALIDATE, DETECT = Crowd(ROWS, 0.001, 0.6, 300, 3, 1), Crowd(1450, 0.001, 0.6, 300, 15, 10), Crowd(8, 0.5, 0.45, 1000, 15, 50)


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


def _row(row: str, crowd: Crowd, settings: Settings) -> Row:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_heap()  # as val.py and detect.py do; the peer gains as well
    image, limits = predictions(crowd.passing, crowd.conf), (crowd.conf, crowd.iou)
    ours = nms(image, *limits, crowd.max_det)[0]
    calls = 1 if settings.quick else crowd.calls
    programs: dict[str, Program] = {OURS: lambda: [nms(image, *limits, crowd.max_det) for _ in range(calls)]}
    note = f"{crowd.passing} of {ROWS} pass {crowd.conf:g}"
    if settings.peer:
        require_peer()
        theirs = import_module(f"{PACKAGE}.utils.general").non_max_suppression
        expected = theirs(image.clone(), *limits, max_det=crowd.max_det)[0].numpy()
        assert np.allclose(np.column_stack([ours.boxes, ours.scores]), expected[:, :5], atol=1e-4), "the two programs keep different boxes"
        # The peer writes into what it is given; it is given a copy, and so are we.
        programs = {
            OURS: lambda: [nms(image.clone(), *limits, crowd.max_det) for _ in range(calls)],
            PEER: lambda: [theirs(image.clone(), *limits, max_det=crowd.max_det) for _ in range(calls)],
        }
        note += "; the same boxes kept"
    return measure(row, "s/image", programs, settings.rounds_or(crowd.rounds), calls, note=note)


def nms_all(settings: Settings) -> Row:
    """Everything passes, as in the first epochs of a training; and of a batch of 16 such images none may come back empty."""
    row = _row("nms_all", EVERYTHING, settings)
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
    return _row("nms_val", VALIDATE, settings)


def nms_detect(settings: Settings) -> Row:
    """As many as a detection lets pass."""
    return _row("nms_detect", DETECT, settings)
