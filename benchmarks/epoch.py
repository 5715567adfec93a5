"""Rows `epoch` and `memory`: an epoch of training from images in memory to the last optimizer step, and the most memory it took.

Generated images with outlines, mosaic, mixup and copy-paste as in data/hyps/ls-yolo.yaml; no validation, no files written. Each program has
a process of its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train
from benchmarks.data_pipeline import generated_set
from benchmarks.peer import PACKAGE, peer_model
from benchmarks.timing import OURS, PEER, Measured, Program, Recipe, Row, Settings, alternate_processes
from benchmarks.train_step import YOLO, our_network, our_run, peer_loss_of, plain_update
from data.dataset import ImageStore, scan
from data.loader import Pictures, TrainBatches, make_loader
from utils.config import Hyp
from utils.runtime import select_device

IMAGES = 64
EPOCH, MEMORY = (16, 320), (4, 640)  # batch and side: the same pixels at once, four times as many in an epoch


def our_epoch(folder: Path, batch_size: int, side: int, settings: Settings) -> Program:
    """train.py's own epoch. Nothing of the peer is imported here."""
    _settle(settings)
    samples, _ = scan(sorted(folder.glob("*.jpg")), 1, "generated", quiet=True)
    store = ImageStore(samples)
    store.keep(quiet=True)
    run = our_run(our_network(YOLO, False), None, batch_size, side, select_device(settings.device))
    order = TrainBatches(samples, batch_size, side, 32, 0)
    loader = make_loader(Pictures(samples, store, Hyp()), order, 0)

    def epoch() -> None:
        for batch in loader:
            train.train_step(run, batch)
            run.watch.look()
        order.epoch += 1

    return epoch


def their_epoch(folder: Path, batch_size: int, side: int, settings: Settings) -> Program:
    """The same with the peer's dataset, network, loss, optimizer and EMA."""
    _settle(settings)
    hyp, device = Hyp(), select_device(settings.device)
    dataset_class = import_module(f"{PACKAGE}.utils.dataloaders").LoadImagesAndLabels
    dataset = dataset_class(str(folder), side, batch_size, augment=True, hyp=asdict(hyp), cache_images="ram")
    model = peer_model("s", 1).to(device).train()
    update = plain_update(model, peer_loss_of(model, side), device)
    order = np.random.default_rng(0)

    def epoch() -> None:
        shuffled = order.permutation(len(dataset))
        for start in range(0, len(dataset), batch_size):
            images, targets, _, _ = dataset.collate_fn([dataset[int(index)] for index in shuffled[start : start + batch_size]])
            update(images, targets)

    return epoch


def _words(sizes: tuple[int, int]) -> str:
    return f"batch {sizes[0]}, {sizes[1]} px"


def _settle(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)


def _recipes(place: str, sizes: tuple[int, int], settings: Settings) -> dict[str, Recipe]:
    folder = generated_set(16 if settings.quick else IMAGES, Path(place))
    arguments = (folder, *((4, 64) if settings.quick else sizes), settings)
    recipes: dict[str, Recipe] = {OURS: (our_epoch, arguments)}
    return recipes | ({PEER: (their_epoch, arguments)} if settings.peer else {})


def epoch(settings: Settings) -> Row:
    """Seconds of an epoch."""
    with tempfile.TemporaryDirectory() as place:
        found = alternate_processes(_recipes(place, EPOCH, settings), settings.rounds_or(3))
    return Row("epoch", "s/epoch", found[OURS], found.get(PEER), f"YOLOv5s, {IMAGES} images, {_words(EPOCH)}, fp32, images in RAM, no workers")


def memory(settings: Settings) -> Row:
    """Most memory of a process that trains for two epochs."""
    with tempfile.TemporaryDirectory() as place:
        recipes = _recipes(place, MEMORY, settings)
        rounds = [{name: _peak(*recipe) for name, recipe in recipes.items()} for _ in range(settings.rounds_or(3))]
    found = {name: Measured(tuple(one[name] for one in rounds), ()) for name in recipes}
    return Row("memory", "bytes", found[OURS], found.get(PEER), f"resident set at its largest, two epochs as in the row `epoch`, but {_words(MEMORY)}")


def _peak(build: Any, arguments: tuple[Any, ...]) -> float:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_train_and_tell, args=(there, build, arguments))
    process.start()
    value: float = here.recv()
    process.join()
    return value


def _train_and_tell(connection: Any, build: Any, arguments: tuple[Any, ...]) -> None:
    program = build(*arguments)
    program()
    program()
    connection.send(1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # Linux counts kilobytes
