"""Rows `step_*` and `loss*`: a training step (forward, loss, backward, clipping, optimizer, EMA) and the loss alone, on one batch.

YOLOv5s runs against the peer's network, loss, optimizer and EMA with the same weights. LS-YOLO, which the peer lacks, runs against itself
built plainly: contiguous, with the peer's optimizer and EMA, the allocator as it comes. The bf16 rows measure against single precision,
which is all that the peer knows on a CPU. Each program has a process of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train
from benchmarks.peer import PACKAGE, peer_model
from benchmarks.timing import OURS, PEER, Program, Recipe, Row, Settings, alternate_processes
from data.dataset import DatasetSpec
from data.loader import Batch, View, single_thread
from models.foreign import Foreign, to_ours
from models.yolo import DetectionModel, build_model
from utils.anchors import RawMap
from utils.complexity import synchronize
from utils.config import Hyp
from utils.ema import EMA
from utils.loss import detection_loss, loss_settings
from utils.optim import Schedule, make_optimizer
from utils.runtime import select_device
from utils.watch import Watch

OBJECTS = 8  # per image
LONG = 10**6  # batches per epoch: the learning rate stays at the start of its warm-up and every batch is a step
YOLO, LANDSLIDE = "yolov5s", "ls-yolo"


def random_batch(nc: int, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) uint8, channels last in memory, and targets (N, 6)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    count = OBJECTS * batch
    image = torch.arange(batch).repeat_interleave(OBJECTS)[:, None].float()
    cls = torch.randint(0, nc, (count, 1), generator=generator).float()
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + torch.tensor([0.2, 0.2, 0.03, 0.03])
    return images, torch.cat([image, cls, boxes], 1)


def our_network(name: str, peer: bool) -> DetectionModel:
    """Our network for one class, with the peer's weights where it has such a network."""
    torch.manual_seed(0)
    if name == LANDSLIDE or not peer:
        return build_model(f"models/{name}.yaml", 1)
    theirs = peer_model("s", 1)
    config, weights = to_ours(Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
    model = DetectionModel(config)
    model.load_state_dict({key: tensor.clone() for key, tensor in weights.items()})
    return model


def our_run(
    model: DetectionModel, amp: torch.dtype | None, batch: int, side: int, device: torch.device, compiled: str | None = None
) -> train.Run:
    """What train.py works with, without a dataset."""
    single_thread()
    hyp, schedule = Hyp(), Schedule(Hyp(), 1000, LONG, batch)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loss = loss_settings(hyp, model.nc, model.levels, side)
    return train.Run(
        options=dataclasses.replace(train.Options(), batch_size=batch),
        hyp=hyp, folder=Path(), device=device, spec=DatasetSpec(Path(), ("object",), {}), names=("object",), samples=[], val_samples=[], data={},
        model=model, ema=EMA(model), optimizer=make_optimizer(model, "SGD", hyp, schedule.weight_decay), schedule=schedule, loss=loss, amp=amp,
        scaler=torch.amp.GradScaler(device.type, enabled=amp is torch.float16), progress=train.Progress(),
        losses=train.loss_function(model, loss, amp, compiled), watch=Watch(device),
    )  # fmt: skip


def our_step(name: str, half: bool, batch: int, side: int, compiled: str | None, settings: Settings) -> Program:
    """train.py's own step; compiled: as with --compile."""
    _settle(settings)
    device = select_device(settings.device)
    state = our_run(our_network(name, settings.peer is not None), torch.bfloat16 if half else None, batch, side, device, compiled)
    images, targets = random_batch(1, batch, side)
    content = Batch(images, targets, (View(0, Path(), side, side, torch.eye(3).numpy()),) * batch)

    def step() -> None:
        train.train_step(state, content)
        state.watch.look()

    return step


def plain_step(name: str, batch: int, side: int, settings: Settings) -> Program:
    """The same work with the peer's tools."""
    _settle(settings)
    device = select_device(settings.device)
    model = (peer_model("s", 1) if name == YOLO else our_network(name, True)).to(device).train()
    update = plain_update(model, peer_loss_of(model, side) if name == YOLO else _own_loss(model, side), device)
    images, targets = random_batch(1, batch, side)
    images = images.contiguous()

    def step() -> None:
        update(images, targets)
        synchronize(device)

    return step


def plain_update(model: Any, compute: Callable[[Any, Tensor], Tensor], device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """(images, targets) -> a step with the peer's optimizer and EMA: in single precision, on a GPU in fp16, as the peer trains."""
    tools, hyp, half = import_module(f"{PACKAGE}.utils.torch_utils"), Hyp(), device.type == "cuda"
    optimizer = tools.smart_optimizer(model, "SGD", 1e-8, hyp.momentum, hyp.weight_decay)
    ema, scaler = tools.ModelEMA(model), torch.amp.GradScaler(device.type, enabled=half)

    def update(images: Tensor, targets: Tensor) -> None:
        with torch.autocast(device.type, torch.float16 if half else None, enabled=half):
            total = compute(model(images.to(device, non_blocking=True).float() / 255), targets.to(device))
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.MAX_GRADIENT)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return update


def peer_loss_of(model: Any, side: int) -> Callable[[Any, Tensor], Tensor]:
    """The peer's loss, with the gains scaled to the network and the image as its trainer does before it makes the loss."""
    scaled = loss_settings(Hyp(), 1, 3, side)
    model.hyp = {**dataclasses.asdict(Hyp()), "box": scaled.box_gain, "obj": scaled.obj_gain, "cls": scaled.cls_gain, "label_smoothing": 0.0}
    compute = import_module(f"{PACKAGE}.utils.loss").ComputeLoss(model)
    return lambda raw, targets: compute(raw, targets)[0]


def _own_loss(model: DetectionModel, side: int) -> Callable[[Any, Tensor], Tensor]:
    settings = loss_settings(Hyp(), model.nc, model.levels, side)
    return lambda raw, targets: model.loss(raw, targets, settings).total


def _settle(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)


def step_row(row: str, name: str, half: bool, settings: Settings, batch: int = 4, compiled: str | None = None, warm: int = 1) -> Row:
    """A row of steps on one batch."""
    side, batch = (64, 2) if settings.quick else (640, batch)
    programs: dict[str, Recipe] = {OURS: (our_step, (name, half, batch, side, compiled, settings))}
    if settings.peer:
        programs[PEER] = (plain_step, (name, batch, side, settings))
    found = alternate_processes(programs, settings.rounds_or(5), 1, warm)
    theirs = "fp32" if settings.device == "cpu" else "fp16"
    precision = f"{'bf16 against ' + theirs if half else theirs}{', ours compiled' if compiled else ''}"
    return Row(row, "s/step", found[OURS], found.get(PEER), f"{name}, batch {batch}, {side} px, {precision}")


def step_fp32(settings: Settings) -> Row:
    """YOLOv5s."""
    return step_row("step_fp32", YOLO, False, settings)


def step_bf16(settings: Settings) -> Row:
    """YOLOv5s under bf16 autocast."""
    return step_row("step_bf16", YOLO, True, settings)


def step_lsyolo_fp32(settings: Settings) -> Row:
    """LS-YOLO."""
    return step_row("step_lsyolo_fp32", LANDSLIDE, False, settings)


def step_lsyolo_bf16(settings: Settings) -> Row:
    """LS-YOLO under bf16 autocast."""
    return step_row("step_lsyolo_bf16", LANDSLIDE, True, settings)


# ---------------------------------------------------------------------------------------------- the loss alone


def our_loss(head: str, batch: int, side: int, settings: Settings) -> Program:
    """Forward and backward of our loss from the logits of a head, which lie in memory as the head leaves them."""
    _settle(settings)
    single_thread()
    model = build_model(f"models/{head}.yaml", 1)
    generator, (_, targets), scale = torch.Generator().manual_seed(0), random_batch(1, batch, side), loss_settings(Hyp(), 1, 3, side)
    sizes = [side // stride for stride in model.strides]
    widths = (6,) if head == YOLO else (4, 1, 1)
    leaves = [[torch.randn(batch, size, size, 3, width, generator=generator).requires_grad_() for width in widths] for size in sizes]

    def raw(level: list[Tensor]) -> RawMap:
        views = [part.permute(0, 3, 4, 1, 2) for part in level]
        box, obj, cls = (views[0][:, :, :4], views[0][:, :, 4], views[0][:, :, 5:]) if len(views) == 1 else (views[0], views[1][:, :, 0], views[2])
        return RawMap(box, obj, cls, level[0] if len(level) == 1 else None)

    def call() -> Tensor:
        total = detection_loss([raw(level) for level in leaves], targets, model.anchors, model.strides, scale).total
        total.backward()
        for level in leaves:
            for part in level:
                part.grad = None
        return total.detach()

    return call


def peer_loss(batch: int, side: int, settings: Settings) -> Program:
    """Forward and backward of the peer's loss from its head's logits."""
    _settle(settings)
    model = peer_model("s", 1)
    compute, (_, targets), generator = peer_loss_of(model, side), random_batch(1, batch, side), torch.Generator().manual_seed(0)
    leaves = [torch.randn(batch, 3, side // stride, side // stride, 6, generator=generator).requires_grad_() for stride in (8, 16, 32)]

    def call() -> Tensor:
        total = compute(leaves, targets)
        total.backward()
        for part in leaves:
            part.grad = None
        return total.detach()

    return call


def _loss_row(row: str, head: str, settings: Settings) -> Row:
    side, batch = (64, 2) if settings.quick else (640, 16)
    settings = dataclasses.replace(settings, threads=1)  # hundreds of small operations: between them a second thread only spins, on the other program's core
    programs: dict[str, Recipe] = {OURS: (our_loss, (head, batch, side, settings))}
    if settings.peer:
        programs[PEER] = (peer_loss, (batch, side, settings))
    found = alternate_processes(programs, settings.rounds_or(25), 1, warm=3)
    note = f"batch {batch}, {side} px, {OBJECTS} objects an image, one thread, head of {head} against YOLOv5s's"
    return Row(row, "s/batch", found[OURS], found.get(PEER), note)


def loss(settings: Settings) -> Row:
    """The loss on the logits of YOLOv5's head."""
    return _loss_row("loss", YOLO, settings)


def loss_lsyolo(settings: Settings) -> Row:
    """The loss on the logits of LS-YOLO's head, whose objectness is a map of its own."""
    return _loss_row("loss_lsyolo", LANDSLIDE, settings)
