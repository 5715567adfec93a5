"""A campaign's figures and its page: draws everything into OUT/figures/ and binds it, with the tables, into OUT/index.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.dataset import Sample
from data.images import read_image
from data.labels import Labels
from data.loader import evaluation_batches
from models.weights import load_weights
from reproduction import figures
from reproduction.page import Picture, Section, Table, write_page
from reproduction.receptive_field import ReceptiveField, receptive_field
from reproduction.record import RunRecord
from reproduction.results import Results

PAGE = "index.html"
WARNINGS = ("SHORTENED", "INCOMPLETE", "MIXED")  # words that a line of the headline begins with
SIDE_BY_SIDE = {"ablation": ("yolov5s", "msfe", "wdh", "ls-yolo")}  # of a study with more rows than a page is wide: these, others in their place
MOST_COLUMNS, SHOWN_IMAGES, FAILURES = 7, 6, 8
CONTEXTS = ("odh", "adh", "cdh", "wdh")  # the same neck, four regression branches
FIELD_IMAGES, FIELD_LEVEL = 8, 1  # test images with objects; P4, stride 16


def write_report(out: Path, results: Results, lines: Sequence[str], tables: Sequence[Table]) -> Path:
    """Draw all figures of the runs of split 'main' into OUT/figures/ and write OUT/index.html, whose path is returned.

    lines: the headline of tables.headline; tables: those of tables.all_tables. Raises OSError where the disk cannot take it.
    """
    folder = out / "figures"
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    warnings = [line for line in lines if line.startswith(WARNINGS)]
    note = warnings[0] if warnings else ""
    parts = [table for table in tables if table.title.startswith("Results by")]
    sections = [Section("Results", (), [_marked(table) for table in tables if table not in parts])]
    if any(record.split == "main" for record in results.records):
        sections.append(Section("Figures", (), (), chart_pictures(results, folder, note)))
        sections.append(Section("Pictures", (), (), image_pictures(results, folder, note)))
    if parts:
        sections.append(Section("By source, size and share of the image", (), parts))
    sections.append(Section("Each model", ("Curves by seed, P-R plots and the images with most errors; a click opens them.",)))
    sections += row_sections(results, folder / "rows", note)
    sections.append(Section("Runs", ("Every figure above comes from these.",), [runs_table(results)]))
    notes = [line for line in lines if not line.startswith(WARNINGS)]
    return write_page(out / PAGE, f"{results.study.title}, reproduced", notes, sections, warnings)


def _marked(table: Table) -> Table:
    """With the no-pixel rule's row set off from the models'."""
    return replace(table, marked=[place for place, row in enumerate(table.rows) if row[0] == "no-pixel rule"])


def chart_pictures(results: Results, folder: Path, note: str) -> list[Picture]:
    """Bars, differences, curves of all rows."""
    study, records = results.study, results.records
    lines = figures.row_lines(records, study)
    caption = "P, R and AP of every model, as the paper's Fig. 14, and AP50 under the coco protocol."
    pictures = [Picture(figures.metric_bars(records, study, folder / "metrics.png", note), caption)]
    title = study.row(study.reference).title
    panels = {
        f"{words} to {title}": {result.row.name: result.to_reference[key] for result in results.results["main"] if key in result.to_reference}
        for key, words in (("AP", "AP (paper)"), ("AP50", "AP50 (coco)"))
    }
    if all(panels.values()):
        caption = "Differences in AP points with their 95 % intervals. A hollow mark: the interval holds 0, the difference may be chance."
        pictures.append(Picture(figures.difference_plot(panels, study, folder / "differences.png", note), caption))
    pictures.append(Picture(figures.cost_bars(records, study, folder / "cost.png", note), "Parameters, FLOPs and speed, as the paper's Fig. 15."))
    caption = "Training: means over the seeds, the band from the lowest to the highest."
    pictures.append(Picture(figures.training_curves(lines, folder / "training.png", note), caption))
    pictures.append(Picture(figures.pr_curves(lines, folder / "pr.png", note), "Precision over recall at IoU 0.5 under both protocols, means over the seeds."))
    return pictures


def image_pictures(results: Results, folder: Path, note: str) -> list[Picture]:
    """Detections side by side, and receptive fields; only what the images and weights still there allow."""
    study, rows = results.study, figures.by_row(results.records, results.study)
    preferred = SIDE_BY_SIDE.get(study.name, ())
    chosen = sorted(rows, key=lambda row: row not in preferred)[: len(preferred) or MOST_COLUMNS]
    runs = [own[0] for row, own in rows.items() if row in chosen]
    pictures = []
    if _images_are_there(runs[0]) and (images := figures.telling_images(runs, SHOWN_IMAGES)):
        path = figures.side_by_side(runs, images, study, folder / "detections.png")
        caption = f"Detections from confidence 0.5 on, as the paper's Fig. 16, of seed {runs[0].seed}: images on which these models differ most."
        pictures.append(Picture(path, caption, photo=True))
    fields = context_fields([rows[name][0] for name in CONTEXTS if name in rows])
    if fields:
        titles = {figures.title_of(name, study): field for name, field in fields.items()}
        caption = "Effective receptive fields of the regression branch (stride 16, one cell in the middle): mean |gradient| with respect to the image over "
        caption += f"{FIELD_IMAGES} test images at most. The circle holds half of its sum."
        pictures.append(Picture(figures.receptive_fields(titles, folder / "receptive_fields.png", note), caption))
    return pictures


def context_fields(runs: Sequence[RunRecord]) -> dict[str, ReceptiveField]:
    """Row -> receptive field of its trained model, on test images with objects; rows without weights or images are left out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fields = {}
    for run in runs:
        weights = run.folder / "weights" / "best.pt"
        if not weights.is_file() or not _images_are_there(run):
            continue
        loaded = load_weights(weights, device)
        held = [Path(path) for path, truth in zip(run.images, run.truths, strict=True) if len(truth.classes)]
        step = max(1, len(held) // FIELD_IMAGES)
        samples = [_unlabelled(path) for path in held[::step][:FIELD_IMAGES]]
        side = -(-loaded.imgsz // loaded.model.stride) * loaded.model.stride
        batches = evaluation_batches(samples, side, 1, loaded.model.stride, rect=False)
        images = [batch.images[0].to(device).float() / 255 for batch in batches]
        if images:
            fields[run.row] = receptive_field(loaded.model, images, FIELD_LEVEL)
    return fields


def row_sections(results: Results, folder: Path, note: str) -> list[Section]:
    """A folded section per row: curves and P-R plots of its seeds, and the images its first seed errs in most."""
    sections = []
    for row, runs in figures.by_row(results.records, results.study).items():
        lines = figures.seed_lines(runs)
        pictures = [Picture(figures.training_curves(lines, folder / f"{row}_training.png", note, vector=False), "Training, by seed.")]
        path = figures.pr_curves(lines, folder / f"{row}_pr.png", note, vector=False)
        pictures.append(Picture(path, "Precision over recall at IoU 0.5 under both protocols, by seed."))
        worst = figures.failure_cases(runs[0], folder / f"{row}_failures.png", FAILURES) if _images_are_there(runs[0]) else None
        if worst:
            pictures.append(Picture(worst, f"The images with most errors at confidence 0.5, as the paper's Fig. 17, of seed {runs[0].seed}.", photo=True))
        sections.append(Section(figures.title_of(row, results.study), (), (), pictures, folded=True))
    return sections


def runs_table(results: Results) -> Table:
    """Every run with its own figures."""
    columns = ["Run", "split", "seed", "epochs", "px", "P %", "R %", "AP % (paper)", "AP50 % (coco)", "AP50:95 % (coco)", "device"]
    rows = []
    for record in results.records:
        overall, settings = record.report["overall"], record.settings
        shares = (overall["at_confidence"]["precision"], overall["at_confidence"]["recall"], overall["paper"]["AP"], *overall["coco"].values())
        own = [record.name, record.split, str(record.seed), str(settings.get("epochs", "")), str(settings.get("imgsz", ""))]
        rows.append([*own, *(f"{100 * share:.2f}" for share in shares), str(settings.get("device", ""))])
    return Table("All runs", columns, rows, "Each lies in runs/ beside this page: weights, results.csv, args.yaml, record.json, detections.npz.")


def _unlabelled(path: Path) -> Sample:
    """An image of which only the pixels matter."""
    height, width = read_image(path).shape[:2]
    return Sample(path, width, height, Labels.from_rows([]))


def _images_are_there(run: RunRecord) -> bool:
    """Whether the test images can still be drawn."""
    return all(Path(path).is_file() for path in run.images)
