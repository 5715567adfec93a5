"""Training batches drawn on the device: the host only plans, one batch ahead of the device, which draws one batch ahead of the training.

The order, the plans and so the boxes are those of data/loader.py; the pixels are those of data/render_torch.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.dataset import ImageStore
from data.device import Crops, DeviceImages
from data.loader import Batch, Draw, Pictures, TrainBatches, View, arrived, make_loader
from data.render_torch import PackedPlans, draw, pack


@dataclass(frozen=True)
class PlannedBatch:
    """A batch that is still to be drawn."""

    plans: PackedPlans
    targets: Tensor  # as in Batch
    views: tuple[View, ...]

    def pin_memory(self) -> PlannedBatch:
        """Called by the DataLoader."""
        return replace(self, plans=self.plans.pin_memory(), targets=self.targets.pin_memory())

    def share_memory(self) -> PlannedBatch:
        """Called in its workers. Raises RuntimeError where shared memory is short."""
        return replace(self, plans=self.plans.share_memory(), targets=self.targets.share_memory_())


class PlannedPictures:
    """Plans the pictures that some `Draw`s name; `images`: where their pixels are, known without holding them."""

    def __init__(self, pictures: Pictures, images: DeviceImages | None) -> None:
        self.pictures, self.locate = pictures, images.layout if images else Crops(pictures.store)

    def __getitems__(self, draws: Sequence[Draw]) -> PlannedBatch:
        """A batch of pictures of one size."""
        plans = [self.pictures.plan(draw) for draw in draws]
        rows = [self.pictures.targets(plan) for plan in plans]
        numbers = np.repeat(np.arange(len(rows), dtype=np.float32), [len(row) for row in rows])
        targets = np.concatenate([numbers[:, None], np.concatenate(rows)], 1)
        views = tuple(self.pictures.view(draw, plan) for draw, plan in zip(draws, plans, strict=True))
        return PlannedBatch(pack(plans, self.locate), torch.from_numpy(targets), views)


class DeviceBatches:
    """An epoch's batches, as `make_loader` gives them, but with the images on the device; the targets stay on the host, pinned beside a GPU.

    `images`: the dataset on the device; None: the parts that a batch shows are sent with it. Without workers a thread plans.
    """

    def __init__(self, pictures: Pictures, order: TrainBatches, device: torch.device, images: DeviceImages | None = None, workers: int = 0) -> None:
        self.order, self.device, self.images = order, device, images
        self.compiled: bool | None = None  # as `draw` decides
        on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        if self.stream is not None:  # the images may still be on their way
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.loader = make_loader(PlannedPictures(pictures, images), order, workers, on_gpu)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        queued: tuple[Batch, torch.cuda.Event | None] | None = None
        for batch in self.loader:
            following = self._queue(batch)
            if queued is not None:
                yield self._ready(*queued)
            queued = following
        if queued is not None:
            yield self._ready(*queued)

    def _queue(self, batch: PlannedBatch) -> tuple[Batch, torch.cuda.Event | None]:
        """Have the device draw the batch, beside what it is doing."""
        if self.stream is None:
            return Batch(self._draw(batch.plans), batch.targets, batch.views), None
        with torch.cuda.stream(self.stream):
            drawn = Batch(self._draw(batch.plans), batch.targets, batch.views)
            return drawn, self.stream.record_event()

    def _draw(self, plans: PackedPlans) -> Tensor:
        """The pictures; where their kernels cannot be compiled, drawn without from now on, which is slower but no reason to end a run."""
        plans, pixels = plans.to(self.device), self.images.pixels if self.images else None
        try:
            return draw(plans, pixels, self.compiled)
        except RuntimeError as error:
            if self.compiled is False or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            self.compiled = False
            print(f"warning: pictures are drawn uncompiled, which is slower: {str(error).strip().splitlines()[0]}")
            return draw(plans, pixels, self.compiled)

    def _ready(self, batch: Batch, drawn: torch.cuda.Event | None) -> Batch:
        return batch if drawn is None else replace(batch, images=arrived(batch.images, drawn))


def cache_on_device(store: ImageStore, device: torch.device, quiet: bool = False) -> DeviceImages | None:
    """--cache device: all images of the store in the memory of a GPU; None, with a word why, where there is none or they do not fit."""
    if device.type == "cpu":
        print("cache: --cache device is for a GPU, and this run has none; keeping images in RAM")
        return None
    fits, line = DeviceImages.fits(store.samples, device)
    print(line)
    return DeviceImages.load(store.samples, store, device, quiet) if fits else None
