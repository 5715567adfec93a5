"""Splits: the paper's counts, and groups that stay together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.groups import Groups, generator, grouped_sides, leaks, random_sides, read_groups, split_sizes
from utils.errors import UserError


def test_the_papers_table_ii() -> None:
    assert split_sizes(1270 * 6 + 2003) == (6062, 674, 2887)
    sides = random_sides(9623, 0)
    assert [sides.count(split) for split in ("train", "val", "test")] == [6062, 674, 2887]
    assert sides != random_sides(9623, 1) and sides == random_sides(9623, 0)


names = st.text("abcdef", min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, st.tuples(st.integers(1, 6), st.sampled_from("xy"), st.integers(0, 9)), min_size=1, max_size=60))
def test_groups_stay_together(drawn: dict[str, tuple[int, str, int]]) -> None:
    images = {name: count for name, (count, _, _) in drawn.items()}
    groups = Groups({name: f"g{group}" for name, (_, _, group) in drawn.items()})
    sides = grouped_sides(images, {name: stratum for name, (_, stratum, _) in drawn.items()}, groups, 3)
    assert set(sides) == set(images)
    for group in set(groups.group.values()):
        assert len({sides[name] for name in images if groups.of(name) == group}) == 1
    assert leaks((groups.of(name), side) for name, side in sides.items()) == 0


def test_grouped_keeps_the_shares_of_every_stratum() -> None:
    strata = {f"p{i}": "positive" for i in range(1270)} | {f"n{i}": "negative" for i in range(2003)}
    sides = grouped_sides({name: 6 if name[0] == "p" else 1 for name in strata}, strata, Groups(), 0)
    for letter, images in (("p", 1270), ("n", 2003)):
        counts = [sum(sides[name] == split for name in strata if name[0] == letter) / images for split in ("train", "val", "test")]
        assert counts == pytest.approx([0.63, 0.07, 0.30], abs=0.003)


def test_leaks() -> None:
    assert leaks([("a", "train"), ("a", "test"), ("b", "test"), ("c", "val"), ("c", "test"), ("a", "test")]) == 2


def test_a_name_has_its_own_generator() -> None:
    assert generator(0, "a").integers(1 << 30) != generator(0, "b").integers(1 << 30)
    assert generator(5, "a", "flip").integers(1 << 30) == generator(5, "a", "flip").integers(1 << 30)


def test_group_files(tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    path.write_text("\ufeffid,x,group,source\na,1,g1,sw\nb,2,g1,\nc,3,,bijie\n", encoding="utf-8")
    groups = read_groups(path, ["a", "b", "c", "d"])
    assert [groups.of(name) for name in "abcd"] == ["g1", "g1", "c", "d"] and groups.stratum == {"a": "sw", "c": "bijie"}
    with pytest.raises(UserError, match=r"g.csv:4: 'c' is the name of no source image"):
        read_groups(path, ["a", "b"])
    assert read_groups(path, ["a", "b"], strict=False).group == {"a": "g1", "b": "g1"}
    path.write_text("file,group\na,b\n")
    with pytest.raises(UserError, match="g.csv:1: columns file, group; name and group were expected"):
        read_groups(path, ["a"])
    with pytest.raises(UserError, match="not readable as a group file"):
        read_groups(tmp_path / "none.csv", ["a"])
