"""Build the model of a YAML, and load a trained one from a checkpoint of ours, a published file, or a checkpoint of YOLOv5 / the LS-YOLO authors.

Which network it is, a YOLO of layers or a comparison model, the key `baseline` says, in the YAML as in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.baselines.config import BaselineConfig, EfficientDetConfig, FasterRCNNConfig, SSDConfig, baseline_from_dict, load_baseline
from models.builder import ModelConfig, config_from_dict, load_config, plan_layers
from models.detector import Detector
from models.yolo import DetectionModel
from utils.checkpoint import ForeignFile, check_weights, load_checkpoint, load_weights_into
from utils.config import find_file, read_yaml
from utils.errors import UserError
from utils.published import SUFFIX, read_published


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what it was trained for."""

    model: Detector
    names: tuple[str, ...]
    imgsz: int


def read_config(cfg: str | Path, nc: int | None = None) -> ModelConfig | BaselineConfig:
    """The configuration in a model YAML, for `nc` classes where given. Raises UserError (file:line)."""
    return load_baseline(cfg, nc) if "baseline" in read_yaml(find_file(cfg)) else load_config(cfg, nc)


def build_detector(config: ModelConfig | BaselineConfig) -> Detector:
    """The network of a configuration, freshly initialised. The comparison models are imported only here, for torchvision's networks take seconds.

    Raises UserError for a YAML that gives no network, and where the package of a comparison model is missing.
    """
    if isinstance(config, ModelConfig):
        return DetectionModel(config)
    if isinstance(config, FasterRCNNConfig):
        from models.baselines.faster_rcnn import FasterRCNN

        return FasterRCNN(config)
    if isinstance(config, SSDConfig):
        from models.baselines.ssd import SSD

        return SSD(config)
    if isinstance(config, EfficientDetConfig):
        from models.baselines.efficientdet import EfficientDet

        return EfficientDet(config)
    raise TypeError(f"{type(config).__name__} is no model")


def new_detector(cfg: str | Path, nc: int | None = None) -> Detector:
    """The network of a model YAML, freshly initialised. Raises UserError naming file and row."""
    return build_detector(read_config(cfg, nc))


def model_from_checkpoint(content: dict[str, Any], source: str, key: str = "ema") -> Detector:
    """The model of a checkpoint with the weights under `key` ('ema' or 'weights')."""
    for needed, kind in (("model", dict), ("names", list), (key, dict)):
        if not isinstance(content.get(needed), kind):
            raise UserError(f"{source}: the checkpoint has no {needed!r}")
    config = (baseline_from_dict if "baseline" in content["model"] else config_from_dict)(content["model"], source)
    if len(content["names"]) != config.nc or not all(isinstance(name, str) for name in content["names"]):
        raise UserError(f"{source}: its class names are not {config.nc} words, one for each class of its model")
    # A description may ask for any size: what the file does not hold is refused before memory is taken for it.
    if isinstance(config, ModelConfig) and sum(spec.args.get("repeat", 1) for spec in plan_layers(config)) > len(content[key]):
        raise UserError(f"{source}: the model it describes has more layers than it has tensors")
    with torch.device("meta"):
        check_weights(build_detector(config).state_dict(), content[key], source)
    model = build_detector(config)
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

        foreign, names = load_foreign(path)
        return LoadedModel(foreign.eval().to(device), tuple(names), 640)
    if not isinstance(content.get("imgsz"), int) or content["imgsz"] < 1:
        raise UserError(f"{path}: the checkpoint has no 'imgsz'")
    model = model_from_checkpoint(content, str(path))
    return LoadedModel(model.eval().to(device), tuple(content["names"]), content["imgsz"])
