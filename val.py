"""Measure a model on a dataset: `python val.py --weights best.pt --data data.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Measure a model on a labelled dataset, under the paper's protocol and COCO's."""

    weights: str = option("", "checkpoint of this program, of YOLOv5 v6/v7 or of the LS-YOLO authors (.pt)", metavar="FILE")
    data: str = option("data/msld.yaml", "dataset YAML", metavar="FILE")
    task: str = option("val", "split to measure on", choices=("train", "val", "test"))
    img: int | None = option(None, "longer image side in pixels for the model (default: what the weights were trained for)", "--imgsz", "--img-size")
    batch_size: int = option(32, "images per batch", "--batch")
    conf_thres: float = option(0.5, "operating point: P, R, F1 and counts hold at this score, and the paper's P-R curve is cut here")
    iou_thres: float = option(0.5, "NMS IoU of the paper's protocol and the operating point (coco: always 0.6)")
    max_det: int = option(300, "most detections per image")
    device: str = option("", "cpu, 0 for the first GPU, mps; default: a GPU where there is one")
    half: bool = option(False, "compute in half precision: float16 on a GPU, bfloat16 on a CPU")
    workers: int | None = option(None, "processes that load images (default: up to 8 with a GPU, 0 on the CPU)")
    square: bool = option(False, "square batches instead of rectangular ones of similar aspect")
    single_cls: bool = option(False, "take all classes for one")
    strict: bool = option(False, "end with an error where the dataset has any problem")
    predictions: str | None = option(None, "score this COCO results JSON of any detector instead of --weights", metavar="FILE")
    by_prefix: list[str] | None = option(None, "also measure the images whose names begin so, each word apart (A,B: both together)", metavar="PREFIX")
    save_json: bool = option(False, "write predictions.json in the layout of COCO results, for --predictions or pycocotools")
    save_txt: bool = option(False, "write labels/NAME.txt: class cx cy w h in shares of the image")
    save_conf: bool = option(False, "put the score behind each row of --save-txt")
    plots: bool = option(False, "write P-R, P, R and F1 curves and pictures of the first batches")
    gallery: bool = option(False, "write the images with most errors, in the colours of the paper's Fig. 16")
    project: str = option("runs/val", "folder of runs")
    name: str = option("exp", "folder of this run within the project")
    exist_ok: bool = option(False, "write into the folder even if it exists")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options) if __name__ == "__main__" else Options()

import csv  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.dataset import Sample, load_data, load_split  # noqa: E402
from data.images import read_image, write_image  # noqa: E402
from data.loader import Batch, evaluation_batches, sent_ahead, single_thread, split_batch  # noqa: E402
from models.detector import Detector  # noqa: E402
from models.weights import load_weights  # noqa: E402
from utils.boxes import cxcywh_to_xyxy, transform  # noqa: E402
from utils.complexity import complexity, frames_per_second, synchronize  # noqa: E402
from utils.detections import Detections, Truth  # noqa: E402
from utils.errors import EnvironmentFault, UserError  # noqa: E402
from utils.loss import LossSettings  # noqa: E402
from utils.metrics import COCO_CONFIDENCE, COCO_NMS_IOU, PAPER_CONFIDENCE, PAPER_NMS_IOU, Matches, Report, curve, match, score  # noqa: E402
from utils.nms import nms, to_image  # noqa: E402
from utils.plots import error_picture, mosaic, plot_curves  # noqa: E402
from utils.results import image_ids, label_rows, read_coco_results, write_coco_results  # noqa: E402
from utils.runtime import device_line, inference_dtype, new_folder, out_of_memory, precision_line, select_device, worker_count  # noqa: E402

GALLERY = 50  # pictures at most
SHOWN = 0.25  # lowest score in the pictures of batches
PICTURED, PICTURED_IMAGES = 3, 16  # batches drawn, and images of each


