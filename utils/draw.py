"""Boxes and labels drawn on images, without a display and without fetching a font."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.detections import Detections

Colour = tuple[int, int, int]  # RGB, 0 to 255

_GOLDEN = (5**0.5 - 1) / 2  # steps of this share of the colour circle never come close to each other soon
_SUBPIXEL = 4  # binary digits of a pixel that lines are placed to
# Families that have Chinese, Japanese or Korean signs, where the machine has one; the last comes with matplotlib.
_FAMILIES = ["Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Microsoft YaHei", "SimHei", "PingFang SC", "WenQuanYi Zen Hei", "DejaVu Sans"]


def class_colour(index: int) -> Colour:
    """A bright colour of its own for each class; class 0 is red."""
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def line_width(image: np.ndarray) -> int:
    """Line thickness in pixels that is well seen in an image of this size."""
    return max(2, round(max(image.shape[:2]) / 400))


def draw_detections(
    image: np.ndarray, found: Detections, names: Sequence[str], thickness: int | None = None, show_labels: bool = True, show_scores: bool = True
) -> np.ndarray:
    """A copy of the RGB uint8 image (H, W, 3) with the detections on it, each labelled 'name score', the best on top."""
    order = range(len(found) - 1, -1, -1)
    texts = [f"{names[found.classes[i]]} {found.scores[i]:.2f}" if show_scores else names[found.classes[i]] for i in order]
    colours = [class_colour(int(found.classes[i])) for i in order]
    return draw_boxes(image, found.boxes[list(order)], texts if show_labels else [""] * len(found), colours, thickness)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Colour], thickness: int | None = None) -> np.ndarray:
    """A copy of the RGB uint8 image (H, W, 3) with xyxy boxes (n, 4) in pixels, each with its text (none where '') and colour."""
    canvas = np.ascontiguousarray(image).copy()
    thickness = thickness or line_width(canvas)
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        # A pixel's centre is half a pixel from its edge; OpenCV counts from centres.
        corners = np.round((np.asarray(box, np.float64) - 0.5) * (1 << _SUBPIXEL)).astype(int)
        cv2.rectangle(canvas, corners[:2].tolist(), corners[2:].tolist(), colour, thickness, cv2.LINE_AA, _SUBPIXEL)
        if text:
            _draw_label(canvas, float(box[0]), float(box[1]), text, colour, thickness)
    return canvas


def _draw_label(canvas: np.ndarray, left: float, top: float, text: str, colour: Colour, thickness: int) -> None:
    """Put `text` on a filled strip above the point, or below it where the image ends."""
    picture = _text_mask(text, max(9, round(8 + 2.5 * thickness)))
    height, width = canvas.shape[:2]
    rows, columns = min(picture.shape[0], height), min(picture.shape[1], width)
    x = int(np.clip(round(left - thickness / 2), 0, width - columns))
    y = round(top - thickness / 2) - rows
    if y < 0:
        y = int(np.clip(round(top + thickness / 2), 0, height - rows))
    red, green, blue = colour
    ink = 0 if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else 255
    share = picture[:rows, :columns, None].astype(np.float32) / 255
    strip = share * ink + (1 - share) * np.array(colour, np.float32)
    canvas[y : y + rows, x : x + columns] = np.round(strip).astype(np.uint8)


@functools.lru_cache(maxsize=1024)
def _text_mask(text: str, size: int) -> np.ndarray:
    """How much of each pixel the text covers, 0 to 255: (rows, columns) uint8 with a margin. `size`: height of a line in pixels."""
    margin = max(2, size // 6)
    if text.isascii():
        scale, weight = size / 30, max(1, size // 14)
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
        mask = np.zeros((height + below + 2 * margin, width + 2 * margin), np.uint8)
        cv2.putText(mask, text, (margin, margin + height), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, weight, cv2.LINE_AA)
        return mask
    font = ImageFont.truetype(_font_file(), size)
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    picture = Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin))
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, 255, font)
    return np.array(picture)


@functools.cache
def _font_file() -> str:
    """The first font of `_FAMILIES` that this machine has."""
    from matplotlib import font_manager  # seconds to import, and needed for names beyond ASCII only

    installed = {entry.name: entry.fname for entry in reversed(font_manager.fontManager.ttflist)}
    return next((str(installed[family]) for family in _FAMILIES if family in installed), str(font_manager.findfont("DejaVu Sans")))
