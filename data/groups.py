"""Which image goes where: the paper's shares, and splits that keep what belongs together on one side."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from utils.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Groups:
    """What a group file says of source images."""

    group: Mapping[str, str] = field(default_factory=dict)  # name -> group; a name that is not here is a group of its own
    stratum: Mapping[str, str] = field(default_factory=dict)  # name -> source, where the file says it

    def of(self, name: str) -> str:
        """The group of a source image."""
        return self.group.get(name, name)


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A generator of its own for every (seed, name, ...): one image more or less changes nothing for the others."""
    return np.random.default_rng([seed, *(zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys)])


def split_sizes(count: int) -> tuple[int, int, int]:
    """Images in train, val and test: 7:3 into train + val and test, then 9:1 into train and val, as in the paper's Table II."""
    both = count * 7 // 10
    train = both * 9 // 10
    return train, both - train, count - both


def random_sides(count: int, seed: int) -> list[Split]:
    """The split of each of `count` images, drawn one by one: exactly `split_sizes`."""
    train, val, _ = split_sizes(count)
    return [_side(rank, train, val) for rank in generator(seed, "split").permutation(count).tolist()]


def grouped_sides(
    images: Mapping[str, int], strata: Mapping[str, str], groups: Groups, seed: int, sizes: Callable[[int], tuple[int, int, int]] = split_sizes
) -> dict[str, Split]:
    """The split of every source image, all of a group on one side, the shares kept in every stratum as nearly as groups allow.

    `images`: name -> how many images it makes; `strata`: name -> stratum, such as its origin; `sizes`: count -> (train, val, test).
    """
    members: dict[str, list[str]] = {}
    for name in sorted(images):
        members.setdefault(groups.of(name), []).append(name)
    sides: dict[str, Split] = {}
    for stratum in sorted(set(strata.values())):
        mine = [group for group, names in members.items() if strata[names[0]] == stratum]
        order = [mine[i] for i in generator(seed, "split", stratum).permutation(len(mine))]
        weights = [sum(images[name] for name in members[group]) for group in order]
        train, val, _ = sizes(sum(weights))
        before = 0
        for group, weight in zip(order, weights, strict=True):
            # A group goes where its middle falls in the row of all images.
            sides.update(dict.fromkeys(members[group], _side(before + weight / 2, train, val)))
            before += weight
    return sides


def _side(place: float, train: int, val: int) -> Split:
    return "train" if place < train else "val" if place < train + val else "test"


def leaks(placed: Iterable[tuple[str, Split]]) -> int:
    """How many test images have a twin in train; `placed` gives the group and the split of every image."""
    placed = list(placed)
    seen = {group for group, split in placed if split == "train"}
    return sum(split == "test" and group in seen for group, split in placed)


def read_groups(path: Path, names: Iterable[str], strict: bool = True) -> Groups:
    """Groups from a CSV with the columns `group` and `name` (or `id`), and perhaps `source`.

    Raises UserError for missing columns and, with `strict`, for a row that names no source image.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as a group file ({error})") from None
    reader = csv.DictReader(io.StringIO(text))
    columns: Sequence[str] = reader.fieldnames or []
    key = next((column for column in ("name", "id") if column in columns), None)
    if key is None or "group" not in columns:
        raise UserError(f"{path}:1: columns {', '.join(columns) or '(none)'}; name and group were expected")
    known, group, stratum = set(names), {}, {}
    for row in reader:
        if row[key] not in known:
            if strict:
                raise UserError(f"{path}:{reader.line_num}: {row[key]!r} is the name of no source image")
            continue
        group[row[key]] = row["group"] or row[key]
        if row.get("source"):
            stratum[row[key]] = row["source"]
    return Groups(group, stratum)
