"""Draw a plan on the CPU with OpenCV: each pixel of each layer is resampled once (bilinear), straight into its place.

`python -m data.render --data X.yaml --hyp Y.yaml --index N --out img.png` draws one training picture with its boxes and prints its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from utils.config import load_hyp, option, parse
from utils.errors import UserError, run


@dataclass(frozen=True)
class Options:
    """Draw one training picture as its plan says, with its boxes."""

    data: str = option("data/msld.yaml", "dataset YAML")
    hyp: str = option("data/hyps/ls-yolo.yaml", "hyper-parameter YAML")
    split: str = option("train", "train, val or test")
    index: int = option(0, "which image of the split")
    epoch: int = option(0, "which epoch's picture of it")
    seed: int = option(0, "seed of the run")
    img: int = option(640, "size of the picture in pixels", "--imgsz", "--img-size")
    out: str = option("plan.png", "where the picture goes")


# --help and wrong flags are answered before anything heavy is imported.
OPTIONS = parse(Options, prog="python -m data.render") if __name__ == "__main__" else Options()

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from data.dataset import ImageStore, load_data, load_split  # noqa: E402
from data.images import write_image  # noqa: E402
from data.plan import GREY, Layer, Plan, Stack, describe, draw_boxes, sample_rng, training_plan  # noqa: E402
from utils import draw  # noqa: E402
from utils.draw import class_colour  # noqa: E402

LEVELS = np.arange(256, dtype=np.uint8)

ImageOf = Callable[[int], np.ndarray]  # sample index -> RGB uint8 (H, W, 3)


def render(plan: Plan, image_of: ImageOf, out: np.ndarray | None = None) -> np.ndarray:
    """The picture: RGB uint8 (height, width, 3), drawn into `out` where it is given (its rows contiguous)."""
    if out is None:
        out = np.empty((plan.height, plan.width, 3), np.uint8)
    _paint(plan.stacks[0], image_of, out)
    if len(plan.stacks) == 2:
        first, second = plan.stacks
        other = np.empty_like(out)
        _paint(second, image_of, other)
        cv2.addWeighted(out, first.opacity, other, second.opacity, 0, dst=out)
    if plan.gains is not None and plan.gains != (1.0, 1.0, 1.0):
        rects = [layer.rect for stack in plan.stacks for layer in stack.layers]
        top, bottom = min((rect[1] for rect in rects), default=0), max((rect[3] for rect in rects), default=0)
        shift_colours(out[top:bottom], plan.gains)
        if bottom - top < plan.height:  # grey alone: one row tells what it becomes
            row = np.full((1, plan.width, 3), GREY, np.uint8)
            shift_colours(row, plan.gains)
            out[:top], out[bottom:] = row, row
    return out


def _paint(stack: Stack, image_of: ImageOf, canvas: np.ndarray) -> None:
    canvas[:] = GREY
    for layer in stack.layers:
        x0, y0, x1, y1 = layer.rect
        place, image = canvas[y0:y1, x0:x1], image_of(layer.source)
        if layer.aligned and layer.outline is None:
            _resize_into(place, layer, image)
            continue
        patch = np.empty_like(place)
        if layer.aligned:
            _resize_into(patch, layer, image)
        else:
            _warp_into(patch, layer, image)
        assert layer.outline is not None
        np.copyto(place, patch, where=inside(layer.outline - (x0, y0), *place.shape[:2])[:, :, None])


def _resize_into(place: np.ndarray, layer: Layer, image: np.ndarray) -> None:
    """The layer's crop, stretched (and mirrored) into `place`, a view of the canvas."""
    x0, y0, x1, y1 = layer.crop
    crop = image[y0:y1, x0:x1]
    mirror = {(True, False): 1, (False, True): 0, (True, True): -1}.get((layer.matrix[0, 0] < 0, layer.matrix[1, 1] < 0))
    if mirror is not None and crop.size < place.size:
        crop, mirror = cv2.flip(crop, mirror), None
    height, width = place.shape[:2]
    cv2.resize(crop, (width, height), dst=place, interpolation=cv2.INTER_LINEAR)
    if mirror is not None:
        place[:] = cv2.flip(place, mirror)


def _warp_into(patch: np.ndarray, layer: Layer, image: np.ndarray) -> None:
    """The layer's rectangle of the canvas, whatever lies behind the source's edge repeating the edge."""
    to_centre = np.array([[1, 0, layer.rect[0] + 0.5], [0, 1, layer.rect[1] + 0.5], [0, 0, 1.0]])
    to_index = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    matrix = to_index @ layer.matrix @ to_centre  # pixel numbers of the patch -> pixel numbers of the source
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    height, width = patch.shape[:2]
    if np.abs(matrix[2, :2]).max() < 1e-12:
        affine = matrix[:2] / matrix[2, 2]
        cv2.warpAffine(image, affine, (width, height), dst=patch, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    else:
        cv2.warpPerspective(image, matrix, (width, height), dst=patch, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def inside(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mask (height, width) of the pixels whose centres lie in the polygon (k, 2): those with an odd number of edges to their left."""
    start, end = outline, np.roll(outline, -1, 0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(int)  # rows whose centre an edge crosses
    count = np.maximum(np.clip(np.ceil(high - 0.5), 0, height).astype(int) - first, 0)
    edge = np.repeat(np.arange(len(outline)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    crossings = np.zeros((height, width + 1), np.uint8)
    np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return (np.cumsum(crossings[:, :width], 1, dtype=np.uint8) & 1).astype(bool)


def shift_colours(image: np.ndarray, gains: Sequence[float]) -> None:
    """Multiply hue (wrapping), saturation and value (both saturating) in place, each cut to its whole part."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hue, saturation, value = (LEVELS * gain for gain in gains)
    tables = (hue[:180] % 180, np.minimum(saturation, 255), np.minimum(value, 255))
    planes = [_scale(plane, gain, table.astype(np.uint8)) for plane, gain, table in zip(cv2.split(hsv), gains, tables, strict=True)]
    cv2.cvtColor(cv2.merge(planes, hsv), cv2.COLOR_HSV2RGB, dst=image)


def _scale(plane: np.ndarray, gain: float, table: np.ndarray) -> np.ndarray:
    """A plane of values that the table (k,) knows, each looked up; the table multiplies them by `gain`."""
    # OpenCV multiplies in a third of the time of a look-up, but rounds: half less is the whole part, for all but a few gains.
    whole = cv2.convertScaleAbs(LEVELS[None, : len(table)], alpha=gain, beta=-0.49999)
    if np.array_equal(whole[0], table):
        return cv2.convertScaleAbs(plane, alpha=gain, beta=-0.49999)
    return cv2.LUT(plane, np.resize(table, 256))


def main() -> None:
    spec = load_data(OPTIONS.data)
    samples, _ = load_split(spec, OPTIONS.split)
    if not 0 <= OPTIONS.index < len(samples):
        raise UserError(f"--index {OPTIONS.index}: {OPTIONS.split!r} has images 0 to {len(samples) - 1}")
    rng = sample_rng(OPTIONS.seed, OPTIONS.epoch, OPTIONS.index)
    plan = training_plan(samples, OPTIONS.index, OPTIONS.img, OPTIONS.img, load_hyp(OPTIONS.hyp), rng)
    print(describe(plan))
    classes, boxes = draw_boxes(plan, samples)
    texts, colours = [spec.names[cls] for cls in classes], [class_colour(int(cls)) for cls in classes]
    write_image(OPTIONS.out, draw.draw_boxes(render(plan, ImageStore(samples)), boxes, texts, colours))


if __name__ == "__main__":
    run(main)
