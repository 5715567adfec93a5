"""The paper's dataset from its sources: scan, check, augment offline, split, write.

    python -m data.msld build --bijie DIR --southwest DIR --out DIR [--seed 0] [--split paper|grouped] [--jobs N]
    python -m data.msld prepare DIR --out DIR        folders with masks, polygons, VOC XML, COCO JSON or YOLO text -> a YOLO dataset
    python -m data.msld report DATA.yaml [--out DIR] statistics, pictures, and the AP that a rule without eyes reaches
"""

from __future__ import annotations

import sys

from data.options import MIN_SHARE, BuildOptions, Options, ReportOptions, command_line

# --help and wrong flags are answered before the time that importing OpenCV takes.
if __name__ == "__main__":
    OPTIONS = command_line(sys.argv[1:], __doc__)

import hashlib  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Iterable, Iterator, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Literal  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from data.build import Plan, finish, one_thread, raise_problems, replace_file, spread, start  # noqa: E402
from data.formats import labels_from_mask, labels_from_polygon_text, labels_from_voc, read_mask, read_voc  # noqa: E402
from data.groups import SPLITS, Groups, Split, generator, grouped_sides, leaks, random_sides, read_groups, split_sizes  # noqa: E402
from data.images import SUFFIXES, decode_image, read_bytes  # noqa: E402
from data.labels import Labels, format_yolo  # noqa: E402
from data.offline import DRAWN, TECHNIQUES  # noqa: E402
from utils.errors import UserError, run  # noqa: E402

Origin = Literal["bijie", "southwest", "negative"]
VOC_NAMES = ("slide", "landslide")  # both mean class 0
QUALITY = 95  # JPEG quality of everything that is not copied


@dataclass(frozen=True)
class Source:
    """One image as it was downloaded, and where its annotation is."""

    name: str  # file stem, the same for all its versions
    origin: Origin
    image: Path
    annotation: Path | None  # mask, polygon text or VOC XML; None for a negative


@dataclass(frozen=True)
class Checked:
    """A source whose files are whole and fit each other."""

    source: Source
    labels: Labels
    specks: int
    sha256: str  # of image and annotation bytes together


@dataclass(frozen=True)
class Item:
    """One image of the dataset: a source under one technique ('' = as it is)."""

    name: str
    technique: str
    split: Split

    @property
    def file(self) -> str:
        return f"{self.name}_{self.technique}.jpg" if self.technique else f"{self.name}.jpg"


# ---------------------------------------------------------------------------------------------- sources


def find_sources(bijie: Path | None, southwest: Path | None) -> tuple[list[Source], list[str]]:
    """All sources by name, and what is wrong with the folders: missing, extra and doubled files."""
    sources: list[Source] = []
    problems: list[str] = []
    if bijie is not None:
        positive, negative = bijie / "landslide", bijie / "non-landslide" / "image"
        images = _by_stem(positive / "image", SUFFIXES, problems)
        masks = _by_stem(positive / "mask", SUFFIXES, problems, needed=False)
        texts = _by_stem(positive / "polygon_coordinate", {".txt"}, problems, needed=not (positive / "mask").is_dir())
        for stem, image in images.items():
            annotation = masks.get(stem) or texts.get(stem)
            if annotation is None:
                problems.append(f"{image}: no mask; {positive / 'mask' / stem}.png (or polygon_coordinate/{stem}.txt) was expected")
            else:
                sources.append(Source(stem, "bijie", image, annotation))
        problems.extend(f"{path}: annotates no image; {positive / 'image' / path.stem}.png was expected" for path in _orphans(images, masks, texts))
        sources.extend(Source(stem, "negative", image, None) for stem, image in _by_stem(negative, SUFFIXES, problems).items())
    if southwest is not None:
        images = _by_stem(southwest, SUFFIXES, problems, others={".xml"})
        notes = _by_stem(southwest, {".xml"}, problems, others=SUFFIXES)
        for stem, image in images.items():
            if stem in notes:
                sources.append(Source(stem, "southwest", image, notes[stem]))
            else:
                problems.append(f"{image}: no annotation; {image.with_suffix('.xml')} was expected")
        problems.extend(f"{path}: annotates no image; {path.with_suffix('.jpg')} was expected" for path in _orphans(images, notes))
    sources.sort(key=lambda source: source.name)
    problems.extend(_doubled(sources))
    return sources, list(dict.fromkeys(problems))  # the Southwest folder is listed twice


