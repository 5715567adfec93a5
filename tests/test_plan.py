"""Plans and pictures: what is drawn is what the plan says, and every box is where its object is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import Sample
from data.labels import Labels
from data.plan import (
    GREY,
    Layer,
    Plan,
    Stack,
    _canvas_planes,
    clip_polygon,
    draw_boxes,
    layer_boxes,
    letterbox,
    sample_rng,
    training_plan,
    transform,
)
from data.render import inside, render, shift_colours
from tests.conftest import ROOT
from utils.config import Hyp

PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, mosaic=0, mixup=0, copy_paste=0, translate=0, scale=0, fliplr=0)


def make_sample(rng: np.random.Generator, objects: int, polygons: bool = False, index: int = 0) -> Sample:
    """A sample of random size with objects apart from each other, one per cell of a 3 x 3 grid."""
    width, height = (int(v) for v in rng.integers(60, 300, 2))
    rows = []
    for cell in rng.permutation(9)[:objects]:
        x0, y0 = (cell % 3 + rng.uniform(0.1, 0.3)) / 3, (cell // 3 + rng.uniform(0.1, 0.3)) / 3
        x1, y1 = x0 + rng.uniform(0.15, 0.22), y0 + rng.uniform(0.15, 0.22)
        # whole pixels, so that a painted object and its box agree exactly
        box = np.round(np.array([x0, y0, x1, y1]) * (width, height, width, height)) / (width, height, width, height)
        polygon = None
        if polygons:
            x0, y0, x1, y1 = box
            polygon = np.array([[(x0 + x1) / 2, y0], [x1, (y0 + y1) / 2], [(x0 + x1) / 2, y1], [x0, (y0 + y1) / 2]], np.float32)
        rows.append((0, box.astype(np.float32), polygon))
    return Sample(Path(f"{index}.png"), width, height, Labels.from_rows(rows))


def paint(sample: Sample, obj: int) -> np.ndarray:
    """The sample black, one object white."""
    image = np.zeros((sample.height, sample.width, 3), np.uint8)
    polygon = sample.labels.polygons[obj]
    if polygon is not None:
        pixels = polygon * (sample.width, sample.height)
        image[inside(pixels, sample.height, sample.width)] = 255
    else:
        x0, y0, x1, y1 = np.round(sample.labels.boxes[obj] * np.array([sample.width, sample.height] * 2)).astype(int)
        image[y0:y1, x0:x1] = 255
    return image


def samples_of(seed: int, polygons: bool = False, count: int = 5) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [make_sample(rng, int(rng.integers(1, 5)), polygons, i) for i in range(count)]


def found_box(plan: Plan, samples: Sequence[Sample], layer: int, obj: int) -> np.ndarray | None:
    """Where an object is seen when its layer alone is drawn, the object white, all else black; by pixels above half white."""
    stack = plan.stacks[0]
    only = replace(plan, stacks=(Stack((stack.layers[layer],)),), gains=None)
    picture = render(only, lambda index: paint(samples[index], obj))
    x0, y0, x1, y1 = stack.layers[layer].rect
    covered = np.zeros(picture.shape[:2], bool)
    covered[y0:y1, x0:x1] = True
    ys, xs = np.nonzero((picture[:, :, 0] > 127) & covered)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float) if len(xs) else None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), polygons=st.booleans(), warped=st.booleans())
def test_boxes_are_where_the_objects_are_drawn(seed: int, polygons: bool, warped: bool) -> None:
    samples = samples_of(seed, polygons)
    hyp = replace(PLAIN, mosaic=1.0, scale=0.4, translate=0.1, fliplr=0.5, flipud=0.5)
    if warped:
        hyp = replace(hyp, degrees=30, shear=5, perspective=0.0003)
    plan = training_plan(samples, 0, 256, 224, hyp, sample_rng(seed, 0, 0))
    for number, layer in enumerate(plan.stacks[0].layers):
        sample = samples[layer.source]
        for obj in range(len(sample.labels)):
            alone = replace(plan, stacks=(Stack((replace(layer, objects=(obj,)),)),))
            _, boxes = draw_boxes(alone, samples)
            seen = found_box(plan, samples, number, obj)
            if len(boxes) == 1 and seen is not None and (boxes[0, 2:] - boxes[0, :2]).min() > 6:
                # Interpolation blurs an edge over one source pixel; the tip of a turned or pointed object gets lost below half white.
                per_pixel = abs(np.linalg.det(np.linalg.inv(layer.matrix)[:2, :2])) ** 0.5
                slack = 1.0 + per_pixel * (0.6 if not (polygons or warped) else 6.0)
                assert np.abs(boxes[0] - seen).max() <= slack, (boxes[0], seen, layer)
            if len(boxes) == 0 and seen is not None:  # only small leftovers are no targets
                full = sample.labels.boxes[obj]
                whole = np.prod((full[2:] - full[:2]) * (sample.width, sample.height)) * abs(np.linalg.det(np.linalg.inv(layer.matrix)[:2, :2]))
                assert np.prod(seen[2:] - seen[:2]) < 0.25 * whole + 40 or min(seen[2:] - seen[:2]) <= 4


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 900), st.integers(30, 900), st.sampled_from([(640, 640), (640, 384), (96, 320)]))
def test_letterbox_inverts(width: int, height: int, canvas: tuple[int, int]) -> None:
    plan = letterbox(width, height, *canvas)
    (layer,) = plan.stacks[0].layers
    x0, y0, x1, y1 = layer.rect
    corners = transform(layer.matrix, np.array([[x0, y0], [x1, y1]], float))
    assert np.allclose(corners, [[0, 0], [width, height]])
    assert 0 <= x0 < x1 <= canvas[0] and 0 <= y0 < y1 <= canvas[1]
    assert (x1 - x0 == canvas[0]) or (y1 - y0 == canvas[1])
    assert abs((canvas[0] - x1) - x0) <= 1 and abs((canvas[1] - y1) - y0) <= 1  # centred


def test_letterbox_draws_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 100, 3)).astype(np.uint8)
    picture = render(letterbox(100, 50, 200, 200), lambda _: image)
    assert (picture[:50] == GREY).all() and (picture[150:] == GREY).all()
    assert np.array_equal(picture[50:150], cv2.resize(image, (200, 100), interpolation=cv2.INTER_LINEAR))


def test_mosaic_without_zoom_shows_every_object_of_its_tiles() -> None:
    """At half zoom the whole space of the mosaic is in view: an object inside its tile is a target."""
    samples = samples_of(3)
    hyp = replace(PLAIN, mosaic=1.0, scale=0.0)
    for index in range(20):
        plan = training_plan(samples, index % 5, 400, 400, hyp, sample_rng(7, 0, index))
        for layer in plan.stacks[0].layers:
            sample = samples[layer.source]
            size = np.array([sample.width, sample.height] * 2)
            corners = transform(np.linalg.inv(layer.matrix), (sample.labels.boxes * size).reshape(-1, 2)).reshape(-1, 4)
            x0, y0, x1, y1 = layer.rect
            whole = (corners >= np.array([x0, y0, x0, y0]) - 1e-3).all(1) & (corners <= np.array([x1, y1, x1, y1]) + 1e-3).all(1)
            _, boxes = draw_boxes(Plan(400, 400, (Stack((layer,)),)), samples)
            for box in corners[whole]:
                assert (np.abs(boxes - box).max(1) < 0.51).any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tiles_share_edges_without_gap_or_overlap(seed: int) -> None:
    samples = samples_of(seed)
    plan = training_plan(samples, 0, 200, 160, replace(PLAIN, mosaic=1.0, scale=0.5, translate=0.2, fliplr=0.5), sample_rng(seed, 1, 0))
    count = np.zeros((160, 200), int)
    for layer in plan.stacks[0].layers:
        x0, y0, x1, y1 = layer.rect
        count[y0:y1, x0:x1] += 1
        corners = transform(layer.matrix, np.array([[x0, y0], [x1, y1]], float))
        assert np.allclose(np.sort(corners, 0), np.array(layer.crop, float).reshape(2, 2))  # exactly the resize of crop to rect
    assert count.max() <= 1


def test_plan_is_a_function_of_seed_epoch_index() -> None:
    samples, hyp = samples_of(0), Hyp(mixup=0.5, copy_paste=1.0)

    def picture(*key: int) -> bytes:
        plan = training_plan(samples, 0, 96, 96, hyp, sample_rng(*key))
        return render(plan, lambda index: paint(samples[index], 0)).tobytes()

    assert picture(1, 2, 3) == picture(1, 2, 3)
    assert len({picture(1, 2, 3), picture(2, 2, 3), picture(1, 3, 3), picture(1, 2, 4)}) == 4


@pytest.mark.parametrize("polygons", [True, False])
def test_copy_paste_adds_objects_on_boxes_and_polygons(polygons: bool) -> None:
    samples = samples_of(5, polygons, count=12)
    base, pasted, hidden = 0, 0, 0
    for index in range(40):
        plan = training_plan(samples, index % 12, 320, 320, replace(PLAIN, copy_paste=1.0), sample_rng(0, 0, index))
        layers = plan.stacks[0].layers
        extra = [layer for layer in layers if layer.objects is not None]
        assert all((layer.outline is not None) == polygons for layer in extra)
        base += len(samples[index % 12].labels)
        pasted += len(extra)
        for layer in extra:
            (obj,) = layer.objects or ()
            classes, boxes = draw_boxes(Plan(320, 320, (Stack((layer,)),)), samples)
            assert len(classes) == 1 and obj < len(samples[layer.source].labels)
            hidden += len(boxes) - 1
    assert 0.5 * base < pasted <= base and hidden == 0
    none = training_plan(samples, 0, 320, 320, PLAIN, sample_rng(0, 0, 0))
    assert all(layer.objects is None for layer in none.stacks[0].layers)


def test_pasted_polygon_shows_only_the_object() -> None:
    samples = samples_of(2, polygons=True)
    canvas = Layer(0, np.eye(3), (0, 0, 1, 1), (0, 0, 1, 1))
    plan = next(
        plan
        for i in range(50)
        if (plan := training_plan(samples, 0, 300, 300, replace(PLAIN, copy_paste=1.0), sample_rng(0, 0, i))).stacks[0].layers[-1].outline is not None
    )
    layer = plan.stacks[0].layers[-1]
    assert layer.rect != canvas.rect and layer.outline is not None
    (obj,) = layer.objects or ()
    picture = render(replace(plan, stacks=(Stack((layer,)),), gains=None), lambda index: paint(samples[index], obj))
    mask = inside(layer.outline, 300, 300)
    assert (picture[~mask] == GREY).all() and picture[mask].mean() > 200


def test_mixup_blends_two_stacks_and_keeps_all_boxes() -> None:
    samples = samples_of(1)
    plan = training_plan(samples, 0, 128, 128, replace(PLAIN, mixup=1.0), sample_rng(0, 0, 0))
    assert len(plan.stacks) == 2 and sum(stack.opacity for stack in plan.stacks) == pytest.approx(1)
    both = draw_boxes(plan, samples)[1]
    each = [draw_boxes(replace(plan, stacks=(stack,)), samples)[1] for stack in plan.stacks]
    assert np.array_equal(both, np.concatenate(each))
    plain = replace(plan, gains=None)
    one, two = (render(replace(plain, stacks=(replace(s, opacity=1.0),)), lambda i: paint(samples[i], 0)).astype(float) for s in plan.stacks)
    blend = plan.stacks[0].opacity * one + plan.stacks[1].opacity * two
    assert np.abs(render(plain, lambda i: paint(samples[i], 0)) - blend).max() <= 0.51


@pytest.mark.parametrize(("flip", "mirror"), [("fliplr", lambda x: x[:, ::-1]), ("flipud", lambda x: x[::-1])])
def test_flips_mirror_picture_and_boxes(flip: str, mirror: object) -> None:
    sample = replace(samples_of(4)[0], width=100, height=80)
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    plain = training_plan([sample], 0, 100, 80, PLAIN, sample_rng(0, 0, 0))
    turned = training_plan([sample], 0, 100, 80, replace(PLAIN, **{flip: 1.0}), sample_rng(0, 0, 0))
    assert np.array_equal(render(turned, lambda _: image), mirror(render(plain, lambda _: image)))  # type: ignore[operator]
    a, b = draw_boxes(plain, [sample])[1], draw_boxes(turned, [sample])[1]
    expected = (
        np.stack([100 - a[:, 2], a[:, 1], 100 - a[:, 0], a[:, 3]], 1) if flip == "fliplr" else np.stack([a[:, 0], 80 - a[:, 3], a[:, 2], 80 - a[:, 1]], 1)
    )
    assert np.allclose(b, expected)


def test_rotation_by_right_angle() -> None:
    """degrees is the largest angle: with the generator's draw forced to 1 the picture turns by all of it."""

    class Extreme:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return np.full(size, high, float)

        def random(self, size: int | None = None) -> float | np.ndarray:
            return 0.999 if size is None else np.full(size, 0.999)

    sample = samples_of(4)[0]
    sample = replace(sample, width=80, height=80)
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    plan = training_plan([sample], 0, 80, 80, replace(PLAIN, degrees=90.0), Extreme())  # type: ignore[arg-type]
    picture = render(plan, lambda _: image)
    assert np.array_equal(picture, np.rot90(image)) or np.array_equal(picture, np.rot90(image, -1))


