"""Other people's checkpoints: YOLOv5 v6/v7 and the LS-YOLO authors' `.pt` files become a DetectionModel of ours.

The file is read without executing anything in it (utils/torchfile.py). What network it holds follows from the names and
shapes of its tensors. `python -m models.foreign IN.pt --out OUT.pt` writes a checkpoint of our own format.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Convert a YOLOv5 or LS-YOLO checkpoint into one of this program, running nothing in it."""

    source: str = option("", "the .pt file of YOLOv5 v6/v7 or of the LS-YOLO authors", positional=True, metavar="IN.pt")
    out: str = option("", "the .pt file to write, in this program's own format", metavar="OUT.pt")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m models.foreign") if __name__ == "__main__" else Options()

import re  # noqa: E402
from collections.abc import Iterator, Mapping  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from models.builder import ModelConfig, Row, load_config, plan_layers  # noqa: E402
from models.yolo import DetectionModel  # noqa: E402
from utils.checkpoint import save_checkpoint  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.torchfile import Record, read_torch_file  # noqa: E402

BASE = Path(__file__).with_name("yolov5s.yaml")
HEAD, MSFE_LAYER = 24, 10  # positions of the head and of the layer that MSFE takes in both programs
IMAGE_SIZE = 640  # pixels these networks are trained for; their files do not say
DEPTHS = (0.33, 0.67, 1.0, 1.33)  # n and s, m, l, x
MAX_MODULES, MAX_NESTING = 20_000, 32

# Their name of a part within a layer -> ours; YOLOv5's own blocks need no change.
RENAMES = (
    (r"ECA\.", r"eca."),
    (r"m_stem\.(\d+)\.", r"levels.\1.stem."),
    (r"m_cls\.(\d+)\.0\.", r"levels.\1.cls."),
    (r"m_cls\.(\d+)\.1\.", r"levels.\1.cls_out."),
    (r"m_reg_conf\.(\d+)\.", r"levels.\1.context."),
    (r"m_reg\.(\d+)\.", r"levels.\1.box_out."),
    (r"m_conf\.(\d+)\.", r"levels.\1.obj_out."),
    (r"cam\.(\d+)\.conv1\.", r"levels.\1.context.dilated.0."),
    (r"cam\.(\d+)\.conv2\.", r"levels.\1.context.dilated.1."),
    (r"cam\.(\d+)\.conv3\.", r"levels.\1.context.dilated.2."),
    (r"cam\.(\d+)\.fusion_1\.", r"levels.\1.context.mix.0."),
    (r"cam\.(\d+)\.fusion_2\.", r"levels.\1.context.mix.1."),
    (r"cam\.(\d+)\.fusion_3\.", r"levels.\1.context.mix.2."),
    (r"cam\.(\d+)\.fusion_[45]\.", r"levels.\1.context.join."),
)
# Left behind by thop's counting and by older versions of the head; no part of the network.
LEFT_OUT = re.compile(r"(^|\.)(total_ops|total_params|anchor_grid|stride)$")


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another program as plain data."""

    state: Mapping[str, Tensor]  # by their names, float32 where they are floating
    names: tuple[str, ...]  # class names, () where the file has none
    yaml: Mapping[str, Any]  # their model description, {} where the file has none
    source: str


def read_foreign(path: str | Path) -> Foreign:
    """Read a YOLOv5-like checkpoint: a whole-model pickle or a state dict, alone or as `ema` or `model` of a dict.

    Raises UserError for anything else, and for tensors that are not finite.
    """
    top = read_torch_file(path)
    found = top
    if isinstance(top, dict) and not _is_state(top):
        found = top.get("ema") if isinstance(top.get("ema"), Record) or _is_state(top.get("ema")) else top.get("model")
    if isinstance(found, Record):
        state, attributes = dict(_tensors(found, str(path))), found.attributes
    elif _is_state(found):
        state, attributes = found, {}
    else:
        raise UserError(f"{path}: holds no model; a checkpoint of YOLOv5 v6/v7 or of LS-YOLO was expected")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name!r} has values that are not finite; the training it comes from failed")
    yaml = attributes.get("yaml")
    plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return Foreign(plain, _names(attributes.get("names"), path), yaml if isinstance(yaml, dict) else {}, str(path))


def load_foreign(path: str | Path) -> tuple[DetectionModel, list[str]]:
    """The network of another program's checkpoint and its class names. Raises UserError as `read_foreign` and `to_ours` do."""
    foreign = read_foreign(path)
    config, state = to_ours(foreign)
    model = DetectionModel(config)
    model.load_state_dict(state)
    return model.eval(), list(foreign.names) or [f"class{index}" for index in range(config.nc)]