def _by_stem(folder: Path, suffixes: Iterable[str], problems: list[str], needed: bool = True, others: Iterable[str] = ()) -> dict[str, Path]:
    """Files of `folder` by stem; doubled stems and files with a suffix in neither list become problems. Hidden files are passed over."""
    if not folder.is_dir():
        if needed:
            problems.append(f"{folder}: no such folder")
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix in others:
            continue
        if suffix not in suffixes or not path.is_file():
            problems.append(f"{path}: not expected here; only {', '.join(sorted({*suffixes, *others}))} files were")
        elif path.stem in found:
            problems.append(f"{path}: the same name as {found[path.stem].name}; remove one")
        else:
            found[path.stem] = path
    return found


def _orphans(images: dict[str, Path], *annotations: dict[str, Path]) -> Iterator[Path]:
    for notes in annotations:
        yield from (path for stem, path in notes.items() if stem not in images)


def _doubled(sources: Sequence[Source]) -> list[str]:
    """Problems of sources whose output files would overwrite each other (on a file system that ignores case, too)."""
    taken: dict[str, Source] = {}
    problems = []
    for source in sources:
        files = [Item(source.name, technique, "train").file.lower() for technique in ("", *(TECHNIQUES if source.annotation else ()))]
        other = next((taken[file] for file in files if file in taken), None)
        if other is not None:
            problems.append(f"{source.image}: its files would have the names of those of {other.image}; rename one")
        taken.update(dict.fromkeys(files, source))
    return problems


def check_source(source: Source, min_share: float = MIN_SHARE) -> Checked:
    """Read a source wholly. Raises UserError for a damaged image, a mismatch of sizes, or a positive without a landslide."""
    data = read_bytes(source.image)
    height, width = decode_image(data, source.image).shape[:2]
    digest = hashlib.sha256(data)
    if source.annotation is None:
        return Checked(source, Labels.from_rows([]), 0, digest.hexdigest())
    note = read_bytes(source.annotation)
    digest.update(note)
    labels, specks = read_annotation(note, source.annotation, width, height, min_share)
    if not len(labels):
        reason = f"only {specks} specks below {min_share:.2%} of the image" if specks else "no landslide in it"
        raise UserError(f"{source.annotation}: {reason}; at least one landslide was expected of a positive image")
    return Checked(source, labels, specks, digest.hexdigest())


def read_annotation(data: bytes, path: Path, width: int, height: int, min_share: float = MIN_SHARE) -> tuple[Labels, int]:
    """Labels and number of dropped specks of a mask image, a polygon text or a VOC XML file of a width x height image."""
    if path.suffix.lower() == ".xml":
        voc = read_voc(data, path)
        if (voc.width, voc.height) != (width, height):
            raise UserError(f"{path}: <size> is {voc.width} x {voc.height}, the image {width} x {height}")
        labels = labels_from_voc(voc, VOC_NAMES, path)
        return Labels(np.zeros_like(labels.classes), labels.boxes, labels.polygons), 0
    if path.suffix.lower() == ".txt":
        try:
            return labels_from_polygon_text(data.decode("utf-8-sig"), path, width, height, min_share)
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text") from None
    return labels_from_mask(read_mask(data, path, width, height), min_share)


# ---------------------------------------------------------------------------------------------- what goes where


def draw_techniques(seed: int, name: str) -> list[str]:
    """Five different techniques for the positive `name`, in the paper's order."""
    chosen = generator(seed, name).choice(len(TECHNIQUES), DRAWN, replace=False)
    return [list(TECHNIQUES)[i] for i in sorted(chosen.tolist())]


def plan_build(sources: Sequence[Source], seed: int, split: str, groups: Groups) -> list[Item]:
    """Every image of the dataset by name, with its split ('paper' or 'grouped')."""
    versions = [(source, technique) for source in sources for technique in ("", *(draw_techniques(seed, source.name) if source.annotation else ()))]
    if split == "paper":
        drawn = random_sides(len(versions), seed)
        return [Item(source.name, technique, side) for (source, technique), side in zip(versions, drawn, strict=True)]
    sides = grouped_sides(Counter(source.name for source, _ in versions), {source.name: source.origin for source in sources}, groups, seed)
    return [Item(source.name, technique, sides[source.name]) for source, technique in versions]


# ---------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Task:
    """All versions of one source that are to be written."""

    checked: Checked
    items: tuple[Item, ...]
    seed: int
    out: Path


