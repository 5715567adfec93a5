"""Procedural landslide scenes in the sources' own formats: the embedded default data set and the test bed.

    python -m data.synthetic --out datasets/sources --scenes 120 --seed 0

writes OUT/bijie/landslide/{image,mask}, OUT/bijie/non-landslide/image (PNG) and OUT/southwest/*.jpg with VOC XML, in the shares of the
paper's sources (770 : 500 : 2003). One scene is a function of (seed, number) alone, whatever else is written beside it.

    python -m data.synthetic --out datasets/scene --scene 16384 16384 --geotiff --seed 0

writes one large georeferenced scene, OUT/scene.tif, and the outlines of its landslides, OUT/scene.geojson.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Write synthetic landslide scenes in the formats of the paper's sources."""

    out: str = option("datasets/sources", "folder to write into")
    scenes: int = option(120, "number of images: landslides and negatives in the shares of the paper's sources")
    seed: int = option(0, "another seed, other scenes")
    size: list[int] | None = option(None, "width and height in pixels (default: drawn per scene from 288 to 512)")
    jobs: int = option(1, "processes")
    sheet: bool = option(False, "also write OUT/sheet.jpg, a contact sheet of the first scenes of each kind")
    scene: list[int] | None = option(None, "write one large scene of this width and height instead, as OUT/scene.png with its landslides as scene.geojson")
    geotiff: bool = option(False, "with --scene: a georeferenced OUT/scene.tif, written by blocks, instead of the PNG")


# --help and wrong flags are answered before the time that importing OpenCV takes.
OPTIONS = parse(Options, prog="python -m data.synthetic") if __name__ == "__main__" else Options()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from data.build import one_thread, replace_file, spread  # noqa: E402
from data.formats import VocObject, write_voc  # noqa: E402
from data.geotiff import TILE, Place, write_geotiff  # noqa: E402
from data.scene import Kind, Scene, plan_scene, visible_box  # noqa: E402
from data.scene_render import render  # noqa: E402
from utils.errors import EnvironmentFault, UserError  # noqa: E402

# Sources of the paper's MSLD: Bijie landslides, Southwest scenes, Bijie negatives.
SHARES: tuple[tuple[Kind, int], ...] = (("bijie", 770), ("southwest", 500), ("negative", 2003))
# One filter and Huffman coding alone: on such images half the time of the default for 5 % more bytes.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
# Runs of equal bytes alone: all there is in a mask.
_PNG_MASK = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # since OpenCV 5
    _PNG += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG]
    _PNG_MASK += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 93]
SMALLEST, LARGEST = 96, 2048  # side of an ordinary scene in pixels


def counts(scenes: int) -> dict[Kind, int]:
    """How many scenes of each kind make up `scenes` of them: the paper's shares, largest remainders first, at least one each from 3 on."""
    total = sum(share for _, share in SHARES)
    exact = {kind: scenes * share / total for kind, share in SHARES}
    whole = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(exact, key=lambda k: whole[k] - exact[k])[: scenes - sum(whole.values())]:
        whole[kind] += 1
    for kind in whole:
        if whole[kind] == 0 and scenes >= len(whole):
            whole[kind] += 1
            whole[max(whole, key=lambda k: whole[k])] -= 1
    return whole


def make_scene(seed: int, kind: Kind, number: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray, Scene]:
    """Image (h, w, 3) uint8 RGB, mask (h, w) uint8 (0 or 255) and plan of one scene; `size` is (width, height)."""
    rng = np.random.default_rng([seed, [k for k, _ in SHARES].index(kind), number])
    drawn = rng.integers(288, 513, 2)
    width, height = size or (int(drawn[0]), int(drawn[1]))
    scene = plan_scene(rng, width, height, kind)
    image, mask = render(scene)
    return image, mask, scene


