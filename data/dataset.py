"""Datasets: the YAML, the files behind it, one `Sample` per image, and where its pixels are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.cache import File, open_cache
from data.images import SUFFIXES, decode_image, is_complete, read_bytes, read_header, read_image
from data.labels import Labels, parse_yolo
from utils.config import YamlMap, check_keys, find_file, read_yaml
from utils.errors import UserError

SPLITS = ("train", "val", "test")
KEYS = ("path", *SPLITS, "names", "nc")


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset YAML: class names and, per split, the folders and lists it names."""

    source: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)


@dataclass(frozen=True)
class Sample:
    """One image of a dataset with its labels; width and height in pixels, the right way up."""

    path: Path
    width: int
    height: int
    labels: Labels


@dataclass
class ScanReport:
    """What a scan found."""

    images: int = 0
    objects: int = 0
    backgrounds: int = 0
    corrupt: int = 0
    rows_left_out: int = 0
    duplicates: int = 0
    clipped: int = 0
    problems: list[str] = field(default_factory=list)  # 'file[:line]: reason'

    def summary(self) -> str:
        """One line for the user."""
        return (
            f"{self.images} images, {self.objects} objects, {self.backgrounds} backgrounds, {self.corrupt} corrupt, "
            f"{self.rows_left_out} wrong rows, {self.duplicates} duplicate rows, {self.clipped} clipped boxes"
        )


def load_data(path: str | Path) -> DatasetSpec:
    """Read a dataset YAML as YOLOv5 users write it. Raises UserError naming file and line."""
    path = find_file(path)
    data = read_yaml(path)
    if "download" in data:
        raise UserError(f"{data.where('download')}: 'download' is not supported: nothing is fetched or run at run time; delete the line")
    check_keys(data, KEYS, "key")
    names = _names(data)
    if "nc" in data and data["nc"] != len(names):
        raise UserError(f"{data.where('nc')}: nc is {data['nc']!r} but names has {len(names)} entries; make them agree or leave nc out")
    root = _root(data, path)
    splits = {split: tuple(_existing(entry, root, data, split) for entry in _entries(data, split)) for split in SPLITS if data.get(split)}
    if not splits:
        raise UserError(f"{data.where()}: none of train, val, test is given")
    return DatasetSpec(path, names, splits)


def _names(data: YamlMap) -> tuple[str, ...]:
    names = data.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{data.where('names')}: the keys of names must be 0, 1, 2, ... without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{data.where('names')}: names must be a list of class names, or a mapping 0: name, 1: name, ...")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise UserError(f"{data.where('names')}: the class name {str(name)[:40]} is not read as text; put it into quotes")
    return tuple(map(str, names))


def _root(data: YamlMap, path: Path) -> Path:
    """`path` of the YAML: relative to the YAML's folder, or to the current one as YOLOv5 takes it."""
    word = data.get("path") or "."
    if not isinstance(word, str):
        raise UserError(f"{data.where('path')}: path must be a folder")
    for root in (path.parent / word, Path(word)):
        if os.path.isdir(root):  # unlike Path.is_dir, says no to a name that no file system takes
            return root
    raise UserError(f"{data.where('path')}: the folder {word!r} is neither beside this file nor in the current folder")


def _entries(data: YamlMap, split: str) -> list[str]:
    entries = data[split] if isinstance(data[split], list) else [data[split]]
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{data.where(split)}: {split} must be a folder, a list file (.txt), or several of them")
    return entries


def _existing(entry: str, root: Path, data: YamlMap, split: str) -> Path:
    """A folder or list in `path`, beside the YAML or in the current folder; '../images' may also mean images beside the YAML, as Roboflow writes it."""
    folder = data_folder(data)
    for place in (root / entry, folder / entry, Path(entry), folder / entry.removeprefix("../")):
        if os.path.exists(place):
            return place
    raise UserError(f"{data.where(split)}: {split} names {entry!r}, which does not exist in {root}")


def data_folder(data: YamlMap) -> Path:
    """Folder of the file a mapping was read from."""
    return Path(data.source.rpartition(":")[0]).parent