def write_versions(task: Task) -> list[str]:
    """Write every version of a source that is not there yet, label before image; returns the sha256 of the images.

    A version depends on the seed, the source and the technique only. A JPEG that needs no turning is copied byte for byte.
    """
    source, image, digests = task.checked.source, None, []
    for item in task.items:
        path = task.out / "images" / item.split / item.file
        if path.exists():  # written whole by the run that this one continues
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
            continue
        data = b""
        if image is None:
            data = read_bytes(source.image)
            image = decode_image(data, source.image)
        if item.technique:
            drawn, labels = TECHNIQUES[item.technique](image, task.checked.labels, generator(task.seed, source.name, item.technique))
            data = _jpeg(drawn)
        else:
            labels = task.checked.labels
            data = data or read_bytes(source.image)
            if not _is_plain_jpeg(data):
                data = _jpeg(image)
        label = task.out / "labels" / item.split / f"{path.stem}.txt"
        replace_file(label, format_yolo(labels).encode())
        replace_file(path, data)
        digests.append(hashlib.sha256(data).hexdigest())
    return digests


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether JPEG bytes can be used as they are: no metadata in front of the image may turn it."""
    return data[:3] == b"\xff\xd8\xff" and b"Exif\0" not in data[:4096]


def _jpeg(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def build(options: BuildOptions) -> int:
    """Build the dataset. Raises UserError that lists every problem of the sources before anything is written."""
    if options.bijie is None and options.southwest is None:
        raise UserError("--bijie and --southwest: at least one folder of sources was expected")
    if options.seed < 0 or options.jobs < 1 or not 0 <= options.min_share < 1:
        raise UserError("--seed must be 0 or more, --jobs 1 or more, --min-share from 0 to 1")
    out = Path(options.out)
    sources, problems = find_sources(*(Path(folder) if folder else None for folder in (options.bijie, options.southwest)))
    checked: list[Checked] = []
    for found in spread(_Check(options.min_share), sources, options.jobs, "check"):
        if isinstance(found, UserError):
            problems.append(str(found))
        else:
            checked.append(found)
    if not sources:
        problems.append("no source image was found")
    raise_problems(problems)
    groups = read_groups(Path(options.group), (source.name for source in sources)) if options.group else Groups()
    items = plan_build(sources, options.seed, options.split, groups)
    twins = {split: leaks((groups.of(item.name), item.split) for item in plan_build(sources, options.seed, split, groups)) for split in ("paper", "grouped")}
    inputs = hashlib.sha256("".join(f"{one.source.name} {one.sha256}\n" for one in checked).encode()).hexdigest()
    counts = {split: sum(item.split == split for item in items) for split in SPLITS}
    plan = Plan(
        {"inputs": inputs, "seed": options.seed, "split": options.split, "min_share": options.min_share, "groups": dict(groups.group)},
        {
            "sources": dict(Counter(source.origin for source in sources)),
            "images": counts,
            "landslides_in_sources": sum(len(one.labels) for one in checked),
            "specks_dropped": sum(one.specks for one in checked),
            "test_images_with_a_twin_in_train": twins,
        },
    )
    if start(out, plan):
        _write(out, plan, options, checked, items, groups)
    print(f"{out / 'msld.yaml'}: {counts['train']} train, {counts['val']} val, {counts['test']} test images from {len(sources)} sources "
          f"({plan.summary['landslides_in_sources']} landslides, {plan.summary['specks_dropped']} specks dropped)")
    print(f"test images with a twin in train: {twins['paper']} under the paper's split, {twins['grouped']} under the grouped split "
          f"(of about {split_sizes(len(items))[2]}); this dataset is split as: {options.split}")
    return 0


def _write(out: Path, plan: Plan, options: BuildOptions, checked: Sequence[Checked], items: Sequence[Item], groups: Groups) -> None:
    by_name: dict[str, list[Item]] = {}
    for item in items:
        by_name.setdefault(item.name, []).append(item)
    work = [Task(one, tuple(by_name[one.source.name]), options.seed, out) for one in checked]
    rows: list[list[object]] = []
    for task, digests in zip(work, spread(write_versions, work, options.jobs, "write"), strict=True):
        if isinstance(digests, UserError):
            raise digests
        source = task.checked.source
        for item, digest in zip(task.items, digests, strict=True):
            rows.append([f"images/{item.split}/{item.file}", source.name, source.origin, groups.of(source.name), item.technique or "original",
                         options.seed, item.split, digest])
    finish(out, plan, ("file", "source", "origin", "group", "technique", "seed", "split", "sha256"), rows, ["landslide"], "msld.yaml")


@dataclass(frozen=True)
class _Check:
    """check_source with its share bound, as something another process can be sent."""

    min_share: float

    def __call__(self, source: Source) -> Checked:
        return check_source(source, self.min_share)


def main(options: Options) -> int:
    """Entry of `python -m data.msld`: each command imports what it needs alone."""
    if isinstance(options, ReportOptions):
        from data.report import report

        return report(options)
    one_thread()
    if isinstance(options, BuildOptions):
        return build(options)
    from data.prepare import prepare

    return prepare(options)


if __name__ == "__main__":
    run(partial(main, OPTIONS))
