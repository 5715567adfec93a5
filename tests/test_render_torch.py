"""data/render_torch.py draws what data/render.py draws: the OpenCV back end is the reference, the bounds are its rounding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import ImageStore, Sample, load_data, load_split, scan
from data.device import Crops, DeviceImages, Layout
from data.labels import Labels
from data.plan import GREY, Layer, Plan, Stack, letterbox, sample_rng, training_plan
from data.render import render, shift_colours
from data.render_torch import GROUP, _colour_tables, _finish, draw, pack, render_batch
from utils.config import Hyp

CPU = torch.device("cpu")
PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, mosaic=0, mixup=0, copy_paste=0, translate=0.1, scale=0.5, fliplr=0.5)
# OpenCV 5 computes where a warp samples in float; 4 rounded it to 1/32 of a pixel, which noise multiplies.
WARPED = 1 if int(cv2.__version__.split(".")[0]) >= 5 else 12


def samples_of(seed: int, polygons: bool = True, count: int = 6) -> tuple[list[Sample], list[np.ndarray]]:
    """Samples of many sizes with objects, in boxes or along zigzag outlines, and their images: half of them smooth, half pure noise."""
    rng = np.random.default_rng(seed)
    samples, images = [], []
    for number in range(count):
        width, height = (int(v) for v in rng.integers(20, 260, 2))
        rows = []
        for _ in range(int(rng.integers(0, 4))):
            x0, y0 = rng.uniform(0, 0.6, 2)
            w, h = rng.uniform(0.1, 0.4, 2)
            corners = np.array([[0, 0], [0.5, 0.3], [1, 0], [0.8, 0.5], [1, 1], [0.2, 0.7], [0, 1]]) * (w, h) + (x0, y0)
            rows.append((0, np.array([x0, y0, x0 + w, y0 + h], np.float32), corners.astype(np.float32) if polygons else None))
        samples.append(Sample(Path(f"{number}.png"), width, height, Labels.from_rows(rows)))
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        images.append(smooth if number % 2 else rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    return samples, images


def drawn(plans: list[Plan], samples: list[Sample], images: list[np.ndarray]) -> np.ndarray:
    """(B, H, W, 3) int64 of the torch back end, from images on the 'device'."""
    kept = DeviceImages.load(samples, images.__getitem__, CPU, quiet=True)
    pictures = render_batch(plans, kept, CPU)
    assert pictures.dtype == torch.uint8 and pictures.shape == (len(plans), 3, plans[0].height, plans[0].width)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    return pictures.permute(0, 2, 3, 1).numpy().astype(int)


def reference(plans: list[Plan], images: list[np.ndarray]) -> np.ndarray:
    return np.stack([render(plan, images.__getitem__) for plan in plans]).astype(int)


def on_an_edge(plan: Plan, within: float = 1e-2) -> np.ndarray:
    """(H, W): pixels whose centre lies on some outline, as far as float32 can tell."""
    y, x = np.mgrid[: plan.height, : plan.width] + 0.5
    found = np.zeros((plan.height, plan.width), bool)
    for layer in (layer for stack in plan.stacks for layer in stack.layers if layer.outline is not None):
        for (ax, ay), (bx, by) in zip(layer.outline, np.roll(layer.outline, -1, 0), strict=True):  # type: ignore[arg-type]
            length = max((bx - ax) ** 2 + (by - ay) ** 2, 1e-12)
            along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1)
            found |= np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)) < within
    return found


def plans_of(samples: list[Sample], hyp: Hyp, seed: int, size: tuple[int, int], count: int = 4) -> list[Plan]:
    return [training_plan(samples, i % len(samples), *size, hyp, sample_rng(seed, 0, i)) for i in range(count)]


hyps = st.builds(
    lambda mosaic, mixup, paste, turn, flip, scale: replace(
        PLAIN, mosaic=mosaic, mixup=mixup, copy_paste=paste, degrees=40 * turn, shear=10 * turn, perspective=0.001 * turn, flipud=flip, scale=scale
    ),
    *(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.0, 1.0])),
    *(st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.5, 0.9])),
)


@settings(max_examples=60)
@given(hyp=hyps, seed=st.integers(0, 10_000), polygons=st.booleans(), size=st.sampled_from([(96, 96), (64, 160), (224, 32)]))
def test_the_back_ends_agree_before_colours(hyp: Hyp, seed: int, polygons: bool, size: tuple[int, int]) -> None:
    """Mosaic, zoom, flips, mixup, boxes and outlines pasted, rotation, shear, perspective: one step of 255 everywhere but on outlines."""
    samples, images = samples_of(seed, polygons)
    plans = plans_of(samples, hyp, seed, size)
    off = np.abs(drawn(plans, samples, images) - reference(plans, images)).max(3)
    edges = np.stack([on_an_edge(plan) for plan in plans])
    bound = WARPED if hyp.degrees else 1
    assert off[~edges].max() <= bound
    assert (off[edges] > bound).sum() <= edges.sum() and edges.mean() < 0.02


@settings(max_examples=40)
@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.sampled_from([(96, 96), (64, 128)]), st.sampled_from([None, 50]), st.integers(0, 999))
def test_letterbox(size: tuple[int, int], canvas: tuple[int, int], longest: int | None, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    sample = Sample(Path("0.png"), *size, Labels.from_rows([]))
    plan = letterbox(*size, *canvas, longest=longest)
    found, wanted = drawn([plan], [sample], [image])[0], render(plan, lambda _: image)
    assert np.abs(found - wanted).max() <= 1
    x0, y0, x1, y1 = plan.stacks[0].layers[0].rect
    outside = np.ones(found.shape[:2], bool)
    outside[y0:y1, x0:x1] = False
    assert (found[outside] == GREY).all()


def test_an_image_at_its_own_size_is_copied() -> None:
    samples, images = samples_of(0)
    sample, image = samples[0], images[0]
    found = drawn([letterbox(sample.width, sample.height, sample.width, sample.height)], samples, images)[0]
    assert np.array_equal(found, image)


def test_pictures_of_nothing_and_of_more_layers_than_a_group() -> None:
    samples, images = samples_of(4)
    width, height = samples[0].width, samples[0].height
    empty = Plan(48, 40, (Stack(()),))
    spots = [(x, y) for y in range(0, 40, 10) for x in range(0, 48, 8)]
    to_image = np.diag([width / 20, height / 20, 1.0])
    layers = tuple(
        Layer(0, to_image @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]]), (x, y, min(x + 20, 48), min(y + 20, 40)), (0, 0, width, height)) for x, y in spots
    )
    many = Plan(48, 40, (Stack(layers),))
    assert len(layers) > 2 * GROUP
    found = drawn([empty, many, empty], samples, images)
    assert (found[0] == GREY).all() and (found[2] == GREY).all()
    for number, (x, y) in enumerate(spots):  # the last layer that holds a pixel is seen
        assert not any(a <= x < a + 20 and b <= y < b + 20 for a, b in spots[number + 1 :])
        alone = drawn([Plan(48, 40, (Stack((layers[number],)),))], samples, images)[0]
        assert np.array_equal(found[1][y, x], alone[y, x])
    assert (drawn([empty], samples, images)[0] == GREY).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_colours_alone(seed: int) -> None:
    """The same 8-bit picture: 97 of 100 values within 1, for OpenCV divides by tables and so is a step of hue or saturation off at times."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    gains = 1 + rng.uniform(-1, 1, 3) * (0.02, 0.7, 0.4)
    wanted = picture.copy()
    shift_colours(wanted, gains.tolist())
    colour = torch.from_numpy(picture.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)).int()[None]
    result = _finish(colour, colour, torch.tensor([[1.0, 0.0]]), torch.from_numpy(_colour_tables(gains[None])), torch.tensor([True]))[0].numpy()
    off = np.abs(np.stack([result & 255, result >> 8 & 255, result >> 16 & 255], 2) - wanted.astype(int))
    assert (off > 1).mean() < 0.03 and np.percentile(off, 99.9) <= 20
    kept = _finish(colour, colour, torch.tensor([[1.0, 0.0]]), torch.from_numpy(_colour_tables(gains[None])), torch.tensor([False]))
    assert torch.equal(kept, colour), "no gains, no change, not even by rounding"


