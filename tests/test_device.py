"""data/device.py: every layer's crop is found where the store has it; what fits is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Sample
from data.device import Crops, DeviceImages, Layout, Located
from data.labels import Labels
from data.plan import Layer

CPU = torch.device("cpu")


def invented(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[list[Sample], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    samples = [Sample(Path(f"{i}.png"), width, height, Labels.from_rows([])) for i, (width, height) in enumerate(sizes)]
    return samples, [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for width, height in sizes]


def read(store: np.ndarray, located: Located, number: int, layer: Layer) -> np.ndarray:
    """The layer's crop, byte by byte."""
    x0, y0, x1, y1 = layer.crop
    first, row = int(located.first[number]), int(located.row[number])
    return np.array([[store[first + 3 * (y * row + x) :][:3] for x in range(x1 - x0)] for y in range(y1 - y0)], np.uint8)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6), st.integers(0, 9999))
def test_crops_are_found(sizes: list[tuple[int, int]], seed: int) -> None:
    samples, images = invented(sizes, seed)
    rng = np.random.default_rng(seed)
    layers = []
    for source in rng.integers(len(samples), size=int(rng.integers(0, 8))).tolist():
        x0, y0 = (int(rng.integers(side)) for side in sizes[source])
        x1, y1 = (int(rng.integers(low, side)) + 1 for low, side in zip((x0, y0), sizes[source], strict=True))
        layers.append(Layer(source, np.eye(3), (0, 0, 1, 1), (x0, y0, x1, y1)))
    kept = DeviceImages.load(samples, images.__getitem__, CPU, quiet=True)
    whole, sent = kept.layout(layers), Crops(images.__getitem__)(layers)
    assert whole.pixels is None and sent.pixels is not None and kept.layout.size == sum(image.size for image in images)
    for number, layer in enumerate(layers):
        x0, y0, x1, y1 = layer.crop
        crop = images[layer.source][y0:y1, x0:x1]
        assert np.array_equal(read(kept.pixels.numpy(), whole, number, layer), crop)
        assert np.array_equal(read(sent.pixels.numpy(), sent, number, layer), crop)


def test_a_crop_travels_once() -> None:
    _, images = invented([(10, 8)])
    layer = Layer(0, np.eye(3), (0, 0, 1, 1), (2, 1, 6, 4))
    once, twice = Crops(images.__getitem__)([layer]), Crops(images.__getitem__)([layer, layer])
    assert once.pixels is not None and twice.pixels is not None and len(once.pixels) == len(twice.pixels) == 4 * 3 * 3
    assert twice.first.tolist() == [0, 0]


def test_more_than_a_signed_32_bit_number_of_bytes() -> None:
    samples, _ = invented([(1, 1)] * 3)
    huge = [Sample(sample.path, 40_000, 30_000, sample.labels) for sample in samples]
    layout = Layout.of(huge)
    assert layout.size == 3 * 40_000 * 30_000 * 3 > 2**32
    located = layout([Layer(2, np.eye(3), (0, 0, 1, 1), (39_999, 29_999, 40_000, 30_000))])
    assert located.first.tolist() == [layout.size - 3]


def test_what_fits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = invented([(1024, 1024)] * 4)  # 12 MiB
    monkeypatch.setattr("data.device.available_memory", lambda: 30 * 2**20)
    assert DeviceImages.fits(samples, CPU)[0] and "0.01 GiB of images on cpu" in DeviceImages.fits(samples, CPU)[1]
    fits, line = DeviceImages.fits(samples, CPU, reserve=19 * 2**20)
    assert not fits and "do not fit" in line
    assert DeviceImages.fits(samples, CPU, reserve=18 * 2**20)[0], "to the byte"
    # Half of a GPU's whole memory is left to training, whatever of it is free.
    gpu = SimpleNamespace(type="cuda")
    for free, expected in ((62, True), (61, False)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _, free=free: (free * 2**20, 100 * 2**20))
        assert DeviceImages.fits(samples, gpu)[0] is expected  # type: ignore[arg-type]
