"""VGG16's convolutions (Simonyan and Zisserman, 2015), without batch normalisation, as SSD and Faster R-CNN were published with them."""

from __future__ import annotations

from torch import nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of conv1 .. conv5


def scaled(channels: int, width: float) -> int:
    """A share of a layer's channels, one at least."""
    return max(round(channels * width), 1)


def vgg16(width: float = 1.0) -> dict[str, nn.Sequential]:
    """conv1 .. conv5; all but the first begin by halving the map, so that conv4 ends at stride 8 and conv5 at stride 16."""
    stages, before = {}, 3
    for number, (channels, repeats) in enumerate(STAGES, 1):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if number > 1 else []
        for _ in range(repeats):
            layers += [nn.Conv2d(before, scaled(channels, width), 3, padding=1), nn.ReLU(inplace=True)]
            before = scaled(channels, width)
        stages[f"conv{number}"] = nn.Sequential(*layers)
    return stages


def init_convolutions(module: nn.Module) -> None:
    """Start every convolution so that ReLU keeps the signal's size from layer to layer (He et al., 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
