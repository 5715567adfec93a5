"""data/split.py: groups stay together, shares are met, and the files written are a dataset."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import label_path, list_images, load_data
from data.images import write_image
from data.split import read_groups, split_groups
from tests.conftest import REAL, ROOT
from utils.errors import UserError


def sides(result: dict[str, list[str]], groups: dict[str, str]) -> dict[str, set[str]]:
    """Group -> the splits it is found in."""
    found: dict[str, set[str]] = {}
    for split, names in result.items():
        for name in names:
            found.setdefault(groups.get(name, name), set()).add(split)
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "neg"]), st.integers(0, 30)), max_size=80),
    st.floats(0, 0.5),
    st.floats(0, 0.4),
    st.integers(0, 1000),
)
def test_groups_stay_together_and_nothing_is_lost(members: list[tuple[str, int]], val: float, test: float, seed: int) -> None:
    names = [f"{prefix}_{i}" for i, (prefix, _) in enumerate(members)]
    groups = {name: f"{prefix}_g{number}" for name, (prefix, number) in zip(names, members, strict=True)}
    shares = {"val": val, "test": test}
    result = split_groups(names, groups, shares, seed)
    assert sorted(name for found in result.values() for name in found) == sorted(names)
    assert all(len(splits) == 1 for splits in sides(result, groups).values())
    largest = max(map(list(groups.values()).count, groups.values()), default=0)
    for split, share in shares.items():
        assert len(result[split]) <= round(share * len(names)) + largest, "at most the last group goes beyond the share"
    assert result == split_groups(names[::-1], groups, shares, seed), "the order of the images plays no part"


@pytest.mark.parametrize("name", ["{:03d}", "IMG{:03d}", "img_{:03d}", "{:03d}_crop", "{:03d}_{:03d}"])
def test_shares_are_met_whatever_the_names_look_like(name: str) -> None:
    names = [name.format(i, i) for i in range(50)]
    result = split_groups(names, {}, {"val": 0.2, "test": 0.1}, 0)
    assert {split: len(found) for split, found in result.items()} == {"train": 35, "val": 10, "test": 5}


def test_every_source_keeps_its_share() -> None:
    names = [f"{source}_{i:03d}" for source, count in (("bijie", 200), ("sw", 50), ("neg", 100)) for i in range(count)]
    groups = {name: name[:-1] for name in names}  # ten images each
    result = split_groups(names, groups, {"val": 0.2}, 3)
    for source, count in (("bijie", 200), ("sw", 50), ("neg", 100)):
        assert sum(name.startswith(source) for name in result["val"]) == pytest.approx(0.2 * count, abs=10)


def test_the_seed_decides() -> None:
    names = [f"a_{i}" for i in range(40)]
    draws = [split_groups(names, {}, {"val": 0.25}, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] and draws[0]["val"] != draws[2]["val"] and len(draws[2]["val"]) == 10


def test_reading_groups(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_bytes(b"\xef\xbb\xbfid,source,group\r\na,x,g1\r\nb,x,\"g,2\"\r\n")
    assert read_groups(path, "id", "group") == {"a": "g1", "b": "g,2"}
    for column in (("name", "group"), ("id", "grp")):
        with pytest.raises(UserError, match=r"g\.csv:1: no column .*; it has id, source, group"):
            read_groups(path, *column)
    for content, reason in ((b"", "no rows"), (b"id,group\n", "no rows"), (b"id,group\n\xff,1\n", "not readable as CSV")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_groups(path, "id", "group")
    with pytest.raises(UserError, match="no such file"):
        read_groups(tmp_path / "none.csv", "id", "group")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "影像 images" / "images"
    folder.mkdir(parents=True)
    for i in range(10):
        write_image(folder / f"v{i}.png", np.full((8, 8, 3), i, np.uint8))
        label_path(folder / f"v{i}.png").parent.mkdir(exist_ok=True)
        label_path(folder / f"v{i}.png").write_text("")
    (folder / "notes.txt").write_text("no image")
    return folder


def split(*flags: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "data.split", *map(str, flags)], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_command_writes_a_dataset(images: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("file,scene\n" + "".join(f"v{i},s{i // 2}\n" for i in range(8)))
    out = tmp_path / "made" / "mine.yaml"
    flags = ("--images", images, "--groups", groups, "--id-column", "file", "--group-column", "scene", "--names", "滑坡", "rock", "--out", out)
    done = split(*flags, "--val", 0.2, "--test", 0.2, "--seed", 5)
    assert done.returncode == 0 and "2 of 10 images have no row (v8, ...); each is its own group" in done.stdout
    spec = load_data(out)
    assert spec.names == ("滑坡", "rock")
    found = {name: {path.stem for path in list_images(spec, name)} for name in ("train", "val", "test")}
    assert {name: len(stems) for name, stems in found.items()} == {"train": 6, "val": 2, "test": 2}
    for i in range(0, 8, 2):
        assert sum({f"v{i}", f"v{i + 1}"} <= stems for stems in found.values()) == 1
    assert all(label_path(path).exists() for path in list_images(spec, "train"))


def test_the_command_refuses_what_cannot_work(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.yaml"
    groups = tmp_path / "groups.csv"
    groups.write_text("id,group\nv1.png,a\n")
    for flags, reason in (
        (("--images", tmp_path / "none"), "no such folder"),
        (("--images", images, "--val", 0.9, "--test", 0.2), "together 0 to below 1 was expected"),
        (("--images", images, "--groups", groups), "names none of the images"),
    ):
        done = split(*flags, "--out", out)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and reason in done.stderr and done.stderr.count("\n") == 1
    write_image(images / "v3.jpg", np.zeros((8, 8, 3), np.uint8))
    done = split("--images", images, "--out", out)
    assert done.returncode == 2 and "v3.jpg has the same name" in done.stderr
    assert not out.exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/real is not there: real images are not part of the project")
def test_the_real_manifest() -> None:
    groups = read_groups(REAL / "manifest.csv", "id", "group")
    result = split_groups(list(groups), groups, {"val": 0.25}, 0)
    assert len(result["val"]) == pytest.approx(0.25 * len(groups), abs=3)
    assert all(len(splits) == 1 for splits in sides(result, groups).values())
