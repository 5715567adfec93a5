"""data/dataset.py: the YAML in every form users write it, what a scan finds and says, and where pixels are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from data import dataset
from data.dataset import DatasetSpec, ImageStore, label_path, list_images, load_data, load_split, scan
from data.images import read_image, write_image
from data.labels import Labels
from tests.conftest import make_dataset
from utils.errors import UserError


def write(path: Path, text: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def picture(path: Path, width: int = 24, height: int = 16, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders of images with labels, and a list."""
    for place in ("images/a/1.png", "images/a/deep/2.JPG", "images/b/3.tif", "images/b/4.bmp"):
        write(label_path(picture(tmp_path / place)), "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "images" / "a" / "notes.md", "no image")
    write(tmp_path / "lists" / "some.txt", "../images/b/4.bmp\r\n\r\n  ../images/a/1.png  \r\n../images/b/4.bmp\n")
    return tmp_path


def names_of(spec: DatasetSpec, split: str = "train") -> list[str]:
    return sorted(path.name for path in list_images(spec, split))


# ---------------------------------------------------------------------------------------------- the YAML


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("images/a", ["1.png", "2.JPG"]),
        ("images", ["1.png", "2.JPG", "3.tif", "4.bmp"]),
        ("[images/a, images/b]", ["1.png", "2.JPG", "3.tif", "4.bmp"]),
        ("[images/a, images]", ["1.png", "2.JPG", "3.tif", "4.bmp"]),
        ("lists/some.txt", ["1.png", "4.bmp"]),
        ("[lists/some.txt, images/a]", ["1.png", "2.JPG", "4.bmp"]),
        ("\n  - images/b\n  - lists/some.txt", ["1.png", "3.tif", "4.bmp"]),
        ("images/b/3.tif", ["3.tif"]),
    ],
)
@pytest.mark.parametrize("names", ["[slide]", "{0: slide}", "\n  0: slide", "\n  - slide"])
def test_splits_and_names_as_yolov5_users_write_them(root: Path, train: str, expected: list[str], names: str) -> None:
    spec = load_data(write(root / "data.yaml", f"path: .\ntrain: {train}\nval: images/b\ntest:  # none\nnc: 1\nnames: {names}\n"))
    assert spec.names == ("slide",) and spec.nc == 1 and set(spec.splits) == {"train", "val"}
    assert names_of(spec) == expected
    with pytest.raises(UserError, match=r"has no 'test'; it gives train, val"):
        list_images(spec, "test")


@pytest.mark.parametrize(("yaml", "path"), [("data.yaml", ""), ("data.yaml", "path: ."), ("sub/data.yaml", "path: .."), ("sub/data.yaml", "path: {root}")])
def test_path_is_beside_the_yaml_or_absolute(root: Path, yaml: str, path: str) -> None:
    spec = load_data(write(root / yaml, f"{path.format(root=root)}\ntrain: images/a\nnames: [x]\n"))
    assert names_of(spec) == ["1.png", "2.JPG"]


@pytest.mark.parametrize(("path", "train"), [("path: images", "a"), ("", "images/a"), ("path: .", "a")])
def test_the_current_folder_counts_too(root: Path, monkeypatch: pytest.MonkeyPatch, path: str, train: str) -> None:
    monkeypatch.chdir(root / "images" if train == "a" and "images" not in path else root)
    assert names_of(load_data(write(root / "elsewhere" / "data.yaml", f"{path}\ntrain: {train}\nnames: [x]\n"))) == ["1.png", "2.JPG"]


def test_roboflow_writes_one_folder_too_many(tmp_path: Path) -> None:
    write(label_path(picture(tmp_path / "set" / "train" / "images" / "1.jpg")), "")
    spec = load_data(write(tmp_path / "set" / "data.yaml", "train: ../train/images\nnc: 2\nnames: ['a', 'b']\n"))
    assert names_of(spec) == ["1.jpg"]