def test_hyper_parameters_are_honoured() -> None:
    """Zoom and shift stay in the ranges of scale and translate and reach most of them."""
    sample = replace(samples_of(4)[0], width=100, height=100)
    scales, shifts = [], []
    for i in range(400):
        layer = training_plan([sample], 0, 1000, 1000, replace(PLAIN, scale=0.3, translate=0.1), sample_rng(0, 0, i)).stacks[0].layers[0]
        to_canvas = np.linalg.inv(layer.matrix)
        scales.append(to_canvas[0, 0] * 100 / 1000)
        shifts.append(transform(to_canvas, np.array([[50.0, 50.0]]))[0] / 1000 - 0.5)
    assert 0.68 < min(scales) < 0.74 and 1.26 < max(scales) < 1.32
    assert 0.09 < np.max(shifts) < 0.11 and -0.11 < np.min(shifts) < -0.09


def test_colour_gains() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    same = image.copy()
    shift_colours(same, (1.0, 1.0, 1.0))
    assert np.abs(same.astype(int) - image).max() <= 6  # the rounding of 8-bit HSV
    darker = image.copy()
    shift_colours(darker, (1.0, 1.0, 0.5))
    assert np.abs(darker.max(2).astype(int) - image.max(2) // 2).max() <= 1  # value is the largest channel
    grey = image.copy()
    shift_colours(grey, (1.0, 0.0, 1.0))
    assert (np.ptp(grey, axis=2) == 0).all()


def table_colours(image: np.ndarray, gains: Sequence[float]) -> np.ndarray:
    """Hue, saturation and value of the whole picture looked up in three tables."""
    x = np.arange(256, dtype=np.float64)
    tables = np.stack([x * gains[0] % 180, np.minimum(x * gains[1], 255), np.minimum(x * gains[2], 255)], 1).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.one_of(st.floats(0, 2), st.sampled_from([0.0, 0.5, 1.0, 1.25, 1.4, 1.001, 2.0]))] * 3), st.integers(1, 70))
