"""Model YAML -> checked rows -> layer specifications. Every fault is one line that names the file and the row.

A YAML gives `nc`, `channels`, `depth_multiple`, `width_multiple`, `anchors` (one list of w, h pairs in pixels per level) and
`layers`, rows of {tag, block, from, ...arguments}. `from` names earlier rows (default: the row before). A variant names its
`base` and the rows it replaces: `replace: {tag: {block: ...}}`; what it does not say stays as in the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from models.registry import BLOCKS, Block, Option
from utils.config import YamlMap, check_keys, find_file, nearest, number, read_yaml
from utils.errors import UserError

TOP_KEYS = ("nc", "channels", "depth_multiple", "width_multiple", "anchors", "layers")
VARIANT_KEYS = (*TOP_KEYS, "base", "replace")
IMAGE = "image"  # the tag of the network's input


@dataclass(frozen=True)
class Row:
    """One layer as the YAML states it."""

    tag: str
    block: str
    sources: tuple[str, ...]
    args: Mapping[str, Any]
    where: str  # 'file:line'


@dataclass(frozen=True)
class ModelConfig:
    """A model as its YAML (and base) states it."""

    nc: int
    channels: int
    depth_multiple: float
    width_multiple: float
    anchors: tuple[tuple[float, ...], ...]  # per level w, h, w, h, ... in pixels
    rows: tuple[Row, ...]
    where: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a checkpoint; `config_from_dict` reads them back."""
        layers = [{"tag": r.tag, "block": r.block, "from": list(r.sources), **r.args} for r in self.rows]
        return {**{key: getattr(self, key) for key in TOP_KEYS[:4]}, "anchors": [list(level) for level in self.anchors], "layers": layers}


@dataclass(frozen=True)
class LayerSpec:
    """One checked layer: its channels and stride are known and its module can be made."""

    tag: str
    block: str
    sources: tuple[str, ...]
    in_channels: tuple[int, ...]
    out_channels: int
    stride: float  # input pixels per output pixel
    args: Mapping[str, Any]

    def make(self) -> nn.Module:
        """The layer's module."""
        return BLOCKS[self.block].make(list(self.in_channels), self.out_channels, dict(self.args))


def load_config(path: str | Path, nc: int | None = None, channels: int | None = None) -> ModelConfig:
    """Read a model YAML with its bases; `nc` and `channels` override it. Raises UserError naming file and row."""
    config = config_from_map(_merged(find_file(path), ()))
    if nc is not None:
        config = replace(config, nc=nc)
    if channels is not None:
        config = replace(config, channels=channels)
    if config.nc < 1 or config.channels < 1:
        raise UserError(f"{path}: nc {config.nc} and channels {config.channels} must be at least 1")
    return config


def config_from_dict(data: Mapping[str, Any], source: str) -> ModelConfig:
    """A configuration out of a checkpoint (`ModelConfig.to_dict`), checked like a YAML; `source` names the file in errors."""

    def located(value: Any) -> Any:
        if isinstance(value, Mapping):
            found = YamlMap({key: located(item) for key, item in value.items()})
            found.source, found.lines = f"{source}:model", {}
            return found
        return [located(item) for item in value] if isinstance(value, (list, tuple)) else value

    return config_from_map(located(data))


