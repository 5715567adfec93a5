"""Other people's annotations: masks, polygon text, VOC XML and COCO JSON to and from `Labels`."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

import cv2
import numpy as np

from data.images import decode_image, read_header
from data.labels import Labels
from data.options import MIN_SHARE
from utils.errors import UserError

LARGEST_XML = 16 * 2**20
Box = tuple[float, float, float, float]  # xyxy in pixels; left and top edge of the first, right and bottom edge of the last pixel


# ---------------------------------------------------------------------------------------------- masks and polygons


def labels_from_mask(mask: np.ndarray, min_share: float = MIN_SHARE, cls: int = 0) -> tuple[Labels, int]:
    """Box and outline of every 8-connected region of a mask (h, w) (0 = none), and how many specks were dropped.

    A region is a speck when it has less than `min_share` of the image's pixels. Boxes run along the outer edges of the boundary pixels.
    """
    binary = (mask > 0).astype(np.uint8)
    height, width = binary.shape
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    rows, dropped, size = [], 0, np.array([width, height])
    for region in range(1, count):
        x, y, w, h, pixels = stats[region].tolist()
        if pixels < min_share * width * height:
            dropped += 1
            continue
        outline = region_outline(numbers[y : y + h, x : x + w] == region) + (x, y)
        box = np.array([x, y, x + w, y + h]) / np.tile(size, 2)
        rows.append((cls, box, (outline / size).astype(np.float32)))
    return Labels.from_rows(rows), dropped


def read_mask(data: bytes, path: Path, width: int, height: int) -> np.ndarray:
    """Mask (h, w) bool of an encoded image: nothing is black, anything else is landslide; JPEG blur counts from half the brightest level."""
    mask = decode_image(data, path).max(-1)
    if mask.shape != (height, width):
        raise UserError(f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, the image {width} x {height}")
    lossy = read_header(data, path).format in ("JPEG", "MPO")
    return mask > (int(mask.max()) // 2 if lossy else 0)


def region_outline(region: np.ndarray, tolerance: float = 0.75) -> np.ndarray:
    """Outline (n, 2) int64 of one connected region (h, w) bool along pixel edges, within `tolerance` pixels; its extremes are kept."""
    # Doubled, a boundary pixel's coordinate is even at its left or top edge and odd at its right or bottom edge: (c + 1) // 2 is the edge.
    doubled = cv2.resize(region.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    edge = (max(contours, key=len)[:, 0] + 1) // 2
    ends = sorted({int(edge[:, 0].argmin()), int(edge[:, 0].argmax()), int(edge[:, 1].argmin()), int(edge[:, 1].argmax())})
    parts = []
    for first, last in zip(ends, [*ends[1:], ends[0] + len(edge)], strict=True):
        piece = edge[np.arange(first, last + 1) % len(edge)].astype(np.int32)
        parts.append(cv2.approxPolyDP(piece, tolerance, False)[:-1, 0])
    return np.concatenate(parts).astype(np.int64)


def labels_from_polygon_text(text: str, path: str | Path, width: int, height: int, min_share: float = MIN_SHARE) -> tuple[Labels, int]:
    """Labels of a polygon_coordinate file: a point `x y` (pixels; comma, space or brackets) per line, an empty line between polygons.

    The polygons are filled, border included, and read as a mask. Raises UserError 'file:line: ...'.
    """
    mask = np.zeros((height, width), np.uint8)
    points: list[list[float]] = []
    for line, row in enumerate([*text.removeprefix("\ufeff").splitlines(), ""], 1):
        words = re.sub(r"[\[\](){};,]", " ", row).split()
        if not words:
            if points and len(points) < 3:
                raise UserError(f"{path}:{line}: a polygon of {len(points)} points; at least 3 were expected")
            if points:
                cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
            points = []
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            raise UserError(f"{path}:{line}: {row.strip()[:40]!r} is not a pair of pixel coordinates") from None
        if len(values) % 2 or not np.isfinite(values).all():
            raise UserError(f"{path}:{line}: {len(values)} numbers; pairs of pixel coordinates were expected")
        pairs = values.reshape(-1, 2)
        if (pairs < -1).any() or (pairs > (width + 1, height + 1)).any():
            raise UserError(f"{path}:{line}: point {pairs[0][0]:g}, {pairs[0][1]:g} lies outside the {width} x {height} image")
        points.extend(pairs.tolist())
    return labels_from_mask(mask, min_share)


# ---------------------------------------------------------------------------------------------- VOC XML


@dataclass(frozen=True)
class VocObject:
    """One object of a VOC XML file."""

    name: str
    box: Box


@dataclass(frozen=True)
class VocImage:
    """What a VOC XML file says of its image."""

    filename: str
    width: int
    height: int
    objects: tuple[VocObject, ...]


def _tree(data: bytes, path: str | Path) -> ElementTree.Element:
    """The element tree of XML without a document type: no entities, so nothing expands and nothing is fetched."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise UserError(f"{path}:{parser.CurrentLineNumber}: a document type or entity declaration; plain VOC XML was expected")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag, attributes) and None
    parser.EndElementHandler = lambda tag: builder.end(tag) and None
    parser.CharacterDataHandler = builder.data
    if len(data) > LARGEST_XML:
        raise UserError(f"{path}: {len(data) / 2**20:.0f} MiB; an annotation file was expected")
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UserError(f"{path}:{error.lineno}: not readable as XML: {expat.ErrorString(error.code)}") from None
    except (UnicodeDecodeError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not readable as XML: {error}") from None
    return builder.close()


def read_voc(data: bytes, path: str | Path) -> VocImage:
    """Read a VOC XML file's bytes. Raises UserError for entities, a `filename` with a folder in it, missing or impossible numbers."""
    root = _tree(data, path)
    if root.tag != "annotation":
        raise UserError(f"{path}: <{root.tag}> at the top; <annotation> was expected")
    filename = (root.findtext("filename") or "").strip()
    if "/" in filename or "\\" in filename or filename in (".", ".."):
        raise UserError(f"{path}: <filename> {filename!r} points into another folder; a plain file name was expected")
    width, height = (_whole(root, f"size/{side}", path) for side in ("width", "height"))
    if width <= 0 or height <= 0:
        raise UserError(f"{path}: <size> is {width} x {height}")
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        left, top, right, bottom = (_value(element, f"bndbox/{edge}", path) for edge in ("xmin", "ymin", "xmax", "ymax"))
        if not (left < right and top < bottom):
            raise UserError(f"{path}: object {number}: box {left:g} {top:g} {right:g} {bottom:g} has no area")
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            raise UserError(f"{path}: object {number}: box {left:g} {top:g} {right:g} {bottom:g} leaves the {width} x {height} image")
        box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        objects.append(VocObject((element.findtext("name") or "").strip(), box))
    return VocImage(filename, width, height, tuple(objects))


def _value(element: ElementTree.Element, name: str, path: str | Path) -> float:
    text = element.findtext(name)
    try:
        value = float(text or "")
    except ValueError:
        raise UserError(f"{path}: <{name.replace('/', '><')}> is {text!r}; a number was expected") from None
    if not np.isfinite(value):
        raise UserError(f"{path}: <{name.replace('/', '><')}> is {text!r}; a finite number was expected")
    return value


def _whole(element: ElementTree.Element, name: str, path: str | Path) -> int:
    value = _value(element, name, path)
    if value != int(value):
        raise UserError(f"{path}: <{name.replace('/', '><')}> is {value:g}; a whole number was expected")
    return int(value)


def write_voc(filename: str, width: int, height: int, objects: Sequence[VocObject]) -> str:
    """VOC XML text of an image and its objects."""
    rows = [
        "<annotation>",
        f"\t<filename>{escape(filename)}</filename>",
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>",
    ]
    for item in objects:
        edges = "".join(f"\t\t\t<{edge}>{value:g}</{edge}>\n" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True))
        rows.append(f"\t<object>\n\t\t<name>{escape(item.name)}</name>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n{edges}\t\t</bndbox>\n\t</object>")
    return "\n".join([*rows, "</annotation>", ""])


