"""Row `startup`: `detect.py` on one image, from the start of the process to its end, against the peer's detection."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.peer import PACKAGE, peer_environment, peer_model
from benchmarks.timing import OURS, PEER, Measured, Row, Settings
from data.images import write_image
from models.foreign import Foreign, to_ours
from models.yolo import build_model
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def _process(arguments: list[str], cwd: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of a process: on the clock, and of the processors."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise UserError(f"{' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def startup(settings: Settings) -> Row:
    """YOLOv5s of random weights on one image of 640 px: imports, checkpoint, network, the image, its files."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        commands: dict[str, tuple[list[str], Path]] = {}
        write_image(folder / "image.jpg", torch.randint(0, 256, (640, 640, 3), dtype=torch.uint8).numpy())
        flags = ["--source", str(folder / "image.jpg"), "--img", "640", "--device", settings.device, "--save-txt", "--project", place, "--exist-ok"]
        config, weights = (model := build_model("models/yolov5s.yaml", 1)).config, model.state_dict()
        if settings.peer:
            theirs = peer_model("s", 1)
            theirs.names = ["landslide"]
            config, weights = to_ours(Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
            torch.save({"model": theirs, "ema": None}, folder / "peer.pt")
            # Away from our root: both programs have packages called `models` and `utils`.
            commands[PEER] = (["-m", f"{PACKAGE}.detect", "--weights", str(folder / "peer.pt"), *flags, "--name", PEER], folder)
        save_checkpoint(folder / "ours.pt", {"model": config.to_dict(), "names": ["landslide"], "imgsz": 640, "ema": weights})
        commands[OURS] = (["detect.py", "--weights", str(folder / "ours.pt"), *flags, "--name", OURS], ROOT)
        return processes_in_turn(commands, folder, settings, "process start to end, one image")


def processes_in_turn(commands: Mapping[str, tuple[list[str], Path]], folder: Path, settings: Settings, note: str) -> Row:
    """The row `startup` of the two programs' (arguments of Python, working folder); the peer's own settings go to `folder`."""
    environment = peer_environment(folder) | ({"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(1 + settings.rounds_or(7)):  # the first brings the files into the system's cache
        for name in sorted(commands, reverse=number % 2 == 0):
            arguments, cwd = commands[name]
            values = _process(arguments, cwd, environment)
            if number:
                found[name].append(values)
    measured = {name: Measured(*zip(*values, strict=True)) for name, values in found.items()}
    return Row("startup", "s", measured[OURS], measured.get(PEER), note)
