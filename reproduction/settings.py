"""The settings of a campaign: its command line, what of it decides the results, and how that differs from the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reproduction.paper import BATCH, EPOCHS, FOREIGN_HYP, FOREIGN_OPTIMIZER, HYP, IMGSZ, OPTIMIZER, Row, Study
from utils.config import Hyp, load_hyp, nearest, option
from utils.errors import UserError


@dataclass(frozen=True)
class Options:
    """Train and test the rows of Table III, each with several seeds, and write the table; start it again to go on."""

    data: str = option("", "dataset YAML: train and val train a model, test measures it (val where there is no test)", metavar="FILE")
    paper_data: str | None = option(None, "the same images under the paper's split: the same runs there, for the price of its leak", metavar="FILE")
    groups: str | None = option(None, "CSV (name or id, group): images the bootstrap draws together (default: manifest.csv beside --data)", metavar="FILE")
    rows: list[str] | None = option(None, "models (default: all that exist)", metavar="ROW")
    seeds: list[int] = option([0, 1, 2], "one run per row and seed")
    epochs: int = option(EPOCHS, "epochs of every run")
    img: int = option(IMGSZ, "image size in pixels", "--imgsz", "--img-size")
    batch_size: int = option(BATCH, "images per batch")
    device: str = option("", "cpu, or a GPU number such as 0 (default: the first GPU, else the CPU); one process per device may share --out")
    budget: float | None = option(None, "stop after so many minutes, saved; start again to go on", metavar="MINUTES")
    subset: int | None = option(None, "train on so many of the training images, and validate on as large a share", metavar="N")
    width: float | None = option(None, "width_multiple of the YOLO models (the paper's: 0.5)")
    hyp: str = option(HYP, "hyper-parameter YAML", metavar="FILE")
    optimizer: str = option(OPTIMIZER, "optimizer", choices=("SGD", "Adam", "AdamW"))
    baseline_hyp: str = option(FOREIGN_HYP, "hyper-parameter YAML of Faster R-CNN, SSD and EfficientDet", metavar="FILE")
    baseline_optimizer: str = option(FOREIGN_OPTIMIZER, "optimizer of the three", choices=("SGD", "Adam", "AdamW"))
    workers: int | None = option(None, "processes that draw pictures (default: up to 8 with a GPU, 0 on the CPU)")
    cache: str | None = option(None, "keep decoded images, as train.py does", choices=("ram", "disk", "device"), const="ram")
    compile: str | None = option(None, "compile the models; graphs: with CUDA graphs", choices=("default", "graphs"), const="default")
    amp: str = option("auto", "mixed precision: auto takes bf16 or else fp16 on a GPU, nothing on the CPU", choices=("auto", "off", "bf16", "fp16"))
    allow_change: bool = option(False, "go on although settings or data are no longer those of the campaign; finished runs stay as they are")
    no_page: bool = option(False, "write the tables only: no figures, no HTML page")
    out: str = option("runs/ablation", "folder of the campaign")


@dataclass(frozen=True)
class ComparisonOptions(Options):
    """Train and test the models of Table IV that exist, and write the table; start it again to go on."""

    out: str = option("runs/comparison", "folder of the campaign")


@dataclass(frozen=True)
class PlanOptions(Options):
    """Say what a campaign costs: the runs that are left times the measured seconds of their epochs."""

    study: str = option("ablation", "which table, where --out holds no campaign yet", choices=("ablation", "comparison"))


@dataclass(frozen=True)
class StatusOptions:
    """Say which runs of a campaign are done, running, missing, failed."""

    out: str = option("runs/ablation", "folder of the campaign")


@dataclass(frozen=True)
class TablesOptions:
    """Write tables, figures and page anew from the runs that are done."""

    no_page: bool = option(False, "write the tables only: no figures, no HTML page")
    out: str = option("runs/ablation", "folder of the campaign")


def check(options: Options) -> None:
    """UserError for values that no campaign could use."""
    if not options.data:
        raise UserError("--data is missing: a dataset YAML was expected (python -m data.msld build makes the paper's)")
    for flag, value in (("--epochs", options.epochs), ("--img", options.img), ("--batch-size", options.batch_size), ("--subset", options.subset)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: at least 1 was expected")
    if options.budget is not None and not options.budget > 0:
        raise UserError(f"--budget {options.budget}: minutes above 0 were expected")
    if options.width is not None and not 0 < options.width <= 4:
        raise UserError(f"--width {options.width}: above 0, at most 4 was expected")
    if min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: different whole numbers from 0 were expected")


def chosen_rows(study: Study, names: Sequence[str] | None, exists: Mapping[str, bool]) -> tuple[Row, ...]:
    """The rows asked for in the table's order. `exists`: row name -> whether its model is there. Raises UserError for an unknown or missing one."""
    known = [row.name for row in study.rows]
    for name in names or ():
        if name not in known:
            raise UserError(f"--rows {name}: no such row{nearest(name, known)}")
        if not exists[name]:
            raise UserError(f"--rows {name}: {study.row(name).cfg} is not there; this model cannot be built yet")
    return tuple(row for row in study.rows if (row.name in names if names else exists[row.name]))


def deciding(options: Options) -> dict[str, Any]:
    """The settings that decide the results, as plain values."""
    names = ("data", "paper_data", "epochs", "img", "batch_size", "optimizer", "baseline_optimizer", "subset", "width", "amp")
    hyps = {"hyp": asdict(load_hyp(options.hyp)), "baseline_hyp": asdict(load_hyp(options.baseline_hyp))}
    return {name: getattr(options, name) for name in names} | hyps


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """'name: old -> new' for everything that is no longer as it was."""
    found: list[str] = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{where}{name}.")
        elif old != new:
            found.append(f"{where}{name}: {old} -> {new}")
    return found


def shortened(settings: Mapping[str, Any]) -> list[str]:
    """What of the deciding settings is not the paper's, in words; empty for a campaign as the paper ran it."""
    words = []
    for name, own, unit in (("epochs", EPOCHS, "epochs"), ("img", IMGSZ, "px"), ("batch_size", BATCH, "images a batch"), ("optimizer", OPTIMIZER, "")):
        if settings[name] != own:
            words.append(" ".join(f"{settings[name]} {unit} instead of {own}".split()))
    if settings["width"] is not None:
        words.append(f"width {settings['width']:g} instead of 0.5")
    if settings["subset"] is not None:
        words.append(f"{settings['subset']} training images")
    other = [name for name, value in asdict(Hyp()).items() if settings["hyp"].get(name) != value]
    return words + ([f"other hyper-parameters than Table I's ({', '.join(other)})"] if other else [])
