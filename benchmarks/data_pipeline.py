"""Training pictures per second, one process: this program's plan and render against YOLOv5's dataset class.

640 px, mosaic 1.0, mixup 0.1, copy-paste 0.1 and the rest of data/hyps/ls-yolo.yaml, images in memory, batches put together.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Measure the data pipeline against the yolov5 package's."""

    source: str = option("../shared/real", "folder with images/ and labels/; only generated images where it is absent", metavar="FOLDER")
    img: int = option(640, "side of the pictures in pixels", "--imgsz")
    batch_size: int = option(16, "pictures per batch")
    rounds: int = option(15, "measured rounds of one batch each, per program and set")
    generated: int = option(64, "images of the generated set")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks.data_pipeline") if __name__ == "__main__" else Options()

import shutil  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.peer import PACKAGE, require_peer  # noqa: E402
from benchmarks.timing import alternate, ratio_line  # noqa: E402
from data.dataset import ImageStore, label_path, scan  # noqa: E402
from data.images import SUFFIXES, write_image  # noqa: E402
from data.loader import Pictures, TrainBatches, collate  # noqa: E402
from utils.config import load_hyp  # noqa: E402

HYP = Path("data/hyps/ls-yolo.yaml")


def real_set(source: Path, place: Path) -> Path:
    """A copy of the labelled images, because the peer writes a cache beside them."""
    for kind in ("images", "labels"):
        shutil.copytree(source / kind, place / kind)
    return place / "images"


def generated_set(count: int, place: Path) -> Path:
    """Noise with coloured ellipses as objects, 1280 x 960 JPEG, each labelled by its outline."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for number in range(count):
        image = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (1280, 960), interpolation=cv2.INTER_CUBIC)
        rows = []
        for _ in range(int(rng.integers(1, 6))):
            centre, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.03, 0.15, 2)
            outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(image, [np.round(outline * (1280, 960)).astype(np.int32)], rng.integers(0, 255, 3).tolist())
            rows.append("0 " + " ".join(f"{value:.6f}" for value in outline.ravel()))
        write_image(place / "images" / f"{number}.jpg", image)
        (place / "labels" / f"{number}.txt").write_text("\n".join(rows) + "\n")
    return place / "images"


def our_batches(folder: Path) -> Callable[[], object]:
    """A function that makes the next batch."""
    samples, _ = scan(sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), 1, folder.parent.name, quiet=True)
    store = ImageStore(samples)
    store.keep(quiet=True)
    pictures = Pictures(samples, store, load_hyp(HYP))
    sampler = TrainBatches(samples, OPTIONS.batch_size, OPTIONS.img, 32, 0)

    def endless() -> Iterator[object]:
        while True:
            for draws in sampler:
                if len(draws) == OPTIONS.batch_size:
                    yield collate([pictures[draw] for draw in draws])
            sampler.epoch += 1

    batches = endless()
    return lambda: next(batches)


def their_batches(folder: Path) -> Callable[[], object]:
    """The same with the peer's dataset class."""
    dataset_class = import_module(f"{PACKAGE}.utils.dataloaders").LoadImagesAndLabels
    hyp = {field: getattr(load_hyp(HYP), field) for field in load_hyp(HYP).__dataclass_fields__}
    dataset = dataset_class(str(folder), OPTIONS.img, OPTIONS.batch_size, augment=True, hyp=hyp, cache_images="ram")
    order = np.random.default_rng(0)
    return lambda: dataset.collate_fn([dataset[int(index)] for index in order.integers(len(dataset), size=OPTIONS.batch_size)])


def main() -> None:
    """Measure each set and print a line."""
    require_peer()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        sets = {f"{OPTIONS.generated} generated images of 1280 x 960": generated_set(OPTIONS.generated, Path(place) / "generated")}
        if (Path(OPTIONS.source) / "images").is_dir():
            folder = real_set(Path(OPTIONS.source), Path(place) / "real")
            labelled = sum(label_path(path).is_file() for path in folder.iterdir())
            sets[f"{labelled} images of {OPTIONS.source}"] = folder
        lines = []
        for title, folder in sets.items():
            programs = {"ours": our_batches(folder), "theirs": their_batches(folder)}
            cv2.setNumThreads(0)  # one process, one thread, for both
            found = alternate(programs, OPTIONS.rounds, OPTIONS.batch_size, warm=2)
            lines.append(ratio_line(title, "picture", found["ours"], found["theirs"]))
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
