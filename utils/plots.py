"""Pictures: training curves, label statistics, P-R curves, mosaics with boxes, the error gallery in the paper's colours.

Charts go through matplotlib's object interface (no pyplot, no global figure, no display) and are written; pictures of images are returned,
RGB uint8 (H, W, 3). Matplotlib and OpenCV are imported on first use.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.detections import Detections, Truth
from utils.errors import UserError
from utils.metrics import Curve, coco_ap, paper_ap, paper_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from utils.draw import Colour

# Fig. 16 of the paper: ground truth, detection, missed, wrong.
TRUTH, DETECTION, MISSED, WRONG = (0, 205, 60), (235, 45, 45), (40, 110, 255), (255, 214, 0)
# Tableau's ten colours: told apart by most readers, on screen and on paper.
PALETTE: tuple[Colour, ...] = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
    (188, 189, 34),
    (23, 190, 207),
)
INK = "#333333"
DPI = 150
GAP, LINE, TEXT = 6, 22, 0.45  # pixels between pictures and of a line of text, OpenCV's scale of the letters


# -------------------------------------------------------------------------------------------------------- charts


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure (inches) with a grid of axes in one common look, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for ax in axes:
        plain_axes(ax, 8)
        ax.grid(True, color="#e6e6e6", linewidth=0.7)
    return figure, axes


def plain_axes(ax: Axes, label_size: float) -> None:
    """The look that all charts share: two thin edges, dark figures, lines behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#999999")
    ax.tick_params(colors=INK, labelsize=label_size)
    ax.set_axisbelow(True)


def _label(ax: Axes, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def _rgb(colour: Colour) -> tuple[float, float, float]:
    return (colour[0] / 255, colour[1] / 255, colour[2] / 255)


def read_results(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of a results.csv, float64; an empty or non-numeric cell is NaN. Raises UserError where there is no row."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a results.csv as train.py writes it was expected") from None
    if not rows:
        raise UserError(f"{path}: holds no epoch")

    def number(cell: str | None) -> float:
        try:
            return float(cell or "nan")
        except ValueError:
            return math.nan

    return {key.strip(): np.array([number(row[key]) for row in rows]) for key in rows[0] if key}


# Panels of results.png: title, and its lines as (column of results.csv, name, colour).
_RESULT_PANELS: tuple[tuple[str, tuple[tuple[str, str, Colour], ...]], ...] = (
    ("Box loss", (("train/box_loss", "train", PALETTE[0]), ("val/box_loss", "val", PALETTE[1]))),
    ("Objectness loss", (("train/obj_loss", "train", PALETTE[0]), ("val/obj_loss", "val", PALETTE[1]))),
    ("Class loss", (("train/cls_loss", "train", PALETTE[0]), ("val/cls_loss", "val", PALETTE[1]))),
    ("Learning rate", (("x/lr0", "weights", PALETTE[0]), ("x/lr1", "norms", PALETTE[2]), ("x/lr2", "biases", PALETTE[3]))),
    ("Precision, recall", (("metrics/precision", "precision", PALETTE[0]), ("metrics/recall", "recall", PALETTE[3]))),
    ("AP50 (coco)", (("metrics/mAP_0.5", "AP50", PALETTE[2]),)),
    ("AP50:95 (coco)", (("metrics/mAP_0.5:0.95", "AP50:95", PALETTE[2]),)),
    ("AP (paper)", (("metrics/AP_paper", "AP", PALETTE[4]),)),
)


def plot_results(results_csv: str | Path, path: str | Path) -> None:
    """results.png: losses, learning rates and metrics of a results.csv over its epochs; the best epoch of each AP is marked."""
    columns = read_results(results_csv)
    epochs = columns.get("epoch", np.arange(len(next(iter(columns.values())))))
    figure, axes = _figure(15, 6.5, 2, 4)
    for ax, (title, lines) in zip(axes, _RESULT_PANELS, strict=True):
        _label(ax, title, "epoch")
        for column, name, color in lines:
            values = columns.get(column, np.full(len(epochs), np.nan))
            known = np.isfinite(values)
            if not known.any():
                continue
            ax.plot(epochs[known], values[known], color=_rgb(color), linewidth=1.8, label=name, marker="o" if known.sum() < 3 else None, markersize=4)
            if "AP" in column and values[known].max() > 0:
                best = np.flatnonzero(known)[values[known].argmax()]
                ax.plot(epochs[best], values[best], "o", color=_rgb(color), markersize=6, markeredgecolor="white")
                ax.set_title(f"best {values[best]:.4f} in epoch {epochs[best]:g}", fontsize=9, color=INK, loc="right")
        if len(lines) > 1 and ax.lines:
            ax.legend(fontsize=8, frameon=False)
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color="#999999", fontsize=9)
        highest = max((float(np.max(line.get_ydata())) for line in ax.lines), default=0.0)  # type: ignore[arg-type]
        ax.set_ylim(0, None if highest > 0 else 1)
        ax.locator_params(axis="x", integer=True)
    figure.savefig(str(path), dpi=DPI)


