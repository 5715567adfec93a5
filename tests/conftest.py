"""Generated data: pictures with a bright object each, so that a small model can learn them in seconds."""

from __future__ import annotations

import os

# Small models gain nothing from threads, and two processes with two spinning threads each stand in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest

from data.images import write_image

# No deadline: a busy machine is no failure. The same examples in CI, new ones at every desk.
hypothesis.settings.register_profile("project", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"


def make_picture(rng: np.random.Generator, width: int, height: int, objects: int) -> tuple[np.ndarray, list[list[float]]]:
    """A green, noisy picture with `objects` reddish ellipses; their boxes as YOLO rows (class 0)."""
    image = np.full((height, width, 3), (60, 90, 55), np.float32) + rng.normal(0, 12, (height, width, 1))
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.2)
    rows = []
    for _ in range(objects):
        rx, ry = int(rng.integers(width // 10, width // 5)), int(rng.integers(height // 10, height // 5))
        cx, cy = int(rng.integers(rx + 2, width - rx - 2)), int(rng.integers(ry + 2, height - ry - 2))
        cv2.ellipse(image, (cx, cy), (rx, ry), 0, 0, 360, (175, 130, 90), -1)
        rows.append([0, (cx + 0.5) / width, (cy + 0.5) / height, (2 * rx + 1) / width, (2 * ry + 1) / height])
    return np.clip(image, 0, 255).astype(np.uint8), rows


def make_dataset(root: Path, images: int = 16, side: int = 160, seed: int = 0, backgrounds: int = 2) -> Path:
    """images/train, images/val (the same number), labels beside them, and data.yaml, whose path is returned."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(images):
            width, height = side, side - 32 * int(i % 3 == 0)
            image, rows = make_picture(rng, width, height, 0 if i < backgrounds else 1 + i % 2)
            write_image(root / "images" / split / f"{i:03d}.png", image)
            text = "".join(" ".join(f"{v:g}" for v in row) + "\n" for row in rows)
            (root / "labels" / split / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    path = root / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: {0: landslide}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 16 + 16 small pictures; its YAML."""
    return make_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def narrow_cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LS-YOLO an eighth as wide: 0.4 M parameters."""
    path = tmp_path_factory.mktemp("cfg") / "narrow.yaml"
    path.write_text(f"base: {ROOT / 'models' / 'ls-yolo.yaml'}\nwidth_multiple: 0.125\ndepth_multiple: 0.1\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def real_images() -> list[Path]:
    """The real landslide images, where they are at hand."""
    if not REAL.is_dir():
        pytest.skip("../shared/real is not there: real images are not part of the project")
    return sorted((REAL / "images").glob("*.jpg"))
