"""Procedural landslide scenes in the sources' own formats: the embedded default data set and the test bed.

    python -m data.synthetic --out datasets/sources --scenes 120 --seed 0

writes OUT/bijie/landslide/{image,mask}, OUT/bijie/non-landslide/image (PNG) and OUT/southwest/*.jpg with VOC XML, in the shares of the
paper's sources (770 : 500 : 2003). One scene is a function of (seed, number) alone, whatever else is written beside it.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from data.formats import VocObject, write_voc
from data.scene import Kind, Scene, plan_scene
from data.scene_render import render
from utils.config import option, parse
from utils.errors import EnvironmentFault, UserError, run

# Sources of the paper's MSLD: Bijie landslides, Southwest scenes, Bijie negatives.
SHARES: tuple[tuple[Kind, int], ...] = (("bijie", 770), ("southwest", 500), ("negative", 2003))
# Huffman coding alone: on such images half the time of the default and the same size.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 93]
SMALLEST, LARGEST = 96, 2048  # side of an ordinary scene in pixels


@dataclass(frozen=True)
class Options:
    """Write synthetic landslide scenes in the formats of the paper's sources."""

    out: str = option("datasets/sources", "folder to write into")
    scenes: int = option(120, "number of images: landslides and negatives in the shares of the paper's sources")
    seed: int = option(0, "another seed, other scenes")
    size: list[int] | None = option(None, "width and height in pixels (default: drawn per scene from 288 to 512)")
    jobs: int = option(1, "processes")


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
        _write(out / "southwest" / f"{name}.jpg", image[..., ::-1], _JPEG)
        height, width = mask.shape
        boxes = [_clipped(slide.box, width, height) for slide in scene.slides]
        text = write_voc(f"{name}.jpg", width, height, [VocObject("slide", box) for box in boxes])
        _replace(out / "southwest" / f"{name}.xml", text.encode())
    elif kind == "bijie":
        name = f"bj{number + 1:03d}.png"
        _write(out / "bijie/landslide/mask" / name, mask, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        _write(out / "bijie/landslide/image" / name, image[..., ::-1], _PNG)
    else:
        _write(out / "bijie/non-landslide/image" / f"neg{number + 1:04d}.png", image[..., ::-1], _PNG)


def _clipped(box: tuple[int, int, int, int], width: int, height: int) -> tuple[float, float, float, float]:
    return float(max(box[0], 0)), float(max(box[1], 0)), float(min(box[2], width)), float(min(box[3], height))


def _write(path: Path, image: np.ndarray, options: list[int]) -> None:
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image), options)
    if not done:
        raise EnvironmentFault(f"{path}: the image could not be encoded")
    _replace(path, data.tobytes())


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def write_sources(out: Path, scenes: int, seed: int, size: tuple[int, int] | None = None, jobs: int = 1) -> dict[Kind, int]:
    """Write `scenes` scenes below `out` and return how many of each kind; files already there are written again."""
    from tqdm import tqdm

    for folder in ("bijie/landslide/image", "bijie/landslide/mask", "bijie/non-landslide/image", "southwest"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    many = counts(scenes)
    work = [(kind, number) for kind, count in many.items() for number in range(count)]
    with tqdm(total=len(work), desc="scenes", unit="img", disable=None, file=sys.stderr) as bar:
        if jobs <= 1:
            for kind, number in work:
                write_scene(out, seed, kind, number, size)
                bar.update()
        else:
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
                done: list[Future[None]] = [pool.submit(write_scene, out, seed, kind, number, size) for kind, number in work]
                for future in done:
                    future.result()
                    bar.update()
    return many


def main() -> None:
    options = parse(Options, prog="python -m data.synthetic")
    if options.scenes < 1 or options.jobs < 1 or options.seed < 0:
        raise UserError("--scenes and --jobs must be 1 or more, --seed 0 or more")
    size = None
    if options.size is not None:
        if len(options.size) not in (1, 2) or not all(SMALLEST <= side <= LARGEST for side in options.size):
            raise UserError(f"--size {' '.join(map(str, options.size))}: width and height from {SMALLEST} to {LARGEST} pixels were expected")
        size = (options.size[0], options.size[-1])
    cv2.setNumThreads(1)
    many = write_sources(Path(options.out), options.scenes, options.seed, size, options.jobs)
    print(f"{options.out}: {many['bijie']} Bijie landslides, {many['southwest']} Southwest scenes, {many['negative']} negatives")


if __name__ == "__main__":
    run(main)  # type: ignore[arg-type]