def list_images(spec: DatasetSpec, split: str) -> list[Path]:
    """All image paths of a split, sorted, each once. Raises UserError when the split is missing or empty."""
    if split not in spec.splits:
        raise UserError(f"{spec.source}: has no {split!r}; it gives {', '.join(spec.splits)}")
    paths: dict[str, Path] = {}
    for place in spec.splits[split]:
        found = _inside(place) if place.is_dir() else _listed(place) if place.suffix == ".txt" else [place]
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    if not paths:
        raise UserError(f"{spec.source}: no images for {split!r} in {', '.join(map(str, spec.splits[split]))} ({', '.join(sorted(SUFFIXES))} are read)")
    return sorted(paths.values())


def _inside(folder: Path) -> list[Path]:
    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        found += [Path(root, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
    return found


def _listed(file: Path) -> list[Path]:
    """Paths of a list file, relative ones counted from the file's own folder.

    Absolute paths and `..` are the user's own here, as YOLOv5's users write them: these files are only read, and as nothing but images.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; a list of image paths was expected") from None
    return [file.parent / line.strip() for line in lines if line.strip()]


def label_path(image: Path) -> Path:
    """Where an image's labels are: the last folder called images becomes labels, the suffix .txt; else beside the image."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def scan(paths: Sequence[Path], classes: int, title: str = "", single_class: bool = False, quiet: bool = False) -> tuple[list[Sample], ScanReport]:
    """Read every label file and image header; broken images are left out, wrong rows too, and everything is reported.

    `classes`: number of class names. single_class: every object becomes class 0. Raises UserError when no image is readable or no
    image has a label file at all.
    """
    report, samples, labelled = ScanReport(), [], 0
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        found = pool.map(lambda path: _scan_one(path, classes), paths)
        for sample, one, has_file in tqdm(found, title, len(paths), unit="img", disable=quiet, leave=False):
            labelled += has_file
            for name in ("corrupt", "rows_left_out", "duplicates", "clipped"):
                setattr(report, name, getattr(report, name) + getattr(one, name))
            report.problems += one.problems
            if sample is None:
                continue
            if single_class:
                sample = replace(sample, labels=replace(sample.labels, classes=np.zeros_like(sample.labels.classes)))
            samples.append(sample)
            report.images += 1
            report.objects += len(sample.labels)
            report.backgrounds += not len(sample.labels)
    if not samples:
        raise UserError(f"{title}: none of {len(paths)} images can be read, first: {report.problems[0]}")
    if not labelled:
        raise UserError(f"{title}: none of {len(paths)} images has a label file; {label_path(paths[0])} was expected (empty for an image without objects)")
    return samples, report


def _scan_one(path: Path, classes: int) -> tuple[Sample | None, ScanReport, bool]:
    report = ScanReport()
    labels, has_file, file = Labels.from_rows([]), False, label_path(path)
    try:
        parsed = parse_yolo(file.read_text(encoding="utf-8"), file, classes)
        labels, has_file = parsed.labels, True
        report.problems += parsed.problems
        report.rows_left_out, report.duplicates, report.clipped = len(parsed.problems), parsed.duplicates, parsed.clipped
    except (FileNotFoundError, NotADirectoryError):
        pass
    except UnicodeDecodeError:
        has_file, report.rows_left_out = True, 1
        report.problems.append(f"{file}:1: is not UTF-8 text; its rows are left out")
    except ValueError:  # a name with a zero byte, out of a list file; the image's own error tells
        pass
    except OSError as error:
        has_file, report.rows_left_out = True, 1
        report.problems.append(f"{file}: cannot be read ({error.strerror}); its rows are left out")
    try:
        data = read_bytes(path)
        header = read_header(data, path)
        if not is_complete(data):
            decode_image(data, path, header)
    except UserError as error:
        report.corrupt = 1
        report.problems.append(str(error))
        return None, report, has_file
    return Sample(path, header.width, header.height, labels), report, has_file


def load_split(spec: DatasetSpec, split: str, strict: bool = False, single_class: bool = False, quiet: bool = False) -> tuple[list[Sample], ScanReport]:
    """Scan a split and tell the user what was found; with `strict` any problem is a UserError."""
    samples, report = scan(list_images(spec, split), spec.nc, split, single_class, quiet)
    if not quiet:
        print(f"{split}: {report.summary()}")
        for problem in report.problems[:20]:
            print(f"  {problem}")
        if len(report.problems) > 20:
            print(f"  ... and {len(report.problems) - 20} more")
    if strict and report.problems:
        raise UserError(f"{len(report.problems)} problems in {split!r} (--strict), first: {report.problems[0]}")
    return samples, report


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of names, sizes and labels: what training depends on beside the pixels. Folders do not count: data may move."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.path.name} {sample.width} {sample.height}".encode())
        digest.update(sample.labels.classes.tobytes() + sample.labels.boxes.tobytes())
    return digest.hexdigest()[:16]


def shared_images(first: Sequence[Sample], second: Sequence[Sample]) -> list[tuple[Path, Path]]:
    """Pairs of files, one of each split, with the same bytes. Only files of equal size and equal beginning are read whole."""
    sides = [sorted(sample.path for sample in side) for side in (first, second)]
    same: dict[object, list[list[Path]]] = {}
    for key in (_size, _beginning, _content):
        same = {}
        for number, side in enumerate(sides):
            for path in side:
                same.setdefault(key(path), [[], []])[number].append(path)
        same = {value: pair for value, pair in same.items() if all(pair)}
        sides = [[path for pair in same.values() for path in pair[number]] for number in (0, 1)]
    return sorted((path, other) for paths, others in same.values() for path in paths for other in others)


def warn_of_shared_images(first: Sequence[Sample], second: Sequence[Sample], title: str) -> None:
    """Tell the user which images two splits share: a score on what was trained on says little."""
    if pairs := shared_images(first, second):
        print(f"warning: {title} share {len(pairs)} pairs of equal images; scores on images that were trained on are too good")
        for path, other in pairs[:10]:
            print(f"  {path} = {other}")
        if len(pairs) > 10:
            print(f"  ... and {len(pairs) - 10} more")


def _size(path: Path) -> int:
    return path.stat().st_size


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(65536)


def _content(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


class ImageStore:
    """Pixels of the samples: decoded each time, or once after `keep`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.kept: Sequence[np.ndarray] | None = None

    def __call__(self, index: int) -> np.ndarray:
        """RGB uint8 (H, W, 3) of sample `index`; not to be changed by the caller."""
        return self.decode(index) if self.kept is None else self.kept[index]

    def decode(self, index: int) -> np.ndarray:
        """The same, always from the image file. Raises UserError when it is not what the scan found."""
        sample = self.samples[index]
        image = read_image(sample.path)
        if image.shape[:2] != (sample.height, sample.width):
            raise UserError(f"{sample.path}: changed since it was scanned; start again")
        return image

    def keep(self, where: str = "ram", quiet: bool = False) -> bool:
        """Keep everything decoded: in memory ("ram") or in a file that later runs find ("disk"). False, with a word why, where there is no room."""
        if where == "disk":
            files = [File(sample.path, sample.width, sample.height) for sample in self.samples]
            self.kept = open_cache(files, self.decode, quiet)
        elif where == "ram":
            self.kept = self._in_memory(quiet)
        else:
            raise ValueError(f"images are kept in 'ram' or on 'disk', not {where!r}")
        return self.kept is not None

    def _in_memory(self, quiet: bool) -> list[np.ndarray] | None:
        needed, free = sum(s.width * s.height * 3 for s in self.samples), available_memory()
        if free is not None and needed > 0.8 * free:
            print(f"cache: {needed / 2**30:.1f} GiB of images do not fit into {free / 2**30:.1f} GiB of free memory; reading from disk")
            return None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(self.decode, range(len(self.samples)))
            return list(tqdm(images, f"cache {needed / 2**30:.2f} GiB", len(self.samples), unit="img", disable=quiet, leave=False))


def available_memory() -> int | None:
    """Bytes of memory that can be taken without swapping, where the system tells (Linux)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
