"""Rows `gpu_render` and `gpu_wait`: pictures drawn on the GPU, and what training loses by waiting for them.

`python -m benchmarks.gpu` measures both on the first CUDA device; `--quick` tries them on any machine, for no figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import EnvironmentFault, run


@dataclass(frozen=True)
class Options:
    """Measure the renderer and the waiting for data on a GPU."""

    rounds: int = option(0, "measured rounds of each program (default: each row's own number)")
    quick: bool = option(False, "smallest sizes, on the CPU where there is no GPU: to see that the rows work, not for figures")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks.gpu") if __name__ == "__main__" else Options()

from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402
from benchmarks.timing import OURS, PEER, Program, Row, Settings, measure  # noqa: E402
from benchmarks.train_step import our_network, our_run  # noqa: E402
from data.dataset import ImageStore, Sample  # noqa: E402
from data.device import DeviceImages  # noqa: E402
from data.device_loader import DeviceBatches  # noqa: E402
from data.labels import Labels  # noqa: E402
from data.loader import Pictures, TrainBatches  # noqa: E402
from data.render_torch import render_batch  # noqa: E402
from utils.complexity import synchronize  # noqa: E402
from utils.config import load_hyp  # noqa: E402

HYP = Path("data/hyps/ls-yolo.yaml")
CALLS = 20  # between two looks at the clock


@dataclass(frozen=True)
class Scene:
    """What the rows work on: made-up images of 640 to 1024 px in the device's memory, and how to draw from them."""

    device: torch.device
    batch: int
    side: int
    pictures: Pictures
    images: DeviceImages

    def order(self) -> TrainBatches:
        """Full batches of an epoch."""
        return TrainBatches(self.pictures.samples, self.batch, self.side, 32, 0)


def make_scene(settings: Settings) -> Scene:
    """Raises EnvironmentFault where there is no GPU and figures are asked for."""
    if not torch.cuda.is_available() and not settings.quick:
        raise EnvironmentFault("gpu_render and gpu_wait: PyTorch sees no CUDA device here; nothing was measured")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    batch, side, count = (2, 64, 8) if settings.quick else (64, 640, 64 * CALLS)
    rng = np.random.default_rng(0)
    samples, kept = [], []
    for number in range(count):
        width, height = (int(v) for v in rng.integers(side, side * 8 // 5, 2))
        corners = rng.uniform(0, 0.7, (4, 2))
        rows = [(0, np.concatenate([corner, corner + rng.uniform(0.05, 0.3, 2)]).astype(np.float32), None) for corner in corners]
        samples.append(Sample(Path(f"{number}.png"), width, height, Labels.from_rows(rows)))
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
        kept.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    pictures = Pictures(samples, ImageStore(samples), load_hyp(HYP))
    return Scene(device, batch, side, pictures, DeviceImages.load(samples, kept.__getitem__, device, quiet=True))


def gpu_render(settings: Settings) -> Row:
    """Plans to pictures on the device: mosaic, mixup, copy-paste and colours of the default hyper-parameters. The bar: 5,000 pictures/s."""
    scene = make_scene(settings)
    plans = [[scene.pictures.plan(draw) for draw in draws] for draws in scene.order()]

    def call() -> None:
        for batch in plans:
            render_batch(batch, scene.images, scene.device)
        synchronize(scene.device)

    row = measure("gpu_render", "s/image", {OURS: call}, settings.rounds_or(10), sum(map(len, plans)), warm=2)
    return _noted(row, f"{1 / row.ours.median:.0f} pictures/s, packing and sending the plans included; the bar is 5,000")


def gpu_wait(settings: Settings) -> Row:
    """Steps of YOLOv5s over DeviceBatches against the same steps on a batch that lies ready: 1 - ratio is the share of an epoch that waits."""
    scene = make_scene(settings)
    amp = train.amp_dtype("auto", scene.device)
    state = our_run(our_network("yolov5s", False), amp, scene.batch, scene.side, scene.device)
    order = scene.order()
    batches = DeviceBatches(scene.pictures, order, scene.device, scene.images)
    ready = next(iter(batches))

    def epoch() -> None:
        for batch in batches:
            train.train_step(state, batch)
        order.epoch += 1
        _settle(state)

    def steps() -> None:
        for _ in range(len(batches)):
            train.train_step(state, ready)
        _settle(state)

    programs: dict[str, Program] = {OURS: epoch, PEER: steps}
    row = measure("gpu_wait", "s/image", programs, settings.rounds_or(5), len(scene.pictures.samples), warm=1)
    return _noted(row, f"{1 - (row.ratio or 1):.1%} of an epoch is lost to drawing and waiting, against steps on one ready batch; the bar is 3 %")


def _settle(state: train.Run) -> None:
    """Everything asked of the device done, bad values told."""
    state.watch.look()
    synchronize(state.device)


def _noted(row: Row, note: str) -> Row:
    return Row(row.row, row.unit, row.ours, row.peer, note)


def main() -> None:
    """Print both rows."""
    settings = Settings(rounds=OPTIONS.rounds, quick=OPTIONS.quick)
    for row in (gpu_render, gpu_wait):
        measured = row(settings)
        print(f"{measured.row}: {measured.ours} per picture; {measured.note}", flush=True)


if __name__ == "__main__":
    run(main)