def test_class_names_of_numbers_and_other_scripts(root: Path) -> None:
    spec = load_data(write(root / "d.yaml", "train: images/a\nnames: {1: 滑坡, 0: 7, 2: 'no'}\n"))
    assert spec.names == ("7", "滑坡", "no")


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b""])
def test_bom_and_windows_line_ends(root: Path, prefix: bytes) -> None:
    spec = load_data(write(root / "d.yaml", prefix + b"train: images/a\r\nnames:\r\n  0: x\r\n"))
    assert spec.names == ("x",) and names_of(spec) == ["1.png", "2.JPG"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("train: images/a\nnames: [a, b]\nnc: 3\n", 3, "nc is 3 but names has 2 entries"),
        ("nc: two\ntrain: images/a\nnames: [a, b]\n", 1, "nc is 'two' but names has 2 entries"),
        ("names: [a]\ntrain: images/a\ndownload: https://example.org/x.zip\n", 3, "'download' is not supported"),
        ("names: [a]\ntrain: images/a\ndownload: |\n  import os\n  os.mkdir('sentinel')\n", 3, "'download' is not supported"),
        ("names: [a]\ntrian: images/a\n", 2, "unknown key 'trian' (did you mean 'train'?)"),
        ("names: [a]\ntrain: images/a\nroboflow: {url: x}\n", 3, "unknown key 'roboflow'"),
        ("names: [a]\ntrain:\n\t- images/a\n", 3, "not readable as YAML"),
        ("names: [a]\ntrain: images/a\ntrain: images/b\n", 3, "key 'train' stands twice"),
        ("names: [a]\ntrain: !!python/object/apply:os.mkdir [sentinel]\n", 2, "not readable as YAML"),
        ("train: images/a\n", 1, "names must be a list"),
        ("names: landslide\ntrain: images/a\n", 1, "names must be a list"),
        ("train: images/a\nnames: []\n", 2, "names must be a list"),
        ("train: images/a\nnames: {0: a, 2: b}\n", 2, "the keys of names must be 0, 1, 2"),
        ("train: images/a\nnames: {a: 0}\n", 2, "the keys of names must be 0, 1, 2"),
        ("train: images/a\nnames: [yes, no]\n", 2, "the class name True is not read as text; put it into quotes"),
        ("train: images/a\nnames: [a, ~]\n", 2, "the class name None is not read as text"),
        ("train: images/a\nnames: [[a, b]]\n", 2, "is not read as text"),
        ("names: [a]\n", 1, "none of train, val, test is given"),
        ("names: [a]\ntrain: images/none\n", 2, "train names 'images/none', which does not exist"),
        ("names: [a]\nval: [images/a, 5]\n", 2, "val must be a folder, a list file (.txt), or several of them"),
        ("names: [a]\ntrain: {a: b}\n", 2, "train must be a folder"),
        ("path: nowhere\nnames: [a]\ntrain: images/a\n", 1, "the folder 'nowhere' is neither beside this file nor in the current folder"),
        ("path: [x]\nnames: [a]\ntrain: images/a\n", 1, "path must be a folder"),
    ],
)
def test_a_fault_names_its_line_and_nothing_runs(root: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, reason: str) -> None:
    monkeypatch.chdir(root)
    path = write(root / "data.yaml", text)
    with pytest.raises(UserError) as found:
        load_data(path)
    assert str(found.value).startswith(f"{path}:{line}: ") and reason in str(found.value) and "\n" not in str(found.value)
    assert not (root / "sentinel").exists()


def test_no_images_where_some_were_expected(root: Path) -> None:
    (root / "empty").mkdir()
    write(root / "empty.txt", "\n\n")
    write(root / "bad.txt", b"\xff\xfe1\x00")
    for place in ("empty", "empty.txt"):
        with pytest.raises(UserError, match=f"no images for 'train' in .*{place}"):
            list_images(load_data(write(root / "d.yaml", f"names: [a]\ntrain: {place}\n")), "train")
    with pytest.raises(UserError, match=r"bad\.txt: is not UTF-8 text"):
        list_images(load_data(write(root / "d.yaml", "names: [a]\ntrain: bad.txt\n")), "train")


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name != "posix", reason="needs symbolic links")
def test_links_are_followed_but_not_in_circles(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    picture(outside / "5.png")
    (root / "images" / "a" / "more").symlink_to(outside)
    (root / "images" / "a" / "loop").symlink_to(root / "images")
    (outside / "back").symlink_to(outside)
    assert names_of(load_data(write(root / "d.yaml", "names: [a]\ntrain: images\n"))) == ["1.png", "2.JPG", "3.tif", "4.bmp", "5.png"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("d/images/train/1.jpg", "d/labels/train/1.txt"),
        ("images/images/1.jpg", "images/labels/1.txt"),
        ("d/images.old/1.jpg", "d/images.old/1.txt"),
        ("d/1.v2.png", "d/1.v2.txt"),
        ("images/x/images", "labels/x/images.txt"),
        ("目录/images/滑坡.tif", "目录/labels/滑坡.txt"),
    ],
)
def test_where_labels_are(image: str, label: str) -> None:
    assert label_path(Path(image)) == Path(label)


