"""data/cache.py: the same pixels as from the files, built once, checked, outside the dataset, and never in the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import cache
from data.cache import File, MappedImages, cache_folder, open_cache
from data.dataset import ImageStore, Sample, load_data, load_split
from data.images import write_image
from data.loader import Batch, Pictures, TrainBatches, make_loader
from data.plan import sample_rng, training_plan
from data.render import render
from tests.conftest import ROOT
from utils.config import Hyp
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a test; it does not exist yet."""
    monkeypatch.setenv("LSYOLO_CACHE", str(tmp_path / "緩存"))
    return tmp_path / "緩存"


@pytest.fixture
def samples(tiny_data: Path, tmp_path: Path) -> list[Sample]:
    """Samples of a dataset of the test's own."""
    root = tmp_path / "data set"
    shutil.copytree(tiny_data.parent, root)
    return load_split(load_data(root / tiny_data.name), "train", quiet=True)[0]


def kept(samples: list[Sample]) -> ImageStore:
    store = ImageStore(samples)
    assert store.keep("disk", quiet=True)
    return store


def same(store: ImageStore, samples: list[Sample]) -> bool:
    plain = ImageStore(samples)
    return all(np.array_equal(store(i), plain(i)) for i in range(len(samples)))


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- the same pixels


def test_pixels_and_pictures_equal_those_from_the_files(samples: list[Sample], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if folder not in path.parents and path != folder}
    stores = [ImageStore(samples), ImageStore(samples)]
    for store in stores:  # the first builds, the second finds
        assert store.keep("disk")
        text = capsys.readouterr().out
        assert len(text.splitlines()) == 1 and str(folder) in text and "delete" in text
        assert same(store, samples)
    assert names(folder) == [".json", ".rgb"]
    for index in range(4):
        plan = training_plan(samples, index, 96, 64, Hyp(mixup=0.5, copy_paste=0.5), sample_rng(0, 0, index))
        assert np.array_equal(render(plan, stores[1]), render(plan, ImageStore(samples)))
    after = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if folder not in path.parents and path != folder}
    assert after == before, "the user's own folders are left alone"


def test_a_cache_is_read_not_made_again(samples: list[Sample], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(samples)
    monkeypatch.setattr(ImageStore, "decode", lambda self, index: pytest.fail("decoded again"))
    assert kept(samples)(3).shape == (samples[3].height, samples[3].width, 3)


def test_images_are_mapped_not_read(samples: list[Sample], folder: Path) -> None:
    store = kept(samples)
    image = store(0)
    assert not image.flags.writeable and not image.flags.owndata
    assert isinstance(store.kept, MappedImages)
    start = np.frombuffer(store.kept.map, np.uint8).__array_interface__["data"][0]
    for index, sample in enumerate(samples):
        place = store(index).__array_interface__["data"][0] - start
        assert place == sum(3 * other.width * other.height for other in samples[:index]) and store(index).nbytes == 3 * sample.width * sample.height
    text = pickle.dumps(store.kept)
    assert len(text) < 2000, "a spawned process gets the path, not the pixels"
    assert np.array_equal(pickle.loads(text)[5], store(5))  # noqa: S301  # what spawning does


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_workers_map_the_same_file(samples: list[Sample], folder: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [method])

    def batches(store: ImageStore, workers: int) -> list[Batch]:
        order = TrainBatches(samples, 8, 64, 32, seed=1)
        return list(make_loader(Pictures(samples, store, Hyp(), seed=1), order, workers))

    for one, other in zip(batches(kept(samples), 1), batches(ImageStore(samples), 0), strict=True):
        assert (one.images == other.images).all() and (one.targets == other.targets).all()


# ---------------------------------------------------------------------------------------------- damaged, stale, unfinished


@pytest.mark.parametrize("damage", ["short", "long", "empty", "no index", "index cut", "index of others", "another version"])
def test_damage_is_seen_and_mended(samples: list[Sample], folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept(samples)
    (pixels,), (index,) = folder.glob("*.rgb"), folder.glob("*.json")
    content = json.loads(index.read_text())
    if damage in ("short", "long", "empty"):
        with open(pixels, "r+b") as file:
            file.truncate({"short": pixels.stat().st_size - 1, "long": pixels.stat().st_size + 1, "empty": 0}[damage])
    elif damage == "no index":
        index.unlink()
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:-9])
    elif damage == "index of others":
        content["images"][2][2] += 1
        index.write_text(json.dumps(content))
    else:
        index.write_text(json.dumps({**content, "version": cache.VERSION + 1}))
    capsys.readouterr()
    assert same(kept(samples), samples)
    told = [line for line in capsys.readouterr().out.splitlines() if "built anew" in line]
    assert len(told) == (damage != "no index"), "without an index it is unfinished, which is no news"
    assert same(kept(samples), samples) and names(folder) == [".json", ".rgb"] and capsys.readouterr().out == ""


