"""Settings: YAML files and command lines become frozen dataclasses; an unknown key is an error naming its neighbour."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from utils.errors import ENVIRONMENT, UserError, exit_code

T = TypeVar("T")
MAX_ALIASES = 24


class YamlMap(dict):  # type: ignore[type-arg]
    """A YAML mapping that knows where it stands: `source` is 'file:line', `lines` the line of each key."""

    source: str = ""
    lines: dict[Any, int] = {}

    def where(self, key: Any = None) -> str:
        """'file:line' of `key`, or of the mapping itself."""
        path, _, line = self.source.rpartition(":")
        return f"{path}:{self.lines.get(key, line)}"


class _Loader(yaml.SafeLoader):
    """SafeLoader that keeps line numbers and refuses duplicate keys; it never builds anything but plain data."""

    path = ""
    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """As PyYAML does it, with few aliases: nested in each other, a screenful of them stands for more values than any memory holds."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                line = self.peek_event().start_mark.line + 1
                raise UserError(f"{self.path}:{line}: more than {MAX_ALIASES} aliases (*name); write the values out")
        return super().compose_node(parent, index)

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:  # a generator, as PyYAML expects of containers
        mapping = YamlMap()
        mapping.source = f"{self.path}:{node.start_mark.line + 1}"
        yield mapping
        mapping.lines = {}
        self.flatten_mapping(node)
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise UserError(f"{self.path}:{line}: a key must be a plain word or number")
            if key in mapping:
                raise UserError(f"{self.path}:{line}: key {key!r} stands twice; keep one")
            mapping[key] = self.construct_object(value_node, deep=True)
            mapping.lines[key] = line


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def find_file(path: str | Path) -> Path:
    """The path itself, or where nothing is there the file of that name that comes with the program: models/ls-yolo.yaml works from any folder."""
    path = Path(path)
    own = Path(__file__).resolve().parents[1] / path
    return own if not path.exists() and own.is_file() else path


def read_yaml(path: str | Path) -> YamlMap:
    """Read a YAML file whose top is a mapping; plain data only, nothing in it is executed.

    Raises UserError naming file and line for a missing file, bad syntax, a duplicate key or a Python tag.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, a YAML file was expected") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        if exit_code(error) == ENVIRONMENT:
            raise
        raise UserError(f"{str(path)!r}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    loader_class = type("Loader", (_Loader,), {"path": str(path)})
    try:
        loader = loader_class(text)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not readable as YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0] if str(error) else error!r}") from None
    if not isinstance(data, YamlMap):
        raise UserError(f"{path}:1: a mapping (key: value) was expected")
    return data


def nearest(word: object, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word that looks most like `word`, else a list of all known words."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


def check_keys(mapping: YamlMap, known: Iterable[str], what: str) -> None:
    """Raise UserError for the first key of `mapping` that is not in `known`."""
    known = set(known)
    for key in mapping:
        if key not in known:
            raise UserError(f"{mapping.where(key)}: unknown {what} {key!r}{nearest(key, known)}")


def number(mapping: YamlMap, key: str, value: object, kind: type) -> Any:
    """`value` as `kind` (int or float), or UserError naming the line of `key`."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        found = float(value)  # of a text too: YAML takes 1e-3, which has no point, for one
        if not math.isfinite(found):
            raise UserError(f"{mapping.where(key)}: {key} is {value!r}, a finite number was expected")
        if kind is int and found != int(found):
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{mapping.where(key)}: {key} is {value!r}, {'a whole' if kind is int else 'a'} number was expected") from None
    return kind(found)


# ---------------------------------------------------------------------------------------------- hyper-parameters