# ---------------------------------------------------------------------------------------------- scanning


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A dataset with one of each kind of trouble; its YAML."""
    rows = {
        "good": "0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n",
        "empty": "",
        "blank": "\n \n",
        "wrong": "0 0.5 0.5 0.2\n0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n",
        "all_wrong": "nonsense here\n",
        "thrice": "0 0.5 0.5 0.2 0.2\n" * 3,
        "outside": "0 0.98 0.5 0.1 0.1\n",
    }
    for number, (name, text) in enumerate(rows.items()):
        write(label_path(picture(tmp_path / "images" / f"{name}.png", seed=number)), text)
    picture(tmp_path / "images" / "unlabelled.png", seed=20)
    write(label_path(picture(tmp_path / "images" / "utf16.png", seed=21)), "0 0.5 0.5 0.2 0.2\n".encode("utf-16"))
    label_path(picture(tmp_path / "images" / "folder.png", seed=22)).mkdir()
    write(label_path(write(tmp_path / "images" / "html.jpg", "<html></html>")), "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "images" / "zero.jpg", b"")
    cut = picture(tmp_path / "images" / "cut.jpg", 64, 64, 30)
    cut.write_bytes(cut.read_bytes()[:-300])
    flipped = bytearray(picture(tmp_path / "images" / "flipped.png", 64, 64, 31).read_bytes())
    flipped[2000] ^= 4
    (tmp_path / "images" / "flipped.png").write_bytes(flipped)
    tiff = picture(tmp_path / "images" / "cut.tif", 64, 64, 32)
    tiff.write_bytes(tiff.read_bytes()[:-300])
    write(tmp_path / "train.txt", "".join(f"images/{path.name}\n" for path in sorted((tmp_path / "images").iterdir())) + "images/listed-only.png\n")
    return write(tmp_path / "data.yaml", "train: train.txt\nnames: [a, b]\n")


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_scan_counts_everything_and_changes_nothing(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(mixed.parent)
    samples, report = load_split(load_data(mixed), "train")
    assert fingerprint(mixed.parent) == before, "no cache beside the data, no image saved anew"
    assert [sample.path.stem for sample in samples] == ["all_wrong", "blank", "empty", "folder", "good", "outside", "thrice", "unlabelled", "utf16", "wrong"]
    objects = {sample.path.stem: len(sample.labels) for sample in samples if len(sample.labels)}
    assert objects == {"good": 2, "outside": 1, "thrice": 1, "wrong": 1}
    assert (report.images, report.objects, report.backgrounds, report.corrupt) == (10, 5, 6, 6)
    assert (report.rows_left_out, report.duplicates, report.clipped) == (5, 2, 1)
    assert all((sample.width, sample.height) == (24, 16) for sample in samples)
    told = {problem.split(": ")[0].removeprefix(str(mixed.parent) + os.sep) for problem in report.problems}
    labels = {f"labels{os.sep}{name}" for name in ("wrong.txt:1", "wrong.txt:3", "all_wrong.txt:1", "utf16.txt:1", "folder.txt")}
    images = {f"images{os.sep}{name}" for name in ("html.jpg", "zero.jpg", "cut.jpg", "cut.tif", "flipped.png", "listed-only.png")}
    assert told == labels | images and len(report.problems) == len(told)
    out = capsys.readouterr().out
    assert "train: 10 images, 5 objects, 6 backgrounds, 6 corrupt, 5 wrong rows, 2 duplicate rows, 1 clipped boxes" in out
    assert all(problem in out for problem in report.problems)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_strict_ends_with_the_first_problem(mixed: Path) -> None:
    with pytest.raises(UserError, match=r"11 problems in 'train' \(--strict\), first: .*all_wrong\.txt:1: "):
        load_split(load_data(mixed), "train", strict=True, quiet=True)


def test_strict_accepts_good_data_with_backgrounds(tiny_data: Path) -> None:
    samples, report = load_split(load_data(tiny_data), "train", strict=True, quiet=True)
    assert (report.images, report.backgrounds, len(report.problems)) == (16, 2, 0)
    assert report.objects == sum(len(s.labels) for s in samples)


def test_a_long_list_of_problems_is_cut_on_the_screen_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(label_path(picture(tmp_path / "images" / "1.png")), "bad\n" * 50)
    _, report = load_split(load_data(write(tmp_path / "d.yaml", "train: images\nnames: [a]\n")), "train")
    assert len(report.problems) == 50 and "... and 30 more" in capsys.readouterr().out


def test_quiet_says_nothing(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_split(load_data(tiny_data), "val", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_no_label_anywhere_names_the_path_that_was_expected(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
    spec = load_data(write(tmp_path / "d.yaml", "train: images\nnames: [a]\n"))
    with pytest.raises(UserError) as found:
        load_split(spec, "train", quiet=True)
    assert f"none of 3 images has a label file; {tmp_path / 'labels' / '0.txt'} was expected" in str(found.value)
    write(tmp_path / "labels" / "1.txt")
    samples, report = load_split(spec, "train", quiet=True)
    assert (len(samples), report.backgrounds) == (3, 3), "one empty label file says: these are backgrounds"


def test_no_readable_image_names_the_first(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.jpg", b"")
    write(tmp_path / "labels" / "1.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(UserError, match=r"none of 1 images can be read, first: .*1\.jpg: the file is empty"):
        load_split(load_data(write(tmp_path / "d.yaml", "train: images\nnames: [a]\n")), "train", quiet=True)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_single_class(mixed: Path) -> None:
    samples, _ = load_split(load_data(mixed), "train", single_class=True, quiet=True)
    assert set(np.concatenate([s.labels.classes for s in samples]).tolist()) == {0}
    both, _ = load_split(load_data(mixed), "train", quiet=True)
    counts = [np.bincount(np.concatenate([s.labels.classes for s in some]), minlength=2).tolist() for some in (both, samples)]
    assert counts == [[4, 1], [5, 0]]
    assert all(np.array_equal(a.labels.boxes, b.labels.boxes) for a, b in zip(samples, both, strict=True))


def test_labels_are_read_anew_every_time(tmp_path: Path) -> None:
    """Nothing is remembered between scans, so an edit of the same length and time counts."""
    image = picture(tmp_path / "images" / "1.png")
    label = write(label_path(image), "0 0.5 0.5 0.2 0.2\n")
    first, _ = scan([image], 2, quiet=True)
    times = label.stat()
    label.write_text("1 0.5 0.5 0.2 0.2\n")
    os.utime(label, ns=(times.st_atime_ns, times.st_mtime_ns))
    second, _ = scan([image], 2, quiet=True)
    assert (first[0].labels.classes[0], second[0].labels.classes[0]) == (0, 1)


def test_sizes_are_those_after_exif_orientation(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "images" / "turned.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(path, exif=exif)
    write(label_path(path), "0 0.5 0.5 0.5 0.5\n")
    samples, _ = scan([path], 1, quiet=True)
    assert (samples[0].width, samples[0].height) == (20, 50) and ImageStore(samples)(0).shape == (50, 20, 3)


def test_the_real_images(real_images: list[Path]) -> None:
    samples, report = scan(real_images, 1, quiet=True)
    assert report.images == len(real_images) and report.corrupt == 0 and report.objects > 200
    assert report.objects == sum(len(s.labels) for s in samples) and report.problems == []


# ---------------------------------------------------------------------------------------------- pixels


def test_kept_images_equal_those_on_disk(tiny_data: Path) -> None:
    samples, _ = load_split(load_data(tiny_data), "train", quiet=True)
    disk, kept = ImageStore(samples), ImageStore(samples)
    assert kept.keep(quiet=True)
    for index, sample in enumerate(samples):
        assert np.array_equal(disk(index), kept(index)) and np.array_equal(disk(index), read_image(sample.path))
        assert kept(index) is kept(index) and kept(index).shape == (sample.height, sample.width, 3)


def test_images_that_do_not_fit_into_memory_stay_on_disk(tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    samples, _ = load_split(load_data(tiny_data), "train", quiet=True)
    store = ImageStore(samples)
    monkeypatch.setattr(dataset, "available_memory", lambda: 1000)
    assert not store.keep(quiet=True) and store.kept is None
    assert "do not fit" in capsys.readouterr().out and store(0).shape[2] == 3
    monkeypatch.setattr(dataset, "available_memory", lambda: None)
    assert store.keep(quiet=True), "where the system does not tell, it is tried"


def test_an_image_that_changed_since_the_scan(tmp_path: Path) -> None:
    image = picture(tmp_path / "images" / "1.png")
    write(label_path(image), "")
    samples, _ = scan([image], 1, quiet=True)
    picture(image, 30, 30)
    with pytest.raises(UserError, match=r"1\.png: changed since it was scanned"):
        ImageStore(samples)(0)
    image.unlink()
    with pytest.raises(UserError, match=r"1\.png: no such image"):
        ImageStore(samples)(0)


def test_a_label_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(tmp_path / "images" / "1.png")
    write(label_path(image), "0 0.5 0.5 0.5 0.5\n")

    def refuse(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    samples, report = scan([image], 1, quiet=True)
    assert len(samples[0].labels) == 0 and report.rows_left_out == 1
    assert report.problems == [f"{label_path(image)}: cannot be read (Permission denied); its rows are left out"]


def test_make_dataset_is_what_the_other_tests_think(tmp_path: Path) -> None:
    spec = load_data(make_dataset(tmp_path, images=4, backgrounds=1))
    samples, report = load_split(spec, "val", quiet=True)
    assert (report.images, report.backgrounds) == (4, 1) and isinstance(samples[0].labels, Labels) and spec.names == ("landslide",)