def test_a_changed_image_makes_a_new_cache_in_place_of_the_old_one(samples: list[Sample], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(samples)
    old = set(folder.iterdir())
    changed = samples[4]
    write_image(changed.path, np.full((changed.height, changed.width, 3), 77, np.uint8))
    os.utime(changed.path, ns=(1, changed.path.stat().st_mtime_ns + 1))  # whatever the clock's resolution
    store = kept(samples)
    assert same(store, samples) and np.abs(store(4).astype(int) - 77).max() <= 1
    assert "have changed" in capsys.readouterr().out
    assert names(folder) == [".json", ".rgb"] and not old & set(folder.iterdir())


def test_other_images_have_a_cache_of_their_own(samples: list[Sample], folder: Path) -> None:
    kept(samples)
    assert same(kept(samples[:5]), samples[:5]) and names(folder) == [".json", ".json", ".rgb", ".rgb"]


def test_what_killed_runs_left_is_cleared_some_day(samples: list[Sample], folder: Path) -> None:
    kept(samples)
    (pixels,) = folder.glob("*.rgb")
    old, young = (pixels.with_name(f"{pixels.stem}.{pid}.0.part") for pid in (1, 2))
    for path in (old, young, folder / "notes.txt"):
        path.write_text("x")
    os.utime(old, (0, 0))
    pixels.unlink()
    kept(samples)
    assert not old.exists() and young.exists() and (folder / "notes.txt").exists()


def test_an_image_that_breaks_leaves_nothing_behind(samples: list[Sample], folder: Path) -> None:
    samples[7].path.write_bytes(b"no image")
    with pytest.raises(UserError, match="not an image"):
        ImageStore(samples).keep("disk", quiet=True)
    assert names(folder) == []


# ---------------------------------------------------------------------------------------------- no room, no rights, two at once


def test_a_disk_that_is_known_to_be_too_small(
    samples: list[Sample], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    store = ImageStore(samples)
    assert not store.keep("disk") and same(store, samples) and names(folder) == []
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 1 and "are free" in told and "reading the image files" in told


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_meanwhile(
    samples: list[Sample], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    store = ImageStore(samples)
    assert not store.keep("disk") and same(store, samples) and names(folder) == []
    assert os.strerror(code) in capsys.readouterr().out


def test_a_folder_that_cannot_be(samples: list[Sample], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write_text("a file is in the way")
    store = ImageStore(samples)
    assert not store.keep("disk") and same(store, samples)
    assert len(capsys.readouterr().out.splitlines()) == 1


BUILD = """
import sys
from data import cache
from data.dataset import ImageStore, load_data, load_split
samples, _ = load_split(load_data(sys.argv[1]), "train", quiet=True)
cache._state = lambda *_: "missing"
print("ready", flush=True)
sys.stdin.readline()
for _ in range(12):
    store = ImageStore(samples)
    assert store.keep("disk", quiet=True)
    assert all((store(i) == store.decode(i)).all() for i in range(len(samples)))
"""


def test_processes_that_build_at_once_do_not_harm_each_other(samples: list[Sample], tiny_data: Path, folder: Path) -> None:
    root = next(parent for parent in samples[0].path.parents if (parent / tiny_data.name).exists())
    command = [sys.executable, "-c", BUILD, str(root / tiny_data.name)]
    both = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert same(kept(samples), samples) and names(folder) == [".json", ".rgb"]


# ---------------------------------------------------------------------------------------------- where


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG folders are those of Linux")
def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSYOLO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ls-yolo"
    for value in ("", "relative"):  # by its specification such a value does not count
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "ls-yolo"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert cache_folder() == Path("runs", "cache"), "no home to write to"
    monkeypatch.setenv("LSYOLO_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_a_store_is_kept_in_memory_or_on_disk(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="'tape'"):
        ImageStore(samples).keep("tape")


def test_one_pixel(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "1.png"
    write_image(path, np.array([[[1, 2, 3]]], np.uint8))
    images = open_cache([File(path, 1, 1)], lambda _: np.array([[[1, 2, 3]]], np.uint8), quiet=True)
    assert images is not None and len(images) == 1 and images[0].tolist() == [[[1, 2, 3]]]
    with pytest.raises(IndexError):
        images[1]
