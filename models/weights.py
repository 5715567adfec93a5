"""Load a trained model from a checkpoint of ours or of YOLOv5 / the LS-YOLO authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.builder import config_from_dict
from models.yolo import DetectionModel
from utils.checkpoint import ForeignFile, load_checkpoint, load_weights_into
from utils.errors import UserError


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what it was trained for."""

    model: DetectionModel
    names: tuple[str, ...]
    imgsz: int


def model_from_checkpoint(content: dict[str, Any], source: str, key: str = "ema") -> DetectionModel:
    """The model of a checkpoint with the weights under `key` ('ema' or 'weights')."""
    for needed in ("model", "names", key):
        if not isinstance(content.get(needed), (dict, list)):
            raise UserError(f"{source}: the checkpoint has no {needed!r}")
    model = DetectionModel(config_from_dict(content["model"], source))
    load_weights_into(model, content[key], source)
    return model


def load_weights(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The averaged (EMA) weights of a checkpoint, ours or a foreign one, as a float32 model in evaluation mode.

    Raises UserError naming file and cause; nothing in the file is executed.
    """
    try:
        content = load_checkpoint(path)
    except ForeignFile:
        from models.foreign import load_foreign

        model, names = load_foreign(path)
        return LoadedModel(model.eval().to(device), tuple(names), 640)
    if not isinstance(content.get("imgsz"), int):
        raise UserError(f"{path}: the checkpoint has no 'imgsz'")
    model = model_from_checkpoint(content, str(path))
    return LoadedModel(model.eval().to(device), tuple(content["names"]), content["imgsz"])
