"""A training step (forward, loss, backward, clipping, optimizer, EMA) of this program and of YOLOv5: same network, weights and batch."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Measure a training step against the yolov5 package's."""

    size: str = option("s", "which YOLOv5", choices=("n", "s", "m", "l", "x"))
    nc: int = option(1, "number of classes")
    img: int = option(320, "image side in pixels", "--imgsz")
    batch_size: int = option(8, "images per batch")
    rounds: int = option(7, "measured steps per program")
    threads: int | None = option(None, "threads of PyTorch (default: its own choice)")
    device: str = option("cpu", "cpu, or a GPU number such as 0")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks.train_step") if __name__ == "__main__" else Options()

import dataclasses  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import train  # noqa: E402
from benchmarks.peer import PACKAGE, peer_model, require_peer  # noqa: E402
from benchmarks.timing import alternate, ratio_line  # noqa: E402
from data.dataset import DatasetSpec  # noqa: E402
from data.loader import Batch, View  # noqa: E402
from models.foreign import Foreign, to_ours  # noqa: E402
from models.yolo import DetectionModel  # noqa: E402
from utils.complexity import synchronize  # noqa: E402
from utils.config import Hyp  # noqa: E402
from utils.ema import EMA  # noqa: E402
from utils.loss import detection_loss, loss_settings  # noqa: E402
from utils.optim import Schedule, make_optimizer  # noqa: E402
from utils.runtime import device_line, select_device  # noqa: E402

OBJECTS = 8  # per image
LONG = 10**6  # batches per epoch: the learning rate stays at the start of its warm-up and every batch is a step


def random_batch(nc: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) uint8, channels last in memory, and targets (N, 6)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (OPTIONS.batch_size, OPTIONS.img, OPTIONS.img, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    count = OBJECTS * OPTIONS.batch_size
    image = torch.arange(OPTIONS.batch_size).repeat_interleave(OBJECTS)[:, None].float()
    cls = torch.randint(0, nc, (count, 1), generator=generator).float()
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + torch.tensor([0.2, 0.2, 0.03, 0.03])
    return images, torch.cat([image, cls, boxes], 1)


def our_step(model: DetectionModel, images: Tensor, targets: Tensor, device: torch.device) -> Callable[[], object]:
    """train.py's own step."""
    hyp, schedule = Hyp(), Schedule(Hyp(), 1000, LONG, OPTIONS.batch_size)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    amp = train.amp_dtype("auto", device)
    state = train.Run(
        options=dataclasses.replace(train.Options(), batch_size=OPTIONS.batch_size),
        hyp=hyp, folder=Path(), device=device, spec=DatasetSpec(Path(), ("object",), {}), names=("object",) * OPTIONS.nc,
        samples=[], val_samples=[], data={}, model=model, ema=EMA(model), optimizer=make_optimizer(model, "SGD", hyp, schedule.weight_decay),
        schedule=schedule, loss=loss_settings(hyp, OPTIONS.nc, 3, OPTIONS.img), amp=amp,
        scaler=torch.amp.GradScaler(device.type, enabled=amp is torch.float16), progress=train.Progress(),
    )  # fmt: skip
    view = View(0, Path(), OPTIONS.img, OPTIONS.img, torch.eye(3).numpy())
    batch = Batch(images, targets, (view,) * OPTIONS.batch_size)

    def step() -> None:
        train.train_step(state, batch)
        synchronize(device)

    return step


def their_step(model: Any, images: Tensor, targets: Tensor, device: torch.device) -> Callable[[], object]:
    """The same work with the peer's model, loss, optimizer and EMA."""
    tools, loss = import_module(f"{PACKAGE}.utils.torch_utils"), import_module(f"{PACKAGE}.utils.loss")
    hyp, schedule = Hyp(), Schedule(Hyp(), 1000, LONG, OPTIONS.batch_size)
    model.to(device).train()
    model.hyp = their_hyp()
    optimizer = tools.smart_optimizer(model, "SGD", 1e-8, hyp.momentum, schedule.weight_decay)
    ema, compute, plain = tools.ModelEMA(model), loss.ComputeLoss(model), images.contiguous()
    parameters, half = list(model.parameters()), device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step() -> None:
        with torch.autocast(device.type, torch.float16 if half else None, enabled=half):
            total, _ = compute(model(plain.to(device, non_blocking=True).float() / 255), targets.to(device))
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, train.MAX_GRADIENT)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)
        synchronize(device)

    return step


def their_hyp() -> dict[str, float]:
    """Table I with the gains scaled to the network and the image, as YOLOv5's trainer does before it makes the loss."""
    scaled = loss_settings(Hyp(), OPTIONS.nc, 3, OPTIONS.img)
    return {**dataclasses.asdict(Hyp()), "box": scaled.box_gain, "obj": scaled.obj_gain, "cls": scaled.cls_gain, "label_smoothing": 0.0}


def main() -> None:
    """Check that the losses agree, then measure."""
    require_peer()
    if OPTIONS.threads:
        torch.set_num_threads(OPTIONS.threads)
    device = select_device(OPTIONS.device)
    theirs = peer_model(OPTIONS.size, OPTIONS.nc)
    config, weights = to_ours(Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
    ours = DetectionModel(config)
    ours.load_state_dict({name: tensor.clone() for name, tensor in weights.items()})
    images, targets = random_batch(OPTIONS.nc)
    theirs.hyp = their_hyp()
    with torch.no_grad():
        pixels = images.float() / 255
        loss = import_module(f"{PACKAGE}.utils.loss").ComputeLoss(theirs)(theirs.train()(pixels), targets)[0].item()
        own = detection_loss(ours.train()(pixels), targets, ours.anchors, ours.strides, loss_settings(Hyp(), OPTIONS.nc, 3, OPTIONS.img)).total.item()
    programs = {"ours": our_step(ours, images, targets, device), "theirs": their_step(theirs, images, targets, device)}
    found = alternate(programs, OPTIONS.rounds, 1, warm=2)
    print(f"loss of the same weights and batch: ours {own:.6f}, yolov5 {loss:.6f}")
    title = f"yolov5{OPTIONS.size}, {OPTIONS.nc} classes, {OPTIONS.batch_size} x {OPTIONS.img} px, {device_line(device)}"
    print(ratio_line(title, "step", found["ours"], found["theirs"]))


if __name__ == "__main__":
    run(main)
