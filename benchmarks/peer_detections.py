"""Do we find what YOLOv5 finds? The same weights and images through both programs, detection by detection.

The checkpoint is read by models/foreign.py only; the peer gets its tensors in a file made here, so nothing in the checkpoint runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Compare detections of this program and of the yolov5 package."""

    weights: str = option("../shared/weights/yolov5n.pt", "YOLOv5 v6/v7 checkpoint of size --size", metavar="FILE")
    size: str = option("n", "which YOLOv5 the checkpoint is", choices=("n", "s", "m", "l", "x"))
    source: str = option("", "folder of images (default: the photographs in the ultralytics package)", metavar="FOLDER")
    img: int = option(640, "longer image side in pixels", "--imgsz")
    conf_thres: float = option(0.25, "lowest score of a detection")
    iou_thres: float = option(0.45, "NMS IoU")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks.peer_detections") if __name__ == "__main__" else Options()

import importlib.util  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.peer import peer_environment, peer_model, require_peer  # noqa: E402
from data.images import SUFFIXES, read_image  # noqa: E402
from models.foreign import read_foreign  # noqa: E402
from utils.boxes import cxcywh_to_xyxy, iou  # noqa: E402
from utils.errors import UserError  # noqa: E402

PIXELS, SCORE = 1.0, 0.005  # the largest differences that count as the same
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Agreement:
    """How two lists of detections of one image compare."""

    pairs: int
    only_theirs: int
    only_ours: int
    pixels: float  # largest difference of a box side
    score: float  # largest difference of a score


def compare(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """Pair detections (n, 6) [class, xyxy, score] of one class by their overlap, best first, and measure what differs."""
    overlap = iou(ours[:, 1:5], theirs[:, 1:5]) * (ours[:, None, 0] == theirs[None, :, 0])
    pairs: list[tuple[int, int]] = []
    while overlap.size and overlap.max() > 0.5:
        i, j = (int(k) for k in np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append((i, j))
        overlap[i], overlap[:, j] = 0, 0
    pixels = max((float(np.abs(ours[i, 1:5] - theirs[j, 1:5]).max()) for i, j in pairs), default=0.0)
    score = max((float(abs(ours[i, 5] - theirs[j, 5])) for i, j in pairs), default=0.0)
    return Agreement(len(pairs), len(theirs) - len(pairs), len(ours) - len(pairs), pixels, score)


def read_rows(path: Path, width: int, height: int) -> np.ndarray:
    """Detections (n, 6) [class, xyxy in pixels, score] of a label file with scores."""
    rows = np.loadtxt(path, ndmin=2) if path.is_file() else np.zeros((0, 6))
    rows[:, 1:5] = cxcywh_to_xyxy(rows[:, 1:5] * [width, height, width, height])
    return rows


def call(arguments: list[str], cwd: Path, folder: Path) -> None:
    """Run a program in `cwd`; UserError with its last words where it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=peer_environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr.strip()[-800:]}")


def main() -> int:
    """Run both, print the comparison, 1 where they disagree."""
    require_peer()
    assets = importlib.util.find_spec("ultralytics")
    source = Path(OPTIONS.source) if OPTIONS.source else Path(str(assets and assets.origin)).parent / "assets"
    images = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES) if source.is_dir() else []
    if not images:
        raise UserError(f"{source}: no folder with images; give one with --source")
    foreign = read_foreign(OPTIONS.weights)
    worst: list[Agreement] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = peer_model(OPTIONS.size, max(len(foreign.names), 1), dict(foreign.state))
        model.names = list(foreign.names)
        torch.save({"model": model, "ema": None}, folder / "peer.pt")
        flags = ["--source", str(source.resolve()), "--conf-thres", str(OPTIONS.conf_thres), "--iou-thres", str(OPTIONS.iou_thres)]
        flags += ["--img", str(OPTIONS.img), "--device", "cpu", "--nosave", "--save-txt", "--save-conf", "--project", str(folder), "--exist-ok"]
        # Away from our root: both programs have packages called `models` and `utils`.
        call(["-m", "yolov5.detect", "--weights", str(folder / "peer.pt"), *flags, "--name", "theirs"], folder, folder)
        call(["detect.py", "--weights", str(Path(OPTIONS.weights).resolve()), *flags, "--name", "ours"], ROOT, folder)
        for path in images:
            height, width = read_image(path).shape[:2]
            ours, theirs = (read_rows(folder / side / "labels" / f"{path.stem}.txt", width, height) for side in ("ours", "theirs"))
            found = compare(ours, theirs)
            worst.append(found)
            print(
                f"{path.name}: {found.pairs} detections in both, {found.only_theirs} only theirs, {found.only_ours} only ours; "
                f"largest difference {found.pixels:.4f} px, score {found.score:.5f}"
            )
    same = all(item.only_ours == item.only_theirs == 0 and item.pixels <= PIXELS and item.score <= SCORE for item in worst)
    print(f"{'the same' if same else 'NOT the same'} within {PIXELS:g} px and {SCORE:g} in score")
    return 0 if same else 1


if __name__ == "__main__":
    run(main)
