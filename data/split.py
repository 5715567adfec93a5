"""Split a folder of images by groups, so that related images (versions of one source, overlapping ground) stay on one side.

`python -m data.split --images DIR --groups manifest.csv --out datasets/mine.yaml` writes lists of paths and a dataset YAML; no image is copied.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import option, parse
from utils.errors import UserError, run


@dataclass(frozen=True)
class Options:
    """Split images into train, val and test lists without separating a group."""

    images: str = option("", "folder of images; their labels lie beside it in labels/")
    groups: str = option("", "CSV with a row per image (none: every image is its own group)")
    id_column: str = option("id", "its column with the image's file name without suffix")
    group_column: str = option("group", "its column with the group")
    val: float = option(0.2, "share of the images for validation")
    test: float = option(0.0, "share of the images for the test")
    seed: int = option(0, "seed of the draw")
    names: list[str] = option(["landslide"], "class names")
    out: str = option("datasets/split.yaml", "dataset YAML to write; the lists go beside it")


OPTIONS = parse(Options, prog="python -m data.split") if __name__ == "__main__" else Options()

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from data.images import SUFFIXES  # noqa: E402


def read_groups(path: Path, id_column: str, group_column: str) -> dict[str, str]:
    """Image name -> group. Raises UserError for a missing column."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is not readable as CSV ({error})") from None
    for column in (id_column, group_column):
        if not rows or column not in rows[0]:
            raise UserError(f"{path}:1: no column {column!r}; it has {', '.join(rows[0]) if rows else 'no rows'}")
    return {row[id_column]: row[group_column] for row in rows}


def split_groups(names: Sequence[str], groups: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Deal whole groups, drawn in random order, to 'val' and 'test' until each has its share of the images so far; the rest is 'train'.

    It goes prefix by prefix (the group's name up to the first underscore), so that sources keep their proportions on all sides.
    """
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        group = groups.get(name) or name
        members[group.split("_")[0]][group].append(name)
    result: dict[str, list[str]] = {"train": [], **{split: [] for split in shares}}
    rng, dealt = np.random.default_rng(seed), 0
    for prefix in sorted(members):
        order = [sorted(members[prefix])[i] for i in rng.permutation(len(members[prefix]))]
        dealt += sum(len(group) for group in members[prefix].values())
        for split, share in shares.items():
            while order and len(result[split]) < round(share * dealt):
                result[split] += members[prefix][order.pop()]
        result["train"] += [name for group in order for name in members[prefix][group]]
    return {split: sorted(found) for split, found in result.items()}


def main() -> None:
    folder, out = Path(OPTIONS.images), Path(OPTIONS.out)
    if not OPTIONS.images or not folder.is_dir():
        raise UserError(f"--images {OPTIONS.images!r}: no such folder")
    if OPTIONS.val < 0 or OPTIONS.test < 0 or not OPTIONS.val + OPTIONS.test < 1:
        raise UserError(f"--val {OPTIONS.val} and --test {OPTIONS.test}: together 0 to below 1 was expected")
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and paths.setdefault(path.stem, path.resolve()) != path.resolve():
            raise UserError(f"{path}: {paths[path.stem].name} has the same name, and so the same labels; rename one")
    groups = read_groups(Path(OPTIONS.groups), OPTIONS.id_column, OPTIONS.group_column) if OPTIONS.groups else {}
    unknown = [name for name in paths if name not in groups]
    if OPTIONS.groups and unknown:
        if len(unknown) == len(paths):
            raise UserError(f"{OPTIONS.groups}: its column {OPTIONS.id_column!r} names none of the images; file names without suffix were expected")
        print(f"{OPTIONS.groups}: {len(unknown)} of {len(paths)} images have no row ({unknown[0]}, ...); each is its own group")
    shares = {split: share for split, share in (("val", OPTIONS.val), ("test", OPTIONS.test)) if share > 0}
    splits = split_groups(list(paths), groups, shares, OPTIONS.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        out.with_name(f"{out.stem}-{split}.txt").write_text("".join(f"{paths[name]}\n" for name in names), encoding="utf-8")
        print(f"{split}: {len(names)} images in {len({groups.get(name) or name for name in names})} groups")
    content = {**{split: f"{out.stem}-{split}.txt" for split in splits}, "names": dict(enumerate(OPTIONS.names))}
    out.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


if __name__ == "__main__":
    run(main)