@pytest.mark.parametrize("gains", [None, (1.0, 1.0, 1.0), (1.0, 1.3, 0.7)])
def test_colours_of_a_plan(gains: tuple[float, float, float] | None) -> None:
    samples, images = samples_of(8)
    plans = [replace(plan, gains=gains) for plan in plans_of(samples, replace(PLAIN, mosaic=1.0), 8, (96, 96))]
    off = np.abs(drawn(plans, samples, images) - reference(plans, images))
    if gains == (1.0, 1.3, 0.7):  # what resampling rounded the other way is multiplied, hue most where there is little colour
        assert off.mean() < 0.5 and (off > 3).mean() < 0.02
    else:
        assert off.max() <= 1


def test_real_pictures(real_images: list[Path]) -> None:
    samples, _ = scan(real_images[:24], 1, "real", quiet=True)
    store = ImageStore(samples)
    plans = plans_of(samples, Hyp(copy_paste=0.5, mixup=0.3), 0, (320, 320), 8)
    off = np.abs(drawn(plans, samples, [store(i) for i in range(len(samples))]) - reference(plans, [store(i) for i in range(len(samples))]))
    assert off.mean() < 0.5 and (off > 4).mean() < 0.01


def test_crops_sent_along_draw_the_same(tiny_data: Path) -> None:
    samples = load_split(load_data(tiny_data), "train", quiet=True)[0]
    store = ImageStore(samples)
    plans = plans_of(samples, Hyp(copy_paste=1.0, mixup=0.5), 1, (96, 128), 5)
    kept = DeviceImages.load(samples, store, CPU, quiet=True)
    sent = pack(plans, Crops(store))
    assert sent.pixels is not None and len(sent.pixels) < len(kept.pixels)
    assert torch.equal(draw(sent), render_batch(plans, kept, CPU))


def test_packing_needs_no_images() -> None:
    """So that a worker can do it; and a batch is drawn alike whatever else is in it."""
    samples, images = samples_of(2)
    plans = plans_of(samples, Hyp(copy_paste=1.0, mixup=0.5), 2, (64, 64), 6)
    whole = drawn(plans, samples, images)
    for number, plan in enumerate(plans):
        packed = pack([plan], Layout.of(samples))
        assert packed.pixels is None and packed.edges.shape[1] % GROUP == 0
        assert np.array_equal(drawn([plan], samples, images)[0], whole[number])


def test_the_compiled_renderer_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CPU's compiler, which unlike the GPU's takes long: kernels of two layers, not vectorised."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler: torch.compile has none to use")
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)
    monkeypatch.setattr("data.render_torch.GROUP", 2)
    samples, images = samples_of(3)
    kept = DeviceImages.load(samples, images.__getitem__, CPU, quiet=True)
    plans = plans_of(samples, Hyp(copy_paste=1.0, mixup=0.5, degrees=10), 3, (64, 48), 5)
    assert max(len(stack.layers) for plan in plans for stack in plan.stacks) > 2 and any(len(plan.stacks) == 2 for plan in plans)
    eager, compiled = (render_batch(plans, kept, CPU, compiled).int() for compiled in (False, True))
    assert ((eager - compiled).abs() > 1).float().mean() < 0.01 and (eager - compiled).float().abs().mean() < 0.05
