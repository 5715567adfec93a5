"""Batches: which samples in which order and size, drawn by workers, put together for the model."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.dataset import ImageStore, Sample
from data.plan import Plan, draw_boxes, letterbox, sample_rng, training_plan
from data.render import render
from utils.boxes import xyxy_to_cxcywh
from utils.config import Hyp
from utils.errors import EnvironmentFault, UserError
from utils.heap import keep_heap

VAL_PADDING = 0.5  # strides of extra room in rectangular validation batches, as YOLOv5 gives


class Draw(NamedTuple):
    """Which picture to draw: everything it depends on beside the dataset, the seed and the hyper-parameters."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls here
    repeat: int  # how often this epoch has shown the sample before
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """How one image of a batch came to be."""

    index: int  # of the sample
    path: Path
    width: int  # of the original image
    height: int
    matrix: np.ndarray  # (3, 3): batch pixels -> original pixels (of the first layer)


@dataclass(frozen=True)
class Batch:
    """What a model is fed with."""

    images: Tensor  # (B, 3, H, W) uint8, RGB, channels last in memory
    targets: Tensor  # (N, 6) float32: position in the batch, class, cx, cy, w, h in shares of the picture
    views: tuple[View, ...]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader where transfers to a GPU overlap with computing."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())

    def share_memory(self) -> Batch:
        """A batch that another process reads. Raises RuntimeError where shared memory is short."""
        return replace(self, images=self.images.share_memory_(), targets=self.targets.share_memory_())


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch cut into at most `parts` batches of nearly equal size, images in order."""
    count = len(batch.views)
    edges = [round(count * i / parts) for i in range(parts + 1)]
    pieces = []
    for low, high in zip(edges, edges[1:], strict=False):
        if low < high:
            rows = batch.targets[(batch.targets[:, 0] >= low) & (batch.targets[:, 0] < high)]
            rows = rows - rows.new_tensor([low, 0, 0, 0, 0, 0])
            pieces.append(Batch(batch.images[low:high], rows, batch.views[low:high]))
    return pieces


class Pictures(Dataset[tuple[np.ndarray, np.ndarray, View]]):
    """Draws the picture a `Draw` names: augmented where `hyp` is given, else letterboxed."""

    def __init__(self, samples: Sequence[Sample], store: ImageStore, hyp: Hyp | None, seed: int = 0, longest: int | None = None) -> None:
        self.samples, self.store, self.hyp, self.seed, self.longest = samples, store, hyp, seed, longest

    def plan(self, draw: Draw) -> Plan:
        """The plan of a picture."""
        if self.hyp is None:
            sample = self.samples[draw.index]
            return letterbox(sample.width, sample.height, draw.width, draw.height, draw.index, self.longest)
        rng = sample_rng(self.seed, draw.epoch, draw.index, draw.repeat)
        return training_plan(self.samples, draw.index, draw.width, draw.height, self.hyp, rng)

    def __getitem__(self, draw: Draw) -> tuple[np.ndarray, np.ndarray, View]:
        """(RGB picture, targets (n, 5) [class, cx, cy, w, h in shares], view)."""
        plan = self.plan(draw)
        return render(plan, self.store), self.targets(plan), self.view(draw, plan)

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """Pictures of one size as a batch, drawn straight into its memory; a DataLoader asks for them this way."""
        images = np.empty((len(draws), draws[0].height, draws[0].width, 3), np.uint8)
        rows, views = [], []
        for number, draw in enumerate(draws):
            plan = self.plan(draw)
            render(plan, self.store, images[number])
            targets = self.targets(plan)
            rows.append(np.concatenate([np.full((len(targets), 1), number, np.float32), targets], 1))
            views.append(self.view(draw, plan))
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(np.concatenate(rows)), tuple(views))

    def targets(self, plan: Plan) -> np.ndarray:
        """What a plan shows: (n, 5) float32 [class, cx, cy, w, h in shares]."""
        classes, boxes = draw_boxes(plan, self.samples)
        shares = xyxy_to_cxcywh(boxes) / (plan.width, plan.height, plan.width, plan.height)
        return np.concatenate([classes[:, None], shares], 1).astype(np.float32)

    def view(self, draw: Draw, plan: Plan) -> View:
        """How the picture came to be."""
        sample, layers = self.samples[draw.index], plan.stacks[0].layers
        return View(draw.index, sample.path, sample.width, sample.height, layers[0].matrix if layers else np.eye(3))


class Shareable(Protocol):
    """What a worker can hand over."""

    def share_memory(self) -> Any:
        """Itself in shared memory; RuntimeError where that is short."""


Handed = TypeVar("Handed", bound=Shareable)
Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class BatchMaker(Protocol[Made]):
    """A dataset that is asked for whole batches."""

    def __getitems__(self, draws: Sequence[Draw]) -> Made:
        """The batch of these pictures, all of one size."""


def share(batch: Handed) -> Handed:
    """In a worker: the batch in shared memory. Here a lack of it is told; in the queue's own thread it is not, and the run would wait for ever."""
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentFault(f"{reason}; shared memory (/dev/shm) is too small for the pictures: use fewer --workers, or --workers 0") from None


