"""Decide what to draw: a plan is a few layers of images, each with one matrix, and says where every box ends up.

Coordinates are continuous: pixel i covers [i, i + 1). A layer's matrix maps the canvas to its source image; letterbox, mosaic, zoom,
rotation, shear, perspective and flips are all folded into it, so that every pixel is resampled once and every box goes through the
very same matrix. Where a layer's axes stay parallel to the canvas (`aligned`), its rectangle and its crop of the source are whole
pixels and the matrix is exactly the resize from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data.dataset import Sample
from utils.boxes import area, intersection, transform
from utils.config import Hyp

GREY = 114  # what no layer covers
MIN_SIDE = 2.0  # pixels: a smaller box is not a target
MIN_SHARE = 0.1  # of its bounding box an object must stay in view
MAX_ASPECT = 100.0
MAX_HIDDEN = 0.3  # share of another box that a pasted object may hide
PASTE_TRIES = 5

Rect = tuple[int, int, int, int]  # left, top, right, bottom; the last two excluded


@dataclass(frozen=True)
class Layer:
    """One image on the canvas."""

    source: int  # index of the sample
    matrix: np.ndarray  # (3, 3) float64: canvas -> source
    rect: Rect  # part of the canvas it covers
    crop: Rect  # part of the source that may be sampled: interpolation stops at its edges
    aligned: bool = True
    outline: np.ndarray | None = None  # (k, 2) on the canvas: only what lies inside is drawn
    view: tuple[float, float, float, float] | None = None  # part of the source in view where it is not `crop`
    objects: tuple[int, ...] | None = None  # which of the sample's objects it shows; None: all


@dataclass(frozen=True)
class Stack:
    """Layers painted one over the other on grey."""

    layers: tuple[Layer, ...]
    opacity: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What to draw: stacks blended by their opacities (which sum to 1), then colours changed."""

    width: int
    height: int
    stacks: tuple[Stack, ...]
    gains: tuple[float, float, float] | None = None  # factors of hue, saturation, value


@dataclass(frozen=True)
class _Tile:
    """An image placed in the space that the random view looks at: space = source * scale + offset, cut to `clip`."""

    source: int
    scale: float
    offset: tuple[float, float]
    clip: tuple[float, float, float, float]