def to_ours(foreign: Foreign) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our configuration and state dict for their tensors; a fused file gets BatchNorms that change nothing.

    Raises UserError where the tensors are no YOLOv5 v6/v7 (three levels) or LS-YOLO network.
    """
    theirs = {name: tensor for name, tensor in foreign.state.items() if not LEFT_OUT.search(name)}
    config = _configuration(theirs, foreign)
    tags = [row.tag for row in config.rows]
    strides = {spec.tag: spec.stride for spec in plan_layers(config)}
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        match = re.fullmatch(r"model\.(\d+)\.(.+)", name)
        if match is None or int(match[1]) >= len(tags):
            raise UserError(f"{foreign.source}: tensor {name!r} belongs to no layer of YOLOv5 or LS-YOLO")
        if name == f"model.{HEAD}.anchors":  # theirs are in cells of each level, ours in pixels
            state["anchors"] = tensor * torch.tensor([strides[tag] for tag in config.rows[-1].sources]).view(-1, 1, 1)
        else:
            state[f"layers.{tags[int(match[1])]}.{_renamed(match[2])}"] = tensor
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in DetectionModel(config).state_dict().items()}
    state = _with_batchnorms(state, set(expected))
    for name in (*sorted(expected.keys() - state.keys()), *sorted(state.keys() - expected.keys())):
        raise UserError(f"{foreign.source}: its network {'lacks' if name in expected else 'also has'} {name!r}, so it is none of YOLOv5 or LS-YOLO")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserError(f"{foreign.source}: {name!r} has the shape {tuple(state[name].shape)}, {tuple(shape)} was expected")
    return config, state


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())


def _tensors(model: Record, source: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and buffer of a module record and its children, as `state_dict` names them."""
    visited = 0
    waiting: list[tuple[str, int, Record]] = [("", 0, model)]
    while waiting:
        prefix, depth, module = waiting.pop()
        visited += 1
        if visited > MAX_MODULES or depth > MAX_NESTING:
            raise UserError(f"{source}: its modules are nested too deeply or are too many")
        children, kept_out = module.attributes.get("_modules"), module.attributes.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _items(module.attributes.get(kind)):
                if isinstance(tensor, Tensor) and not (isinstance(kept_out, set) and name in kept_out):
                    yield prefix + name, tensor
        waiting.extend((f"{prefix}{name}.", depth + 1, child) for name, child in _items(children) if isinstance(child, Record))


def _items(value: object) -> list[tuple[str, Any]]:
    return [(name, item) for name, item in value.items() if isinstance(name, str)] if isinstance(value, dict) else []


def _names(names: object, path: str | Path) -> tuple[str, ...]:
    """Class names out of a list or a dict of numbers."""
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: its class numbers are not 0 to {len(names) - 1}")
        names = [names[key] for key in sorted(names)]
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _renamed(name: str) -> str:
    for pattern, ours in RENAMES:
        renamed, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return renamed
    return name