def test_colours_equal_a_table_look_up(gains: tuple[float, float, float], width: int) -> None:
    """Whichever way a plane is scaled; gains such as 1.001 are those that rounding gets wrong."""
    image = np.random.default_rng(0).integers(0, 256, (90, width, 3)).astype(np.uint8)
    expected = table_colours(image, gains)
    shift_colours(image, gains)
    assert np.array_equal(image, expected)


def plain_render(plan: Plan, samples: Sequence[Sample], image_of: list[np.ndarray]) -> np.ndarray:
    """Step by step on whole canvases: every layer in a picture of its own, laid over by a mask."""
    canvases = []
    for stack in plan.stacks:
        canvas = np.full((plan.height, plan.width, 3), GREY, np.uint8)
        for layer in stack.layers:
            alone = render(Plan(plan.width, plan.height, (Stack((layer,)),)), image_of.__getitem__)
            x0, y0, x1, y1 = layer.rect
            mask = np.zeros((plan.height, plan.width), bool)
            mask[y0:y1, x0:x1] = True
            if layer.outline is not None:
                mask &= inside(layer.outline, plan.height, plan.width)
            canvas[mask] = alone[mask]
        canvases.append(canvas)
    if len(canvases) == 2:
        canvases = [cv2.addWeighted(canvases[0], plan.stacks[0].opacity, canvases[1], plan.stacks[1].opacity, 0)]
    return canvases[0] if plan.gains is None else table_colours(canvases[0], plan.gains)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), warped=st.booleans(), size=st.sampled_from([(256, 224), (97, 61), (32, 64)]))
