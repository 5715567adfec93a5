"""A validation pass and a detection run of this program and of YOLOv5: same network, weights, images, batch and size."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Measure validation and detection against the yolov5 package's."""

    weights: str = option("", "YOLOv5 checkpoint of size --size (default: random weights)", metavar="FILE")
    size: str = option("s", "which YOLOv5", choices=("n", "s", "m", "l", "x"))
    source: str = option("../shared/real", "folder with images/ and labels/; generated images where it is absent", metavar="FOLDER")
    images: int = option(48, "number of images")
    img: int = option(640, "longer image side in pixels", "--imgsz")
    batch_size: int = option(16, "images per batch of the validation; detection goes one by one, as YOLOv5 does, and also in these batches")
    rounds: int = option(3, "measured passes per program")
    threads: int | None = option(None, "threads of PyTorch (default: its own choice)")
    device: str = option("cpu", "cpu, or a GPU number such as 0")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks.val_detect") if __name__ == "__main__" else Options()

import contextlib  # noqa: E402
import io  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

import detect  # noqa: E402
import models.yolo  # noqa: E402
import val  # noqa: E402
from benchmarks.data_pipeline import generated_set  # noqa: E402
from benchmarks.peer import PACKAGE, peer_model, require_peer  # noqa: E402
from benchmarks.timing import alternate, ratio_line  # noqa: E402
from data.dataset import scan  # noqa: E402
from data.loader import evaluation_batches  # noqa: E402
from models.foreign import Foreign, read_foreign, to_ours  # noqa: E402
from models.yolo import DetectionModel  # noqa: E402
from utils.checkpoint import save_checkpoint  # noqa: E402
from utils.runtime import device_line, select_device  # noqa: E402


def image_set(place: Path) -> Path:
    """A folder with the first images of the source in even steps and their labels, because the peer writes a cache beside them."""
    source = Path(OPTIONS.source)
    if not (source / "images").is_dir():
        return generated_set(OPTIONS.images, place)
    paths = sorted((source / "images").iterdir())
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for path in paths[:: max(1, len(paths) // OPTIONS.images)][: OPTIONS.images]:
        shutil.copy(path, place / "images")
        shutil.copy(source / "labels" / f"{path.stem}.txt", place / "labels")
    return place / "images"


def our_pass(model: DetectionModel, names: list[str], folder: Path, device: torch.device) -> Callable[[], object]:
    """val.py's own evaluation, images from disk."""
    samples, _ = scan(sorted(folder.iterdir()), len(names), quiet=True)
    batches = evaluation_batches(samples, OPTIONS.img, OPTIONS.batch_size, 32)
    return lambda: val.evaluate(model, batches, names, device)


def their_pass(model: Any, names: list[str], folder: Path, place: Path) -> Callable[[], object]:
    """The peer's evaluation."""
    loaders, evaluate = import_module(f"{PACKAGE}.utils.dataloaders"), import_module(f"{PACKAGE}.val").run
    data = {"nc": len(names), "names": dict(enumerate(names)), "val": str(folder)}
    batches, _ = loaders.create_dataloader(str(folder), OPTIONS.img, OPTIONS.batch_size, 32, pad=0.5, rect=True, workers=0)
    settings = {"imgsz": OPTIONS.img, "half": False, "plots": False, "save_dir": place}
    return lambda: evaluate(data, None, OPTIONS.batch_size, model=model, dataloader=batches, **settings)


def our_detection(weights: Path, folder: Path, place: Path, batch_size: int) -> Callable[[], object]:
    """detect.py from loading the weights to the last file."""
    options = detect.Options(
        weights=str(weights), source=str(folder), img=OPTIONS.img, device=OPTIONS.device, batch_size=batch_size, save_txt=True,
        project=str(place), name="ours", exist_ok=True,
    )  # fmt: skip

    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            detect.main(options)

    return call


def their_detection(weights: Path, folder: Path, place: Path) -> Callable[[], object]:
    """The peer's detection, likewise."""
    program = import_module(f"{PACKAGE}.detect").run
    settings = {"device": OPTIONS.device, "save_txt": True, "project": str(place), "name": "theirs", "exist_ok": True}
    return lambda: program(weights=str(weights), source=str(folder), imgsz=(OPTIONS.img, OPTIONS.img), **settings)


def let_the_peer_load() -> None:
    """The peer looks for its classes in a top-level `models.yolo`, which is ours here; and its files are pickles, made by this benchmark."""
    theirs = import_module(f"{PACKAGE}.models.yolo")
    for name in ("Detect", "Model"):
        setattr(models.yolo, name, getattr(theirs, name))
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def main() -> None:
    """Measure validation, then detection."""
    os.environ["YOLO_VERBOSE"] = "false"  # no line per image
    require_peer()
    if OPTIONS.threads:
        torch.set_num_threads(OPTIONS.threads)
    device = select_device(OPTIONS.device)
    foreign = read_foreign(OPTIONS.weights) if OPTIONS.weights else None
    names = list(foreign.names) if foreign else ["landslide"]
    theirs = peer_model(OPTIONS.size, len(names), dict(foreign.state) if foreign else None)
    theirs.names = dict(enumerate(names))
    config, weights = to_ours(foreign or Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
    ours = DetectionModel(config)
    ours.load_state_dict(weights)
    title = f"yolov5{OPTIONS.size}, {len(names)} classes, {OPTIONS.images} images at {OPTIONS.img} px, {device_line(device)}"
    with tempfile.TemporaryDirectory() as root:
        place = Path(root)
        folder = image_set(place / "set")
        save_checkpoint(place / "ours.pt", {"model": config.to_dict(), "names": names, "imgsz": OPTIONS.img, "ema": ours.state_dict()})
        torch.save({"model": theirs, "ema": None}, place / "theirs.pt")
        let_the_peer_load()
        ours.fuse().eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        passes = {"ours": our_pass(ours, names, folder, device), "theirs": their_pass(theirs.fuse().eval().to(device), names, folder, place)}
        found = alternate(passes, OPTIONS.rounds, OPTIONS.images)
        lines = [ratio_line(f"validation, batch {OPTIONS.batch_size}, {title}", "image", found["ours"], found["theirs"])]
        runs = {
            "one": our_detection(place / "ours.pt", folder, place, 1),
            "batch": our_detection(place / "ours.pt", folder, place, OPTIONS.batch_size),
            "theirs": their_detection(place / "theirs.pt", folder, place),
        }
        found = alternate(runs, OPTIONS.rounds, OPTIONS.images)
        lines += [ratio_line(f"detection, batch 1, {title}", "image", found["one"], found["theirs"])]
        lines += [ratio_line(f"detection, batch {OPTIONS.batch_size} (yolov5: 1), {title}", "image", found["batch"], found["theirs"])]
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
