"""The commands of `python -m data.msld` and their flags, without an import that takes time: --help is answered at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import USER

# Regions of a mask below this share of the image are specks, not landslides.
MIN_SHARE = 0.0005


@dataclass(frozen=True)
class BuildOptions:
    """Build the paper's MSLD from the Bijie and the Southwest sources."""

    bijie: str | None = option(None, "Bijie folder with landslide/{image,mask or polygon_coordinate} and non-landslide/image")
    southwest: str | None = option(None, "Southwest folder with JPEG + VOC XML")
    out: str = option("datasets/msld", "new folder of the dataset; an interrupted build in it is continued")
    seed: int = option(0, "drives techniques, their strength and the split")
    split: str = option("paper", "paper: after augmentation, as the paper did; grouped: versions of one place stay together", choices=("paper", "grouped"))
    group: str | None = option(None, "CSV with the columns name,group: sources that overlap on the ground")
    min_share: float = option(MIN_SHARE, "regions of a mask below this share of the image are dropped")
    jobs: int = option(1, "processes")


@dataclass(frozen=True)
class PrepareOptions:
    """Turn a folder of images with masks, polygons, COCO JSON, VOC XML or YOLO text into a YOLO dataset."""

    folder: str = option("", "folder with images/ (or images in it) and masks/, polygon_coordinate/, annotations/, labels/ or a COCO *.json", positional=True)
    out: str = option("datasets/prepared", "new folder of the dataset; an interrupted build in it is continued")
    names: list[str] | None = option(None, "class names (default: those of the COCO file, else landslide)")
    group: str | None = option(None, "CSV with the columns name,group[,source] (default: FOLDER/manifest.csv if it has them)")
    seed: int = option(0, "drives the split: 63 % train, 7 % val, 30 % test, groups kept together")
    min_share: float = option(MIN_SHARE, "regions of a mask below this share of the image are dropped")
    jobs: int = option(1, "processes")


@dataclass(frozen=True)
class ReportOptions:
    """Describe a dataset in numbers and pictures, and measure what can be guessed without looking at a pixel."""

    data: str = option("", "dataset YAML", positional=True)
    out: str | None = option(None, "folder to write into (default: runs/report/NAME)")


Options = BuildOptions | PrepareOptions | ReportOptions


def command_line(arguments: Sequence[str], usage: str) -> Options:
    """The options of `build ...`, `prepare ...` or `report ...`. Ends the process with 0 after --help and with 2 after a wrong command or flag."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    commands: dict[str, type[Options]] = {"build": BuildOptions, "prepare": PrepareOptions, "report": ReportOptions}
    if command in commands:
        return parse(commands[command], rest, f"python -m data.msld {command}")
    print(usage)
    if command in ("-h", "--help"):
        sys.exit(0)
    print(f"error: {command!r}: build, prepare or report was expected", file=sys.stderr)
    sys.exit(USER)
