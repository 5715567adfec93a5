"""The paper's figures from finished runs: bars (Fig. 14, 15), detections side by side (Fig. 16), failures (Fig. 17), curves, receptive fields.

Charts are written as PNG and, for papers, as PDF with fonts that stay text; pictures of images as PNG. A row keeps its colour in every
figure: the hue says which head, a dark and solid line that MSFE is in the neck, a light and dashed one that it is not.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.images import read_image
from reproduction.paper import Printed, Study
from reproduction.receptive_field import FAINT, ReceptiveField
from reproduction.record import RunRecord
from reproduction.statistics import Interval
from utils.detections import Detections, Truth
from utils.draw import draw_boxes
from utils.metrics import PAPER_CONFIDENCE, RECALLS, Curve, Matches, curve, match, paper_points
from utils.plots import DETECTION, DPI, INK, MISSED, PALETTE, TRUTH, WRONG, plain_axes, read_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8a8a8a"
# Hue by head (light without MSFE, dark with it): coupled, O-DH, A-DH, C-DH, W-DH.
_HUES = {"": ("#9a9a9a", "#4d4d4d"), "odh": ("#74b3e0", "#1f6aa5"), "adh": ("#f5b26b", "#c96a00"), "cdh": ("#8ccf8a", "#2a8a2a"), "wdh": ("#f08b85", "#c1201a")}
SMALL_PICTURE = 400  # pixels of the longer side of an image within a figure
CELL = 2.5  # inches that an image within a figure is wide
MOST_SCORES = 12  # in an image of more detections their scores would hide it


@dataclass(frozen=True)
class Look:
    """How a row appears in every figure."""

    colour: str
    line: str


def look(row: str, position: int = 0) -> Look:
    """The look of a row of Table III; other models take matplotlib's colours by their position."""
    head = {"ls-yolo": "msfe-wdh", "msfe": "msfe-", "yolov5s": ""}.get(row, row)
    msfe = head.startswith("msfe-")
    hues = _HUES.get(head.removeprefix("msfe-"))
    if hues:
        return Look(hues[msfe], "-" if msfe else "--")
    return Look("#{:02x}{:02x}{:02x}".format(*PALETTE[position % len(PALETTE)]), "-")


def by_row(records: Sequence[RunRecord], study: Study, split: str = "main") -> dict[str, list[RunRecord]]:
    """The runs of a split by row, rows in the study's order (those without a run left out), seeds rising."""
    found = {row.name: sorted((r for r in records if (r.row, r.split) == (row.name, split)), key=lambda r: r.seed) for row in study.rows}
    return {name: runs for name, runs in found.items() if runs}


def title_of(row: str, study: Study) -> str:
    """The title of a row in tables and figures."""
    return next((known.title for known in study.rows if known.name == row), row)


# ---------------------------------------------------------------------------------------------------------- look