def test_a_picture_equals_one_drawn_step_by_step(seed: int, warped: bool, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    samples = samples_of(seed, polygons=bool(rng.integers(2)))
    images = [rng.integers(0, 256, (sample.height, sample.width, 3)).astype(np.uint8) for sample in samples]
    hyp = Hyp(scale=0.9, mosaic=0.7, mixup=0.4, copy_paste=0.7, flipud=0.5, degrees=20.0 * warped, shear=5.0 * warped)
    plan = training_plan(samples, 0, *size, hyp, sample_rng(seed, 0, 0))
    assert np.array_equal(render(plan, images.__getitem__), plain_render(plan, samples, images))


def test_a_picture_is_drawn_where_it_is_wanted() -> None:
    samples = samples_of(3)
    images = [np.random.default_rng(i).integers(0, 256, (s.height, s.width, 3)).astype(np.uint8) for i, s in enumerate(samples)]
    plans = [training_plan(samples, i, 96, 64, Hyp(mixup=0.5), sample_rng(0, 0, i)) for i in range(5)]
    batch = np.full((7, 64, 96, 3), 9, np.uint8)
    for number, plan in enumerate(plans, 1):
        assert render(plan, images.__getitem__, batch[number]).base is batch
        assert np.array_equal(batch[number], render(plan, images.__getitem__))
    assert (batch[[0, 6]] == 9).all()


def test_only_images_in_view_are_opened() -> None:
    """Zoomed in, a mosaic shows one to four of its images; what is out of sight is neither planned nor decoded, and nothing is decoded twice for a layer."""
    samples = samples_of(1, count=9)
    hyp = replace(PLAIN, mosaic=1.0, scale=0.9, translate=0.4)
    counts = set()
    for seed in range(60):
        plan, opened = training_plan(samples, 0, 64, 64, hyp, sample_rng(seed, 0, 0)), []

        def image_of(index: int, opened: list[int] = opened) -> np.ndarray:
            opened.append(index)
            return np.zeros((samples[index].height, samples[index].width, 3), np.uint8)

        render(plan, image_of)
        assert opened == [layer.source for layer in plan.stacks[0].layers]
        for layer in plan.stacks[0].layers:
            x0, y0, x1, y1 = layer.rect
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        counts.add(len(opened))
    assert {1, 2, 4} <= counts


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), polygons=st.booleans(), warped=st.booleans())
def test_boxes_of_many_layers_are_those_of_each(seed: int, polygons: bool, warped: bool) -> None:
    samples = samples_of(seed, polygons, 6)
    hyp = Hyp(scale=0.9, mixup=0.5, copy_paste=0.9, degrees=20.0 * warped, perspective=0.0005 * warped)
    plan = training_plan(samples, 0, 128, 96, hyp, sample_rng(seed, 0, 0))
    classes, boxes = draw_boxes(plan, samples)
    single = [layer_boxes([layer], samples, 128, 96) for stack in plan.stacks for layer in stack.layers]
    assert np.array_equal(classes, np.concatenate([np.zeros(0), *(one[0] for one in single)]))
    assert np.array_equal(boxes, np.concatenate([np.zeros((0, 4)), *(one[1] for one in single)]))


