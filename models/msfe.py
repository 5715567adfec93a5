"""Multiscale feature extraction (the paper's section III-B) and the channel attention it begins with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import Conv


def nearest_odd(value: float) -> int:
    """|x|_odd of eq. (3)."""
    return 2 * int(value / 2) + 1


class ECA(nn.Module):
    """Efficient channel attention, eq. (1)-(3): Y = sigmoid(Conv1D_k(GAP(X))) X, k = |log2(C) / gamma + b / gamma|_odd."""

    def __init__(self, channels: int, gamma: float = 2.0, b: float = 1.0) -> None:
        super().__init__()
        kernel = nearest_odd((math.log2(channels) + b) / gamma)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        weight = self.conv(pooled.flatten(2).transpose(1, 2))  # (B, 1, C): the convolution runs over the channels
        return x * torch.sigmoid(weight.transpose(1, 2).unsqueeze(-1))


class MSFE(nn.Module):
    """ECA, then five parallel receptive fields (1x1, 3x3 mean, separable 3x3, twice 3x3, twice 5x5), fused; plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.eca = ECA(channels)
        self.branch1 = Conv(channels, part)
        self.branch3 = nn.Sequential(Conv(channels, part, (3, 1)), Conv(part, part, (1, 3)))
        self.branch4 = self._twice(channels, part, 3)
        self.branch5 = self._twice(channels, part, 5)
        self.conv = Conv(4 * part + channels, channels)

    @staticmethod
    def _twice(channels: int, part: int, k: int) -> nn.Sequential:
        return nn.Sequential(Conv(channels, part, (k, 1)), Conv(part, part, (1, k)), Conv(part, part, (k, 1)), Conv(part, part, (1, k)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.eca(x)
        mean = F.avg_pool2d(y, 3, 1, 1)  # branch 2 of the paper's figure
        return x + self.conv(torch.cat([self.branch1(y), mean, self.branch3(y), self.branch4(y), self.branch5(y)], 1))
