"""Context enhancement module (the paper's Fig. 13): dilated convolutions of three rates and three ways to fuse them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks import Conv

FUSIONS = ("weighted", "concat", "adaptive")


class CEM(nn.Module):
    """(B, c, H, W) -> (B, c, H, W). F_i = Conv3x3 of dilation 1, 3, 5; G_i = Conv1x1(F_i).

    weighted: sum of G_i. concat: Conv1x1(cat G_i). adaptive: sum of W_i F_i, W = softmax(Conv1x1(cat G_i)), eq. (7)-(8).
    """

    def __init__(self, channels: int, fusion: str = "weighted") -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}, one of {', '.join(FUSIONS)} was expected")
        self.fusion = fusion
        self.dilated = nn.ModuleList(Conv(channels, channels, 3, dilation=rate) for rate in (1, 3, 5))
        self.mix = nn.ModuleList(Conv(channels, channels) for _ in range(3))
        if fusion != "weighted":
            self.join = Conv(3 * channels, channels if fusion == "concat" else 3)

    def forward(self, x: Tensor) -> Tensor:
        context = [conv(x) for conv in self.dilated]
        mixed = [conv(feature) for conv, feature in zip(self.mix, context, strict=True)]
        if self.fusion == "weighted":
            return mixed[0] + mixed[1] + mixed[2]
        joined = self.join(torch.cat(mixed, 1))
        if self.fusion == "concat":
            return joined
        first, second, third = joined.softmax(1).split(1, 1)
        return first * context[0] + second * context[1] + third * context[2]
