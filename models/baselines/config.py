"""Settings of the comparison models: a YAML names its `baseline` and states what differs from the published network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from utils.config import YamlMap, check_keys, find_file, nearest, number, read_yaml
from utils.errors import UserError

MOST = 16  # entries of a list


def setting(default: Any, low: float, high: float) -> Any:
    """A field with the range of its value, or of every entry of its list."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class BaselineConfig:
    """What all comparison models have."""

    baseline: ClassVar[str]  # its name in a YAML
    channels: ClassVar[int] = 3  # they take RGB images only
    nc: int = setting(1, 1, 65536)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a checkpoint; `baseline_from_dict` reads them back."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}
        return {"baseline": self.baseline, **values}


@dataclass(frozen=True)
class FasterRCNNConfig(BaselineConfig):
    """Faster R-CNN with VGG16 (Ren et al., 2015)."""

    baseline: ClassVar[str] = "faster_rcnn"
    width: float = setting(1.0, 0.01, 4.0)  # share of VGG16's channels
    anchor_sizes: tuple[float, ...] = setting((128.0, 256.0, 512.0), 1, 65536)  # in pixels
    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), 0.01, 100)  # height / width
    proposals: int = setting(300, 1, 10_000)  # regions of an image that are looked at, outside training


@dataclass(frozen=True)
class SSDConfig(BaselineConfig):
    """SSD with VGG16 (Liu et al., 2016), the layers of SSD300."""

    baseline: ClassVar[str] = "ssd"
    width: float = setting(1.0, 0.01, 4.0)  # share of the channels
    scales: tuple[float, ...] = setting((0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), 0.001, 10)  # box sides in shares of the longer image side

    def __post_init__(self) -> None:
        if len(self.scales) != 7:
            raise UserError(f"scales has {len(self.scales)} entries, 7 were expected: one for each of the 6 levels and one beyond")


@dataclass(frozen=True)
class EfficientDetConfig(BaselineConfig):
    """EfficientDet-D0 (Tan et al., 2020)."""

    baseline: ClassVar[str] = "efficientdet_d0"
    anchor_scale: float = setting(4.0, 0.1, 100)  # side of the smallest anchor of a level, in strides


KINDS: dict[str, type[BaselineConfig]] = {kind.baseline: kind for kind in (FasterRCNNConfig, SSDConfig, EfficientDetConfig)}


def load_baseline(path: str | Path, nc: int | None = None) -> BaselineConfig:
    """The settings in a YAML, for `nc` classes where given. Raises UserError (file:line)."""
    config = baseline_from_map(read_yaml(find_file(path)))
    return config if nc is None else replace(config, nc=nc)


def baseline_from_dict(data: Mapping[str, Any], source: str) -> BaselineConfig:
    """The settings out of a checkpoint (`to_dict`), checked like a YAML; `source` names the file in errors."""
    located = YamlMap(data)
    located.source, located.lines = f"{source}:model", {}
    return baseline_from_map(located)


def baseline_from_map(data: YamlMap) -> BaselineConfig:
    """Check the settings. Raises UserError naming the line, and for an unknown key the nearest known one."""
    name = data.get("baseline")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{data.where('baseline')}: unknown baseline {name!r}{nearest(name, KINDS)}")
    fields = {field.name: field for field in dataclasses.fields(KINDS[name])}
    check_keys(data, ["baseline", *fields], f"setting of {name}")
    values = {key: _value(data, field) for key, field in fields.items() if key in data}
    try:
        return KINDS[name](**values)
    except UserError as error:
        raise UserError(f"{data.where()}: {error}") from None


def _value(data: YamlMap, field: dataclasses.Field[Any]) -> Any:
    """The value of a field, of the type of its default and in its range."""
    value, low, high = data[field.name], field.metadata["low"], field.metadata["high"]
    several = isinstance(field.default, tuple)
    if several and (not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MOST):
        raise UserError(f"{data.where(field.name)}: {field.name} is {value!r}, a list of 1 to {MOST} numbers was expected")
    kind = int if isinstance(field.default, int) else float
    found = tuple(number(data, field.name, item, kind) for item in (value if several else [value]))
    if not all(low <= item <= high for item in found):
        raise UserError(f"{data.where(field.name)}: {field.name} is {value!r}, {low:g} to {high:g} was expected")
    return found if several else found[0]