@dataclass(frozen=True)
class Times:
    """Milliseconds per image."""

    load: float = 0.0  # waiting for images and moving them to the device
    model: float = 0.0  # forward and decoding
    nms: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """What a model found on a dataset and how good that is; lists have one entry per sample, boxes are in its pixels."""

    report: Report
    matches: Matches  # of `detections`, IoU 0.5
    detections: list[Detections]  # from score 0.001, NMS at the operating point's IoU
    coco_detections: list[Detections]  # from score 0.001, NMS at IoU 0.6
    truths: list[Truth]
    times: Times = Times()
    losses: tuple[float, float, float] = (math.nan, math.nan, math.nan)  # box, objectness, class: means per image, where a loss was given
    pictured: tuple[Batch, ...] = ()  # the first batches, with the first images of each


# ---------------------------------------------------------------------------------------------------- measuring


@torch.inference_mode()
def evaluate(
    model: Detector,
    batches: DataLoader[Batch],
    names: Sequence[str],
    device: torch.device,
    loss: LossSettings | None = None,
    confidence: float = PAPER_CONFIDENCE,
    nms_iou: float = PAPER_NMS_IOU,
    max_det: int = 300,
    single_class: bool = False,
    title: str = "val",
) -> Evaluation:
    """Run `model`, in its own precision, over the samples of `batches` (as data.loader.evaluation_batches makes them) and measure it.

    loss: where validation losses are wanted. single_class: detections of every class count as class 0. title: of the
    progress bar. The lists of the result follow batches.dataset.samples.
    """
    samples: Sequence[Sample] = batches.dataset.samples  # type: ignore[attr-defined]
    dtype, training = next(model.parameters()).dtype, model.training
    model.eval()
    detections, coco_detections = ([_nothing()] * len(samples) for _ in range(2))
    seconds, losses = np.zeros(3), torch.zeros(3, device=device)
    pictured: list[Batch] = []
    clock = time.perf_counter()
    sent = sent_ahead(((batch, batch.images) for batch in batches), device)
    for batch, images in tqdm(sent, title, len(batches), unit="batch", disable=None, leave=False):
        waiting = [dataclasses.replace(batch, images=images)]
        while waiting:
            part = waiting.pop(0)
            try:
                raw, predictions, marks = _forward(model, part, dtype)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                waiting = halves(part) + waiting
                continue
            lists = two_lists(predictions, min(confidence, COCO_CONFIDENCE), nms_iou, max_det, single_class)
            for view, deployed, coco in zip(part.views, *lists, strict=True):
                detections[view.index], coco_detections[view.index] = (to_image(found, view.matrix, view.width, view.height) for found in (deployed, coco))
            seconds += np.diff([clock, *marks, time.perf_counter()])
            if loss is not None:
                terms = model.loss(raw, part.targets.to(device), loss)
                losses += torch.stack([terms.box, terms.obj, terms.cls]) * len(part.views)
            clock = time.perf_counter()
        if len(pictured) < PICTURED:
            pictured.append(first_images(batch, PICTURED_IMAGES))
    model.train(training)
    result = measure(detections, coco_detections, [truth_of(sample) for sample in samples], names, confidence)
    times = Times(*(float(part) for part in seconds * 1000 / max(1, len(samples))))
    box, obj, cls = (losses / max(1, len(samples)) if loss is not None else losses * math.nan).tolist()
    return dataclasses.replace(result, times=times, losses=(box, obj, cls), pictured=tuple(pictured))


def _forward(model: Detector, batch: Batch, dtype: torch.dtype) -> tuple[Any, Tensor, tuple[float, float]]:
    """(raw output, predictions, times when the images were there and when the model was done)."""
    device = batch.images.device
    pixels = batch.images.to(dtype) / 255
    synchronize(device)
    loaded = time.perf_counter()
    raw = model(pixels)
    predictions = model.decode(raw)
    synchronize(device)
    return raw, predictions, (loaded, time.perf_counter())


def halves(batch: Batch) -> list[Batch]:
    """The two halves of a batch that was too much for the memory. Raises EnvironmentFault for a single image."""
    if len(batch.views) == 1:
        raise EnvironmentFault(f"out of memory with a single image of {batch.images.shape[3]} x {batch.images.shape[2]}; use a smaller --img or model")
    return split_batch(batch, 2)


def first_images(batch: Batch, count: int) -> Batch:
    """A batch of copies of the first images."""
    return Batch(batch.images[:count].clone(), batch.targets[batch.targets[:, 0] < count], batch.views[:count])