def write_scene(out: Path, seed: int, kind: Kind, number: int, size: tuple[int, int] | None) -> None:
    """Write one scene and its annotation below `out`."""
    image, mask, scene = make_scene(seed, kind, number, size)
    if kind == "southwest":
        name = f"{number // 5 + 1}_{number % 5 + 1}"
        _write(out / "southwest" / f"{name}.jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)
        height, width = mask.shape
        boxes = [box for slide in scene.slides if (box := visible_box(slide, width, height)) is not None]
        text = write_voc(f"{name}.jpg", width, height, [VocObject("slide", box) for box in boxes])
        replace_file(out / "southwest" / f"{name}.xml", text.encode())
    elif kind == "bijie":
        name = f"bj{number + 1:03d}.png"
        _write(out / "bijie/landslide/mask" / name, mask, _PNG_MASK)
        _write(out / "bijie/landslide/image" / name, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _PNG)
    else:
        _write(out / "bijie/non-landslide/image" / f"neg{number + 1:04d}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _PNG)


def _write(path: Path, image: np.ndarray, options: list[int]) -> None:
    done, data = cv2.imencode(path.suffix, image, options)
    if not done:
        raise EnvironmentFault(f"{path}: the image could not be encoded")
    replace_file(path, data.tobytes())


@dataclass(frozen=True)
class _Write:
    """write_scene with all but kind and number given, as something another process can be sent."""

    out: Path
    seed: int
    size: tuple[int, int] | None

    def __call__(self, scene: tuple[Kind, int]) -> None:
        write_scene(self.out, self.seed, *scene, self.size)


def write_sources(out: Path, scenes: int, seed: int, size: tuple[int, int] | None = None, jobs: int = 1) -> dict[Kind, int]:
    """Write `scenes` scenes below `out` and return how many of each kind; files already there are written again."""
    for folder in ("bijie/landslide/image", "bijie/landslide/mask", "bijie/non-landslide/image", "southwest"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    many = counts(scenes)
    work = [(kind, number) for kind, count in many.items() for number in range(count)]
    for found in spread(_Write(out, seed, size), work, jobs, "scenes"):
        if isinstance(found, UserError):
            raise found
    return many


def contact_sheet(seed: int, side: int = 200, columns: int = 7) -> np.ndarray:
    """RGB uint8 (5 * side, columns * side, 3): two rows of Bijie landslides, two of Southwest scenes, one of negatives."""
    rows = []
    shown: tuple[tuple[Kind, int], ...] = (("bijie", 2), ("southwest", 2), ("negative", 1))
    for kind, count in shown:
        scenes = (make_scene(seed, kind, number, (400, 400))[0] for number in range(count * columns))
        cards = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in scenes]
        rows += [np.concatenate(cards[first : first + columns], 1) for first in range(0, len(cards), columns)]
    return np.concatenate(rows)


def plan_large(seed: int, width: int, height: int) -> Scene:
    """A large scene with a landslide in about every 450 x 450 pixels."""
    rng = np.random.default_rng([seed, len(SHARES), width, height])
    return plan_scene(rng, width, height, "southwest", slides=max(width * height // 200_000, 1))


def blocks(scene: Scene, rows: int) -> Iterator[np.ndarray]:
    """The scene from top to bottom as strips (rows, width, 3) uint8 RGB, each drawn in squares."""
    for top in range(0, scene.height, rows):
        high = min(rows, scene.height - top)
        yield np.concatenate([render(scene, (left, top, min(1024, scene.width - left), high))[0] for left in range(0, scene.width, 1024)], 1)


def landslides_geojson(scene: Scene, place: Place | None) -> str:
    """GeoJSON of the outlines of all landslides: in the coordinates of `place` (with the `crs` member that GDAL and QGIS read), or in pixels."""
    features = []
    for number, slide in enumerate(scene.slides):
        points = slide.outline.astype(float) + 0.5
        ring = [place.point(x, y) if place else (x, y) for x, y in points.tolist()]
        box = visible_box(slide, scene.width, scene.height)
        if box is None:
            continue
        area = float(cv2.contourArea(slide.outline)) * (place.metres if place else 1) ** 2
        properties = {"id": number + 1, "grown_over": round(slide.age, 3), "area": round(area, 1), "box_pixels": list(box)}
        features.append({"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}})
    collection: dict[str, object] = {"type": "FeatureCollection", "name": "landslides"}
    if place:
        collection["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{place.epsg}"}}
    return json.dumps(collection | {"features": features}) + "\n"


def write_large(out: Path, seed: int, width: int, height: int, geotiff: bool) -> int:
    """Write one large scene and its landslides below `out`; returns how many landslides it has."""
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    scene = plan_large(seed, width, height)
    place = Place(500_000.0, 3_000_000.0, round(scene.look.metres, 2)) if geotiff else None
    strips = tqdm(blocks(scene, TILE), total=-(-height // TILE), desc="scene", unit="strip", disable=None, file=sys.stderr)
    if place:
        write_geotiff(out / "scene.tif", width, height, strips, place)
    else:
        _write(out / "scene.png", np.concatenate(list(strips))[..., ::-1], _PNG)
    replace_file(out / "scene.geojson", landslides_geojson(scene, place).encode())
    return len(scene.slides)


def _check_large(size: list[int], geotiff: bool) -> None:
    most = 32_768 if geotiff else 8_192
    if len(size) != 2 or not all(SMALLEST <= side <= most for side in size):
        raise UserError(f"--scene {' '.join(map(str, size))}: width and height from {SMALLEST} to {most} pixels were expected"
                        + ("" if geotiff else "; with --geotiff up to 32768"))


def main() -> None:
    options = OPTIONS
    if options.scenes < 1 or options.jobs < 1 or options.seed < 0:
        raise UserError("--scenes and --jobs must be 1 or more, --seed 0 or more")
    size = None
    if options.size is not None:
        if len(options.size) not in (1, 2) or not all(SMALLEST <= side <= LARGEST for side in options.size):
            raise UserError(f"--size {' '.join(map(str, options.size))}: width and height from {SMALLEST} to {LARGEST} pixels were expected")
        size = (options.size[0], options.size[-1])
    one_thread()
    if options.scene is not None:
        _check_large(options.scene, options.geotiff)
        width, height = options.scene
        slides = write_large(Path(options.out), options.seed, width, height, options.geotiff)
        print(f"{Path(options.out) / ('scene.tif' if options.geotiff else 'scene.png')}: {width} x {height} pixels, {slides} landslides")
        return
    many = write_sources(Path(options.out), options.scenes, options.seed, size, options.jobs)
    if options.sheet:
        _write(Path(options.out) / "sheet.jpg", contact_sheet(options.seed)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(f"{options.out}: {many['bijie']} Bijie landslides, {many['southwest']} Southwest scenes, {many['negative']} negatives")


if __name__ == "__main__":
    run(main)  # type: ignore[arg-type]
