"""DetectionModel: routes feature maps through the layers of a model YAML and decodes what the head puts out.

`python -m models.yolo --cfg models/ls-yolo.yaml` prints the layers, parameters and GFLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Show a model: its layers, parameters and GFLOPs, unfused and fused."""

    cfg: str = option("models/ls-yolo.yaml", "model YAML")
    nc: int | None = option(None, "number of classes (default: the YAML's)")
    img: int = option(640, "image size in pixels for the GFLOPs", "--imgsz", "--img-size")
    json: bool = option(False, "print one JSON object instead of the table")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m models.yolo") if __name__ == "__main__" else Options()

import copy  # noqa: E402
import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models.blocks import Conv  # noqa: E402
from models.builder import IMAGE, ModelConfig, load_config, plan_layers  # noqa: E402
from models.detector import Detector  # noqa: E402
from utils.anchors import RawMap, decode  # noqa: E402
from utils.loss import LossSettings, LossTerms, detection_loss  # noqa: E402


class DetectionModel(Detector):
    """Images (B, C, H, W) in [0, 1], H and W multiples of the largest stride -> one RawMap per level."""

    anchors: Tensor  # (L, A, 2) in pixels

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.specs = plan_layers(config)
        self.layers = nn.ModuleDict({spec.tag: spec.make() for spec in self.specs})
        strides = {spec.tag: spec.stride for spec in self.specs}
        self.strides = [int(strides[tag]) for tag in self.specs[-1].sources]
        self.nc, self.stride, self.levels = config.nc, max(self.strides), len(self.strides)
        self.register_buffer("anchors", torch.tensor(config.anchors).view(len(config.anchors), -1, 2))
        self.head.init_bias(self.strides)  # type: ignore[operator]
        # A map is let go after the last layer that reads it.
        self._last_reader = {tag: index for index, spec in enumerate(self.specs) for tag in spec.sources}

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.layers[self.specs[-1].tag]

    def forward(self, images: Tensor) -> list[RawMap]:
        maps: dict[str, Tensor] = {IMAGE: images}
        for index, (spec, layer) in enumerate(zip(self.specs, self.layers.values(), strict=True)):
            maps[spec.tag] = layer(*(maps[tag] for tag in spec.sources))
            for tag in spec.sources:
                if self._last_reader[tag] == index:
                    maps.pop(tag, None)
        return maps[self.specs[-1].tag]  # type: ignore[return-value]

    def loss(self, raw: Sequence[RawMap], targets: Tensor, settings: LossSettings) -> LossTerms:
        """YOLOv5's loss: see utils/loss.py."""
        return detection_loss(raw, targets, self.anchors, self.strides, settings)

    def decode(self, raw: Sequence[RawMap]) -> Tensor:
        """Predictions (B, N, 5 + nc): cx, cy, w, h in input pixels, objectness, class probabilities."""
        return decode(raw, self.anchors, self.strides)

    def set_anchors(self, anchors: Tensor) -> None:
        """Take other anchors (L, A, 2) in pixels, in the model and in the configuration its checkpoints carry."""
        self.anchors.copy_(anchors)
        self.config = replace(self.config, anchors=tuple(tuple(level) for level in anchors.flatten(1).tolist()))

    def fuse(self) -> DetectionModel:
        """Fold every BatchNorm into its convolution, in place; the outputs stay the same, training ends here."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fuse()
        return self


def build_model(cfg: str | Path, nc: int | None = None, channels: int | None = None) -> DetectionModel:
    """The model of a YAML, freshly initialised. Raises UserError naming file and row."""
    return DetectionModel(load_config(cfg, nc, channels))


def summary(model: DetectionModel, imgsz: int) -> dict[str, object]:
    """Parameters and GFLOPs at imgsz, unfused and fused."""
    from utils.complexity import complexity

    plain = complexity(model, imgsz, model.config.channels)
    fused = complexity(copy.deepcopy(model).fuse(), imgsz, model.config.channels)
    return {"params": plain.params, "params_fused": fused.params, "gflops": plain.gflops, "gflops_fused": fused.gflops}


def layer_table(model: DetectionModel) -> str:
    """One line per layer: position, tag, inputs, block, channels, stride, parameters."""
    lines = [f"{'#':>3} {'tag':<12}{'from':<22}{'block':<15}{'channels':<22}{'stride':>6}{'params':>12}"]
    for index, spec in enumerate(model.specs):
        params = sum(p.numel() for p in model.layers[spec.tag].parameters())
        channels = f"{', '.join(map(str, spec.in_channels))} -> {spec.out_channels}" if index < len(model.specs) - 1 else ", ".join(map(str, spec.in_channels))
        lines.append(f"{index:>3} {spec.tag:<12}{', '.join(spec.sources):<22}{spec.block:<15}{channels:<22}{spec.stride:>6g}{params:>12,}")
    return "\n".join(lines)


def main() -> None:
    model = build_model(OPTIONS.cfg, OPTIONS.nc).eval()
    figures = summary(model, OPTIONS.img)
    if OPTIONS.json:
        print(json.dumps({"cfg": OPTIONS.cfg, "nc": model.nc, "img": OPTIONS.img, "layers": len(model.specs), **figures}))
        return
    print(layer_table(model))
    print(f"{OPTIONS.cfg}: {len(model.specs)} layers, nc {model.nc}, {OPTIONS.img} px")
    print(f"unfused {figures['params']:>12,} parameters {figures['gflops']:8.2f} GFLOPs")
    print(f"fused   {figures['params_fused']:>12,} parameters {figures['gflops_fused']:8.2f} GFLOPs")


if __name__ == "__main__":
    run(main)
