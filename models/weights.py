"""Load a trained model from a checkpoint of ours, a published file, or a checkpoint of YOLOv5 / the LS-YOLO authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.builder import config_from_dict, plan_layers
from models.yolo import DetectionModel
from utils.checkpoint import ForeignFile, check_weights, load_checkpoint, load_weights_into
from utils.errors import UserError
from utils.published import SUFFIX, read_published


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what it was trained for."""

    model: DetectionModel
    names: tuple[str, ...]
    imgsz: int


def model_from_checkpoint(content: dict[str, Any], source: str, key: str = "ema") -> DetectionModel:
    """The model of a checkpoint with the weights under `key` ('ema' or 'weights')."""
    for needed, kind in (("model", dict), ("names", list), (key, dict)):
        if not isinstance(content.get(needed), kind):
            raise UserError(f"{source}: the checkpoint has no {needed!r}")
    config = config_from_dict(content["model"], source)
    if len(content["names"]) != config.nc or not all(isinstance(name, str) for name in content["names"]):
        raise UserError(f"{source}: its class names are not {config.nc} words, one for each class of its model")
    # A description may ask for any size: what the file does not hold is refused before memory is taken for it.
    if sum(spec.args.get("repeat", 1) for spec in plan_layers(config)) > len(content[key]):
        raise UserError(f"{source}: the model it describes has more layers than it has tensors")
    with torch.device("meta"):
        check_weights(DetectionModel(config).state_dict(), content[key], source)
    model = DetectionModel(config)
    load_weights_into(model, content[key], source)
    return model


def load_weights(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The averaged (EMA) weights of a checkpoint, ours or a foreign one, as a float32 model in evaluation mode.

    Raises UserError naming file and cause; nothing in the file is executed.
    """
    try:
        content = read_published(path) if Path(path).suffix == SUFFIX else load_checkpoint(path)
    except ForeignFile:
        from models.foreign import load_foreign

        model, names = load_foreign(path)
        return LoadedModel(model.eval().to(device), tuple(names), 640)
    if not isinstance(content.get("imgsz"), int) or content["imgsz"] < 1:
        raise UserError(f"{path}: the checkpoint has no 'imgsz'")
    model = model_from_checkpoint(content, str(path))
    return LoadedModel(model.eval().to(device), tuple(content["names"]), content["imgsz"])