def labels_from_voc(image: VocImage, names: Sequence[str], path: str | Path, aliases: Mapping[str, str] | None = None) -> Labels:
    """Labels of a VOC image; `names` gives the class numbers, `aliases` other words for them. Raises UserError for an unknown class."""
    rows = []
    for item in image.objects:
        name = item.name if item.name in names else (aliases or {}).get(item.name, item.name)
        if name not in names:
            raise UserError(f"{path}: class {item.name!r}; one of {', '.join(names)} was expected")
        rows.append((names.index(name), np.array(item.box) / np.tile((image.width, image.height), 2), None))
    return Labels.from_rows(rows)


def voc_from_labels(labels: Labels, filename: str, width: int, height: int, names: Sequence[str]) -> str:
    """VOC XML text of labels (boxes only: the format has no outlines)."""
    scale = np.array([width, height, width, height])
    boxes = [tuple(float(v) for v in np.round(box.astype(np.float64) * scale, 3)) for box in labels.boxes]
    return write_voc(filename, width, height, [VocObject(names[cls], box) for cls, box in zip(labels.classes, boxes, strict=True)])  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- COCO JSON


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO file."""

    filename: str  # plain name or a path inside the image folder
    width: int
    height: int
    labels: Labels


@dataclass(frozen=True)
class CocoFile:
    """A COCO instances file: classes in the order of their ids, images in the order of the file."""

    names: tuple[str, ...]
    images: tuple[CocoImage, ...]
    crowds: int  # `iscrowd` annotations left out: they mark no single object


def read_coco(data: bytes, path: str | Path) -> CocoFile:
    """Read COCO JSON. An outline is kept where an object has exactly one polygon; RLE masks and several polygons give the box.

    Raises UserError for JSON that is no COCO file, a `file_name` that leaves the image folder, unknown ids and impossible boxes.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
        categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
        images = {int(i["id"]): (str(i["file_name"]), int(i["width"]), int(i["height"])) for i in content["images"]}
        annotations = list(content["annotations"])
    except RecursionError:
        raise UserError(f"{path}: not readable as JSON: nested too deeply") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not readable as COCO JSON: {reason}") from None
    numbers = {key: number for number, (key, _) in enumerate(categories)}
    rows: dict[int, list[tuple[int, np.ndarray, np.ndarray | None]]] = {key: [] for key in images}
    for key, (name, width, height) in images.items():
        parts = re.split(r"[/\\]", name)
        if not name or ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise UserError(f"{path}: file_name {name!r} of image {key} leaves the image folder; a path inside it was expected")
        if width <= 0 or height <= 0:
            raise UserError(f"{path}: image {key} is {width} x {height}")
    crowds = 0
    for place, item in enumerate(annotations):
        if isinstance(item, dict) and item.get("iscrowd"):
            crowds += 1
            continue
        try:
            image, cls = int(item["image_id"]), numbers[int(item["category_id"])]
            rows[image].append(_coco_row(item, cls, images[image], f"{path}: annotation {item.get('id', place)}"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: annotation number {place}: {error!r}; image_id, category_id and bbox of this file were expected") from None
    found = tuple(CocoImage(*images[key], Labels.from_rows(rows[key])) for key in images)
    return CocoFile(tuple(name for _, name in categories), found, crowds)


def _coco_row(item: dict[str, Any], cls: int, image: tuple[str, int, int], where: str) -> tuple[int, np.ndarray, np.ndarray | None]:
    _, width, height = image
    x, y, w, h = (float(value) for value in item["bbox"])
    if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise UserError(f"{where}: bbox {x:g} {y:g} {w:g} {h:g} does not lie in the {width} x {height} image")
    size = np.array([width, height], np.float64)
    box = np.clip(np.array([x, y, x + w, y + h]) / np.tile(size, 2), 0, 1)
    polygon = None
    parts = item.get("segmentation")
    if isinstance(parts, list) and len(parts) == 1 and len(parts[0]) >= 6 and len(parts[0]) % 2 == 0:
        polygon = np.clip(np.array(parts[0], np.float64).reshape(-1, 2) / size, 0, 1).astype(np.float32)
    return cls, box, polygon


def write_coco(images: Sequence[CocoImage], names: Sequence[str]) -> str:
    """COCO JSON text; an object without an outline gets its box as `segmentation`. Image and annotation ids count from 1, classes from 0."""
    rows: list[dict[str, object]] = []
    for key, image in enumerate(images, 1):
        scale = np.array([image.width, image.height], np.float64)
        for cls, box, polygon in zip(image.labels.classes, image.labels.boxes.astype(np.float64), image.labels.polygons, strict=True):
            (left, top), (right, bottom) = box[:2] * scale, box[2:] * scale
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            points = corners if polygon is None else polygon.astype(np.float64) * scale
            x, y = points.T
            area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
            bbox = [round(float(value), 3) for value in (left, top, right - left, bottom - top)]
            rows.append({"id": len(rows) + 1, "image_id": key, "category_id": int(cls), "bbox": bbox, "area": round(area, 3), "iscrowd": 0,
                         "segmentation": [[round(float(value), 3) for value in points.ravel()]]})
    content = {
        "images": [{"id": key, "file_name": image.filename, "width": image.width, "height": image.height} for key, image in enumerate(images, 1)],
        "annotations": rows,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
