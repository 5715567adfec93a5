"""Kill training again and again, resume each time, and compare with a run that nobody touched: python -m fuzz.kill_resume --kills 100

Every start is a process of its own, ended by SIGKILL at a random moment or while a checkpoint is being written; a run killed before its first
checkpoint starts anew. The final weights, of the model and of its average, must be equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """SIGKILL training runs at random moments, resume them, and compare the final weights with an uninterrupted run's."""

    kills: int = option(100, "kills in all")
    per_run: int = option(10, "kills per training run; the run is then left to end")
    seed: int = option(0, "seed of the moments")
    folder: str = option("runs/kill_resume", "folder for the runs; removed first")


OPTIONS = parse(Options, prog="python -m fuzz.kill_resume") if __name__ == "__main__" else Options()

import os  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402
from data.images import write_image  # noqa: E402
from utils.checkpoint import TEMPORARY, load_checkpoint, tensors  # noqa: E402
from utils.errors import UserError  # noqa: E402

MODEL = "base: {base}\nwidth_multiple: 0.125\ndepth_multiple: 0.1\n"


def write_data(folder: Path) -> Path:
    """Twelve small pictures of bright rectangles and their labels; the dataset YAML."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(12 if split == "train" else 4):
            image = rng.integers(0, 90, (64, 64, 3), np.uint8)
            left, top = rng.integers(2, 30, 2).tolist()
            cv2.rectangle(image, (left, top), (left + 24, top + 20), (200, 150, 90), -1)
            write_image(folder / "images" / split / f"{number}.png", image)
            row = f"0 {(left + 12.5) / 64:.6f} {(top + 10.5) / 64:.6f} {25 / 64:.6f} {21 / 64:.6f}\n"
            (folder / "labels" / split / f"{number}.txt").write_text(row, encoding="utf-8")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [landslide]\n", encoding="utf-8")
    return folder / "data.yaml"


def start(options: train.Options, log: Path) -> int:
    """Train in a process of its own (a fork, so that torch need not be loaded each time); its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        train.train(options)
        code = 0
    except BaseException:  # told in the log; the parent sees the code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def kill_sometime(child: int, weights: Path, rng: random.Random, longest: float) -> bool:
    """Kill the process at a random moment, or in every other case soon after it begins to write a checkpoint; False if it ended before."""
    deadline, in_writing = time.monotonic() + rng.uniform(0.02, longest / 2), rng.random() < 0.5
    pause = rng.uniform(0, 0.02)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline and (not in_writing or any(weights.glob(f"*{TEMPORARY}"))):
            time.sleep(pause if in_writing else 0)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return os.WIFSIGNALED(status)
        time.sleep(0.0005)
    return False


def where_it_stopped(weights: Path) -> str:
    """What the killed run left: every file under its own name must be whole."""
    strays = len(list(weights.glob(f"*{TEMPORARY}")))
    if not (weights / "last.pt").exists():
        return "while writing the first checkpoint" if strays else "before the first checkpoint"
    for path in weights.glob("*.pt"):
        load_checkpoint(path)
    return "while writing a checkpoint" if strays else "elsewhere"


def run_with_kills(options: train.Options, kills: int, rng: random.Random, longest: float) -> Counter[str]:
    """Train to the end through `kills` kills; where they struck."""
    folder, found = Path(options.project) / options.name, Counter[str]()
    last = folder / "weights" / "last.pt"
    while True:
        if last.exists() and load_checkpoint(last)["progress"]["epoch"] == options.epochs:  # killed while drawing its last plots
            if sum(found.values()) == kills:
                return found
            shutil.rmtree(folder)
        now = train.Options(resume=str(last), device="cpu") if last.exists() else options
        child = start(now, Path(options.project) / "log.txt")
        if sum(found.values()) < kills and kill_sometime(child, folder / "weights", rng, longest):
            found[where_it_stopped(folder / "weights")] += 1
            continue
        if sum(found.values()) < kills:  # it had ended: train the same run anew
            shutil.rmtree(folder)
            continue
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status):
            raise UserError(f"{folder}: the resumed run failed, see {options.project}/log.txt")
        return found


def equal(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit, of weights, average and optimizer."""
    first, second = (dict(tensors({key: load_checkpoint(path)[key] for key in ("weights", "ema", "optimizer")})) for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def main() -> int:
    """Run, compare and print the figures; 1 where a run ended otherwise than the uninterrupted one."""
    folder, rng = Path(OPTIONS.folder), random.Random(OPTIONS.seed)
    shutil.rmtree(folder, ignore_errors=True)
    data = write_data(folder / "data")
    (folder / "model.yaml").write_text(MODEL.format(base=Path(train.__file__).with_name("models") / "ls-yolo.yaml"), encoding="utf-8")
    (folder / "hyp.yaml").write_text("warmup_epochs: 1\nmixup: 0.3\ncopy_paste: 0.5\n", encoding="utf-8")
    torch.set_num_threads(1)
    options = train.Options(
        cfg=str(folder / "model.yaml"),
        data=str(data),
        hyp=str(folder / "hyp.yaml"),
        epochs=5,
        batch_size=4,
        imgsz=64,
        device="cpu",
        project=str(folder),
        name="whole",
        exist_ok=True,
        workers=0,
    )
    began = time.monotonic()
    os.waitpid(start(options, folder / "log.txt"), 0)
    longest = time.monotonic() - began
    found, different, runs = Counter[str](), 0, 0
    while sum(found.values()) < OPTIONS.kills:
        runs += 1
        name = f"killed{runs}"
        found += run_with_kills(replace(options, name=name), min(OPTIONS.per_run, OPTIONS.kills - sum(found.values())), rng, longest)
        same = equal(folder / "whole" / "weights" / "last.pt", folder / name / "weights" / "last.pt")
        same = same and (folder / "whole" / "results.csv").read_bytes() == (folder / name / "results.csv").read_bytes()
        different += not same
        print(f"{name}: {dict(found)}; {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{sum(found.values())} kills over {runs} runs in {time.monotonic() - began:.0f} s, {different} runs ended differently: {dict(found)}")
    return int(different > 0)


if __name__ == "__main__":
    run(main)
