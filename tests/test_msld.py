"""The paper's dataset from its sources: counts, splits, exactness, resuming, and every kind of bad source."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import data.build
from data.dataset import load_data, load_split
from data.formats import labels_from_mask
from data.groups import Groups, leaks
from data.images import read_image
from data.labels import parse_yolo
from data.msld import Source, build, draw_techniques, find_sources, plan_build
from data.offline import TECHNIQUES
from data.options import BuildOptions
from data.synthetic import write_sources
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCENES = 22  # 5 Bijie, 3 Southwest, 14 negatives


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, SCENES, 1, (112, 128))
    return folder


@pytest.fixture
def own(sources: Path, tmp_path: Path) -> Path:
    """A copy of the sources that a test may spoil."""
    shutil.copytree(sources, tmp_path / "own")
    return tmp_path / "own"


def options(folder: Path, out: Path, **more: object) -> BuildOptions:
    return BuildOptions(bijie=str(folder / "bijie"), southwest=str(folder / "southwest"), out=str(out), **more)  # type: ignore[arg-type]


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def true_size() -> list[Source]:
    """The paper's 770 + 500 + 2003 sources, by name only."""
    made = [Source(f"bj{i}", "bijie", Path(f"bj{i}.png"), Path("m.png")) for i in range(770)]
    made += [Source(f"{i}_1", "southwest", Path(f"{i}_1.jpg"), Path("m.xml")) for i in range(500)]
    return made + [Source(f"neg{i}", "negative", Path(f"neg{i}.png"), None) for i in range(2003)]


@pytest.mark.parametrize("seed", range(3))
def test_the_true_size_gives_table_ii(seed: int) -> None:
    items = plan_build(true_size(), seed, "paper", Groups())
    assert Counter(item.split for item in items) == {"train": 6062, "val": 674, "test": 2887}
    assert leaks((item.name, item.split) for item in items) > 1500  # what the paper's split gives away


def test_grouped_lets_no_group_cross() -> None:
    sources = true_size()
    together = Groups({f"bj{i}": f"place{i // 3}" for i in range(300)} | {f"neg{i}": f"place{i}" for i in range(50)})
    items = plan_build(sources, 0, "grouped", together)
    sides: dict[str, set[str]] = {}
    for item in items:
        sides.setdefault(together.of(item.name), set()).add(item.split)
    assert max(map(len, sides.values())) == 1 and len(items) == 9623
    shares = {split: count / 9623 for split, count in Counter(item.split for item in items).items()}
    assert shares == pytest.approx({"train": 0.63, "val": 0.07, "test": 0.30}, abs=0.01)


def test_five_different_techniques_each_equally_often() -> None:
    drawn = [draw_techniques(0, f"image{i}") for i in range(900)]
    assert all(len(set(five)) == 5 for five in drawn) and draw_techniques(0, "image3") == drawn[3] != draw_techniques(1, "image3")
    often = Counter(name for five in drawn for name in five)
    assert set(often) == set(TECHNIQUES) and all(abs(count - 500) < 75 for count in often.values())


def test_adding_a_source_changes_no_other_version() -> None:
    few = plan_build(true_size()[:100], 0, "paper", Groups())
    many = plan_build(true_size(), 0, "paper", Groups())
    assert {item.file for item in few} <= {item.file for item in many}