def _figure(width: float, height: float, rows: int, columns: int, heights: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """An empty figure (inches) with its axes, row by row; `heights` of the rows relative to each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[number // columns, number % columns]) for number in range(rows * columns)]
    for ax in axes:
        plain_axes(ax, 8.5)
    return figure, axes


def _title(ax: Axes, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold")
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def _save(figure: Figure, path: Path, vector: bool = True) -> Path:
    """Write the PNG and, where asked for, the PDF beside it (TrueType fonts, as publishers ask)."""
    import matplotlib

    figure.savefig(str(path), dpi=DPI)
    if vector:
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(str(path.with_suffix(".pdf")))
    return path


# ---------------------------------------------------------------------------------------------------------- bars


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars: per row the values of its seeds, and what the paper prints (None where it prints nothing)."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    printed: Mapping[str, float | None]
    digits: int = 2
    zoom: bool = False  # a share of 100 %: the axis may start above 0, and says so


def bar_panels(panels: Sequence[Bars], study: Study, path: Path, note: str = "") -> Path:
    """Panels side by side, one bar per row with its mean over seeds, standard deviation and value in words; a diamond is the paper's value."""
    rows = list(panels[0].values)
    figure, axes = _figure(1.9 + 2.9 * len(panels), 1.35 + 0.34 * len(rows), 1, len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        _bar_panel(ax, panel, rows)
        ax.set_yticks(range(len(rows)), [title_of(row, study) for row in rows] if ax is axes[0] else [""] * len(rows))
    known = any(panel.printed.get(row) is not None for panel in panels for row in rows)
    several = any(len(values) > 1 for panel in panels for values in panel.values.values())
    _foot(figure, note, "error bars: standard deviation over seeds" * several, "\u25c7 the paper's value" * known)
    return _save(figure, path)


def _bar_panel(ax: Axes, panel: Bars, rows: Sequence[str]) -> None:
    places = np.arange(len(rows))
    mean = np.array([np.mean(panel.values[row]) for row in rows])
    spread = np.array([np.std(panel.values[row], ddof=1) if len(panel.values[row]) > 1 else 0.0 for row in rows])
    printed = np.array([math.nan if panel.printed.get(row) is None else panel.printed[row] for row in rows], np.float64)
    low, high = _limits(mean - spread, np.append(mean + spread, printed[np.isfinite(printed)]), panel.zoom)
    ax.barh(places, mean, height=0.68, color=[look(row, place).colour for place, row in enumerate(rows)])
    varied = np.flatnonzero(spread > 0)
    ax.errorbar(mean[varied], places[varied], xerr=spread[varied], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    ax.plot(printed, places, "D", markersize=5.5, markerfacecolor="white", markeredgecolor="black", markeredgewidth=1.1, zorder=4)
    for place in places:
        words = f"{mean[place]:.{panel.digits}f}" + (f" \u00b1 {spread[place]:.{panel.digits}f}" if spread[place] else "")
        ax.annotate(words, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=INK)
    ax.tick_params(axis="y", length=0, labelsize=9)
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(low, high + 0.05 * (high - low))
    ax.locator_params(axis="x", nbins=5)
    ax.grid(True, axis="x", color="#e6e6e6", linewidth=0.7)
    _title(ax, panel.title, f"{panel.unit}{f' (axis starts at {low:g})' if low else ''}")


def _limits(low: np.ndarray, high: np.ndarray, zoom: bool) -> tuple[float, float]:
    """Where an axis starts and where its largest value stands; it starts at 0 unless `zoom` and all values lie close together far from 0."""
    top, bottom = max(float(high.max(initial=0)), 1e-9), float(low.min(initial=math.inf))
    if not zoom or bottom < 50:
        return 0.0, top
    return 5.0 * math.floor((bottom - max(1.0, 0.5 * (top - bottom))) / 5), top


def metric_bars(records: Sequence[RunRecord], study: Study, path: Path, note: str = "") -> Path:
    """Fig. 14: P, R and AP under the `paper` protocol, AP50 under `coco`, in %, of the runs of split 'main'."""
    rows = by_row(records, study)

    def values(get: Callable[[dict[str, Any]], float]) -> dict[str, list[float]]:
        return {row: [100 * get(run.report["overall"]) for run in runs] for row, runs in rows.items()}

    printed = _printed(rows, study)
    panels = [
        Bars("Precision", "%, confidence 0.5", values(lambda r: r["at_confidence"]["precision"]), {row: p.precision for row, p in printed.items()}, zoom=True),
        Bars("Recall", "%, confidence 0.5", values(lambda r: r["at_confidence"]["recall"]), {row: p.recall for row, p in printed.items()}, zoom=True),
        Bars("AP, paper protocol", "%", values(lambda r: r["paper"]["AP"]), {row: p.ap for row, p in printed.items()}, zoom=True),
        Bars("AP50, coco protocol", "%", values(lambda r: r["coco"]["AP50"]), {}, zoom=True),
    ]
    return bar_panels(panels, study, path, note)


def cost_bars(records: Sequence[RunRecord], study: Study, path: Path, note: str = "") -> Path:
    """Fig. 15: parameters, GFLOPs and frames per second of the runs of split 'main'."""
    rows = by_row(records, study)
    printed = _printed(rows, study)
    params, gflops = {row: [runs[0].params / 1e6] for row, runs in rows.items()}, {row: [runs[0].gflops] for row, runs in rows.items()}
    fps = {row: [run.fps for run in runs] for row, runs in rows.items()}
    panels = [
        Bars("Parameters", "millions", params, {row: p.params for row, p in printed.items()}, 1),
        Bars("FLOPs", "GFLOPs an image", gflops, {row: p.gflops for row, p in printed.items()}, 1),
        Bars("Speed", "images per second, batch 1", fps, {row: p.fps for row, p in printed.items()}, 1),
    ]
    return bar_panels(panels, study, path, note)


def _printed(rows: Mapping[str, object], study: Study) -> dict[str, Printed]:
    return {row: study.row(row).printed for row in rows}


def difference_plot(panels: Mapping[str, Mapping[str, Interval]], study: Study, path: Path, note: str = "") -> Path:
    """Each row's difference in AP points with its 95 % interval, one panel per title; where the interval holds 0, hollow and grey."""
    most = max(len(rows) for rows in panels.values())
    figure, axes = _figure(1.9 + 3.7 * len(panels), 1.35 + 0.36 * most, 1, len(panels))
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        reach = max([0.1, *(abs(end) for d in rows.values() for end in (d.low, d.high))])
        for place, (row, d) in enumerate(rows.items()):
            colour = GREY if d.holds_zero else look(row, place).colour
            ax.plot([d.low, d.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            ax.plot(d.value, place, "o", markersize=7, color=colour, markerfacecolor="white" if d.holds_zero else colour, markeredgewidth=1.6)
            words = f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})".replace("-", "\u2212")
            ax.annotate(words, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=GREY if d.holds_zero else INK)
        ax.set_yticks(range(len(rows)), [title_of(row, study) for row in rows] if ax is axes[0] else [""] * len(rows))
        ax.tick_params(axis="y", length=0, labelsize=9)
        ax.set_xlim(-1.1 * reach, 1.1 * reach)
        ax.set_ylim(len(rows) - 0.45, -0.55)
        ax.grid(True, axis="x", color="#e6e6e6", linewidth=0.7)
        _title(ax, title, "AP points")
    _foot(figure, note, "95 % intervals of a paired bootstrap over test images", "hollow and grey: the interval holds 0")
    return _save(figure, path)


def _foot(figure: Figure, *words: str) -> None:
    """A small grey line below the axes."""
    figure.supxlabel(_wrapped(figure, " \u00b7 ".join(word for word in words if word)), fontsize=8.5, color=GREY)


def _head(figure: Figure, words: str) -> None:
    """A small grey line above the axes, where a legend stands below them."""
    if words:
        figure.suptitle(_wrapped(figure, words), fontsize=8.5, color=GREY)


def _wrapped(figure: Figure, words: str) -> str:
    """In lines that fit the figure: about 13 letters an inch."""
    return "\n".join(textwrap.wrap(words, int(13 * figure.get_figwidth())))


# -------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Line:
    """One line of a chart: runs that are averaged, their name and look."""

    name: str
    runs: Sequence[RunRecord]
    look: Look


def row_lines(records: Sequence[RunRecord], study: Study) -> list[Line]:
    """One line per row of split 'main', its seeds averaged."""
    return [Line(title_of(row, study), runs, look(row, place)) for place, (row, runs) in enumerate(by_row(records, study).items())]


def seed_lines(runs: Sequence[RunRecord]) -> list[Line]:
    """One line per run of a row, named after its seed."""
    return [Line(f"seed {run.seed}", [run], look("other", place)) for place, run in enumerate(runs)]


_TRAINING_PANELS = (
    ("AP50 (coco), validation", "metrics/mAP_0.5", 100.0, "%"),
    ("AP (paper), validation", "metrics/AP_paper", 100.0, "%"),
    ("Box loss, training", "train/box_loss", 1.0, ""),
    ("Objectness loss, training", "train/obj_loss", 1.0, ""),
    ("Box loss, validation", "val/box_loss", 1.0, ""),
    ("Objectness loss, validation", "val/obj_loss", 1.0, ""),
)


def training_curves(lines: Sequence[Line], path: Path, note: str = "", vector: bool = True) -> Path:
    """AP and losses over the epochs, from each run's results.csv: means over the runs of a line, the pale band from the lowest to the highest."""
    figure, axes = _figure(12.5, 6.6, 2, 3)
    tables = [[read_results(run.folder / "results.csv") for run in line.runs if (run.folder / "results.csv").is_file()] for line in lines]
    places = (0, 3, 1, 4, 2, 5)  # AP below AP, the losses of training and validation in columns
    for place, (title, column, factor, unit) in zip(places, _TRAINING_PANELS, strict=True):
        ax = axes[place]
        for line, results in zip(lines, tables, strict=True):
            epochs, values = _stacked(results, column)
            if not len(epochs):
                continue
            few = "o" if len(epochs) < 3 else None
            ax.plot(epochs, factor * values.mean(0), color=line.look.colour, linestyle=line.look.line, linewidth=1.6, label=line.name, marker=few, markersize=4)
            if len(values) > 1:
                ax.fill_between(epochs, factor * values.min(0), factor * values.max(0), color=line.look.colour, alpha=0.12, linewidth=0)
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY, fontsize=9)
        ax.set_ylim(0, None if ax.lines and max(float(np.max(drawn.get_ydata())) for drawn in ax.lines) > 0 else 1)
        ax.locator_params(axis="x", integer=True)
        ax.grid(True, color="#e6e6e6", linewidth=0.7)
        _title(ax, title, "epoch", unit)
    handles = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        columns = min(5, len(handles))
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=9, frameon=False, handlelength=2.8)
    _head(figure, note)
    return _save(figure, path, vector)


def _stacked(results: Sequence[dict[str, np.ndarray]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (e,) at which every run has a value in this column, and the values (runs, e)."""
    series = []
    for table in results:
        values = table.get(column, np.zeros(0))
        known = np.isfinite(values)
        series.append(dict(zip(table["epoch"][known].tolist(), values[known].tolist(), strict=True)) if "epoch" in table and known.any() else {})
    common = sorted(set.intersection(*map(set, series))) if series else []
    return np.array(common), np.array([[one[epoch] for epoch in common] for one in series])


def pr_curves(lines: Sequence[Line], path: Path, note: str = "", vector: bool = True) -> Path:
    """Precision over recall at IoU 0.5 under both protocols, averaged over the runs of a line and the classes, with the APs in words."""
    legend = 0.22 * math.ceil(len(lines) / 2) + 0.1
    figure, axes = _figure(12, 5.9 + legend, 2, 2, (5.9, legend))
    names = (f"paper: cut at confidence {PAPER_CONFIDENCE:g}, closed at (1, 0)", "coco: all detections, best precision at that recall or beyond")
    for ax, below, protocol, title in zip(axes[:2], axes[2:], ("paper", "coco"), names, strict=True):
        for line in lines:
            precision = np.mean([_precision(run, protocol) for run in line.runs], 0)
            scores = [100 * run.report["overall"][protocol]["AP" if protocol == "paper" else "AP50"] for run in line.runs]
            words = f"{np.mean(scores):.2f}" + (f" \u00b1 {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else "")
            label = f"{line.name}: {'AP' if protocol == 'paper' else 'AP50'} {words}"
            ax.plot(100 * RECALLS, 100 * precision, color=line.look.colour, linestyle=line.look.line, linewidth=1.7, label=label)
        ax.set_xlim(0, 100.5)
        ax.set_ylim(0, 102)
        ax.grid(True, color="#e6e6e6", linewidth=0.7)
        _title(ax, title, "recall, %", "precision, %")
        below.axis("off")
        below.legend(*ax.get_legend_handles_labels(), loc="upper center", ncols=2 if len(lines) > 1 else 1, fontsize=8.5, frameon=False, handlelength=2.8)
    _head(figure, note)
    return _save(figure, path, vector)


def _precision(run: RunRecord, protocol: str) -> np.ndarray:
    """Precision (101,) at RECALLS as the protocol reads it, mean over the classes that have objects."""
    matches = match(run.detections if protocol == "paper" else run.coco_detections, run.truths)
    curves = [curve(matches, cls) for cls in np.unique(matches.truth_classes).tolist()]
    return np.mean([_sampled(one, protocol) for one in curves] or [np.zeros(len(RECALLS))], 0)


def _sampled(one: Curve, protocol: str) -> np.ndarray:
    if protocol == "paper":
        recall, precision = paper_points(one)
        return np.interp(RECALLS, recall, precision) if len(recall) else np.zeros(len(RECALLS))
    best = np.append(np.maximum.accumulate(one.precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(one.recall, RECALLS, "left")]


# ------------------------------------------------------------------------------------------------- images with boxes


@dataclass(frozen=True)
class Marked:
    """What a run did in one image at the operating point."""

    detections: Detections  # from PAPER_CONFIDENCE on
    truth: Truth
    right: np.ndarray  # (n,) bool per detection
    found: np.ndarray  # (m,) bool per object

    @property
    def words(self) -> str:
        """The counts, for a caption."""
        counts = ((int(self.right.sum()), "right"), (int((~self.right).sum()), "wrong"), (int((~self.found).sum()), "missed"))
        return ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing there, nothing found"


def marked(run: RunRecord, matches: Matches, index: int) -> Marked:
    """The image number `index` of a run; matches: match(run.detections, run.truths)."""
    used = run.detections[index].scores >= PAPER_CONFIDENCE
    right = (matches.truth[0] >= 0)[matches.image == index][used]
    return Marked(run.detections[index].select(used), run.truths[index], right, matches.found(PAPER_CONFIDENCE)[matches.truth_image == index])


def picture(image: np.ndarray, content: Marked) -> np.ndarray:
    """RGB uint8, the longer side SMALL_PICTURE pixels: an image with its boxes in the colours of Fig. 16, scores where there are few."""
    import cv2

    factor = SMALL_PICTURE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    boxes = np.concatenate([content.truth.boxes.reshape(-1, 4), content.detections.boxes.reshape(-1, 4)]) * factor
    colours = [TRUTH if hit else MISSED for hit in content.found] + [DETECTION if hit else WRONG for hit in content.right]
    scores = [f"{score:.2f}" for score in content.detections.scores] if len(content.detections) <= MOST_SCORES else [""] * len(content.detections)
    words = [""] * len(content.found) + scores
    return draw_boxes(small, boxes, words, colours, 2)


def side_by_side(runs: Sequence[RunRecord], images: Sequence[int], study: Study, path: Path) -> Path:
    """Fig. 16: a column for each run (they must share their test images), a row for each image, given by position."""
    if any(run.images != runs[0].images for run in runs):
        raise ValueError("runs were tested on different images")
    pictures = [read_image(runs[0].images[index]) for index in images]
    heights = [CELL * image.shape[0] / image.shape[1] + 0.28 for image in pictures]
    figure, axes = _figure(CELL * len(runs) + 0.3, sum(heights) + 0.7, len(images), len(runs), heights)
    matches = [match(run.detections, run.truths) for run in runs]
    for row, (index, image) in enumerate(zip(images, pictures, strict=True)):
        for column, (run, own) in enumerate(zip(runs, matches, strict=True)):
            ax, content = axes[row * len(runs) + column], marked(run, own, index)
            _show(ax, picture(image, content), content.words)
            if row == 0:
                ax.set_title(title_of(run.row, study), fontsize=10, color=INK, fontweight="bold")
            if column == 0:
                ax.set_ylabel(_name(run.images[index]), fontsize=8, color=INK, parse_math=False)
    _box_legend(figure)
    return _save(figure, path, vector=False)


def failure_cases(run: RunRecord, path: Path, count: int = 8) -> Path | None:
    """Fig. 17: the images in which a run errs most, the worst first; None where it errs in none."""
    matches = match(run.detections, run.truths)
    worst = worst_images(matches, count)
    if not worst:
        return None
    columns = min(4, len(worst))
    contents = [marked(run, matches, index) for index in worst]
    pictures = [picture(read_image(run.images[index]), content) for index, content in zip(worst, contents, strict=True)]
    shapes = [image.shape[0] / image.shape[1] for image in pictures]
    heights = [CELL * max(shapes[first : first + columns]) + 0.5 for first in range(0, len(worst), columns)]
    figure, axes = _figure(CELL * columns + 0.1, sum(heights) + 0.5, len(heights), columns, heights)
    for ax in axes[len(worst) :]:
        ax.set_visible(False)
    for ax, index, content, image in zip(axes, worst, contents, pictures, strict=False):
        _show(ax, image, content.words)
        ax.set_title(_name(run.images[index]), fontsize=8.5, color=INK, parse_math=False)
    _box_legend(figure)
    return _save(figure, path, vector=False)


def worst_images(matches: Matches, count: int) -> list[int]:
    """Positions of the images with most errors at the operating point; of equally many, those with the surest wrong detection first."""
    counts = matches.per_image(PAPER_CONFIDENCE)
    errors, surest = counts[:, 1] + counts[:, 2], np.zeros(matches.images)
    wrong = matches.truth[0] < 0
    np.maximum.at(surest, matches.image[wrong], matches.scores[wrong])
    return [index for index in np.lexsort((-surest, -errors))[:count].tolist() if errors[index]]


def telling_images(runs: Sequence[RunRecord], count: int = 6) -> list[int]:
    """Positions of images that tell runs apart: half of them with one object, half with several (the paper's two halves of Fig. 16), those
    with the largest spread of errors per object over the runs first; where one kind is short the other fills up.
    """
    errors = np.stack([match(run.detections, run.truths).per_image(PAPER_CONFIDENCE)[:, 1:].sum(1) for run in runs])
    objects = np.array([len(truth.classes) for truth in runs[0].truths])
    order = np.lexsort((np.arange(len(objects)), objects, -np.ptp(errors, 0) / np.maximum(1, objects)))
    single, several = ([i for i in order.tolist() if kind[i]] for kind in (objects == 1, objects > 1))
    half = count - min(count // 2, len(several))
    chosen = single[:half]
    return chosen + several[: count - len(chosen)]


def _show(ax: Axes, image: np.ndarray, words: str) -> None:
    ax.imshow(image, interpolation="none")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(words, fontsize=8, color=INK)


def _name(path: str, most: int = 26) -> str:
    """A file's name, not too long, signs that matplotlib's font lacks replaced."""
    from matplotlib.font_manager import findfont, get_font

    name = Path(path).name
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    name = "".join(sign if ord(sign) in known else "?" for sign in name)
    return name if len(name) <= most else f"{name[: most - 9]}\u2026{name[-8:]}"


def _box_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    kinds = (("ground truth", TRUTH), ("right detection", DETECTION), ("missed", MISSED), ("wrong detection", WRONG))
    handles = [Patch(facecolor="none", edgecolor=(colour[0] / 255, colour[1] / 255, colour[2] / 255), linewidth=2, label=name) for name, colour in kinds]
    columns = min(4, max(1, int(figure.get_figwidth() / 1.6)))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if columns == 3 else columns, fontsize=9, frameon=False)


# ----------------------------------------------------------------------------------------------- receptive fields


def receptive_fields(fields: Mapping[str, ReceptiveField], path: Path, note: str = "") -> Path:
    """Effective receptive fields side by side on one logarithmic scale; the circle holds half of the energy, the contour is FAINT of the maximum."""
    from matplotlib.colors import LogNorm

    figure, axes = _figure(3.2 * len(fields) + 0.6, 3.9, 1, len(fields))
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        height, width = field.map.shape
        shown = ax.imshow(np.maximum(field.map, 1e-4), cmap="magma", norm=LogNorm(1e-4, 1), extent=(0, width, height, 0))
        angle = np.linspace(0, 2 * np.pi, 200)
        ax.plot(field.centre[0] + field.half_radius * np.cos(angle), field.centre[1] + field.half_radius * np.sin(angle), "--", color="white", linewidth=1.3)
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.set_xticks([0, width // 2, width])
        ax.set_yticks([0, height // 2, height])
        _title(ax, name, f"half of the energy within {field.half_radius:.0f} px\n{100 * field.share:.1f} % of the image above {100 * FAINT:g} % of the peak")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01, ticks=[1e-4, 1e-3, 1e-2, 1e-1, 1])
    bar.set_label("mean |gradient|, largest = 1", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    _foot(figure, note)
    return _save(figure, path)
