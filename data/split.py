"""Split a folder of images by groups, so that related images (versions of one source, overlapping ground) stay on one side.

`python -m data.split --images DIR --groups manifest.csv --out datasets/mine.yaml` writes lists of paths and a dataset YAML; no image is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.config import option, parse
from utils.errors import UserError, run


@dataclass(frozen=True)
class Options:
    """Split images into train, val and test lists without separating a group."""

    images: str = option("", "folder of images; their labels lie beside it in labels/")
    groups: str = option("", "CSV with the columns name (or id) and group, and perhaps source, whose shares are kept (none: every image for itself)")
    val: float = option(0.2, "share of the images for validation")
    test: float = option(0.0, "share of the images for the test")
    seed: int = option(0, "seed of the draw")
    names: list[str] = option(["landslide"], "class names")
    out: str = option("datasets/split.yaml", "dataset YAML to write; the lists go beside it")


OPTIONS = parse(Options, prog="python -m data.split") if __name__ == "__main__" else Options()

import yaml  # noqa: E402

from data.groups import SPLITS, Groups, grouped_sides, read_groups  # noqa: E402
from data.images import SUFFIXES  # noqa: E402


def split_folder(options: Options) -> dict[str, list[Path]]:
    """Split name -> image paths. Raises UserError for a wrong folder, share or group file."""
    folder = Path(options.images)
    if not options.images or not folder.is_dir():
        raise UserError(f"--images {options.images!r}: no such folder")
    if min(options.val, options.test) < 0 or options.val + options.test >= 1:
        raise UserError(f"--val {options.val} and --test {options.test}: each from 0, together below 1, was expected")
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and paths.setdefault(path.stem, path.resolve()) != path.resolve():
            raise UserError(f"{path}: {paths[path.stem].name} has the same name, and so the same labels; rename one")
    if not paths:
        raise UserError(f"--images {folder}: no images ({', '.join(sorted(SUFFIXES))}) there")
    groups = read_groups(Path(options.groups), paths, strict=False) if options.groups else Groups()
    alone = [name for name in paths if name not in groups.group]
    if options.groups and alone:
        if len(alone) == len(paths):
            raise UserError(f"{options.groups}: names none of the images in {folder}; file names without suffix were expected")
        print(f"{options.groups}: {len(alone)} of {len(paths)} images have no row ({alone[0]}, ...); each is its own group")

    def sizes(count: int) -> tuple[int, int, int]:
        val, test = round(options.val * count), round(options.test * count)
        return count - val - test, val, test

    strata = {name: groups.stratum.get(name, "") for name in paths}
    sides = grouped_sides(dict.fromkeys(paths, 1), strata, groups, options.seed, sizes)
    found = {split: [paths[name] for name in paths if sides[name] == split] for split in SPLITS}
    for split, images in found.items():
        print(f"{split}: {len(images)} images in {len({groups.of(path.stem) for path in images})} groups")
    return {split: images for split, images in found.items() if images}


def main() -> None:
    out = Path(OPTIONS.out)
    splits = split_folder(OPTIONS)
    out.parent.mkdir(parents=True, exist_ok=True)
    for split, paths in splits.items():
        out.with_name(f"{out.stem}-{split}.txt").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    content = {**{split: f"{out.stem}-{split}.txt" for split in splits}, "names": dict(enumerate(OPTIONS.names))}
    out.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


if __name__ == "__main__":
    run(main)
