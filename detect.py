"""Find objects in images: `python detect.py --weights best.pt --source images/`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Detect objects in images and write what was found."""

    weights: str = option("", "checkpoint of this program, of YOLOv5 v6/v7 or of the LS-YOLO authors (.pt)", metavar="FILE")
    source: str = option("", "image, folder of images, glob pattern in quotes, or .txt list with one image a line", metavar="PATH")
    img: int | None = option(None, "longer image side in pixels for the model (default: what the weights were trained for)", "--imgsz", "--img-size")
    conf_thres: float = option(0.25, "lowest score of a detection")
    iou_thres: float = option(0.45, "boxes of a class that overlap a better one by more than this IoU are dropped")
    max_det: int = option(1000, "most detections per image")
    device: str = option("", "cpu, 0 for the first GPU, mps; default: a GPU where there is one")
    half: bool = option(False, "compute in half precision: float16 on a GPU, bfloat16 on a CPU")
    cuda_graphs: bool = option(False, "record the network as a CUDA graph for each shape of input: fewer milliseconds for single images on a GPU")
    classes: list[int] | None = option(None, "keep only these class numbers", metavar="N")
    agnostic_nms: bool = option(False, "drop overlapping boxes across classes too")
    batch_size: int | None = option(None, "images of one shape that go through the model together (default: 8 on a GPU, 1 on the CPU)", "--batch")
    save_txt: bool = option(False, "write labels/NAME.txt: class cx cy w h in shares of the image")
    save_conf: bool = option(False, "put the score behind each row of --save-txt")
    save_crop: bool = option(False, "write each detection as an image of its own to crops/CLASS/")
    save_csv: bool = option(False, "write predictions.csv")
    save_json: bool = option(False, "write predictions.json in the layout of COCO results")
    nosave: bool = option(False, "do not write images with boxes")
    line_thickness: int | None = option(None, "line width in pixels (default: by image size)")
    hide_labels: bool = option(False, "draw boxes without labels")
    hide_conf: bool = option(False, "draw labels without scores")
    project: str = option("runs/detect", "folder of runs")
    name: str = option("exp", "folder of this run within the project")
    exist_ok: bool = option(False, "write into the folder even if it exists")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options) if __name__ == "__main__" else Options()

import csv  # noqa: E402
import glob  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter, deque  # noqa: E402
from collections.abc import Callable, Iterable, Iterator, Sequence  # noqa: E402
from concurrent.futures import Future, ThreadPoolExecutor  # noqa: E402
from dataclasses import field  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.images import SUFFIXES, read_image, write_image  # noqa: E402
from data.loader import sent_ahead, single_thread  # noqa: E402
from data.plan import letterbox  # noqa: E402
from data.render import render  # noqa: E402
from models.detector import Detector  # noqa: E402
from models.graphs import Predict, predictor  # noqa: E402
from models.weights import LoadedModel, load_weights  # noqa: E402
from utils.complexity import synchronize  # noqa: E402
from utils.detections import Detections  # noqa: E402
from utils.draw import draw_detections  # noqa: E402
from utils.errors import USER, UserError  # noqa: E402
from utils.nms import nms, to_image  # noqa: E402
from utils.results import image_id, label_rows, write_coco_results  # noqa: E402
from utils.runtime import device_line, inference_dtype, new_folder, precision_line, select_device  # noqa: E402

WRITABLE = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Target:
    """An image to look at and the name its results are written under."""

    path: Path
    name: str  # stem, made unique among the targets


@dataclass(frozen=True)
class Loaded:
    """A decoded image and what the model sees of it."""

    target: Target
    image: np.ndarray  # RGB uint8 (H, W, 3)
    canvas: np.ndarray  # RGB uint8, the image letterboxed to multiples of the stride
    matrix: np.ndarray  # (3, 3): canvas pixels -> image pixels


@dataclass
class Times:
    """Seconds spent on each part, over all images."""

    load: float = 0.0  # waiting for decoded images; decoding itself overlaps with the model
    model: float = 0.0
    nms: float = 0.0
    write: float = 0.0


@dataclass
class Outcome:
    """What the closing line tells."""

    images: int = 0
    broken: list[str] = field(default_factory=list)
    objects: Counter[int] = field(default_factory=Counter)
    times: Times = field(default_factory=Times)


# ---------------------------------------------------------------------------------------------- sources


def find_images(source: str) -> list[Target]:
    """The images that --source names, in order. Raises UserError where there are none."""
    if not source:
        raise UserError("--source is missing: an image, a folder, a glob pattern or a .txt list was expected")
    path = Path(source)
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
    elif path.is_file() and path.suffix.lower() == ".txt":
        paths = _listed(path)
    elif path.is_file():
        paths = [path]
    elif any(sign in source for sign in "*?["):
        paths = [Path(entry) for entry in sorted(glob.glob(source, recursive=True)) if Path(entry).suffix.lower() in SUFFIXES]
    else:
        raise UserError(f"--source {source}: no such image, folder or list")
    if not paths:
        raise UserError(f"--source {source}: no images ({', '.join(sorted(SUFFIXES))}) there")
    return _named(paths)


