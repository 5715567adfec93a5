"""Every block a model YAML may name: how it is made, what it takes, how its output follows from its input.

A new block is its own file and one line in BLOCKS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.blocks import C3, SPPF, Concat, Conv, Upsample
from models.heads import CONTEXTS, CoupledHead, DecoupledHead
from models.msfe import MSFE


@dataclass(frozen=True)
class Option:
    """One argument a row may give: its kind and whether it must."""

    kind: type | tuple[str, ...]  # int, bool, or the words to choose from
    required: bool = False
    low: int = 1  # smallest whole number


@dataclass(frozen=True)
class Block:
    """One line of the registry."""

    make: Callable[[list[int], int, dict[str, Any]], nn.Module]  # (input channels, output channels, arguments)
    options: Mapping[str, Option]
    inputs: tuple[int, int | None] = (1, 1)  # fewest and most inputs; None: any number
    channels: Callable[[list[int]], int] | None = None  # output channels from the inputs'; None: the row's `out`, width-scaled
    zoom: Callable[[dict[str, Any]], float] = lambda args: 1.0  # output stride / input stride
    head: bool = False  # the last row: also receives anchors per level and the number of classes


OUT = Option(int, required=True)
KERNEL = {"kernel": Option(int)}

BLOCKS: dict[str, Block] = {
    "Conv": Block(
        lambda c, out, args: Conv(c[0], out, **args),
        {"out": OUT, **KERNEL, "stride": Option(int), "padding": Option(int, low=0), "dilation": Option(int)},
        zoom=lambda args: args.get("stride", 1),
    ),
    "C3": Block(lambda c, out, args: C3(c[0], out, **args), {"out": OUT, "repeat": Option(int), "shortcut": Option(bool)}),
    "SPPF": Block(lambda c, out, args: SPPF(c[0], out, **args), {"out": OUT, **KERNEL}),
    "MSFE": Block(lambda c, out, args: MSFE(c[0]), {}, channels=lambda c: c[0]),
    "Upsample": Block(lambda c, out, args: Upsample(**args), {"scale": Option(int)}, channels=lambda c: c[0], zoom=lambda args: 1 / args.get("scale", 2)),
    "Concat": Block(lambda c, out, args: Concat(), {}, inputs=(2, None), channels=sum),
    "CoupledHead": Block(lambda c, out, args: CoupledHead(c, **args), {}, inputs=(1, None), channels=sum, head=True),
    "DecoupledHead": Block(lambda c, out, args: DecoupledHead(c, **args), {"context": Option(CONTEXTS)}, inputs=(1, None), channels=sum, head=True),
}
