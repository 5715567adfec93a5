"""Mutation fuzzing of every reader: python -m fuzz.run --target all --runs 200000

A reader may return or raise UserError; anything else is a finding, and so is an execution of more than ten seconds. Every input is a function
of (target, seed, number), so `--start NUMBER --runs 1` gives a finding again.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run

TARGETS = ("labels", "voc", "coco", "results", "dataset", "model", "hyp", "foreign", "image")


@dataclass(frozen=True)
class Options:
    """Feed readers with damaged files and report every outcome that is no clear error."""

    target: str = option("all", "which reader", choices=("all", *TARGETS))
    runs: int = option(200_000, "executions per target")
    start: int = option(0, "number of the first execution")
    seed: int = option(0, "seed of all inputs")


OPTIONS = parse(Options, prog="python -m fuzz.run") if __name__ == "__main__" else Options()

import io  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import types  # noqa: E402
import warnings  # noqa: E402
import zipfile  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

from data.dataset import load_data  # noqa: E402
from data.formats import labels_from_voc, read_coco, read_voc  # noqa: E402
from data.images import decode_image  # noqa: E402
from data.labels import Labels, parse_yolo  # noqa: E402
from models.builder import load_config, plan_layers  # noqa: E402
from models.foreign import load_foreign  # noqa: E402
from utils.config import load_hyp  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.results import read_coco_results  # noqa: E402

LIMIT = 10  # seconds an execution may take
SHOWN = 5  # findings of one kind that are told in full
LARGEST = 1 << 16  # bytes of an input
NUMBERS = (b"0", b"-1", b"1", b"1e309", b"-1e-9", b"nan", b"inf", b"65536", b"99999999999999999999", b"0.5", b"1e-320", b"0x10", b"1_0", b"\xd9\xa1", b"")


@dataclass(frozen=True)
class Target:
    """A reader, valid inputs to start from, and pieces that matter to it."""

    seeds: Sequence[bytes]
    words: Sequence[bytes]
    read: Callable[[bytes], None]
    inner: bool = False  # the inputs are zip archives whose pickle is worth mutating too
    equal: bool = False  # start from all inputs equally often; else mostly from the first ones


class TooSlow(Exception):
    """The alarm of LIMIT seconds."""


# ---------------------------------------------------------------------------------------------- inputs


def mutate(rng: random.Random, target: Target) -> bytes:
    """A valid input with one to six changes."""
    data = bytearray(_start(rng, target))
    for _ in range(rng.randint(1, 6)):
        data = bytearray(_change(rng, data, target))[:LARGEST]
    return bytes(data)


def _start(rng: random.Random, target: Target) -> bytes:
    return rng.choice(target.seeds) if target.equal else target.seeds[min(int(rng.expovariate(1.2)), len(target.seeds) - 1)]


def _change(rng: random.Random, data: bytearray, target: Target) -> bytes:
    place, length = rng.randrange(len(data) + 1), min(int(rng.expovariate(0.1)) + 1, 64)
    kind = rng.randrange(9)
    if kind == 0 and place < len(data):  # a bit
        data[place] ^= 1 << rng.randrange(8)
        return bytes(data)
    if kind == 1 and place < len(data):  # a byte
        data[place] = rng.choice((0, 1, 9, 10, 13, 32, 127, 128, 254, 255, rng.randrange(256)))
        return bytes(data)
    if kind == 2:  # a piece goes
        return bytes(data[:place] + data[place + length :])
    if kind == 3:  # a piece stands twice, or elsewhere
        other = rng.randrange(len(data) + 1)
        return bytes(data[:other] + data[place : place + length] * rng.choice((1, 1, 2, 20)) + data[other:])
    if kind == 4:  # the end goes
        return bytes(data[:place]) if rng.random() < 0.3 else bytes(data)
    if kind == 5:  # a number becomes another
        found = [match.span() for match in re.finditer(rb"-?\d[\d.]*", data)]
        if found:
            low, high = rng.choice(found)
            return bytes(data[:low] + rng.choice(NUMBERS) + data[high:])
    if kind == 6:  # four bytes become a number
        return bytes(data[:place] + rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, rng.choice(("little", "big"))) + data[place + 4 :])
    if kind == 7:  # a piece of another valid input
        other_seed = rng.choice(target.seeds)
        start = rng.randrange(len(other_seed) + 1)
        return bytes(data[:place] + other_seed[start : start + 4 * length] + data[place:])
    word = rng.choice(target.words) if target.words else rng.randbytes(length)
    return bytes(data[:place] + word + data[place + (length if rng.random() < 0.5 else 0) :])


def mutate_inside(rng: random.Random, target: Target) -> bytes:
    """An archive whose pickle is damaged while its checksums are right."""
    seed = _start(rng, target)
    inner = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(inner, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutate(rng, Target([content], target.words, target.read)) if name.endswith("data.pkl") else content)
    return inner.getvalue()


# ---------------------------------------------------------------------------------------------- targets


def check_labels(labels: Labels) -> None:
    """Whatever came in, labels are finite, inside the image and have an area."""
    boxes = labels.boxes
    assert boxes.shape == (len(labels), 4) and np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all(), boxes
    assert (labels.classes >= 0).all()
    assert all(polygon is None or (np.isfinite(polygon).all() and polygon.min() >= 0 and polygon.max() <= 1) for polygon in labels.polygons), labels.polygons


def text_targets(folder: Path) -> dict[str, Target]:
    """Readers of annotations and settings."""

    def by_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
        path = folder / name

        def call(data: bytes) -> None:
            path.write_bytes(data)
            read(path)

        return call

    def voc(data: bytes) -> None:
        image = read_voc(data, "x.xml")
        assert "/" not in image.filename
        check_labels(labels_from_voc(image, ("landslide", "slide"), "x.xml"))

    def coco(data: bytes) -> None:
        for image in read_coco(data, "x.json").images:
            assert image.width > 0 and ".." not in Path(image.filename).parts
            check_labels(image.labels)

    def hyp(path: Path) -> None:
        assert all(math.isfinite(value) for value in vars(load_hyp(path)).values())

    (folder / "images").mkdir()
    object_xml = "<object><name>landslide</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    annotation = f"<annotation><filename>a.jpg</filename><size><width>64</width><height>48</height></size>{object_xml}</annotation>"
    annotations = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30.5, 20], "iscrowd": 0, "segmentation": [[1, 2, 31, 2, 31, 22]]}
    instances = {
        "images": [{"id": 7, "file_name": "sub/a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "landslide"}],
        "annotations": [annotations],
    }
    found = [{"image_id": "a", "category_id": 0, "bbox": [1, 2, 30.5, 20], "score": 0.5}, {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]
    rows = "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.05\n0 0.1 0.1 0.4 0.1 0.4 0.3 0.1 0.3\n"
    data_yaml = f"path: {folder}\ntrain: images\nval: [images, images]\nnc: 2\nnames: {{0: landslide, 1: slide}}\n"
    model = (
        "nc: 1\nwidth_multiple: 0.25\ndepth_multiple: 0.33\nanchors: [[10, 13, 16, 30]]\nlayers:\n"
        "  - {tag: a, block: Conv, out: 64, kernel: 3, stride: 2}\n  - {tag: b, block: C3, from: a, out: 32, repeat: 3}\n"
        "  - {tag: head, block: DecoupledHead, from: [b], context: weighted}\n"
    )
    (folder / "base.yaml").write_text(model, encoding="utf-8")
    variant = "base: base.yaml\nnc: 3\nreplace:\n  b: {block: MSFE}\n  head: {block: CoupledHead}\n"
    (folder / "over.yaml").write_text(variant.replace("base.yaml", "model.yaml"), encoding="utf-8")
    punctuation = [b": ", b"- ", b"{", b"}", b"[", b"]", b",", b"\t", b"\n", b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ", b"!!binary "]
    punctuation += [b"? ", b"|", b"null", b"true", b"~", b"2026-01-01", b"%YAML 9.9\n", b"---\n", b"!!set ", b"!!timestamp x", b".nan", b"-.inf", b'"', b"'"]
    punctuation += [b"#", b"1:30", b"="]
    def results(path: Path) -> None:
        for detections in read_coco_results(path, ["a", 7], 2)[0]:
            assert np.isfinite(detections.boxes).all() and (detections.scores >= 0).all() and (detections.scores <= 1).all()

    def build(path: Path) -> None:
        plan_layers(load_config(path if path.stat().st_size % 2 else folder / "over.yaml"))  # as it is, or as the base of a sound variant

    return {
        "labels": Target(
            [rows.encode()],
            [b",", b"\t", b"\r\n", b"\xef\xbb\xbf", b"\x00", b"\xe2\x80\xa8", b"\x0c", b"nan", b"1e400", b"\n"],
            lambda data: check_labels(parse_yolo(data.decode("utf-8", "replace"), "x.txt", 2).labels),
        ),
        "voc": Target(
            [annotation.encode(), annotation.encode("utf-16"), f'<?xml version="1.0" encoding="gbk"?>{annotation}'.encode()],
            [b"<!DOCTYPE a [", b"<!ENTITY x SYSTEM 'file:///etc/passwd'>", b"&x;", b"&#0;", b"<![CDATA[", b"</object>", b"../", object_xml.encode()],
            voc,
        ),
        "coco": Target(
            [json.dumps(instances).encode(), json.dumps(instances, ensure_ascii=False).encode("utf-8-sig")],
            [b"NaN", b"Infinity", b"null", b"{}", b"[]", b'"../x"', b"true", b'"a"', b"1e999", b"\\u0000", b"[" * 50, b'{"a":' * 50, b'"counts"'],
            coco,
        ),
        "results": Target([json.dumps(found).encode()], [b"NaN", b"1e999", b"9" * 400, b"9" * 5000, b"{}", b"[", b"null", b'"7"'], by_file("r.json", results)),
        "dataset": Target([data_yaml.encode()], [*punctuation, b"path: ", b"names: ", b"download: x\n", b"../", b"\x00"], by_file("data.yaml", load_data)),
        "model": Target(
            [model.encode(), variant.encode()],
            [*punctuation, b"block: ", b"tag: ", b"from: ", b"out: ", b"Concat", b"Upsample", b"SPPF", b"image"],
            by_file("model.yaml", build),
        ),
        "hyp": Target([b"lr0: 0.01\nmomentum: 0.9\nscale: 0.5\nmosaic: 1.0\nfl_gamma: 0\n"], [*punctuation, b"mixup: "], by_file("hyp.yaml", hyp)),
    }


def foreign_target(folder: Path) -> Target:
    """Checkpoints of other programs, whole modules and state dicts, down to the names of their tensors."""

    def saved(content: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    path = folder / "x.pt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_foreign(path)

    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = {"model.0.conv.weight": torch.zeros(16, 3, 6, 6), "model.24.anchors": torch.ones(3, 3, 2), "model.24.m.0.weight": torch.zeros(18, 64, 1, 1)}
    pieces = [b"cos\nsystem\n", b"cbuiltins\ngetattr\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]
    pieces += [b"R", b"b", b"Q", b"}", b"]", b"(", b"t", b"\x8a\x08" + b"\xff" * 8, b"h\x00", b"0", b"2"]
    # The last one is read as far as the network's shape, which takes long: it comes first rarely.
    seeds = [
        saved({"epoch": 3, "model": module, "date": "2024"}),
        saved({"model": {"a": torch.ones(2, 3), "b": torch.zeros(1).half()}}),
        saved({"ema": None, "model": module.state_dict()}),
        saved(state),
    ]
    return Target(seeds, pieces, read, inner=True)


def image_target() -> Target:
    """Encoded images of every format that is read, in most kinds of pixels."""
    ramp = np.arange(20 * 12 * 3, dtype=np.uint32).reshape(12, 20, 3)
    colour = Image.fromarray((ramp % 251).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    seeds = []
    for image, kind, options in (
        (colour, "JPEG", {"exif": exif}),
        (colour, "PNG", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "BMP", {}),
        (colour.quantize(16), "PNG", {"transparency": 0}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour.convert("L"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colour.convert("1"), "TIFF", {"compression": "group4"}),
        (colour, "WEBP", {}),
        (colour.convert("RGBA"), "TIFF", {}),
        (colour.quantize(16), "BMP", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    for suffix in (".png", ".tif"):
        seeds.append(cv2.imencode(suffix, (ramp * 91).astype(np.uint16))[1].tobytes())

    def read(data: bytes) -> None:
        image = decode_image(data, "x")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size, image.shape

    return Target(seeds, [b"\xff\xd8", b"\xff\xd9", b"IHDR", b"IDAT", b"IEND", b"II*\x00", b"MM\x00*", b"Exif\x00\x00", b"RIFF"], read, equal=True)


# ---------------------------------------------------------------------------------------------- the loop


def execute(target: Target, data: bytes) -> BaseException | None:
    """What an input leads to, other than a result or a UserError."""
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        target.read(data)
    except UserError as error:
        if "\n" in str(error).strip():
            return AssertionError(f"the message has more than one line: {error!r}")
    except BaseException as error:  # noqa: B902 - any other outcome is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def fuzz(name: str, target: Target, options: Options) -> int:
    """Run a target; prints findings and one line of figures, returns the number of kinds of findings."""
    kinds: dict[str, int] = {}
    start = time.perf_counter()
    for number in range(options.start, options.start + options.runs):
        rng = random.Random(f"{name} {options.seed} {number}")
        data = mutate_inside(rng, target) if target.inner and number % 4 else mutate(rng, target)
        if (error := execute(target, data)) is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
            kind = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}" if frame else type(error).__name__
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= SHOWN:
                print(f"finding: {name} {number}: {kind}: {str(error)[:300]}\n    {data[:300]!r}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{name}: {options.runs:,} executions in {seconds:.0f} s, {len(kinds)} kinds of findings {kinds or ''}", flush=True)
    return len(kinds)


def main() -> int:
    """Run the targets one after another; 1 where something was found."""
    warnings.simplefilter("ignore")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(0)

    def alarm(_: int, __: types.FrameType | None) -> None:
        raise TooSlow(f"more than {LIMIT} s")

    signal.signal(signal.SIGALRM, alarm)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        targets = {**text_targets(folder), "foreign": foreign_target(folder), "image": image_target()}
        chosen = TARGETS if OPTIONS.target == "all" else (OPTIONS.target,)
        return int(sum(fuzz(name, targets[name], OPTIONS) for name in chosen) > 0)


if __name__ == "__main__":
    run(main)