def _listed(path: Path) -> list[Path]:
    """The paths of a list file; relative ones start at the list's folder. A missing file is reported when its turn comes."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return [path.parent / line.strip() for line in lines if line.strip()]


def _named(paths: Iterable[Path]) -> list[Target]:
    """Each path with its stem, or stem-2, stem-3, ... where an earlier image has it."""
    targets: list[Target] = []
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        targets.append(Target(path, name))
    return targets


def load(target: Target, imgsz: int, stride: int) -> Loaded:
    """Decode an image and letterbox it: longer side `imgsz`, both sides padded to multiples of `stride`. Raises UserError."""
    image = read_image(target.path)
    height, width = image.shape[:2]
    ratio = min(imgsz / height, imgsz / width)
    canvas_width, canvas_height = (max(-(-round(side * ratio) // stride), 1) * stride for side in (width, height))
    plan = letterbox(width, height, canvas_width, canvas_height, longest=imgsz)
    return Loaded(target, image, render(plan, lambda _: image), plan.stacks[0].layers[0].matrix)


def ahead(pool: ThreadPoolExecutor, work: Callable[[Target], Loaded], targets: Iterable[Target], count: int) -> Iterator[Future[Loaded]]:
    """The finished or running work on each target, in order, with `count` more worked on ahead of the one given out."""
    running: deque[Future[Loaded]] = deque()
    for target in targets:
        running.append(pool.submit(work, target))
        if len(running) > count:
            yield running.popleft()
    yield from running


def batches(images: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Images of one canvas shape together, at most `size`; no more than four batches wait for others of their shape."""
    waiting: dict[tuple[int, ...], list[Loaded]] = {}
    for image in images:
        group = waiting.setdefault(image.canvas.shape, [])
        group.append(image)
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


# ---------------------------------------------------------------------------------------------- detection


@torch.inference_mode()
def detect(predict: Predict, batch: Sequence[Loaded], images: Tensor, options: Options, times: Times) -> list[Detections]:
    """What the model finds in each image of a batch, in that image's own pixels; `images`: their canvases on the model's device."""
    start = time.perf_counter()
    predictions = predict(images)
    synchronize(images.device)
    middle = time.perf_counter()
    found = nms(predictions, options.conf_thres, options.iou_thres, options.max_det, options.classes, options.agnostic_nms)
    result = [to_image(one, loaded.matrix, loaded.image.shape[1], loaded.image.shape[0]) for one, loaded in zip(found, batch, strict=True)]
    times.model += middle - start
    times.nms += time.perf_counter() - middle
    return result


def stacked(batch: Sequence[Loaded], pin: bool) -> Tensor:
    """The canvases of a batch, (B, 3, H, W) uint8, channels last in memory; pin: for sending them to a GPU meanwhile."""
    images = torch.from_numpy(np.stack([loaded.canvas for loaded in batch]))
    return (images.pin_memory() if pin else images).permute(0, 3, 1, 2)


def prepare(loaded: LoadedModel, device: torch.device, half: bool) -> Detector:
    """The model fused and laid out for speed."""
    model = loaded.model.fuse().to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    return model.to(inference_dtype(half, device))


# ---------------------------------------------------------------------------------------------- what is written


def write_results(folder: Path, loaded: Loaded, found: Detections, names: Sequence[str], options: Options) -> None:
    """The files of one image: the picture with boxes, label rows, crops."""
    name, suffix = loaded.target.name, loaded.target.path.suffix.lower()
    height, width = loaded.image.shape[:2]
    if options.save_txt and len(found):
        (folder / "labels" / f"{name}.txt").write_text(label_rows(found, width, height, options.save_conf), encoding="utf-8", newline="\n")
    if options.save_crop:
        for number, (box, cls) in enumerate(zip(found.boxes, found.classes, strict=True), 1):
            (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int).tolist(), np.ceil(box[2:]).astype(int).tolist()
            if x0 < x1 and y0 < y1:
                place = folder / "crops" / re.sub(r'[\\/:*?"<>|\s.]+', "_", names[cls])
                place.mkdir(parents=True, exist_ok=True)
                write_image(place / f"{name}-{number}.jpg", loaded.image[y0:y1, x0:x1])
    if not options.nosave:
        drawn = draw_detections(loaded.image, found, names, options.line_thickness, not options.hide_labels, not options.hide_conf)
        write_image(folder / f"{name}{suffix if suffix in WRITABLE else '.jpg'}", drawn)


