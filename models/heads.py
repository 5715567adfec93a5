"""Detection heads: one feature map per level -> one RawMap per level; biases start from what a landslide image looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks import Conv
from models.cem import CEM, FUSIONS
from utils.anchors import RawMap

CONTEXTS = ("conv", *FUSIONS)


def objectness_bias(stride: int) -> float:
    """Logit for about 8 objects in a 640-pixel image, spread over the cells of this stride."""
    return math.log(8 / (640 / stride) ** 2)


def class_bias(nc: int) -> float:
    """Logit of the classes before anything is learnt."""
    return math.log(0.6 / (nc - 0.99999))


class CoupledHead(nn.Module):
    """YOLOv5's head: one 1x1 convolution per level gives box, objectness and classes together."""

    def __init__(self, channels: Sequence[int], anchors: int, nc: int) -> None:
        super().__init__()
        self.anchors, self.nc = anchors, nc
        self.m = nn.ModuleList(nn.Conv2d(c, anchors * (5 + nc), 1) for c in channels)

    def forward(self, *features: Tensor) -> list[RawMap]:
        maps = []
        for conv, feature in zip(self.m, features, strict=True):
            packed = conv(feature).permute(0, 2, 3, 1).unflatten(3, (self.anchors, 5 + self.nc))
            y = packed.permute(0, 3, 4, 1, 2)
            maps.append(RawMap(y[:, :, :4], y[:, :, 4], y[:, :, 5:], packed))
        return maps

    @torch.no_grad()
    def init_bias(self, strides: Sequence[int]) -> None:
        """Set the starting biases of objectness and classes; `strides` in pixels, one per level."""
        for conv, stride in zip(self.m, strides, strict=True):
            bias = conv.bias.view(self.anchors, 5 + self.nc)  # type: ignore[union-attr, operator]
            bias[:, 4] += objectness_bias(stride)
            bias[:, 5:] += class_bias(self.nc)


class DecoupledLevel(nn.Module):
    """One level of the decoupled head (Fig. 12): stem, classification branch, regression branch with `context`."""

    def __init__(self, channels: int, anchors: int, nc: int, context: str) -> None:
        super().__init__()
        self.anchors, self.nc = anchors, nc
        self.stem = Conv(channels, channels)
        self.cls = Conv(channels, channels, 3)
        self.cls_out = nn.Conv2d(channels, anchors * nc, 1)
        self.context: nn.Module = Conv(channels, channels, 3) if context == "conv" else CEM(channels, context)
        self.box_out = nn.Conv2d(channels, anchors * 4, 1)
        self.obj_out = nn.Conv2d(channels, anchors, 1)

    def forward(self, x: Tensor) -> RawMap:
        x = self.stem(x)
        cls = self.cls_out(self.cls(x))
        region = self.context(x)
        box, obj = self.box_out(region), self.obj_out(region)
        batch, _, height, width = box.shape
        return RawMap(box.view(batch, self.anchors, 4, height, width), obj, cls.view(batch, self.anchors, self.nc, height, width))


class DecoupledHead(nn.Module):
    """Decoupled head; `context` is 'conv' (O-DH) or the CEM's fusion: 'weighted', 'concat', 'adaptive'."""

    def __init__(self, channels: Sequence[int], anchors: int, nc: int, context: str = "weighted") -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise ValueError(f"context is {context!r}, one of {', '.join(CONTEXTS)} was expected")
        self.levels = nn.ModuleList(DecoupledLevel(c, anchors, nc, context) for c in channels)

    def forward(self, *features: Tensor) -> list[RawMap]:
        return [level(feature) for level, feature in zip(self.levels, features, strict=True)]

    @torch.no_grad()
    def init_bias(self, strides: Sequence[int]) -> None:
        """Set the starting biases of objectness and classes; `strides` in pixels, one per level."""
        for level, stride in zip(self.levels, strides, strict=True):
            assert isinstance(level, DecoupledLevel) and level.obj_out.bias is not None and level.cls_out.bias is not None
            level.obj_out.bias += objectness_bias(stride)
            level.cls_out.bias += class_bias(level.nc)
