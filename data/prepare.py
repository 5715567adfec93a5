"""Turn folders of images with masks, polygons, COCO JSON, VOC XML or YOLO text into a YOLO dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data.build import Plan, finish, raise_problems, replace_file, spread, start
from data.formats import CocoFile, labels_from_mask, labels_from_polygon_text, labels_from_voc, read_coco, read_mask, read_voc
from data.groups import SPLITS, Groups, Split, grouped_sides, leaks, read_groups
from data.images import SUFFIXES, decode_image, read_bytes
from data.labels import Labels, format_yolo, parse_yolo
from data.options import PrepareOptions
from utils.errors import UserError

Form = Literal["mask", "polygon", "coco", "voc", "yolo", "none"]
# Where annotations are looked for below the folder (any upper or lower case), best first: outlines before boxes.
PLACES: tuple[tuple[Form, tuple[str, ...], frozenset[str]], ...] = (
    ("mask", ("masks", "mask"), SUFFIXES),
    ("polygon", ("polygon_coordinate", "polygons"), frozenset({".txt"})),
    ("voc", ("annotations", "xml", "voc"), frozenset({".xml"})),
    ("yolo", ("labels",), frozenset({".txt"})),
)
ALIASES = {"slide": "landslide"}  # the Southwest set's name of the class


@dataclass(frozen=True)
class Picture:
    """One image and the best annotation found for it."""

    image: Path
    form: Form
    annotation: Path | None
    labels: Labels | None  # given already where a COCO file holds them
    size: tuple[int, int] | None  # what the COCO file says of it
    names: tuple[str, ...]
    min_share: float


@dataclass(frozen=True)
class Ready:
    """A picture whose files were read and fit each other."""

    picture: Picture
    labels: Labels
    specks: int
    sha256: str  # of the image
    annotation_sha256: str


def find_pictures(folder: Path, names: tuple[str, ...] | None, min_share: float) -> tuple[list[Picture], tuple[str, ...], list[str]]:
    """Images of a folder with their annotations, the class names, and what is wrong with the folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    below = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    root = below.get("images") or below.get("image") or folder
    images, problems = _by_stem(root, SUFFIXES)
    found: dict[Form, dict[str, Path]] = {}
    for form, places, suffixes in PLACES:
        files: dict[str, Path] = {}
        for place in [*(below[name] for name in places if name in below), *([root] if form == "voc" else [])]:
            more, doubled = _by_stem(place, suffixes)
            files |= more
            problems += doubled
        found[form] = files
        problems += [f"{path}: annotates no image; {root / path.stem}.jpg (or .png, ...) was expected" for stem, path in files.items() if stem not in images]
    coco, coco_path = _coco(folder, below)
    names = names or (coco.names if coco else ("landslide",))
    by_name = {Path(image.filename).stem: image for image in coco.images} if coco else {}
    problems += [f"{coco_path}: names {stem!r}, which is no image below {root}" for stem in by_name if stem not in images]
    pictures = []
    for stem, image in sorted(images.items()):
        forms = [form for form in found if stem in found[form] and (form in ("mask", "polygon") or stem not in by_name)]
        if forms:
            pictures.append(Picture(image, forms[0], found[forms[0]][stem], None, None, names, min_share))
        elif stem in by_name and coco:
            entry = by_name[stem]
            pictures.append(Picture(image, "coco", coco_path, _renumbered(entry.labels, coco.names, names, coco_path), (entry.width, entry.height), names, 0.0))
        else:
            pictures.append(Picture(image, "none", None, None, None, names, 0.0))
    if images and all(picture.form == "none" for picture in pictures):
        problems.append(f"{folder}: no annotation of any image; masks/, polygon_coordinate/, annotations/*.xml, labels/*.txt or a COCO *.json was expected")
    if not images:
        problems.append(f"{root}: no image ({', '.join(sorted(SUFFIXES))})")
    return pictures, names, problems


def _by_stem(folder: Path, suffixes: frozenset[str]) -> tuple[dict[str, Path], list[str]]:
    """Files below `folder` by stem, and problems of stems that occur twice."""
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.append(f"{path}: the same name as {found[path.stem]}; rename one")
        else:
            found[path.stem] = path
    return found, problems


def _coco(folder: Path, below: dict[str, Path]) -> tuple[CocoFile | None, Path]:
    places = [folder, *(below[name] for name in ("annotations",) if name in below)]
    files = [path for place in places for path in sorted(place.glob("*.json"))]
    if len(files) > 1:
        raise UserError(f"{folder}: {len(files)} JSON files ({', '.join(path.name for path in files)}); one COCO file was expected")
    return (read_coco(files[0].read_bytes(), files[0]), files[0]) if files else (None, folder)


def _renumbered(labels: Labels, own: tuple[str, ...], names: tuple[str, ...], path: Path) -> Labels:
    """Labels whose class numbers count in `names` instead of `own`."""
    table = np.array([names.index(name) if name in names else -1 for name in (ALIASES.get(n, n) if n not in names else n for n in own)], np.int64)
    classes = table[labels.classes] if len(labels) else labels.classes
    if (classes < 0).any():
        missing = own[int(labels.classes[classes < 0][0])]
        raise UserError(f"{path}: class {missing!r}; one of {', '.join(names)} was expected (--names)")
    return Labels(classes, labels.boxes, labels.polygons)