def measure(
    detections: list[Detections], coco_detections: list[Detections], truths: list[Truth], names: Sequence[str], confidence: float = PAPER_CONFIDENCE
) -> Evaluation:
    """The evaluation of detections that are already there."""
    matches = match(detections, truths)
    return Evaluation(score(detections, truths, names, coco_detections, confidence, matches), matches, detections, coco_detections, truths)


def two_lists(predictions: Tensor, floor: float, nms_iou: float, max_det: int, single_class: bool) -> tuple[list[Detections], list[Detections]]:
    """Detections as they would be deployed (`paper` protocol) and those of the `coco` protocol, in network pixels.

    Greedy NMS never looks at lower scores, so the first list cut at any score is what NMS from that score on would give.
    """
    deployed = nms(predictions, floor, nms_iou, max_det, agnostic=single_class)
    coco = nms(predictions, COCO_CONFIDENCE, COCO_NMS_IOU, max_det, agnostic=single_class, multi_label=not single_class)
    if single_class:
        deployed, coco = ([Detections(d.boxes, d.scores, np.zeros_like(d.classes)) for d in one] for one in (deployed, coco))
    return deployed, coco


def truth_of(sample: Sample) -> Truth:
    """A sample's objects in pixels."""
    side = np.array([sample.width, sample.height, sample.width, sample.height], np.float64)
    return Truth((sample.labels.boxes.astype(np.float64) * side).astype(np.float32), sample.labels.classes)


def _nothing() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


# ------------------------------------------------------------------------------------------------------- writing


def write_labels(folder: Path, evaluation: Evaluation, samples: Sequence[Sample], confidence: float, scores: bool) -> None:
    """labels/NAME.txt for every image with detections of at least this score."""
    folder.mkdir(exist_ok=True)
    for sample, found in zip(samples, evaluation.detections, strict=True):
        kept = found.select(found.scores >= confidence)
        if len(kept):
            rows = label_rows(kept, sample.width, sample.height, scores)
            (folder / f"{sample.path.stem}.txt").write_text(rows, encoding="utf-8", newline="\n")


def save_plots(evaluation: Evaluation, names: Sequence[str], folder: Path) -> None:
    """PR_curve.png, P_curve.png, R_curve.png, F1_curve.png, and val_batchN_labels.png and val_batchN_pred.png of the first batches."""
    overall = evaluation.report.overall
    curves = [curve(evaluation.matches, cls) for cls in range(len(names))]
    plot_curves(curves, names, folder, overall.chosen.confidence, overall.best.confidence)
    for number, batch in enumerate(evaluation.pictured):
        labels, predictions = batch_pictures(batch, evaluation.detections, names)
        write_image(folder / f"val_batch{number}_labels.png", labels)
        write_image(folder / f"val_batch{number}_pred.png", predictions)


