"""data/split.py: groups stay together, shares are met, and the files written are a dataset."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.dataset import list_images, load_data
from data.images import write_image
from data.split import Options, split_folder
from tests.conftest import REAL, ROOT
from utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images: 40 of source a in pairs that belong together, 20 of source b."""
    root = tmp_path_factory.mktemp("split")
    (root / "images").mkdir()
    rows = ["id,group,source"]
    for i in range(60):
        write_image(root / "images" / f"{i:02d}.png", np.zeros((8, 8, 3), np.uint8))
        rows.append(f"{i:02d},{f'pair{i // 2}' if i < 40 else f'single{i}'},{'a' if i < 40 else 'b'}")
    (root / "groups.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_groups_stay_together_and_every_source_keeps_its_share(folder: Path) -> None:
    splits = split_folder(Options(images=str(folder / "images"), groups=str(folder / "groups.csv"), val=0.2, test=0.1))
    numbers = {split: [int(path.stem) for path in paths] for split, paths in splits.items()}
    assert sorted(sum(numbers.values(), [])) == list(range(60))
    for images in numbers.values():
        pairs = Counter(i // 2 for i in images if i < 40)
        assert set(pairs.values()) <= {2}
    assert {split: sum(i < 40 for i in images) for split, images in numbers.items()} == {"train": 28, "val": 8, "test": 4}
    assert {split: sum(i >= 40 for i in images) for split, images in numbers.items()} == {"train": 14, "val": 4, "test": 2}


def test_the_seed_decides(folder: Path) -> None:
    first, same, other = (split_folder(Options(images=str(folder / "images"), seed=seed)) for seed in (1, 1, 2))
    assert first == same and first != other and "test" not in first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": "nowhere"}, "no such folder"),
        ({"val": 0.7, "test": 0.4}, "below 1"),
        ({"groups": "none.csv"}, "not readable"),
        ({"images": "tests"}, "no images"),
    ],
)
def test_wrong_settings_are_named(folder: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_folder(Options(**({"images": str(folder / "images")} | changes)))  # type: ignore[arg-type]


def test_the_command_writes_a_dataset(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a b" / "数据.yaml"
    command = [sys.executable, "-m", "data.split", "--images", str(folder / "images"), "--out", str(out), "--val", "0.5", "--names", "slide"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    spec = load_data(out)
    assert spec.names == ("slide",) and [len(list_images(spec, split)) for split in ("train", "val")] == [30, 30]


def test_real_images_that_overlap_on_the_ground_are_not_separated(real_images: list[Path]) -> None:
    splits = split_folder(Options(images=str(REAL / "images"), groups=str(REAL / "manifest.csv"), val=0.25))
    import csv

    group = {row["id"]: row["group"] for row in csv.DictReader((REAL / "manifest.csv").open(encoding="utf-8"))}
    sides = {split: {group[path.stem] for path in paths} for split, paths in splits.items()}
    assert not sides["train"] & sides["val"]
    assert sum(map(len, splits.values())) == len(real_images)


def few(folder: Path, *names: str) -> Path:
    """A folder of images of these names."""
    for name in names:
        write_image(folder / name, np.zeros((8, 8, 3), np.uint8))
    return folder


def test_two_images_of_one_name_share_their_labels_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png: a\.jpg has the same name, and so the same labels"):
        split_folder(Options(images=str(few(tmp_path, "a.png", "a.jpg", "b.png"))))


def test_a_group_file_that_names_other_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = tmp_path / "groups.csv"
    options = Options(images=str(few(tmp_path, "a.png", "b.png", "c.png")), groups=str(groups), val=0.4)
    groups.write_text("id,group\na.png,1\nb.png,1\n")
    with pytest.raises(UserError, match=r"groups\.csv: names none of the images .*without suffix"):
        split_folder(options)
    groups.write_text("id,group\na,1\nb,1\n")
    splits = split_folder(options)
    assert "1 of 3 images have no row (c, ...); each is its own group" in capsys.readouterr().out
    assert sorted(len(images) for images in splits.values()) == [1, 2]