def _merged(path: Path, seen: tuple[Path, ...]) -> YamlMap:
    """The YAML at `path` laid over its base."""
    data = read_yaml(path)
    check_keys(data, VARIANT_KEYS, "key")
    if path.resolve() in seen:
        raise UserError(f"{data.where('base')}: the chain of bases comes back to {path.name}")
    if "base" not in data:
        if "replace" in data:
            raise UserError(f"{data.where('replace')}: 'replace' needs a 'base'")
        return data
    if not isinstance(data["base"], str):
        raise UserError(f"{data.where('base')}: base must be the path of a model YAML, relative to this file")
    base = _merged(path.parent / data["base"], (*seen, path.resolve()))
    changes = data.get("replace", YamlMap())
    if not isinstance(changes, YamlMap):
        raise UserError(f"{data.where('replace')}: a mapping tag: {{block: ...}} was expected")
    rows = {str(row.get("tag")): row for row in base["layers"] if isinstance(row, YamlMap)} if isinstance(base.get("layers"), list) else {}
    for tag, change in changes.items():
        if tag not in rows:
            raise UserError(f"{changes.where(tag)}: the base has no layer {tag!r}{nearest(tag, map(str, rows))}")
        if not isinstance(change, YamlMap) or "block" not in change:
            raise UserError(f"{changes.where(tag)}: layer {tag!r} needs a mapping with a block")
        # The replaced row keeps its tag and its inputs; its arguments belonged to the old block.
        change.setdefault("tag", tag)
        if "from" in rows[tag]:
            change.setdefault("from", rows[tag]["from"])
    merged = YamlMap({**base, **{key: data[key] for key in TOP_KEYS if key in data}})
    merged.source, merged.lines = data.source, {key: line for key, line in data.lines.items() if key in TOP_KEYS}
    if "layers" not in data and changes:
        merged["layers"] = [changes.get(str(row.get("tag")), row) if isinstance(row, YamlMap) else row for row in base["layers"]]
    return merged


def config_from_map(data: YamlMap) -> ModelConfig:
    """Check the top-level values and turn the layer rows into `Row`s."""
    check_keys(data, TOP_KEYS, "key")
    for key in ("anchors", "layers"):
        if not isinstance(data.get(key), list) or not data[key]:
            raise UserError(f"{data.where(key)}: {key} must be a list with at least one entry")
    anchors = tuple(_anchor_level(data, level) for level in data["anchors"])
    if len({len(level) for level in anchors}) != 1:
        raise UserError(f"{data.where('anchors')}: every level needs the same number of anchors")
    rows: list[Row] = []
    for position, row in enumerate(data["layers"], 1):
        if not isinstance(row, YamlMap):
            raise UserError(f"{data.where('layers')}: layer {position} is {row!r}, a mapping {{tag, block, ...}} was expected")
        previous = rows[-1].tag if rows else IMAGE
        rows.append(_row(row, position, previous))
    return ModelConfig(
        nc=number(data, "nc", data.get("nc", 1), int),
        channels=number(data, "channels", data.get("channels", 3), int),
        depth_multiple=number(data, "depth_multiple", data.get("depth_multiple", 1.0), float),
        width_multiple=number(data, "width_multiple", data.get("width_multiple", 1.0), float),
        anchors=anchors,
        rows=tuple(rows),
        where=data.where(),
    )


def _anchor_level(data: YamlMap, level: Any) -> tuple[float, ...]:
    if not isinstance(level, list) or not level or len(level) % 2:
        raise UserError(f"{data.where('anchors')}: an anchor level is {level!r}, a list w, h, w, h, ... in pixels was expected")
    values = tuple(number(data, "anchors", value, float) for value in level)
    if min(values) <= 0:
        raise UserError(f"{data.where('anchors')}: anchors must be above 0")
    return values


def _row(row: YamlMap, position: int, previous: str) -> Row:
    """One YAML row, checked against the registry."""
    where = f"{row.where()} (layer {position})"
    name = row.get("block")
    if not isinstance(name, str) or name not in BLOCKS:
        raise UserError(f"{where}: unknown block {name!r}{nearest(name, BLOCKS)}")
    if not isinstance(row.get("tag"), str) or row["tag"] == IMAGE:
        raise UserError(f"{where}: every layer needs a tag, a word other than {IMAGE!r}")
    source = row.get("from", previous)
    sources = source if isinstance(source, list) else [source]
    if not sources or not all(isinstance(word, str) for word in sources):
        raise UserError(f"{where}: 'from' is {source!r}, a tag or a list of tags was expected")
    options = BLOCKS[name].options
    args = {key: value for key, value in row.items() if key not in ("tag", "block", "from")}
    for key, value in args.items():
        if key not in options:
            raise UserError(f"{where}: {name} has no argument {key!r}{nearest(key, options or ['none'])}")
        _check_argument(where, name, key, value, options[key])
    for key, wanted in options.items():
        if wanted.required and key not in args:
            raise UserError(f"{where}: {name} needs the argument {key!r}")
    return Row(row["tag"], name, tuple(sources), args, where)


