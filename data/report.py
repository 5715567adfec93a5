"""What a dataset holds, as a JSON and pictures: sizes and shapes (the paper's Fig. 5), places, colours, twins, and what can be guessed blindly."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from data.build import replace_file
from data.dataset import DatasetSpec, Sample, load_data, load_split
from data.groups import generator, leaks
from data.images import read_image, write_image
from data.offline import TECHNIQUES
from data.options import ReportOptions
from data.shortcut import NoPixelRule
from utils.detections import Truth
from utils.metrics import score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_IMAGES = 200  # of each split are decoded for the colour statistics
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SMALL, LARGE = 32**2, 96**2  # COCO's bounds of object areas in pixels
OUTLINE = (255, 60, 40)


def report(options: ReportOptions) -> int:
    """Write report.json and the pictures, and print what matters most."""
    spec = load_data(options.data)
    out = Path(options.out) if options.out else Path("runs/report") / spec.source.stem
    samples = {split: load_split(spec, split)[0] for split in spec.splits}
    out.mkdir(parents=True, exist_ok=True)
    colours = {split: colour_statistics(found) for split, found in samples.items()}
    result: dict[str, Any] = {
        "data": spec.source.name,
        "names": list(spec.names),
        "splits": {split: statistics(found) | {"colours": colours[split]} for split, found in samples.items()},
        "all": statistics([sample for found in samples.values() for sample in found]),
    }
    twins = twins_in_test(spec)
    if twins is not None:
        result["test_images_with_a_twin_in_train"] = twins
    held_out = next((split for split in ("test", "val") if split in samples), None)
    if held_out and "train" in samples:
        result["no_pixel_rule"] = {"fitted_on": "train", "scored_on": held_out} | blind_scores(samples["train"], samples[held_out])
    replace_file(out / "report.json", (json.dumps(result, indent=1) + "\n").encode())
    everything = [sample for found in samples.values() for sample in found]
    plot_shapes(everything, out / "shapes.png")
    plot_places(everything, out / "places.png")
    plot_colours(colours, out / "colours.png")
    write_image(out / "techniques.jpg", technique_sheet(everything))
    print(_summary(result, out))
    return 0


# ---------------------------------------------------------------------------------------------- numbers


def pixel_boxes(sample: Sample) -> np.ndarray:
    """Boxes (n, 4) float64, xyxy in pixels."""
    return sample.labels.boxes.astype(np.float64) * np.tile([sample.width, sample.height], 2)


def statistics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts, sizes and shapes of images and objects."""
    boxes = np.concatenate([np.zeros((0, 4)), *(pixel_boxes(sample) for sample in samples)])
    shares = np.concatenate([np.zeros((0, 4)), *(sample.labels.boxes.astype(np.float64) for sample in samples)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = width * height
    count = max(len(boxes), 1)
    centred = np.abs((shares[:, :2] + shares[:, 2:]) / 2 - 0.5).max(1) if len(boxes) else np.zeros(0)
    return {
        "images": len(samples),
        "backgrounds": sum(not len(sample.labels) for sample in samples),
        "objects": len(boxes),
        "objects_with_outline": sum(polygon is not None for sample in samples for polygon in sample.labels.polygons),
        "objects_per_image": {str(number): images for number, images in sorted(Counter(len(sample.labels) for sample in samples).items())},
        "image_width": _quantiles([sample.width for sample in samples]),
        "image_height": _quantiles([sample.height for sample in samples]),
        "box_area_share": _quantiles((shares[:, 2] - shares[:, 0]) * (shares[:, 3] - shares[:, 1])),
        "box_side_pixels": _quantiles(np.sqrt(area)),
        "box_width_to_height": _quantiles(width / np.maximum(height, 1e-9)),
        "coco_sizes": {"small": float((area < SMALL).sum() / count), "medium": float(((area >= SMALL) & (area < LARGE)).sum() / count),
                       "large": float((area >= LARGE).sum() / count)},
        "boxes_within_2_percent_of_the_centre": float((centred <= 0.02).sum() / count),
    }


def _quantiles(values: np.ndarray | Sequence[float]) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {f"{q:.0%}": round(float(np.quantile(values, q)), 5) for q in QUANTILES} if len(values) else {}


def colour_statistics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Mean and spread of the RGB levels of images with and without objects: a difference is a hint that needs no landslide to be seen."""
    result = {}
    for name, chosen in (("with_objects", [s for s in samples if len(s.labels)]), ("backgrounds", [s for s in samples if not len(s.labels)])):
        taken = [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(len(chosen), COLOUR_IMAGES)).astype(int)]
        means = np.array([read_image(sample.path).reshape(-1, 3).mean(0) for sample in taken]).reshape(-1, 3)
        if len(means):
            result[name] = {"images": len(means), "mean_rgb": means.mean(0).round(2).tolist(), "spread_between_images_rgb": means.std(0).round(2).tolist()}
    return result


def twins_in_test(spec: DatasetSpec) -> int | None:
    """Test images with another version of their source, or a source of their group, in train; None without a manifest.csv that says so."""
    path = spec.source.parent / "manifest.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"group", "split"} <= set(rows[0]):
        return None
    return leaks((row["group"], row["split"]) for row in rows)  # type: ignore[misc]


def prefix(path: Path) -> str:
    """The source an image's name speaks of: its letters before the first digit or underscore."""
    stem = path.stem.split("_")[0]
    return stem.rstrip("0123456789") or "numbered"


def blind_scores(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, Any]:
    """AP of the rule without eyes in %, under both protocols, on all test images and on every prefix with at least 10 objects."""
    rule = NoPixelRule.fit(np.array([(s.width, s.height) for s in train], np.float64), [pixel_boxes(s) for s in train])
    found = [rule.guess(sample.width, sample.height) for sample in test]
    truths = [Truth(pixel_boxes(s).astype(np.float32), np.zeros(len(s.labels), np.int64)) for s in test]
    kinds: dict[str, list[int]] = {"all": list(range(len(test))), "with_objects": [i for i, truth in enumerate(truths) if len(truth.boxes)]}
    for i, sample in enumerate(test):
        kinds.setdefault(f"{prefix(sample.path)}*", []).append(i)
    result = {}
    for kind, index in kinds.items():
        objects = sum(len(truths[i].boxes) for i in index)
        if objects >= 10 or (kind == "all" and objects):
            scores = score([found[i] for i in index], [truths[i] for i in index], ["landslide"]).overall
            result[kind] = {"images": len(index), "objects": objects, "paper_AP": round(100 * scores.paper_ap, 2),
                            "coco_AP50": round(100 * scores.coco_ap50, 2), "coco_AP50:95": round(100 * scores.coco_ap50_95, 2)}
    return result


def _summary(result: dict[str, Any], out: Path) -> str:
    whole = result["all"]
    sizes = whole["coco_sizes"]
    lines = [
        f"{whole['images']} images, {whole['objects']} objects, {whole['backgrounds']} backgrounds; "
        f"small {sizes['small']:.0%}, medium {sizes['medium']:.0%}, large {sizes['large']:.0%}; "
        f"{whole['boxes_within_2_percent_of_the_centre']:.0%} of the boxes are centred in their image"
    ]
    if "test_images_with_a_twin_in_train" in result:
        lines.append(f"test images with a twin in train: {result['test_images_with_a_twin_in_train']}")
    blind = result.get("no_pixel_rule", {})
    for kind, scores in blind.items():
        if isinstance(scores, dict):
            lines.append(f"no-pixel rule on {blind['scored_on']}, {kind}: AP {scores['paper_AP']:.2f} (paper), AP50 {scores['coco_AP50']:.2f}, "
                         f"AP50:95 {scores['coco_AP50:95']:.2f} (coco); {scores['objects']} objects")
    if "all" in blind:
        lines.append(f"a model with AP50 below {blind['all']['coco_AP50']:.2f} on these images need not have seen anything")
    return "\n".join([*lines, f"written: {out}"])


# ---------------------------------------------------------------------------------------------- pictures


def _axes(columns: int, width: float, height: float) -> tuple[Any, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def plot_shapes(samples: Sequence[Sample], path: Path) -> None:
    """The paper's Fig. 5 and more: width against height, aspect ratio, area share, objects per image."""
    boxes = np.concatenate([np.zeros((0, 4)), *(pixel_boxes(sample) for sample in samples)])
    shares = np.concatenate([np.zeros((0, 4)), *(sample.labels.boxes.astype(np.float64) for sample in samples)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    figure, axes = _axes(4, 15, 3.6)
    axes[0].scatter(width, height, s=4, alpha=0.3, color="#2b6cb0", linewidths=0)
    axes[0].set(title="landslide size", xlabel="box width, pixels", ylabel="box height, pixels")
    axes[1].hist(np.log2(np.maximum(width, 1e-9) / np.maximum(height, 1e-9)).clip(-4, 4), bins=48, color="#2b6cb0")
    axes[1].set(title="landslide shape", xlabel="width : height", ylabel="landslides")
    axes[1].set_xticks(range(-3, 4), ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    axes[2].hist(100 * (shares[:, 2] - shares[:, 0]) * (shares[:, 3] - shares[:, 1]), bins=50, range=(0, 100), color="#2b6cb0")
    axes[2].set(title="share of the image", xlabel="box area, % of the image", ylabel="landslides")
    numbers = Counter(min(len(sample.labels), 10) for sample in samples)
    axes[3].bar(range(11), [numbers[number] for number in range(11)], color="#2b6cb0")
    axes[3].set(title="landslides per image", xlabel="landslides (10 = 10 or more)", ylabel="images")
    figure.savefig(path)


def plot_places(samples: Sequence[Sample], path: Path) -> None:
    """Where boxes lie in their images, where their centres do, and how large images are."""
    heat = np.zeros((100, 100))
    centres = []
    for box in (box for sample in samples for box in sample.labels.boxes.astype(np.float64)):
        left, top, right, bottom = np.round(box * 100).astype(int)
        heat[top : max(bottom, top + 1), left : max(right, left + 1)] += 1
        centres.append((box[:2] + box[2:]) / 2)
    figure, axes = _axes(3, 12, 3.8)
    picture = axes[0].imshow(heat, cmap="magma", extent=(0, 1, 1, 0))
    figure.colorbar(picture, ax=axes[0], label="boxes")
    axes[0].set(title="where landslides lie", xlabel="share of width", ylabel="share of height")
    x, y = np.array(centres).reshape(-1, 2).T
    axes[1].scatter(x, y, s=4, alpha=0.3, color="#2b6cb0", linewidths=0)
    axes[1].set(title="centres", xlim=(0, 1), ylim=(1, 0), aspect="equal", xlabel="share of width", ylabel="share of height")
    axes[2].scatter([s.width for s in samples], [s.height for s in samples], s=4, alpha=0.3, color="#2b6cb0", linewidths=0)
    axes[2].set(title="image sizes", xlabel="width, pixels", ylabel="height, pixels")
    figure.savefig(path)


def plot_colours(colours: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean RGB levels of images with and without objects per split, with the spread between images."""
    figure, axes = _axes(max(len(colours), 1), 4 * max(len(colours), 1), 3.2)
    for ax, (split, kinds) in zip(axes, colours.items(), strict=False):
        for place, (kind, values) in enumerate(kinds.items()):
            x = np.arange(3) + 0.2 * (2 * place - 1)
            ax.bar(x, values["mean_rgb"], 0.38, yerr=values["spread_between_images_rgb"], label=kind.replace("_", " "),
                   color=["#c0392b", "#27ae60", "#2b6cb0"], alpha=1.0 - 0.5 * place, error_kw={"ecolor": "#555555", "lw": 1})
        ax.set(title=split, ylim=(0, 255), ylabel="mean level (pale: backgrounds)")
        ax.set_xticks(range(3), ["red", "green", "blue"])
    figure.savefig(path)


def _telling(samples: Sequence[Sample]) -> Sample:
    """An image to show: not augmented yet, with outlines if there are any, its landslide larger than most."""
    pool = [s for s in samples if len(s.labels) and not s.path.stem.endswith(tuple(f"_{name}" for name in TECHNIQUES))] or list(samples)
    pool = [s for s in pool if any(p is not None for p in s.labels.polygons)] or pool
    pool.sort(key=lambda s: float((s.labels.boxes[:, 2:] - s.labels.boxes[:, :2]).prod(1).max(initial=0)))
    return pool[len(pool) * 3 // 4]


def technique_sheet(samples: Sequence[Sample], cell: int = 240) -> np.ndarray:
    """Fig. 3's gallery: one image under the nine techniques, its boxes and outlines drawn; RGB uint8 (2 rows of 5 cells)."""
    sample = _telling(samples)
    image = read_image(sample.path)
    versions = [("original", image, sample.labels)]
    versions += [(name, *apply(image, sample.labels, generator(0, name))) for name, apply in TECHNIQUES.items()]
    cells = []
    for name, picture, labels in versions:
        height, width = picture.shape[:2]
        zoom = cell / max(height, width)
        small = cv2.resize(picture, (round(width * zoom), round(height * zoom)), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
        size = np.array(small.shape[1::-1])
        for box, polygon in zip(labels.boxes, labels.polygons, strict=True):
            (left, top), (right, bottom) = np.round(box[:2] * size).astype(int).tolist(), np.round(box[2:] * size).astype(int).tolist()
            cv2.rectangle(small, (left, top), (right, bottom), OUTLINE, 1)
            if polygon is not None:
                cv2.polylines(small, [np.round(polygon * size).astype(np.int32)], True, (255, 230, 80), 1, cv2.LINE_AA)
        card = np.full((cell + 24, cell + 6, 3), 255, np.uint8)
        card[22 : 22 + size[1], 3 : 3 + size[0]] = small
        cv2.putText(card, name, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        cells.append(card)
    return np.concatenate([np.concatenate(cells[row : row + 5], 1) for row in (0, 5)])