def _configuration(theirs: Mapping[str, Tensor], foreign: Foreign) -> ModelConfig:
    """What network the tensors are of: variant, width, depth, classes and anchors."""
    first, anchors = theirs.get("model.0.conv.weight"), theirs.get(f"model.{HEAD}.anchors")
    context = _context(theirs)
    three_levels = anchors is not None and anchors.ndim == 3 and anchors.shape[0] == 3 and anchors.shape[1] > 0 and anchors.shape[2] == 2
    if first is None or first.ndim != 4 or anchors is None or not three_levels or context is None:
        raise UserError(
            f"{foreign.source}: its tensors are not those of a YOLOv5 v6/v7 network of three levels (n, s, m, l, x) or of LS-YOLO; "
            f"older versions, P6, segmentation and classification networks are not supported"
        )
    if not (anchors > 0).all():
        raise UserError(f"{foreign.source}: its anchors are not all above 0")
    per_level = anchors.shape[1]
    output = theirs[f"model.{HEAD}.m.0.weight" if context == "coupled" else f"model.{HEAD}.m_cls.0.1.weight"]
    nc = (output.shape[0] if output.ndim else 0) // per_level - (5 if context == "coupled" else 0)
    if nc < 1 or (foreign.names and len(foreign.names) != nc):
        raise UserError(f"{foreign.source}: its head is for {nc} classes, but it names {len(foreign.names)}")
    repeats = len({name.split(".")[3] for name in theirs if name.startswith("model.6.m.")})
    depth = next((value for value in _stated(foreign, "depth_multiple", DEPTHS) if max(round(9 * value), 1) == repeats), repeats / 9)
    base = load_config(BASE, nc, first.shape[1])
    width = next((value for value in _stated(foreign, "width_multiple", ()) if -(-64 * value // 8) * 8 == first.shape[0]), first.shape[0] / 64)
    in_pixels = anchors.flatten(1) * torch.tensor([8.0, 16.0, 32.0]).view(-1, 1)
    return replace(
        base,
        width_multiple=float(width),
        depth_multiple=float(depth),
        anchors=tuple(tuple(level) for level in in_pixels.tolist()),
        rows=_rows(base.rows, f"model.{MSFE_LAYER}.ECA.conv.weight" in theirs, context),
        where=foreign.source,
    )


def _stated(foreign: Foreign, key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Candidates for a multiple: what their description says, then the usual ones."""
    value = foreign.yaml.get(key)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 16
    return (float(value), *usual) if plain else usual  # type: ignore[arg-type]


def _context(theirs: Mapping[str, Tensor]) -> str | None:
    """'coupled', or the decoupled head's `context`, or None where there is no head of these."""
    head = f"model.{HEAD}."
    if f"{head}m.0.weight" in theirs:
        return "coupled"
    if f"{head}m_cls.0.1.weight" not in theirs:
        return None
    if f"{head}m_reg_conf.0.conv.weight" in theirs:
        return "conv"
    if f"{head}cam.0.fusion_4.conv.weight" in theirs:
        return "adaptive"
    return "concat" if f"{head}cam.0.fusion_5.conv.weight" in theirs else "weighted"


def _rows(base: tuple[Row, ...], msfe: bool, context: str) -> tuple[Row, ...]:
    """The baseline's rows with the variant's blocks in their places."""
    rows = list(base)
    if msfe:
        rows[MSFE_LAYER] = replace(rows[MSFE_LAYER], block="MSFE", args={})
    if context != "coupled":
        rows[HEAD] = replace(rows[HEAD], block="DecoupledHead", args={"context": context})
    return tuple(rows)


def _with_batchnorms(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Where a convolution was fused with its BatchNorm, put back one that only adds the bias: x -> x + bias."""
    full = dict(state)
    for name, bias in state.items():
        norm = f"{name.removesuffix('conv.bias')}bn"
        if name.endswith(".conv.bias") and name not in expected and f"{norm}.weight" in expected and f"{norm}.weight" not in state:
            del full[name]
            # eps 1e-3 stands under the square root, so this variance makes the divisor 1.
            full |= {f"{norm}.weight": torch.ones_like(bias), f"{norm}.bias": bias, f"{norm}.running_mean": torch.zeros_like(bias)}
            full |= {f"{norm}.running_var": torch.full_like(bias, 1 - 1e-3), f"{norm}.num_batches_tracked": torch.tensor(0)}
    return full


def main() -> None:
    """Convert one file."""
    source, out = Path(OPTIONS.source), Path(OPTIONS.out)
    if out.suffix != ".pt" or out.resolve() == source.resolve():
        raise UserError(f"--out {OPTIONS.out!r}: another file than IN.pt, ending in .pt, was expected")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    model, names = load_foreign(source)
    save_checkpoint(out, {"model": model.config.to_dict(), "names": names, "imgsz": IMAGE_SIZE, "ema": model.state_dict()})
    blocks = {row.block for row in model.config.rows}
    kind = f"{'MSFE, ' if 'MSFE' in blocks else ''}{model.config.rows[-1].block} {model.config.rows[-1].args.get('context', '')}".strip()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{source} -> {out}: {kind}, width {model.config.width_multiple:g}, depth {model.config.depth_multiple:g}, "
        f"{len(names)} class{'es' if len(names) != 1 else ''}, {parameters:,} parameters"
    )


if __name__ == "__main__":
    run(main)