class TrainBatches(Sampler[list[Draw]]):
    """Batches of an epoch, a function of (seed, epoch) alone: order, repeats and the size of every batch.

    rect: batches of similar aspect in the smallest canvas that holds them. multi_scale: every batch its own size, +/- 50 %.
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, imgsz: int, stride: int, seed: int, rect: bool = False, multi_scale: bool = False) -> None:
        self.samples, self.batch_size, self.imgsz, self.stride, self.seed = samples, batch_size, imgsz, stride, seed
        self.multi_scale = multi_scale
        self.epoch, self.start = 0, 0  # which epoch, and how many of its batches are done already
        self.weights: np.ndarray | None = None  # per sample, for --image-weights
        self.shapes = rect_batches(samples, batch_size, imgsz, stride, 0.0) if rect else None

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch, 2**31))  # a stream that no picture's generator uses
        if self.shapes is not None:
            batches = [self.shapes[i] for i in rng.permutation(len(self.shapes))]
        else:
            count = len(self.samples)
            order = rng.permutation(count) if self.weights is None else rng.choice(count, count, p=self.weights / self.weights.sum())
            square = (self.imgsz, self.imgsz)
            batches = [(order[i : i + self.batch_size], *square) for i in range(0, count, self.batch_size)]
        shown: dict[int, int] = {}
        for number, (indices, width, height) in enumerate(batches):
            if self.multi_scale:
                zoom = rng.uniform(0.5, 1.5)
                width, height = (max(round(side * zoom / self.stride), 1) * self.stride for side in (width, height))
            draws = []
            for index in map(int, indices):
                draws.append(Draw(self.epoch, index, shown.get(index, 0), width, height))
                shown[index] = shown.get(index, 0) + 1
            if number >= self.start:
                yield draws


def rect_batches(samples: Sequence[Sample], batch_size: int, imgsz: int, stride: int, padding: float) -> list[tuple[np.ndarray, int, int]]:
    """(indices, width, height) of batches of similar aspect: the longer side imgsz, the other as short as the batch allows."""
    aspect = np.array([sample.height / sample.width for sample in samples])
    order = aspect.argsort(kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        low, high = aspect[indices[0]], aspect[indices[-1]]
        width, height = (1.0, high) if high < 1 else (1 / low, 1.0) if low > 1 else (1.0, 1.0)
        width, height = (int(np.ceil(side * imgsz / stride + padding)) * stride for side in (width, height))
        batches.append((indices, width, height))
    return batches


class EvaluationBatches(Sampler[list[Draw]]):
    """Every sample once, in batches of one shape: rectangular as YOLOv5 validates, or square."""

    def __init__(self, samples: Sequence[Sample], batch_size: int, imgsz: int, stride: int, rect: bool) -> None:
        if rect:
            self.batches = rect_batches(samples, batch_size, imgsz, stride, VAL_PADDING)
        else:
            order = np.arange(len(samples))
            self.batches = [(order[i : i + batch_size], imgsz, imgsz) for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        for indices, width, height in self.batches:
            yield [Draw(0, int(index), 0, width, height) for index in indices]


class Loader(DataLoader[Handed]):
    """A DataLoader that draws the next batch while one is used, without workers too, and raises a worker's error as it was.

    (torch hands such an error over wrapped in the worker's traceback; here it is one line.)
    """

    def __iter__(self) -> Iterator[Handed]:  # type: ignore[override]
        try:
            yield from super().__iter__() if self.num_workers else one_ahead(super().__iter__())
        except (UserError, EnvironmentFault) as error:
            kind = type(error)
            raise kind(str(error).rstrip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")) from error


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items in order; a thread makes the next one while the caller uses the one before."""
    done = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item  # type: ignore[misc]  # all but `done` are items


def sent_ahead(items: Iterable[tuple[Item, Tensor]], device: torch.device) -> Iterator[tuple[Item, Tensor]]:
    """(item, its images on the device), in order. A GPU is sent the next images while it works on those before; they should be pinned."""
    if device.type != "cuda":
        yield from ((item, images.to(device)) for item, images in items)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for item, images in items:
        with torch.cuda.stream(stream):
            following = item, images.to(device, non_blocking=True), stream.record_event()
        if waiting is not None:
            yield waiting[0], arrived(waiting[1], waiting[2])
        waiting = following
    if waiting is not None:
        yield waiting[0], arrived(waiting[1], waiting[2])


def arrived(images: Tensor, event: torch.cuda.Event) -> Tensor:
    """The images, which another stream made until `event`, for whoever computes with them next: the device waits for that, the host does not."""
    here = torch.cuda.current_stream(images.device)
    here.wait_event(event)
    images.record_stream(here)
    return images


def make_loader(pictures: BatchMaker[Handed], batches: Sampler[list[Draw]], workers: int, pin: bool = False) -> DataLoader[Handed]:
    """A loader of what `pictures` makes of `batches`; workers stay alive between epochs. Where the system can fork, images kept in memory are shared."""
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    return Loader(
        pictures,  # type: ignore[arg-type]  # of a dataset it has what is asked for
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=share,  # type: ignore[arg-type]  # `__getitems__` has made the batch
        pin_memory=pin,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=context if workers else None,
        generator=torch.Generator(),  # of its own: each start draws from it, and the global one belongs to the model, stopped and resumed or not
    )


def start_worker(_: int) -> None:
    """What a process that draws pictures begins with: a terminal's Ctrl-C reaches it too, but the main process decides, which saves first."""
    single_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by this the main process ends a worker that does not end by itself


def single_thread(_: int = 0) -> None:
    """Settle a process that draws pictures: OpenCV's own threads only get in the way of the other workers and of the model."""
    cv2.setNumThreads(0)
    keep_heap()


def evaluation_batches(
    samples: Sequence[Sample], imgsz: int, batch_size: int, stride: int, rect: bool = True, workers: int = 0, store: ImageStore | None = None, pin: bool = False
) -> DataLoader[Batch]:
    """Letterboxed batches over all samples, each image's longer side at most `imgsz`."""
    pictures = Pictures(samples, store or ImageStore(samples), None, longest=imgsz)
    return make_loader(pictures, EvaluationBatches(samples, batch_size, imgsz, stride, rect), workers, pin)