@dataclasses.dataclass(frozen=True)
class Hyp:
    """Hyper-parameters of training, by the names of the paper's Table I; the defaults are its values."""

    lr0: float = 0.01  # initial learning rate
    lrf: float = 0.1  # final learning rate = lr0 * lrf
    momentum: float = 0.937  # SGD momentum, Adam beta1
    weight_decay: float = 0.0005  # at the nominal batch
    nominal_batch: float = 64  # images per optimizer step: smaller batches are accumulated to it (fixed in YOLOv5, not in Table I)
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05  # gains of the three loss terms
    cls: float = 0.3
    cls_pw: float = 1.0  # weight of positives in the two BCE terms
    obj: float = 0.7
    obj_pw: float = 1.0
    iou_t: float = 0.20  # IoU training threshold: listed in Table I, read by no formula of this loss
    anchor_t: float = 4.0  # largest side ratio of a box and the anchor that may predict it
    fl_gamma: float = 0.0  # focal loss exponent, 0 = plain BCE
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0  # +/- rotation
    translate: float = 0.1  # +/- share of the canvas
    scale: float = 0.9  # zoom in [1 - scale, 1 + scale]
    shear: float = 0.0  # +/- degrees
    perspective: float = 0.0  # +/- 1 / pixels, at most 0.001
    flipud: float = 0.0  # probabilities from here on
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.1
    copy_paste: float = 0.1

    def __post_init__(self) -> None:
        for name in ("flipud", "fliplr", "mosaic", "mixup", "copy_paste"):
            _in_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale"):
            _in_range(name, getattr(self, name), 0.0, 1.0)
        _in_range("perspective", self.perspective, 0.0, 0.001)
        _in_range("degrees", self.degrees, 0.0, 180.0)
        _in_range("shear", self.shear, 0.0, 89.0)
        for name in ("lr0", "lrf", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "box", "cls", "obj"):
            _in_range(name, getattr(self, name), 0.0, float("inf"))
        for name in ("momentum", "fl_gamma", "iou_t"):
            _in_range(name, getattr(self, name), 0.0, 1.0 if name != "fl_gamma" else 10.0)
        _in_range("nominal_batch", self.nominal_batch, 1.0, 65536.0)
        for name in ("cls_pw", "obj_pw"):
            _in_range(name, getattr(self, name), 1e-6, float("inf"))
        _in_range("anchor_t", self.anchor_t, 1.0, float("inf"))


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"hyper-parameter {name} is {value}, {low} to {high} was expected")


def load_hyp(path: str | Path) -> Hyp:
    """Hyper-parameters from a YAML file; a key left out keeps the paper's value. Raises UserError (file:line)."""
    path = find_file(path)
    data = read_yaml(path)
    known = {f.name for f in dataclasses.fields(Hyp)}
    check_keys(data, known, "hyper-parameter")
    values = {key: number(data, key, value, float) for key, value in data.items()}
    for key, value in values.items():
        try:
            Hyp(**{key: value})
        except UserError as error:
            raise UserError(f"{data.where(key)}: {error}") from None
    return Hyp(**values)


# ---------------------------------------------------------------------------------------------- command lines


def option(
    default: Any,
    help: str,
    *flags: str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    positional: bool = False,
    const: Any = None,
) -> Any:
    """A field of an options dataclass: its default, its one-line help and further flag names; a positional one must be given.

    `const` is the value of the flag given without one.
    """
    meta = {"help": help, "flags": flags, "choices": choices, "metavar": metavar, "positional": positional, "const": const}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def parse(options: type[T], argv: Sequence[str] | None = None, prog: str | None = None) -> T:
    """Fill the options dataclass from a command line (default: sys.argv).

    A field `batch_size: int` is the flag --batch-size (--batch_size too); bool fields are switches; `list[X]` takes several values;
    `X | None` is optional. Ends the process as argparse does for --help (0) and a wrong flag (2).
    """
    summary = (options.__doc__ or "").strip().splitlines()[0]
    parser = argparse.ArgumentParser(prog=prog, description=summary, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if field.metadata:
            _add_flag(parser, field, hints[field.name])
    parser.add_argument("--debug", action="store_true", help="show a traceback where an error ends the run")
    found = vars(parser.parse_args(argv))
    found.pop("debug")
    return options(**found)


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    if field.metadata["positional"]:
        parser.add_argument(field.name, type=hint, help=field.metadata["help"], metavar=field.metadata["metavar"])
        return
    names = [f"--{field.name.replace('_', '-')}", *field.metadata["flags"]]
    if "_" in field.name:
        names.append(f"--{field.name}")
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    keywords: dict[str, Any] = {"dest": field.name, "default": default, "help": field.metadata["help"].replace("%", "%%")}
    if hint is bool:
        parser.add_argument(*names, action="store_true", **keywords)
        return
    if isinstance(hint, types.UnionType):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is list:
        keywords["nargs"], hint = "+", typing.get_args(hint)[0]
    elif field.metadata["const"] is not None:
        keywords |= {"nargs": "?", "const": field.metadata["const"]}
    if field.metadata["metavar"]:
        keywords["metavar"] = field.metadata["metavar"]
    parser.add_argument(*names, type=hint, choices=field.metadata["choices"], **keywords)