def _check_argument(where: str, block: str, key: str, value: Any, wanted: Option) -> None:
    if isinstance(wanted.kind, tuple):
        if value not in wanted.kind:
            raise UserError(f"{where}: {block} {key} is {value!r}, one of {', '.join(wanted.kind)} was expected")
    elif wanted.kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {block} {key} is {value!r}, true or false was expected")
    elif isinstance(value, bool) or not isinstance(value, int) or not wanted.low <= value <= 65536:
        raise UserError(f"{where}: {block} {key} is {value!r}, a whole number from {wanted.low} was expected")


def plan_layers(config: ModelConfig) -> list[LayerSpec]:
    """Follow channels and strides through the rows. Raises UserError naming the row that does not fit."""
    if not 0 < config.width_multiple <= 16 or not 0 < config.depth_multiple <= 16:
        raise UserError(f"{config.where}: depth_multiple and width_multiple must be above 0 and at most 16")
    known: dict[str, tuple[int, float]] = {IMAGE: (config.channels, 1.0)}
    later = {row.tag for row in config.rows}
    specs = []
    for position, row in enumerate(config.rows, 1):
        if row.tag in known:
            raise UserError(f"{row.where}: the tag {row.tag!r} is taken by an earlier layer")
        for tag in row.sources:
            if tag not in known:
                reason = "comes later or is this layer itself: a cycle" if tag in later else f"does not exist{nearest(tag, known)}"
                raise UserError(f"{row.where}: input {tag!r} {reason}")
        spec = _layer(row, BLOCKS[row.block], config, [known[tag] for tag in row.sources])
        if BLOCKS[row.block].head != (position == len(config.rows)):
            raise UserError(f"{row.where}: {'a head must be' if BLOCKS[row.block].head else 'a head is missing:'} the last layer")
        known[row.tag] = (spec.out_channels, spec.stride)
        specs.append(spec)
    return specs


def _layer(row: Row, block: Block, config: ModelConfig, inputs: list[tuple[int, float]]) -> LayerSpec:
    fewest, most = block.inputs
    if len(inputs) < fewest or (most is not None and len(inputs) > most):
        wanted = f"{fewest}" if fewest == most else f"{fewest} or more"
        raise UserError(f"{row.where}: {row.block} has {len(inputs)} inputs, {wanted} expected")
    channels, strides = [c for c, _ in inputs], [s for _, s in inputs]
    if not block.head and len(set(strides)) > 1:
        raise UserError(f"{row.where}: {row.block} joins maps of strides {', '.join(f'{s:g}' for s in strides)}; they must be equal")
    args = dict(row.args)
    out = block.channels(channels) if block.channels else scaled_width(args.pop("out"), config.width_multiple)
    if "repeat" in args:
        args["repeat"] = max(round(args["repeat"] * config.depth_multiple), 1)
    if row.block == "MSFE" and channels[0] % 4:
        raise UserError(f"{row.where}: MSFE splits its {channels[0]} input channels by 4; a multiple of 4 is needed")
    if block.head:
        if len(inputs) != len(config.anchors):
            raise UserError(f"{row.where}: {row.block} has {len(inputs)} inputs but anchors are given for {len(config.anchors)} levels")
        if any(s != int(s) for s in strides) or sorted(strides) != strides:
            raise UserError(f"{row.where}: the head's inputs must go from fine to coarse; their strides are {', '.join(f'{s:g}' for s in strides)}")
        args |= {"anchors": len(config.anchors[0]) // 2, "nc": config.nc}
    return LayerSpec(row.tag, row.block, row.sources, tuple(channels), out, strides[0] * block.zoom(args), args)


def scaled_width(channels: int, width_multiple: float) -> int:
    """Channels times the width multiple, rounded up to a multiple of 8."""
    return math.ceil(channels * width_multiple / 8) * 8
