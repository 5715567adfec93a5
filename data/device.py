"""Where the pixels are that the torch renderer samples: every image once in the device's memory, or the parts one batch shows, sent along with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import Sample, available_memory
from data.plan import Layer, Rect

ImageOf = Callable[[int], np.ndarray]  # sample index -> RGB uint8 (H, W, 3)
RESERVE = 0.5  # share of the device's memory that is left to the training: weights, activations, pictures


class Located(NamedTuple):
    """Where the crops of some layers lie in a flat store of bytes."""

    first: np.ndarray  # (n,) int64: byte of each crop's upper left pixel
    row: np.ndarray  # (n,) int64: pixels from one line of it to the next
    pixels: Tensor | None  # the store itself where it travels with the batch, (bytes,) uint8


Locate = Callable[[Sequence[Layer]], Located]


@dataclass(frozen=True)
class Layout:
    """A flat store of whole images, each (height, width, 3) uint8: where they begin. It is known, and can be sent to workers, without the store."""

    first: np.ndarray  # (samples,) int64: each image's first byte
    width: np.ndarray  # (samples,) int64
    size: int  # bytes of all images

    @staticmethod
    def of(samples: Sequence[Sample]) -> Layout:
        """One image after the other."""
        ends = np.cumsum([0, *(s.width * s.height * 3 for s in samples)], dtype=np.int64)
        return Layout(ends[:-1], np.array([s.width for s in samples], np.int64), int(ends[-1]))

    def __call__(self, layers: Sequence[Layer]) -> Located:
        """Where the layers' crops are."""
        source = np.array([layer.source for layer in layers], np.int64)
        corner = np.array([layer.crop[:2] for layer in layers], np.int64).reshape(-1, 2)
        row = self.width[source]
        return Located(self.first[source] + 3 * (corner[:, 1] * row + corner[:, 0]), row, None)


class Crops:
    """Nothing is kept on the device: the crops of a batch's layers travel with it, cut out of images in memory or on disk."""

    def __init__(self, image_of: ImageOf) -> None:
        self.image_of = image_of

    def __call__(self, layers: Sequence[Layer]) -> Located:
        """Copy the layers' crops one after the other; a crop that several layers show travels once."""
        places: dict[tuple[int, Rect], tuple[int, np.ndarray]] = {}
        first, end = [], 0
        for layer in layers:
            key = (layer.source, layer.crop)
            if key not in places:
                x0, y0, x1, y1 = layer.crop
                crop = self.image_of(layer.source)[y0:y1, x0:x1]
                places[key] = (end, crop)
                end += crop.size
            first.append(places[key][0])
        store = np.empty(max(end, 3), np.uint8)
        for start, crop in places.values():
            store[start : start + crop.size].reshape(crop.shape)[:] = crop
        row = [layer.crop[2] - layer.crop[0] for layer in layers]
        return Located(np.array(first, np.int64), np.array(row, np.int64), torch.from_numpy(store))


@dataclass(frozen=True)
class DeviceImages:
    """All images of a dataset in one flat tensor on the device."""

    pixels: Tensor  # (bytes,) uint8
    layout: Layout

    @staticmethod
    def fits(samples: Sequence[Sample], device: torch.device, reserve: int | None = None) -> tuple[bool, str]:
        """(whether the images fit into the device's free memory, a line for the user).

        `reserve`: bytes to leave for training; half of the device's memory (of the free memory on the CPU) where not given.
        """
        needed = Layout.of(samples).size
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            free = total = available_memory() or 2**62
        reserve = int(RESERVE * total) if reserve is None else reserve
        need, have, left = (f"{value / 2**30:.2f} GiB" for value in (needed, free, reserve))
        if needed + reserve <= free:
            return True, f"cache: {need} of images on {device}, {have} free there, {left} of it left for training"
        return False, f"cache: {need} of images do not fit on {device} ({have} free, {left} of it left for training); keeping them in RAM"

    @staticmethod
    def load(samples: Sequence[Sample], image_of: ImageOf, device: torch.device, quiet: bool = False) -> DeviceImages:
        """Decode every image once and put it on the device. Raises UserError for an image that cannot be read."""
        layout = Layout.of(samples)
        pixels = torch.empty(max(layout.size, 3), dtype=torch.uint8, device=device)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # A few at a time, so that what waits to be sent takes little memory.
            for start in tqdm(range(0, len(samples), 64), f"cache {layout.size / 2**30:.2f} GiB", unit="x64 img", disable=quiet, leave=False):
                for index, image in enumerate(pool.map(image_of, range(start, min(start + 64, len(samples)))), start):
                    place = slice(int(layout.first[index]), int(layout.first[index]) + image.size)
                    pixels[place] = torch.from_numpy(np.ascontiguousarray(image).reshape(-1)).to(device)
        return DeviceImages(pixels, layout)
