"""data/device_loader.py: batches drawn on the device are the loader's: same order, targets and views; pixels within the renderer's rounding."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.dataset import ImageStore, Sample, load_data, load_split
from data.device import DeviceImages
from data.device_loader import DeviceBatches, cache_on_device
from data.loader import Batch, Pictures, TrainBatches, make_loader
from utils.config import Hyp
from utils.errors import UserError

CPU = torch.device("cpu")
HYP = Hyp(mixup=0.5, copy_paste=0.5)


@pytest.fixture(scope="module")
def samples(tiny_data: Path) -> list[Sample]:
    return load_split(load_data(tiny_data), "train", quiet=True)[0]


def order_of(samples: list[Sample], epoch: int = 0, start: int = 0, **settings: bool) -> TrainBatches:
    order = TrainBatches(samples, 5, 96, 32, seed=3, **settings)
    order.epoch, order.start = epoch, start
    return order


def pictures_of(samples: list[Sample], hyp: Hyp = HYP) -> Pictures:
    return Pictures(samples, ImageStore(samples), hyp, seed=3)


def alike(a: Batch, b: Batch) -> bool:
    """Equal but for the images."""
    views = all(x.index == y.index and x.path == y.path and np.array_equal(x.matrix, y.matrix) for x, y in zip(a.views, b.views, strict=True))
    return torch.equal(a.targets, b.targets) and a.targets.dtype == b.targets.dtype and views


def distance(a: Batch, b: Batch) -> torch.Tensor:
    return (a.images.int() - b.images.int()).abs()


@pytest.mark.parametrize("resident", [True, False], ids=["on the device", "sent along"])
@pytest.mark.parametrize("settings", [{}, {"rect": True}, {"multi_scale": True}], ids=str)
def test_an_epoch_is_the_loaders_epoch(samples: list[Sample], resident: bool, settings: dict[str, bool]) -> None:
    hyp = replace(HYP, mosaic=0.0 if "rect" in settings else 1.0)
    images = DeviceImages.load(samples, ImageStore(samples), CPU, quiet=True) if resident else None
    order = order_of(samples, **settings)
    batches = DeviceBatches(pictures_of(samples, hyp), order, CPU, images)
    expected_order = order_of(samples, **settings)
    expected = make_loader(pictures_of(samples, hyp), expected_order, 0)
    for epoch in (0, 1):
        order.epoch = expected_order.epoch = epoch
        found, wanted = list(batches), list(expected)
        assert len(found) == len(wanted) == len(batches) == 4
        for ours, theirs in zip(found, wanted, strict=True):
            assert alike(ours, theirs)
            assert ours.images.dtype == torch.uint8 and ours.images.is_contiguous(memory_format=torch.channels_last)
            far = distance(ours, theirs)
            assert far.float().mean() < 0.5 and (far > 3).float().mean() < 0.02


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_pictures(samples: list[Sample], workers: int) -> None:
    """Bit for bit, whether a thread or workers plan, whether the images are on the device or sent along."""
    images = DeviceImages.load(samples, ImageStore(samples), CPU, quiet=True)
    whole = list(DeviceBatches(pictures_of(samples), order_of(samples, 2), CPU, images))
    for start in (0, 1, 3):
        for place in (images, None):
            order = order_of(samples, 2, start)
            resumed = list(DeviceBatches(pictures_of(samples), order, CPU, place, workers))
            assert len(resumed) == 4 - start
            assert all(alike(a, b) and torch.equal(a.images, b.images) for a, b in zip(resumed, whole[start:], strict=True))


def test_an_epoch_can_be_left_early_and_begun_again(samples: list[Sample]) -> None:
    order = order_of(samples)
    batches = DeviceBatches(pictures_of(samples), order, CPU)
    first = next(iter(batches))
    again = list(batches)
    assert len(again) == 4 and torch.equal(first.images, again[0].images) and alike(first, again[0])
    order.start = 4
    assert list(batches) == [], "nothing left of the epoch"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_is_named_in_one_line(samples: list[Sample], tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "坏.png"
    broken.write_bytes(samples[0].path.read_bytes()[:300])
    mine = [replace(samples[0], path=broken), *samples[1:4]]
    with pytest.raises(UserError, match="the image is damaged") as found:
        list(DeviceBatches(pictures_of(mine), order_of(mine), CPU, None, workers))
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="the image is damaged"):
        DeviceImages.load(mine, ImageStore(mine), CPU, quiet=True)


def test_cache_device_without_a_gpu_says_so(samples: list[Sample], capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_on_device(ImageStore(samples), CPU) is None
    assert "keeping images in RAM" in capsys.readouterr().out


def test_a_compiler_that_fails_does_not_end_the_run(samples: list[Sample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class CompilerError(RuntimeError):
        __module__ = "torch._dynamo.exc"

    def fail(*_: object) -> None:
        raise CompilerError("no\nway")

    expected = list(DeviceBatches(pictures_of(samples), order_of(samples), CPU))
    monkeypatch.setattr("data.render_torch._compiled", lambda: (fail, fail, fail))
    batches = DeviceBatches(pictures_of(samples), order_of(samples), CPU)
    batches.compiled = True
    found = list(batches)
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, expected, strict=True))
    assert capsys.readouterr().out.count("drawn uncompiled, which is slower: no") == 1
    monkeypatch.setattr(CompilerError, "__module__", "torch")
    batches.compiled = True
    with pytest.raises(CompilerError):
        next(iter(batches))


def test_what_workers_are_given_can_be_sent(samples: list[Sample]) -> None:
    """Where processes are spawned, as on Windows, the planner is pickled: it holds no image and no tensor of the device."""
    images = DeviceImages.load(samples, ImageStore(samples), CPU, quiet=True)
    planned = DeviceBatches(pictures_of(samples), order_of(samples), CPU, images).loader.dataset
    data = pickle.dumps(planned)
    assert len(data) < 20_000 < images.layout.size
    draws = next(iter(order_of(samples)))
    assert torch.equal(pickle.loads(data).__getitems__(draws).targets, planned.__getitems__(draws).targets)  # noqa: S301