def plain_clip(points: list[np.ndarray], planes: np.ndarray) -> list[np.ndarray]:
    """Point by point."""
    for a, b, c in planes:
        kept = []
        for i, point in enumerate(points):
            last = points[i - 1]
            here, before = a * point[0] + b * point[1] + c, a * last[0] + b * last[1] + c
            if (here >= 0) != (before >= 0):
                kept.append(last + (point - last) * (before / (before - here)))
            if here >= 0:
                kept.append(point)
        points = kept
    return points


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 40), st.floats(-20, 40)), min_size=3, max_size=8))
def test_clip_polygon_equals_clipping_point_by_point(points: list[tuple[float, float]]) -> None:
    planes = _canvas_planes(np.eye(3), 20, 16)
    expected = plain_clip(list(np.array(points)), planes)
    found = clip_polygon(np.array(points), planes)
    assert found.shape == (len(expected), 2)
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 2), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 40), st.floats(-20, 40)), min_size=3, max_size=8))
def test_clip_polygon_stays_inside_and_is_idempotent(points: list[tuple[float, float]]) -> None:
    planes = _canvas_planes(np.eye(3), 20, 16)
    once = clip_polygon(np.array(points), planes)
    if len(once):
        assert once.min() >= -1e-6 and once[:, 0].max() <= 20 + 1e-6 and once[:, 1].max() <= 16 + 1e-6
        again = clip_polygon(once, planes + np.array([0, 0, 1e-9]))
        assert np.allclose(once, again)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=7))
def test_inside_is_by_pixel_centre(points: list[tuple[float, float]]) -> None:
    """Against the winding of a ray, pixel by pixel; self-crossing outlines follow the even-odd rule."""
    outline = np.round(np.array(points), 3) + 1e-4  # no corner on a pixel's centre line
    mask = inside(outline, 16, 20)
    for y in range(16):
        for x in range(20):
            odd, near = False, False
            for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, 0), strict=True):
                if (ay > y + 0.5) != (by > y + 0.5):
                    crossing = ax + (y + 0.5 - ay) / (by - ay) * (bx - ax)
                    near |= abs(crossing - (x + 0.5)) < 1e-6
                    odd ^= x + 0.5 > crossing
            assert near or mask[y, x] == odd


def test_command_line_draws_a_plan(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "图 plan.png"
    command = [sys.executable, "-m", "data.render", "--data", str(tiny_data), "--index", "3", "--img", "96", "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "canvas 96 x 96" in result.stdout and out.stat().st_size > 1000
    wrong = subprocess.run([*command[:-1], str(out), "--split", "test"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "has no 'test'" in wrong.stderr