def test_a_build_end_to_end(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "msld"
    assert build(options(sources, out, split="grouped", seed=3)) == 0
    rows = manifest(out)
    assert len(rows) == 8 * 6 + 14 and {row["technique"] for row in rows} <= {"original", *TECHNIQUES}
    for row in rows:
        image = out / row["file"]
        assert hashlib.sha256(image.read_bytes()).hexdigest() == row["sha256"]
        suffix = "" if row["technique"] == "original" else f"_{row['technique']}"
        assert image.name == f"{row['source']}{suffix}.jpg" and image.parent.name == row["split"] and row["seed"] == "3"
    spec = load_data(out / "msld.yaml")
    samples = [sample for split in ("train", "val", "test") for sample in load_split(spec, split, strict=True, quiet=True)[0]]
    assert spec.names == ("landslide",) and len(samples) == len(rows)
    assert sum(not len(sample.labels) for sample in samples) == 14
    assert "0 under the grouped split" in capsys.readouterr().out


def test_boxes_and_polygons_move_with_the_pixels(sources: Path, tmp_path: Path) -> None:
    build(options(sources, tmp_path / "msld"))
    checked = 0
    for row in manifest(tmp_path / "msld"):
        if row["origin"] != "bijie":
            continue
        mask = read_image(sources / "bijie/landslide/mask" / f"{row['source']}.png")
        technique = row["technique"]
        if technique.startswith(("rota", "flip")):
            mask = TECHNIQUES[technique](mask, labels_from_mask(mask[..., 0])[0], np.random.default_rng(0))[0]
        expected, _ = labels_from_mask(mask[..., 0])
        text = (tmp_path / "msld" / row["file"].replace("images", "labels").replace(".jpg", ".txt")).read_text()
        found = parse_yolo(text, "label", 1).labels
        assert all(polygon is not None for polygon in found.polygons)
        np.testing.assert_allclose(np.sort(found.boxes, 0), np.sort(expected.boxes, 0), atol=2e-6)
        checked += 1
    assert checked == 30


def test_same_seed_same_bytes_whatever_the_processes(sources: Path, tmp_path: Path) -> None:
    build(options(sources, tmp_path / "a", seed=5))
    build(options(sources, tmp_path / "b", seed=5, jobs=2))
    build(options(sources, tmp_path / "c", seed=6))
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


@pytest.mark.parametrize("after", [1, 40, 123])
def test_an_interrupted_build_goes_on_and_ends_the_same(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    build(options(sources, tmp_path / "whole"))
    calls = 0

    def dying(path: Path, data_: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            path.with_name(f".{path.name}.part").write_bytes(data_[: len(data_) // 2])  # as a kill leaves it
            raise KeyboardInterrupt
        path.write_bytes(data_)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("data.msld.replace_file", dying)
        with pytest.raises(KeyboardInterrupt):
            build(options(sources, out))
    assert not (out / "msld.yaml").exists() and not (out / "manifest.csv").exists()
    with pytest.raises(UserError, match="other files or settings"):
        build(options(sources, out, seed=1))
    build(options(sources, out))
    assert digest(out) == digest(tmp_path / "whole")


def test_a_finished_build_is_left_alone(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "msld"
    build(options(sources, out))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    build(options(sources, out))
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match="other files or settings"):
        build(options(sources, out, split="grouped"))


def test_a_folder_with_other_things_is_not_touched(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        build(options(sources, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_southwest_jpegs_are_copied_byte_for_byte(sources: Path, tmp_path: Path) -> None:
    build(options(sources, tmp_path / "msld"))
    copies = [row for row in manifest(tmp_path / "msld") if row["origin"] == "southwest" and row["technique"] == "original"]
    for row in copies:
        assert (tmp_path / "msld" / row["file"]).read_bytes() == (sources / "southwest" / f"{row['source']}.jpg").read_bytes()
    assert len(copies) == 3


def test_polygon_text_where_the_mask_is_missing(own: Path, tmp_path: Path) -> None:
    folder = own / "bijie/landslide"
    (folder / "mask/bj001.png").unlink()
    (folder / "polygon_coordinate").mkdir()
    (folder / "polygon_coordinate/bj001.txt").write_text("10 20\n60 20\n60 50\n10 50\n")
    build(options(own, tmp_path / "msld"))
    row = next(row for row in manifest(tmp_path / "msld") if row["source"] == "bj001" and row["technique"] == "original")
    text = (tmp_path / "msld" / row["file"].replace("images", "labels").replace(".jpg", ".txt")).read_text()
    np.testing.assert_allclose(parse_yolo(text, "x", 1).labels.boxes * (112, 128, 112, 128), [[10, 20, 61, 51]], atol=1e-3)


def test_the_group_file_keeps_places_together(sources: Path, tmp_path: Path) -> None:
    names = [source.name for source in find_sources(sources / "bijie", sources / "southwest")[0]]
    (tmp_path / "g.csv").write_text("name,group\n" + "".join(f"{name},place{i % 4}\n" for i, name in enumerate(names)))
    build(options(sources, tmp_path / "msld", split="grouped", group=str(tmp_path / "g.csv")))
    sides: dict[str, set[str]] = {}
    for row in manifest(tmp_path / "msld"):
        sides.setdefault(row["group"], set()).add(row["split"])
    assert set(sides) == {"place0", "place1", "place2", "place3"} and max(map(len, sides.values())) == 1
    assert json.loads((tmp_path / "msld/build.json").read_text())["test_images_with_a_twin_in_train"]["grouped"] == 0


def empty_mask(own: Path) -> None:
    path = own / "bijie/landslide/mask/bj002.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((128, 112), np.uint8))[1].tobytes())


def small_mask(own: Path) -> None:
    path = own / "bijie/landslide/mask/bj002.png"
    path.write_bytes(cv2.imencode(".png", np.full((64, 56), 255, np.uint8))[1].tobytes())


def speck_mask(own: Path) -> None:
    mask = np.zeros((128, 112), np.uint8)
    mask[5, 5] = 255
    (own / "bijie/landslide/mask/bj002.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def truncate(own: Path) -> None:
    path = own / "southwest/1_1.jpg"
    path.write_bytes(path.read_bytes()[:-900])


def swap(own: Path, old: str, new: str) -> None:
    path = own / "southwest/1_1.xml"
    path.write_text(path.read_text().replace(old, new))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing mask": (lambda own: (own / "bijie/landslide/mask/bj003.png").unlink(), r"bj003.png: no mask; .*mask/bj003.png"),
    "mask without image": (lambda own: (own / "bijie/landslide/image/bj003.png").unlink(), r"mask/bj003.png: annotates no image"),
    "size mismatch": (small_mask, r"mask/bj002.png: the mask is 56 x 64, the image 112 x 128"),
    "empty mask": (empty_mask, r"mask/bj002.png: no landslide in it"),
    "only specks": (speck_mask, r"mask/bj002.png: only 1 specks below 0.05%"),
    "xml bomb": (lambda own: swap(own, "<annotation>", '<!DOCTYPE a [<!ENTITY b "ha">]><annotation>'), r"1_1.xml:1: a document type or entity"),
    "folder in filename": (lambda own: swap(own, "<filename>", "<filename>../../"), r"1_1.xml: <filename> '../../1_1.jpg' points into another folder"),
    "other class": (lambda own: swap(own, "slide<", "house<"), r"1_1.xml: class 'house'; one of slide, landslide"),
    "other size": (lambda own: swap(own, "<width>112", "<width>113"), r"1_1.xml: <size> is 113 x 128, the image 112 x 128"),
    "no object": (lambda own: (own / "southwest/1_1.xml").write_text("<annotation><size><width>112</width><height>128</height></size></annotation>"),
                  r"1_1.xml: no landslide in it"),
    "missing xml": (lambda own: (own / "southwest/1_2.xml").unlink(), r"1_2.jpg: no annotation; .*1_2.xml"),
    "xml without image": (lambda own: (own / "southwest/1_2.jpg").unlink(), r"1_2.xml: annotates no image"),
    "truncated jpeg": (truncate, r"1_1.jpg: the image is damaged"),
    "empty file": (lambda own: (own / "southwest/1_1.jpg").write_bytes(b""), r"1_1.jpg: the file is empty"),
    "html as jpeg": (lambda own: (own / "southwest/1_1.jpg").write_text("<html>404</html>"), r"1_1.jpg: not an image"),
    "doubled name": (lambda own: shutil.copy(own / "southwest/1_1.jpg", own / "southwest/1_1.jpeg"), r"1_1.jpg: the same name as 1_1.jpeg"),
    "name in both sources": (lambda own: shutil.copy(own / "bijie/non-landslide/image/neg0001.png", own / "bijie/non-landslide/image/1_1.png"),
                             r"its files would have the names of those of"),
    "name of a version": (lambda own: shutil.copy(own / "bijie/non-landslide/image/neg0001.png", own / "bijie/non-landslide/image/bj001_flip.png"),
                          r"its files would have the names of those of"),
    "stray file": (lambda own: (own / "southwest/notes.docx").write_text("x"), r"notes.docx: not expected here"),
    "no such folder": (lambda own: shutil.rmtree(own / "bijie/non-landslide"), r"non-landslide/image: no such folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_are_listed_and_nothing_is_written(name: str, own: Path, tmp_path: Path) -> None:
    spoil, message = BAD[name]
    spoil(own)
    before = digest(own)
    with pytest.raises(UserError, match=message) as error:
        build(options(own, tmp_path / "msld"))
    assert str(error.value).startswith("1 problem in the sources; nothing was written\n  ")
    assert not (tmp_path / "msld").exists() and digest(own) == before


def test_all_problems_are_listed_at_once(own: Path, tmp_path: Path) -> None:
    for name in ("missing mask", "xml bomb", "stray file"):
        BAD[name][0](own)
    with pytest.raises(UserError, match=r"(?s)3 problems.*notes.docx.*1_1.xml") as error:
        build(options(own, tmp_path / "msld", jobs=2))
    assert len(str(error.value).splitlines()) == 4
    many = [f"problem {i}" for i in range(50)]
    with pytest.raises(UserError, match="and 30 more"):
        data.build.raise_problems(many)


def test_the_command_line(sources: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.msld", "build", "--southwest", str(sources / "southwest"), "--out", str(tmp_path / "sw")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "from 3 sources" in done.stdout and len(manifest(tmp_path / "sw")) == 18
    (tmp_path / "bad").mkdir()
    done = subprocess.run([*command[:-3], str(tmp_path / "bad"), "--out", str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: 1 problem in the sources; nothing was written") and not (tmp_path / "x").exists()
    for arguments, message in ((["build"], "at least one folder"), (["bild"], "'bild': build, prepare or report")):
        done = subprocess.run([*command[:3], *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr


def test_building_does_not_load_torch() -> None:
    code = "import sys, data.msld, data.prepare, data.synthetic; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