def batch_pictures(batch: Batch, detections: Sequence[Detections], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The images of a batch with their labels, and with what was found in them (detections: one entry per sample)."""
    images = list(batch.images.permute(0, 2, 3, 1).numpy())
    height, width = images[0].shape[:2]
    captions = [view.path.name for view in batch.views]
    targets = batch.targets.numpy()
    rows = [targets[targets[:, 0] == i] for i in range(len(images))]
    boxes = [cxcywh_to_xyxy(own[:, 2:]) * (width, height, width, height) for own in rows]
    labels = mosaic(images, boxes, [own[:, 1].astype(int) for own in rows], names, captions)
    found = [detections[view.index] for view in batch.views]
    found = [one.select(one.scores >= SHOWN) for one in found]
    boxes = [transform(np.linalg.inv(view.matrix), one.boxes.reshape(-1, 2)).reshape(-1, 4) for view, one in zip(batch.views, found, strict=True)]
    return labels, mosaic(images, boxes, [one.classes for one in found], names, captions, [one.scores for one in found])


def write_gallery(folder: Path, evaluation: Evaluation, samples: Sequence[Sample], confidence: float) -> int:
    """The images with most errors as pictures, the worst first, and errors.csv with all images; returns the number of pictures."""
    folder.mkdir(exist_ok=True)
    matches, counts = evaluation.matches, evaluation.matches.per_image(confidence)
    right, found = matches.truth[0] >= 0, matches.found(confidence)
    surest = np.zeros(len(samples))  # of two images with equally many errors, the one with the surest wrong detection is worse
    np.maximum.at(surest, matches.image[~right], matches.scores[~right])
    errors = counts[:, 1] + counts[:, 2]
    ranked = np.lexsort((-surest, -errors))
    with open(folder / "errors.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "image", "errors", "right", "wrong", "missed", "surest_wrong_score"])
        for rank, index in enumerate(ranked.tolist(), 1):
            right_count, wrong, missed = counts[index].tolist()
            writer.writerow([rank, samples[index].path, errors[index], right_count, wrong, missed, f"{surest[index]:.4f}"])
    shown = [index for index in ranked[:GALLERY].tolist() if errors[index]]
    for rank, index in enumerate(shown, 1):
        sample, seen = samples[index], evaluation.detections[index]
        used = seen.scores >= confidence
        hit, seen_objects = right[matches.image == index][used], found[matches.truth_image == index]
        picture = error_picture(read_image(sample.path), seen.select(used), evaluation.truths[index], hit, seen_objects, sample.path.name)
        write_image(folder / f"{rank:03}_{sample.path.stem}.jpg", picture)
    return len(shown)


# -------------------------------------------------------------------------------------------------- command line


def measure_weights(options: Options, names: Sequence[str], samples: Sequence[Sample]) -> tuple[Evaluation, dict[str, object]]:
    """Run the model of --weights; also what the report says about it."""
    single_thread()
    device = select_device(options.device)
    loaded = load_weights(options.weights, device)
    model = loaded.model.fuse().to(memory_format=torch.channels_last).requires_grad_(False)
    if model.nc != len(names) and not options.single_cls:
        raise UserError(f"{options.weights}: knows {model.nc} classes, {options.data} names {len(names)}; use --single-cls or the right dataset")
    imgsz = -(-(options.img or loaded.imgsz) // model.stride) * model.stride
    if options.img and imgsz != options.img:
        print(f"--img {options.img}: taken as {imgsz}, a multiple of the stride {model.stride}")
    cost = complexity(model, imgsz, model.config.channels)
    dtype = inference_dtype(options.half, device)
    model = model.to(dtype)
    workers = worker_count(options.workers, device)
    batches = evaluation_batches(samples, imgsz, options.batch_size, model.stride, not options.square, workers, pin=device.type == "cuda")
    print(f"{options.weights}: {len(samples)} images at {imgsz} px on {device_line(device)}, {precision_line(dtype)}")
    limits = (options.conf_thres, options.iou_thres, options.max_det)
    evaluation = evaluate(model, batches, names, device, None, *limits, single_class=options.single_cls, title=options.task)
    fps, times = speed(model, samples, imgsz, options), evaluation.times
    facts: dict[str, object] = {"weights": options.weights, "imgsz": imgsz, "device": device_line(device), "half": options.half}
    facts |= {"batch_size": options.batch_size, "speed_ms": dataclasses.asdict(times), "params": cost.params, "gflops": cost.gflops, "fps": fps}
    print(f"per image: {times.load:.1f} ms waiting for data, {times.model:.1f} ms model, {times.nms:.1f} ms NMS (batch {options.batch_size})")
    print(f"model: {cost.params:,} parameters, {cost.gflops:.2f} GFLOPs at {imgsz} px, {fps:.1f} FPS (batch 1, model and NMS, median)")
    return evaluation, facts


@torch.inference_mode()
def speed(model: Detector, samples: Sequence[Sample], imgsz: int, options: Options) -> float:
    """Frames per second of forward, decoding and NMS for one real image, batch 1, warm, median."""
    parameter = next(model.parameters())
    (batch,) = evaluation_batches(samples[:1], imgsz, 1, model.stride, rect=False)
    pixels = batch.images.to(parameter.device).to(parameter.dtype) / 255
    return frames_per_second(lambda: nms(model.decode(model(pixels)), options.conf_thres, options.iou_thres, options.max_det), parameter.device)


def measure_file(options: Options, names: Sequence[str], samples: Sequence[Sample]) -> tuple[Evaluation, dict[str, object]]:
    """Score the COCO results of --predictions; a file NAME_paper.json beside it holds the detections of the paper's NMS."""
    path = Path(options.predictions or "")
    paper = path.with_name(f"{path.stem}_paper.json")
    ids = image_ids([sample.path for sample in samples])
    found = []
    for file in (paper if paper.is_file() else path, path):
        detections, unknown = read_coco_results(file, ids, len(names), options.single_cls)
        found.append(detections)
        others = f", {unknown} of other images left out" if unknown else ""
        print(f"{file}: {sum(map(len, detections))} detections in {len(samples)} images{others}")
    evaluation = measure(found[0], found[1], [truth_of(sample) for sample in samples], names, options.conf_thres)
    return evaluation, {"predictions": str(path), "paper_predictions": str(paper) if paper.is_file() else str(path)}


def measure_group(evaluation: Evaluation, samples: Sequence[Sample], prefix: str, names: Sequence[str], confidence: float) -> Report:
    """The report of the images whose file names begin with one of the comma-separated words in `prefix`. Raises UserError where there are none."""
    chosen = [number for number, sample in enumerate(samples) if sample.path.name.startswith(tuple(prefix.split(",")))]
    if not chosen:
        raise UserError(f"--by-prefix {prefix}: no image is named so, {samples[0].path.name!r} for example")
    detections, coco = ([found[number] for number in chosen] for found in (evaluation.detections, evaluation.coco_detections))
    return score(detections, [evaluation.truths[number] for number in chosen], names, coco, confidence)


def check(options: Options) -> None:
    """Raise UserError for settings that no run could use."""
    if not options.weights and not options.predictions:
        raise UserError("--weights is missing: a checkpoint was expected (or --predictions with a COCO results JSON)")
    for flag, value in (("--conf-thres", options.conf_thres), ("--iou-thres", options.iou_thres)):
        if not 0 <= value <= 1:
            raise UserError(f"{flag} is {value:g}; 0 to 1 was expected")
    for flag, number in (("--batch-size", options.batch_size), ("--max-det", options.max_det), ("--img", 1 if options.img is None else options.img)):
        if number < 1:
            raise UserError(f"{flag} is {number}; at least 1 was expected")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers is {options.workers}; 0 or more was expected")


def validate(options: Options) -> Evaluation:
    """Measure, print the table and write what the options ask for."""
    check(options)
    spec = load_data(options.data)
    names = ("object",) if options.single_cls and spec.nc > 1 else spec.names
    samples, _ = load_split(spec, options.task, options.strict, options.single_cls)
    paths = [sample.path for sample in samples]
    ids = image_ids(paths) if options.save_json or options.save_txt else []  # names must be unique: say so before the work is done
    folder = new_folder(options.project, options.name, options.exist_ok)

    evaluation, facts = (measure_file if options.predictions else measure_weights)(options, names, samples)
    print(evaluation.report.table())
    groups = {prefix: measure_group(evaluation, samples, prefix, names, options.conf_thres) for prefix in options.by_prefix or []}
    for prefix, report in groups.items():
        print(f"\nimages {prefix.replace(',', '*, ')}*\n{report.table(notes=False)}")

    settings = {"data": options.data, "task": options.task, "paper_nms_iou": options.iou_thres, "coco_nms_iou": COCO_NMS_IOU, "max_det": options.max_det}
    content = {**settings, **facts, **evaluation.report.to_dict(), "groups": {prefix: report.to_dict() for prefix, report in groups.items()}}
    (folder / "report.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.save_json:
        write_coco_results(folder / "predictions.json", evaluation.coco_detections, ids)
        write_coco_results(folder / "predictions_paper.json", evaluation.detections, ids)
    if options.save_txt:
        write_labels(folder / "labels", evaluation, samples, options.conf_thres, options.save_conf)
    if options.plots:
        save_plots(evaluation, names, folder)
    if options.gallery:
        count = write_gallery(folder / "gallery", evaluation, samples, options.conf_thres)
        print(f"gallery: {count} images with errors, the worst first")
    print(f"results in {folder}")
    return evaluation


def main() -> None:
    validate(OPTIONS)


if __name__ == "__main__":
    run(main)