def write_tables(folder: Path, found: Sequence[tuple[Target, Detections]], names: Sequence[str], options: Options) -> None:
    """predictions.json (COCO results) and predictions.csv of the whole run."""
    if options.save_json:
        ids = [image_id(target.path.with_stem(target.name)) for target, _ in found]
        write_coco_results(folder / "predictions.json", [detections for _, detections in found], ids)
    if options.save_csv:
        with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "class", "name", "score", "left", "top", "right", "bottom"])
            for target, detections in found:
                for box, score, cls in zip(detections.boxes, detections.scores, detections.classes, strict=True):
                    writer.writerow([target.path, cls, names[cls], f"{score:.5f}", *(f"{side:.2f}" for side in box)])


def closing_line(outcome: Outcome, names: Sequence[str], folder: Path) -> str:
    """Counts, speed and where the results are."""
    kinds = ", ".join(f"{count} {names[cls]}" for cls, count in sorted(outcome.objects.items()))
    per_image = 1000 / max(outcome.images, 1)
    times = outcome.times
    skipped = f", {len(outcome.broken)} skipped" if outcome.broken else ""
    return (
        f"{outcome.images} image{'s' if outcome.images != 1 else ''}{skipped}: {sum(outcome.objects.values())} objects{f' ({kinds})' if kinds else ''}; "
        f"per image {times.load * per_image:.1f} ms waiting for data, {times.model * per_image:.1f} model, {times.nms * per_image:.1f} NMS, "
        f"{times.write * per_image:.1f} writing; results in {folder}"
    )


def run_detection(model: Detector, names: Sequence[str], targets: Sequence[Target], imgsz: int, folder: Path, options: Options) -> Outcome:
    """Detect in all targets, writing as it goes; what cannot be read is skipped and kept in the outcome."""
    device = next(model.parameters()).device
    outcome, size, predict = Outcome(), options.batch_size or (1 if device.type == "cpu" else 8), predictor(model, options.cuda_graphs)
    tables: list[tuple[Target, Detections]] = []
    threads = min(8, os.cpu_count() or 1)
    # Two pools, so that writing never holds up the decoding of what the model needs next.
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers, tqdm(total=len(targets), unit="image", disable=None) as bar:

        def good_images() -> Iterator[Loaded]:
            for future in ahead(readers, lambda item: load(item, imgsz, model.stride), targets, 2 * size):
                start = time.perf_counter()
                error = future.exception()
                outcome.times.load += time.perf_counter() - start
                if isinstance(error, (UserError, OSError)):
                    outcome.broken.append(str(error))
                    bar.write(f"skipped: {error}", file=sys.stderr)
                    bar.update()
                else:
                    yield future.result()

        writing: deque[Future[None]] = deque()
        whole = ((batch, stacked(batch, device.type == "cuda")) for batch in batches(good_images(), size))
        for batch, images in sent_ahead(whole, device):
            for loaded, found in zip(batch, detect(predict, batch, images, options, outcome.times), strict=True):
                outcome.images += 1
                outcome.objects.update(found.classes.tolist())
                if options.save_csv or options.save_json:
                    tables.append((loaded.target, found))
                writing.append(writers.submit(write_results, folder, loaded, found, names, options))
                bar.update()
            start = time.perf_counter()
            while len(writing) > 4 * size:
                writing.popleft().result()
            outcome.times.write += time.perf_counter() - start
        start = time.perf_counter()
        for future in writing:
            future.result()
        write_tables(folder, tables, names, options)
        outcome.times.write += time.perf_counter() - start
    return outcome


def check(options: Options) -> None:
    """Raise UserError for a value out of its range."""
    if not options.weights:
        raise UserError("--weights is missing: the checkpoint of a trained model (.pt) was expected")
    for name in ("conf_thres", "iou_thres"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}, 0 to 1 was expected")
    for name in ("batch_size", "max_det", "img", "line_thickness"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}, 1 or more was expected")


def main(options: Options = OPTIONS) -> int:
    """Load the model, go through the images, write the results; 2 where an image could not be read."""
    check(options)
    targets = find_images(options.source)
    device = select_device(options.device)
    loaded = load_weights(options.weights, device)
    for cls in options.classes or ():
        if not 0 <= cls < len(loaded.names):
            raise UserError(f"--classes {cls}: this model has the classes 0 to {len(loaded.names) - 1}")
    single_thread()  # images are decoded and drawn one per thread
    model = prepare(loaded, device, options.half)
    imgsz = -(-(options.img or loaded.imgsz) // model.stride) * model.stride
    folder = new_folder(options.project, options.name, options.exist_ok)
    if options.save_txt:
        (folder / "labels").mkdir(exist_ok=True)
    precision = precision_line(inference_dtype(options.half, device))
    print(f"{options.weights} at {imgsz} px on {device_line(device)}, {precision}; {len(targets)} images")
    outcome = run_detection(model, loaded.names, targets, imgsz, folder, options)
    print(closing_line(outcome, loaded.names, folder))
    if outcome.broken:
        print(f"error: {len(outcome.broken)} of {len(targets)} images could not be read, the first: {outcome.broken[0]}", file=sys.stderr)
        return USER
    return 0


if __name__ == "__main__":
    run(main)