def plot_labels(boxes: np.ndarray, classes: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """labels.png: objects per class, where their centres lie, their widths and heights, their shares of the image.

    boxes: (n, 4) xyxy in shares of the image; classes: (n,) positions in `names`.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    figure, (histogram, position, shape, share) = _figure(11, 10, 2, 2)

    counts = np.bincount(np.asarray(classes, np.int64), minlength=len(names))[: len(names)]
    shown = np.argsort(-counts, kind="stable")[:30]
    bars = histogram.bar(range(len(shown)), counts[shown], color=[_rgb(PALETTE[cls % len(PALETTE)]) for cls in shown], width=min(0.8, 0.15 * len(shown) + 0.1))
    histogram.bar_label(bars, fontsize=8, color=INK)
    histogram.set_xticks(range(len(shown)), [names[cls] for cls in shown], rotation=0 if len(shown) < 6 else 60, ha="center" if len(shown) < 6 else "right")
    histogram.set_xlim(-1, len(shown))
    histogram.locator_params(axis="y", integer=True)
    histogram.grid(False)
    _label(histogram, "Objects per class" if len(shown) == len(names) else f"Objects per class ({len(shown)} of {len(names)})", "", "objects")

    _label(position, "Centres", "x, share of the width", "y, share of the height")
    _scatter(position, centre)
    position.invert_yaxis()
    _label(shape, "Sizes", "width, share of the image's", "height, share of the image's")
    _scatter(shape, size)
    shape.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")

    areas = np.sqrt(np.clip(size.prod(1), 0, 1))
    share.hist(areas, bins=40, range=(0, 1), color=_rgb(PALETTE[0]), edgecolor="white", linewidth=0.5)
    if len(areas):
        middle = float(np.median(areas))
        share.axvline(middle, color=_rgb(PALETTE[3]), linewidth=1.5)
        share.set_title(f"median {middle:.2f}", fontsize=9, color=_rgb(PALETTE[3]), loc="right")
    share.set_xlim(0, 1)
    _label(share, "Square root of the area share", "sqrt(box area / image area)", "objects")
    figure.savefig(str(path), dpi=DPI)


def _scatter(ax: Axes, points: np.ndarray) -> None:
    """Points (n, 2) of the unit square; the more there are, the paler each is."""
    alpha = min(0.7, max(0.03, 150 / max(1, len(points))))
    ax.scatter(points[:, 0], points[:, 1], s=14, color=_rgb(PALETTE[0]), alpha=alpha, linewidths=0, rasterized=True)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")


def plot_curves(curves: Sequence[Curve], names: Sequence[str], folder: str | Path, confidence: float, best: float) -> list[Path]:
    """PR_curve.png, F1_curve.png, P_curve.png and R_curve.png in `folder`, one line per class that has objects; returns their paths.

    confidence: the chosen operating point, where the `paper` protocol cuts its curve; best: the confidence of the best F1. Both are marked.
    """
    folder = Path(folder)
    known = [(curve, name, _rgb(PALETTE[cls % len(PALETTE)])) for cls, (curve, name) in enumerate(zip(curves, names, strict=True)) if curve.positives]
    paths = [folder / f"{word}_curve.png" for word in ("PR", "P", "R", "F1")]
    _plot_pr(known, confidence, best, paths[0])
    grid, marks = np.linspace(0, 1, 1001), np.array([confidence, best])
    for number, (path, word) in enumerate(zip(paths[1:], ("precision", "recall", "F1"), strict=True)):
        figure, (ax,) = _figure(7.5, 6)
        _label(ax, f"{word[0].upper()}{word[1:]} at each confidence, IoU 0.5", "confidence", word)
        lines = [(name, color, curve.at(grid)[number], curve.at(marks)[number]) for curve, name, color in known]
        if len(lines) > 1:
            lines.append(("mean", (0.0, 0.0, 0.0), np.mean([line[2] for line in lines], 0), np.mean([line[3] for line in lines], 0)))
        for name, color, values, marked in lines:
            label = f"{name}: {marked[0]:.3f} at {confidence:g}, {marked[1]:.3f} at {best:g}"
            ax.plot(grid, values, color=color, linewidth=2.4 if name == "mean" else 1.6, label=label)
        ax.axvline(confidence, color="#999999", linewidth=1, linestyle=":")
        ax.axvline(best, color="#999999", linewidth=1, linestyle="--")
        _finish(figure, ax, path)
    return paths


def _plot_pr(known: Sequence[tuple[Curve, str, tuple[float, float, float]]], confidence: float, best: float, path: Path) -> None:
    figure, (ax,) = _figure(7.5, 6)
    _label(ax, "Precision and recall, IoU 0.5", "recall", "precision")
    for curve, name, color in known:
        # The solid line is what was measured; the dashed one what the paper's protocol makes of it.
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        label = f"{name}: all detections, AP50 {coco_ap(curve):.3f}"
        first = envelope[:1] if len(envelope) else [0.0]
        ax.step(np.append(0, curve.recall), np.append(first, envelope), where="pre", color=color, linewidth=1.8, label=label)
        recall, precision = paper_points(curve, confidence)
        if len(recall):
            label = f"{name}: paper protocol, AP {paper_ap(curve, confidence):.3f}"
            ax.plot(recall, precision, color=color, linewidth=1.2, linestyle="--", label=label)
        for mark, size, at in (("o", 8, confidence), ("*", 13, best)):
            p, r, _ = curve.at(np.array(at))
            ax.plot(r, p, mark, color=color, markersize=size, markeredgecolor="white", zorder=5)
    ax.plot([], [], "o", color=INK, markersize=8, markeredgecolor="white", label=f"confidence {confidence:g}")
    ax.plot([], [], "*", color=INK, markersize=13, markeredgecolor="white", label=f"best F1, confidence {best:g}")
    _finish(figure, ax, path)


def _finish(figure: Figure, ax: Axes, path: Path) -> None:
    ax.set_xlim(0, 1.005)
    ax.set_ylim(0, 1.02)
    if 0 < len(ax.get_legend_handles_labels()[1]) <= 24:  # a longer legend would hide the curves
        ax.legend(fontsize=8, frameon=False, loc="best")
    figure.savefig(str(path), dpi=DPI)


# ----------------------------------------------------------------------------------------------- boxes on images


def mosaic(
    images: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    names: Sequence[str],
    captions: Sequence[str] = (),
    scores: Sequence[np.ndarray] | None = None,
    side: int = 1920,
    most: int = 16,
) -> np.ndarray:
    """Up to `most` images of a batch in one near-square picture about `side` pixels wide at most, with their boxes, captions below.

    images: RGB uint8 (H, W, 3), all of one size; boxes: xyxy (n, 4) in their pixels; `scores` stand behind the class names.
    """
    import cv2

    from utils.draw import class_colour, draw_boxes

    count = min(len(images), most)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = images[0].shape[:2]
    factor = min(1.0, side / (columns * max(height, width)))
    cell_h, cell_w = max(1, round(height * factor)), max(1, round(width * factor))
    step_h, step_w = cell_h + GAP + (LINE if captions else 0), cell_w + GAP
    sheet = np.full((rows * step_h + GAP, columns * step_w + GAP, 3), 255, np.uint8)
    for number in range(count):
        words = [names[cls] for cls in classes[number]]
        if scores is not None:
            words = [f"{word} {score:.2f}" for word, score in zip(words, scores[number], strict=True)]
        small = cv2.resize(images[number], (cell_w, cell_h), interpolation=cv2.INTER_AREA)
        small = draw_boxes(small, np.asarray(boxes[number]).reshape(-1, 4) * factor, words, [class_colour(int(cls)) for cls in classes[number]])
        row, column = divmod(number, columns)
        y, x = GAP + row * step_h, GAP + column * step_w
        sheet[y : y + cell_h, x : x + cell_w] = small
        if number < len(captions):
            sheet[y + cell_h : y + cell_h + LINE, x : x + cell_w] = _line(captions[number], cell_w)
    return sheet


def _line(text: str, width: int) -> np.ndarray:
    """A white line (LINE, width, 3) with a text on it."""
    import cv2

    strip = np.full((LINE, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, TEXT, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


def error_picture(image: np.ndarray, detections: Detections, truth: Truth, right: np.ndarray, found: np.ndarray, title: str = "") -> np.ndarray:
    """An image with the errors of a detector in the colours of the paper's Fig. 16, over a legend.

    Green: objects that were found; blue: objects that were missed; red: right detections; yellow: wrong ones.
    detections: those above the operating confidence, in the image's pixels; right (n,) bool; found (m,) bool over the objects of `truth`.
    """
    import cv2

    from utils.draw import draw_boxes

    # Small images are enlarged, so that lines and words do not hide what they are about.
    factor = max(1, math.ceil(640 / max(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else image
    colours = [TRUTH if hit else MISSED for hit in found] + [DETECTION if hit else WRONG for hit in right]
    words = [""] * len(found) + [f"{score:.2f}" for score in detections.scores]
    boxes = np.concatenate([np.asarray(truth.boxes).reshape(-1, 4), np.asarray(detections.boxes).reshape(-1, 4)]) * factor
    picture = draw_boxes(canvas, boxes, words, colours, max(2, round(max(canvas.shape[:2]) / 600)))
    counts = [("ground truth", TRUTH, int(found.sum())), ("detection", DETECTION, int(right.sum()))]
    counts += [("missed", MISSED, int((~found).sum())), ("wrong", WRONG, int((~right).sum()))]
    return np.concatenate([picture, _legend(picture.shape[1], title, counts)])


def _legend(width: int, title: str, counts: Sequence[tuple[str, Colour, int]]) -> np.ndarray:
    """A white strip (h, width, 3): the title, then a coloured square, a word and a count for each kind of box."""
    import cv2

    lines = [_line(title, width)] if title else []
    end = width  # as if a line were full: the first entry begins a new one
    for word, colour, count in counts:
        text = f"{word} {count}"
        step = 16 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, TEXT, 1)[0][0] + 16
        if end + step > width:
            lines.append(_line("", width))
            end = 4
        cv2.rectangle(lines[-1], (end, 5), (end + 11, 16), colour, -1)
        cv2.putText(lines[-1], text, (end + 16, LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, TEXT, (40, 40, 40), 1, cv2.LINE_AA)
        end += step
    return np.concatenate(lines)