def sample_rng(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """The generator of one picture: what it shows depends on nothing else, neither workers nor order nor resumption."""
    return np.random.default_rng((seed, epoch, index, repeat))


def letterbox(width: int, height: int, canvas_width: int, canvas_height: int, source: int = 0, longest: int | None = None) -> Plan:
    """The whole image, as large as fits (and its longer side at most `longest`), centred on grey."""
    ratio = min(canvas_width / width, canvas_height / height, *([longest / max(width, height)] if longest else []))
    w, h = max(min(round(width * ratio), canvas_width), 1), max(min(round(height * ratio), canvas_height), 1)
    left, top = (canvas_width - w) // 2, (canvas_height - h) // 2
    rect, crop = (left, top, left + w, top + h), (0, 0, width, height)
    return Plan(canvas_width, canvas_height, (Stack((Layer(source, _resize_matrix(rect, crop), rect, crop),)),))


def training_plan(samples: Sequence[Sample], index: int, width: int, height: int, hyp: Hyp, rng: np.random.Generator) -> Plan:
    """A random picture around sample `index`, drawn from `rng` by the hyper-parameters."""
    first = _stack(samples, index, width, height, hyp, rng)
    stacks: tuple[Stack, ...] = (Stack(first),)
    if rng.random() < hyp.mixup:
        share = float(rng.beta(32.0, 32.0))
        second = _stack(samples, int(rng.integers(len(samples))), width, height, hyp, rng)
        stacks = (Stack(first, share), Stack(second, 1 - share))
    gains = 1 + rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
    return Plan(width, height, stacks, (float(gains[0]), float(gains[1]), float(gains[2])))


def _stack(samples: Sequence[Sample], index: int, width: int, height: int, hyp: Hyp, rng: np.random.Generator) -> tuple[Layer, ...]:
    if rng.random() < hyp.mosaic:
        tiles, space = _mosaic_tiles(samples, index, width, height, rng), (2 * width, 2 * height)
    else:
        tiles, space = [_single_tile(samples[index], index, width, height)], (width, height)
    view, zoom = _random_view(space, width, height, hyp, rng)
    aligned = hyp.degrees == hyp.shear == hyp.perspective == 0
    place = _aligned_layer if aligned else _warped_layer
    layers = [layer for tile in tiles if (layer := place(samples[tile.source], tile, view, width, height)) is not None]
    if hyp.copy_paste > 0:
        layers += _pasted(samples, layers, zoom, width, height, hyp.copy_paste, rng)
    return tuple(layers)


def _fit(sample: Sample, width: int, height: int) -> float:
    return min(width / sample.width, height / sample.height)


def _single_tile(sample: Sample, index: int, width: int, height: int) -> _Tile:
    scale = _fit(sample, width, height)
    w, h = sample.width * scale, sample.height * scale
    left, top = (width - w) / 2, (height - h) / 2
    return _Tile(index, scale, (left, top), (left, top, left + w, top + h))


def _mosaic_tiles(samples: Sequence[Sample], index: int, width: int, height: int, rng: np.random.Generator) -> list[_Tile]:
    """Four images around a random centre of a space twice the canvas; the requested one stands at the upper left."""
    x, y = (rng.uniform(0.5, 1.5, 2) * (width, height)).tolist()
    tiles = []
    for corner, source in enumerate([index, *rng.integers(len(samples), size=3).tolist()]):
        sample = samples[source]
        scale = _fit(sample, width, height)
        w, h = sample.width * scale, sample.height * scale
        left = x - w if corner % 2 == 0 else x
        top = y - h if corner < 2 else y
        clip = (max(left, 0.0), max(top, 0.0), min(left + w, 2.0 * width), min(top + h, 2.0 * height))
        tiles.append(_Tile(source, scale, (left, top), clip))
    return tiles


def _random_view(space: tuple[int, int], width: int, height: int, hyp: Hyp, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(3x3 matrix space -> canvas, zoom): perspective, rotation and zoom about the middle, shear, shift, flips."""
    px, py, angle, zoom, shear_x, shear_y, shift_x, shift_y, flip_x, flip_y = rng.uniform(-1, 1, 10).tolist()
    z = max(1 + zoom * hyp.scale, 0.01)
    a = math.radians(angle * hyp.degrees)
    sx, sy = (math.tan(math.radians(s * hyp.shear)) for s in (shear_x, shear_y))
    cos, sin = z * math.cos(a), z * math.sin(a)
    centre = np.array([[1, 0, -space[0] / 2], [0, 1, -space[1] / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [px * hyp.perspective, py * hyp.perspective, 1]])
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    slant = np.array([[1, sx, 0], [sy, 1, 0], [0, 0, 1]])
    move = np.array([[1, 0, (0.5 + shift_x * hyp.translate) * width], [0, 1, (0.5 + shift_y * hyp.translate) * height], [0, 0, 1]])
    view = move @ slant @ rotation @ perspective @ centre
    # uniform(-1, 1) < 2 p - 1 has probability p
    if flip_x < 2 * hyp.fliplr - 1:
        view = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ view
    if flip_y < 2 * hyp.flipud - 1:
        view = np.array([[1, 0, 0], [0, -1, height], [0, 0, 1.0]]) @ view
    return view, z


def _aligned_layer(sample: Sample, tile: _Tile, view: np.ndarray, width: int, height: int) -> Layer | None:
    """The tile seen through a view without rotation; None where it is out of sight."""
    (zoom_x, _, shift_x), (_, zoom_y, shift_y), _ = view.tolist()
    x0, x1 = sorted((zoom_x * tile.clip[0] + shift_x, zoom_x * tile.clip[2] + shift_x))
    y0, y1 = sorted((zoom_y * tile.clip[1] + shift_y, zoom_y * tile.clip[3] + shift_y))
    # A pixel belongs to the tile that holds its centre, so that neighbours share an edge without gap or overlap.
    left, right = max(math.ceil(x0 - 0.5), 0), min(math.ceil(x1 - 0.5), width)
    top, bottom = max(math.ceil(y0 - 0.5), 0), min(math.ceil(y1 - 0.5), height)
    if left >= right or top >= bottom:
        return None
    source_x0, source_x1 = _whole_range(left, right, zoom_x, shift_x, tile.offset[0], tile.scale, sample.width)
    source_y0, source_y1 = _whole_range(top, bottom, zoom_y, shift_y, tile.offset[1], tile.scale, sample.height)
    rect, crop = (left, top, right, bottom), (source_x0, source_y0, source_x1, source_y1)
    return Layer(tile.source, _resize_matrix(rect, crop, zoom_x < 0, zoom_y < 0), rect, crop)


def _whole_range(low: int, high: int, zoom: float, shift: float, offset: float, scale: float, size: int) -> tuple[int, int]:
    """Whole source pixels that canvas pixels low..high show along one axis, at least one."""
    a, b = sorted((((edge - shift) / zoom - offset) / scale) for edge in (low, high))
    first = min(max(round(a), 0), size - 1)
    return first, max(min(round(b), size), first + 1)


def _resize_matrix(rect: Rect, crop: Rect, mirror_x: bool = False, mirror_y: bool = False) -> np.ndarray:
    """Canvas -> source: `rect` onto `crop`, mirrored where asked."""
    sx, sy = (crop[2] - crop[0]) / (rect[2] - rect[0]), (crop[3] - crop[1]) / (rect[3] - rect[1])
    sx, tx = (-sx, crop[2] + rect[0] * sx) if mirror_x else (sx, crop[0] - rect[0] * sx)
    sy, ty = (-sy, crop[3] + rect[1] * sy) if mirror_y else (sy, crop[1] - rect[1] * sy)
    return np.array([[sx, 0.0, tx], [0.0, sy, ty], [0.0, 0.0, 1.0]])


def _warped_layer(sample: Sample, tile: _Tile, view: np.ndarray, width: int, height: int) -> Layer | None:
    """The tile seen through any view; None where it is out of sight."""
    to_space = np.array([[tile.scale, 0, tile.offset[0]], [0, tile.scale, tile.offset[1]], [0, 0, 1.0]])
    to_canvas = view @ to_space
    (left, top), (x0, y0, x1, y1) = tile.offset, tile.clip
    seen = ((x0 - left) / tile.scale, (y0 - top) / tile.scale, (x1 - left) / tile.scale, (y1 - top) / tile.scale)
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        return None
    outline = clip_polygon(_corners(seen), _canvas_planes(to_canvas, width, height))
    if len(outline) < 3:
        return None
    outline = transform(to_canvas, outline)
    low, high = np.floor(outline.min(0)).astype(int).tolist(), np.ceil(outline.max(0)).astype(int).tolist()
    rect = (max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height))
    if rect[0] >= rect[2] or rect[1] >= rect[3]:
        return None
    return Layer(tile.source, np.linalg.inv(to_canvas), rect, (0, 0, sample.width, sample.height), False, outline, seen)


def _pasted(samples: Sequence[Sample], layers: Sequence[Layer], zoom: float, width: int, height: int, share: float, rng: np.random.Generator) -> list[Layer]:
    """Objects of other images laid over the picture, along their polygon where it is known, else as boxes."""
    taken = layer_boxes(layers, samples, width, height)[1]
    pasted: list[Layer] = []
    for _ in range(int((rng.random(len(taken)) < share).sum())):
        source = int(rng.integers(len(samples)))
        sample = samples[source]
        if not len(sample.labels):
            continue
        chosen = int(rng.integers(len(sample.labels)))
        size = np.array([sample.width, sample.height, sample.width, sample.height])
        box = sample.labels.boxes[chosen].astype(np.float64) * size
        crop = (math.floor(box[0]), math.floor(box[1]), min(math.ceil(box[2]), sample.width), min(math.ceil(box[3]), sample.height))
        scale = _fit(sample, width, height) * zoom
        w, h = round((crop[2] - crop[0]) * scale), round((crop[3] - crop[1]) * scale)
        if not (MIN_SIDE < w <= width and MIN_SIDE < h <= height):
            continue
        mirror = bool(rng.random() < 0.5)
        for _ in range(PASTE_TRIES):
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            place = np.array([[left, top, left + w, top + h]], np.float64)
            if (intersection(taken, place)[:, 0] < MAX_HIDDEN * area(taken)).all():
                rect = (left, top, left + w, top + h)
                matrix = _resize_matrix(rect, crop, mirror)
                polygon = sample.labels.polygons[chosen]
                outline = None if polygon is None else transform(np.linalg.inv(matrix), polygon.astype(np.float64) * size[:2])
                pasted.append(Layer(source, matrix, rect, crop, outline=outline, objects=(chosen,)))
                taken = np.concatenate([taken, place])
                break
    return pasted


# ---------------------------------------------------------------------------------------------- where boxes end up


def clip_polygon(points: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """The part of a polygon (n, 2) where a x + b y + c >= 0 for every plane (k, 3) (Sutherland and Hodgman, 1974)."""
    for plane in planes:
        if not len(points):
            break
        side = points @ plane[:2] + plane[2]
        inside = side >= 0
        if inside.all():
            continue
        back = np.arange(-1, len(points) - 1)  # the point before each
        crosses, start, before = inside != inside[back], points[back], side[back]
        share = np.divide(before, before - side, out=np.zeros_like(side), where=crosses)
        both = np.stack([start + (points - start) * share[:, None], points], 1)  # where the edge to each point crosses, and the point
        points = both[np.stack([crosses, inside], 1)]
    return points


def _corners(box: Sequence[float]) -> np.ndarray:
    return np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]], np.float64)


def _rect_planes(box: Sequence[float]) -> np.ndarray:
    """Half planes whose common part is the rectangle."""
    return np.array([[1, 0, -box[0]], [-1, 0, box[2]], [0, 1, -box[1]], [0, -1, box[3]]], np.float64)


def _canvas_planes(to_canvas: np.ndarray, width: int, height: int) -> np.ndarray:
    """Half planes of the source whose common part is what the canvas shows: 0 <= x / w <= width, w > 0, all linear in the source."""
    x, y, w = to_canvas
    return np.stack([w - (0, 0, 1e-6), x, width * w - x, y, height * w - y])


def draw_boxes(plan: Plan, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(classes (n,), xyxy boxes (n, 4) in canvas pixels) of everything a plan shows."""
    return layer_boxes([layer for stack in plan.stacks for layer in stack.layers], samples, plan.width, plan.height)


def layer_boxes(layers: Sequence[Layer], samples: Sequence[Sample], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(classes (n,), xyxy boxes (n, 4) in canvas pixels) of the objects in view, layer by layer, each cut to what its layer shows."""
    classes, boxes = [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    labelled = (layer for layer in layers if len(samples[layer.source].labels))
    for aligned, group in groupby(labelled, lambda layer: layer.aligned):
        objects = _objects(list(group), samples)
        seen, whole = _aligned_boxes(objects) if aligned else _warped_boxes(objects, width, height)
        w, h = seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1]
        short, long = np.minimum(w, h), np.maximum(w, h)
        keep = (short > MIN_SIDE) & (w * h > MIN_SHARE * whole) & (long < MAX_ASPECT * short)
        classes.append(objects.classes[keep])
        boxes.append(seen[keep])
    return np.concatenate(classes), np.concatenate(boxes)


class _Objects(NamedTuple):
    """Objects of several layers, one after the other."""

    layers: list[Layer]
    owner: np.ndarray  # (n,) position of each object's layer
    classes: np.ndarray  # (n,)
    full: np.ndarray  # (n, 4) xyxy in pixels of its source
    sizes: np.ndarray  # (n, 4) width, height, width, height of its source
    polygons: list[np.ndarray | None]


def _objects(layers: list[Layer], samples: Sequence[Sample]) -> _Objects:
    counts, classes, boxes, sizes = [], [], [], []
    polygons: list[np.ndarray | None] = []
    for layer in layers:
        sample, labels = samples[layer.source], samples[layer.source].labels
        chosen = slice(None) if layer.objects is None else list(layer.objects)
        classes.append(labels.classes[chosen])
        boxes.append(labels.boxes[chosen])
        sizes.append((sample.width, sample.height, sample.width, sample.height))
        counts.append(len(classes[-1]))
        polygons += labels.polygons if layer.objects is None else [labels.polygons[i] for i in layer.objects]
    owner = np.repeat(np.arange(len(layers)), counts)
    by_object = np.array(sizes, np.float64)[owner]
    return _Objects(layers, owner, np.concatenate(classes), np.concatenate(boxes).astype(np.float64) * by_object, by_object, polygons)


def _aligned_boxes(objects: _Objects) -> tuple[np.ndarray, np.ndarray]:
    """(boxes in view, area of the whole boxes), both on the canvas, in aligned layers."""
    rows = []
    for layer in objects.layers:
        (sx, _, tx), (_, sy, ty), _ = layer.matrix.tolist()
        rows.append((*layer.crop[:2], *layer.crop[:2], *layer.crop[2:], *layer.crop[2:], sx, sy, sx, sy, tx, ty, tx, ty))
    table = np.array(rows, np.float64)[objects.owner]
    low, high, scale, shift = table[:, :4], table[:, 4:8], table[:, 8:12], table[:, 12:]
    seen = np.minimum(np.maximum(objects.full, low), high)
    for row in np.flatnonzero((seen != objects.full).any(1)):
        polygon = objects.polygons[row]
        if polygon is not None and (seen[row, 2:] > seen[row, :2]).all():
            crop = objects.layers[objects.owner[row]].crop
            part = clip_polygon(polygon.astype(np.float64) * objects.sizes[row, :2], _rect_planes(crop))
            seen[row] = np.concatenate([part.min(0), part.max(0)]) if len(part) else 0
    ends = (seen - shift) / scale
    low, high = np.minimum(ends[:, :2], ends[:, 2:]), np.maximum(ends[:, :2], ends[:, 2:])
    return np.concatenate([low, high], 1), area(objects.full) / abs(scale[:, 0] * scale[:, 1])


def _warped_boxes(objects: _Objects, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in layers under rotation, shear or perspective: outlines are cut in the source, then moved."""
    seen, whole = np.zeros((len(objects.full), 4)), np.ones(len(objects.full))
    for position, layer in enumerate(objects.layers):
        to_canvas = np.linalg.inv(layer.matrix)
        planes = np.concatenate([_rect_planes(layer.view or layer.crop), _canvas_planes(to_canvas, width, height)])
        for row in np.flatnonzero(objects.owner == position):
            polygon = objects.polygons[row]
            points = _corners(objects.full[row]) if polygon is None else polygon.astype(np.float64) * objects.sizes[row, :2]
            part, before = clip_polygon(points, planes), clip_polygon(points, planes[4:5])
            if len(part) and len(before):
                moved, unclipped = transform(to_canvas, part), transform(to_canvas, before)
                seen[row] = np.concatenate([moved.min(0), moved.max(0)])
                whole[row] = np.ptp(unclipped, 0).prod()
    return seen, whole


def describe(plan: Plan) -> str:
    """The plan in words, one line per layer."""
    lines = [f"canvas {plan.width} x {plan.height}, gains {plan.gains}"]
    for stack in plan.stacks:
        lines.append(f"stack, opacity {stack.opacity:.3f}")
        for layer in stack.layers:
            kind = "aligned" if layer.aligned else "warped"
            what = "" if layer.objects is None else f", only object {layer.objects[0]}{'' if layer.outline is None else ' along its outline'}"
            lines.append(f"  image {layer.source}: crop {layer.crop} -> rect {layer.rect}, {kind}{what}")
    return "\n".join(lines)
