"""The building blocks of YOLOv5: Conv, Bottleneck, C3, SPPF, Concat, Upsample."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = int | tuple[int, int]


def same_padding(kernel: Size, dilation: int = 1) -> tuple[int, int]:
    """Padding that keeps height and width at stride 1."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return dilation * (height - 1) // 2, dilation * (width - 1) // 2


class Conv(nn.Module):
    """Conv2d (no bias) + BatchNorm + SiLU: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: Size = 1, stride: int = 1, padding: int | None = None, dilation: int = 1) -> None:
        super().__init__()
        pad = same_padding(kernel, dilation) if padding is None else padding
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, dilation, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> None:
        """Fold the BatchNorm into the convolution: w' = w g / s, b' = beta - mean g / s, s = sqrt(var + eps)."""
        if not isinstance(self.bn, nn.BatchNorm2d):
            return
        bn, conv = self.bn, self.conv
        assert bn.running_mean is not None and bn.running_var is not None
        # In double precision: the fused network must not differ by its own rounding.
        gain = bn.weight.detach().double() / torch.sqrt(bn.running_var.double() + bn.eps)
        bias = bn.bias.detach().double() - bn.running_mean.double() * gain
        conv.weight.data = (conv.weight.data.double() * gain[:, None, None, None]).to(conv.weight.dtype)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
        self.bn = nn.Identity()


class Bottleneck(nn.Module):
    """1x1 Conv, 3x3 Conv, and the input added where `shortcut`."""

    def __init__(self, channels: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, 1)
        self.cv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Cross-stage partial block: one half through `repeat` bottlenecks, one half past them, joined by a 1x1 Conv."""

    def __init__(self, c_in: int, c_out: int, repeat: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(c_in, hidden)
        self.cv3 = Conv(2 * hidden, c_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut) for _ in range(repeat)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: the input beside its max over windows of k, 2k - 1 and 3k - 2 pixels."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden)
        self.cv2 = Conv(4 * hidden, c_out)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.cv1(x)]
        for _ in range(3):
            pyramid.append(F.max_pool2d(pyramid[-1], self.kernel, 1, self.kernel // 2))
        return self.cv2(torch.cat(pyramid, 1))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by a whole factor."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


class Concat(nn.Module):
    """Join maps of one size along the channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)
