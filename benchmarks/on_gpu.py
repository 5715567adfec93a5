"""Rows `gpu_step`, `gpu_epoch`, `gpu_infer_b1` and `gpu_infer_b32`: training and inference as they are fastest on the first GPU."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import train
from benchmarks import inference, train_step
from benchmarks.data_pipeline import HYP, generated_set
from benchmarks.peer import PACKAGE, peer_model
from benchmarks.timing import OURS, PEER, Program, Recipe, Row, Settings, alternate_processes
from data.dataset import ImageStore, scan
from data.device_loader import DeviceBatches, cache_on_device
from data.loader import Pictures, TrainBatches
from utils.complexity import synchronize
from utils.config import load_hyp
from utils.runtime import select_device

IMAGES, BATCH, SIDE = 1280, 64, 640  # of an epoch


def _on_gpu(settings: Settings) -> Settings:
    return replace(settings, device="0")


def gpu_step(settings: Settings) -> Row:
    """A training step of LS-YOLO as with --compile in bf16, against the same network under plain eager fp16 autocast."""
    return train_step.step_row("gpu_step", train_step.LANDSLIDE, True, _on_gpu(settings), batch=16, compiled="default", warm=5)


def gpu_infer_b1(settings: Settings) -> Row:
    """LS-YOLO with --half and --cuda-graphs, one image, against the same network under eager autocast."""
    return inference.lsyolo("gpu_infer_b1", 1, _on_gpu(settings), half=True, graphs=True)


def gpu_infer_b32(settings: Settings) -> Row:
    """LS-YOLO with --half, 32 images."""
    return inference.lsyolo("gpu_infer_b32", 32, _on_gpu(settings), half=True)


def gpu_epoch(settings: Settings) -> Row:
    """An epoch of YOLOv5s: ours with --cache device, the peer with its images in RAM and all cores as workers."""
    return epoch_row(_on_gpu(settings))


def epoch_row(settings: Settings) -> Row:
    """`gpu_epoch` on the device of the settings."""
    count, batch, side = (8, 4, 64) if settings.quick else (IMAGES, BATCH, SIDE)
    with tempfile.TemporaryDirectory() as place:
        folder = generated_set(count, Path(place))
        programs: dict[str, Recipe] = {OURS: (our_epoch, (folder, batch, side, settings))}
        if settings.peer:
            programs[PEER] = (their_epoch, (folder, batch, side, settings))
        found = alternate_processes(programs, settings.rounds_or(3))
    note = f"YOLOv5s, {count} images, {side} px, batch {batch}; ours --cache device, the peer's images in RAM, {os.cpu_count()} workers"
    return Row("gpu_epoch", "s/epoch", found[OURS], found.get(PEER), note)


def our_epoch(folder: Path, batch: int, side: int, settings: Settings) -> Program:
    """train.py's epoch with the pictures drawn on the device, precision as with --amp auto."""
    device = select_device(settings.device)
    samples, _ = scan(sorted(folder.glob("*.jpg")), 1, "generated", quiet=True)
    store, order = ImageStore(samples), TrainBatches(samples, batch, side, 32, 0)
    batches = DeviceBatches(Pictures(samples, store, load_hyp(HYP)), order, device, cache_on_device(store, device, quiet=True))
    state = train_step.our_run(train_step.our_network(train_step.YOLO, False), train.amp_dtype("auto", device), batch, side, device)

    def epoch() -> None:
        for content in batches:
            train.train_step(state, content)
        state.watch.look()
        synchronize(device)
        order.epoch += 1

    return epoch


def their_epoch(folder: Path, batch: int, side: int, settings: Settings) -> Program:
    """The same with the peer's loader, network, loss, optimizer and EMA, in fp16 on a GPU, as it trains."""
    device = select_device(settings.device)
    model = peer_model("s", 1).to(device).train()
    make = import_module(f"{PACKAGE}.utils.dataloaders").create_dataloader
    batches, _ = make(str(folder), side, batch, 32, hyp=asdict(load_hyp(HYP)), augment=True, cache="ram", workers=os.cpu_count(), shuffle=True)
    update = train_step.plain_update(model, train_step.peer_loss_of(model, side), device)

    def epoch() -> None:
        for images, targets, _, _ in batches:
            update(images, targets)
        synchronize(device)

    return epoch