def check_picture(picture: Picture) -> Ready:
    """Read a picture wholly. Raises UserError for a damaged image, an annotation that does not fit it, or a wrong label row."""
    data = read_bytes(picture.image)
    height, width = decode_image(data, picture.image).shape[:2]
    note = picture.annotation.read_bytes() if picture.annotation and picture.form != "coco" else b""
    labels, specks = _read(picture, note, width, height)
    note = note or format_yolo(labels).encode()
    return Ready(picture, labels, specks, hashlib.sha256(data).hexdigest(), hashlib.sha256(note).hexdigest())


def _read(picture: Picture, note: bytes, width: int, height: int) -> tuple[Labels, int]:
    """Labels of a picture and how many specks were dropped."""
    path = picture.annotation or picture.image
    if picture.form == "mask":
        return labels_from_mask(read_mask(note, path, width, height), picture.min_share)
    if picture.form == "coco" and picture.labels is not None:
        if picture.size != (width, height):
            raise UserError(f"{path}: says {picture.image.name} is {picture.size}, it is {(width, height)}")
        return picture.labels, 0
    if picture.form == "voc":
        voc = read_voc(note, path)
        if (voc.width, voc.height) != (width, height):
            raise UserError(f"{path}: <size> is {voc.width} x {voc.height}, the image {width} x {height}")
        return labels_from_voc(voc, picture.names, path, ALIASES), 0
    if picture.form == "none":
        return Labels.from_rows([]), 0
    try:
        text = note.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    if picture.form == "polygon":
        return labels_from_polygon_text(text, path, width, height, picture.min_share)
    parsed = parse_yolo(text, path, len(picture.names))
    if parsed.problems:
        raise UserError(parsed.problems[0] + (f" (and {len(parsed.problems) - 1} more rows)" if len(parsed.problems) > 1 else ""))
    return parsed.labels, 0


@dataclass(frozen=True)
class _Task:
    ready: Ready
    split: Split
    out: Path


def _write(task: _Task) -> None:
    """Copy an image byte for byte and write its labels, the labels first, unless both are there."""
    source = task.ready.picture.image
    target = task.out / "images" / task.split / source.name
    if not target.exists():
        replace_file(task.out / "labels" / task.split / f"{source.stem}.txt", format_yolo(task.ready.labels).encode())
        replace_file(target, source.read_bytes())


def prepare(options: PrepareOptions) -> int:
    """Write the dataset. Raises UserError that lists every problem before anything is written."""
    folder, out = Path(options.folder), Path(options.out)
    if options.seed < 0 or options.jobs < 1 or not 0 <= options.min_share < 1:
        raise UserError("--seed must be 0 or more, --jobs 1 or more, --min-share from 0 to 1")
    pictures, names, problems = find_pictures(folder, tuple(options.names) if options.names else None, options.min_share)
    ready: list[Ready] = []
    for found in spread(check_picture, pictures, options.jobs, "check"):
        if isinstance(found, UserError):
            problems.append(str(found))
        else:
            ready.append(found)
    raise_problems(problems)
    groups = _groups(options, folder, [one.picture.image.stem for one in ready])
    images = {one.picture.image.stem: 1 for one in ready}
    strata = {one.picture.image.stem: groups.stratum.get(one.picture.image.stem, "positive" if len(one.labels) else "background") for one in ready}
    sides = grouped_sides(images, strata, groups, options.seed)
    inputs = hashlib.sha256("".join(f"{one.picture.image.name} {one.sha256} {one.annotation_sha256}\n" for one in ready).encode()).hexdigest()
    counts = {split: sum(side == split for side in sides.values()) for split in SPLITS}
    plan = Plan(
        {"inputs": inputs, "seed": options.seed, "names": list(names), "groups": dict(groups.group), "min_share": options.min_share},
        {
            "images": counts,
            "objects": sum(len(one.labels) for one in ready),
            "backgrounds": sum(not len(one.labels) for one in ready),
            "annotations": dict(Counter(one.picture.form for one in ready)),
            "specks_dropped": sum(one.specks for one in ready),
            "test_images_with_a_twin_in_train": leaks((groups.of(name), side) for name, side in sides.items()),
        },
    )
    if start(out, plan):
        work = [_Task(one, sides[one.picture.image.stem], out) for one in ready]
        for done in spread(_write, work, options.jobs, "write"):
            if isinstance(done, UserError):
                raise done
        rows = [(f"images/{task.split}/{one.picture.image.name}", one.picture.image.stem, one.picture.form, groups.of(one.picture.image.stem),
                 task.split, one.sha256) for task in work for one in (task.ready,)]
        finish(out, plan, ("file", "source", "annotation", "group", "split", "sha256"), rows, names, "data.yaml")
    forms = ", ".join(f"{count} {form}" for form, count in sorted(Counter(one.picture.form for one in ready).items()))
    print(f"{out / 'data.yaml'}: {counts['train']} train, {counts['val']} val, {counts['test']} test images with {plan.summary['objects']} objects "
          f"(annotations: {forms}; {plan.summary['backgrounds']} backgrounds, {plan.summary['specks_dropped']} specks dropped)")
    return 0


def _groups(options: PrepareOptions, folder: Path, names: list[str]) -> Groups:
    if options.group:
        return read_groups(Path(options.group), names)
    manifest = folder / "manifest.csv"
    if manifest.is_file() and {"group"} <= set(manifest.read_text("utf-8-sig").partition("\n")[0].strip().split(",")):
        return read_groups(manifest, names, strict=False)
    return Groups()
