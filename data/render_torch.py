"""Draw a batch of plans with torch, on any device: the second back end of data/render.py, with the same meaning.

Every pixel of the batch finds its topmost layer, samples that layer's image once (bilinear, stopping at the crop's edges), then pictures of
two stacks are blended and colours changed, in the 8-bit steps of the first back end. No shape in it depends on data, so on a GPU it is
compiled into three kernels: which layer, its colour, the finish. What the plans say is packed into small tensors on the host; only those are sent.

Against data/render.py: resampling differs by at most 1 of 255 (OpenCV's weights are fixed-point numbers), except on the outline of a turned
layer or an object, where a pixel centre within rounding of the edge may fall on its other side; colour gains then multiply that.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from data.device import DeviceImages, Layout, Locate
from data.plan import GREY, Layer, Plan
from data.render import inside

GROUP = 8  # layers looked at in one pass over the pixels; pictures are padded to a multiple of it, the grey ground being the first layer
TINY = 1e-12
EAGER_PIXELS = 2**21  # drawn at a time where nothing is compiled: some thirty arrays of that many numbers live at once


@dataclass(frozen=True)
class PackedPlans:
    """A batch of B plans as tensors. Its V stacks are pictures of their own: first the B lower ones, then the upper ones of blended pictures."""

    height: int
    width: int
    edges: Tensor  # (V, L, 4, 3) float32: a layer covers the pixel (column x, row y) where a x + b y + c >= 0 for all four
    matrix: Tensor  # (V, L, 9) float32: pixel number of the canvas -> pixel number of the crop, projective
    last: Tensor  # (V, L, 2) float32: the crop's last column and row
    place: Tensor  # (V, L, 2) int64: first byte of the crop; pixels from line to line
    bits: Tensor  # (V, L, 3) int64: (c, a, b): bit a x + b y + c of `masks` says whether an outline holds the pixel
    masks: Tensor  # (bytes,) uint8: eight pixels each, the first byte all ones
    upper: Tensor  # (B,) int64: the stack laid over picture i
    opacity: Tensor  # (B, 2) float32: of the lower and the upper stack
    colours: Tensor  # (B, 3, 256) uint8: new hue, saturation, value
    shifted: Tensor  # (B,) bool: whether the colours change at all
    pixels: Tensor | None  # (bytes,) uint8: the crops, where they are not on the device already

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedPlans:
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})  # type: ignore[arg-type]

    def to(self, device: torch.device) -> PackedPlans:
        """A copy on the device, without waiting for it where this one is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedPlans:
        """A copy that can be sent while the host goes on."""
        return self._each(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> PackedPlans:
        """A copy that another process reads. Raises RuntimeError where shared memory is short."""
        return self._each(lambda tensor: tensor.share_memory_())


def render_batch(plans: Sequence[Plan], images: DeviceImages, device: torch.device, compiled: bool | None = None) -> Tensor:
    """The pictures of plans of one size: (B, 3, H, W) uint8 RGB, channels last in memory. compiled: None: on CUDA, where a compiler is there."""
    return draw(pack(plans, images.layout).to(device), images.pixels, compiled)


def draw(packed: PackedPlans, pixels: Tensor | None = None, compiled: bool | None = None) -> Tensor:
    """The pictures (B, 3, H, W) uint8 of packed plans, drawn where these are; `pixels`: the images there, unless they came along."""
    pixels = packed.pixels if pixels is None else pixels
    assert pixels is not None
    if compiled is None:
        compiled = pixels.device.type == "cuda" and can_compile()
    with torch.no_grad():
        if compiled:
            colour = _pictures(packed, pixels, _compiled(), len(packed.edges))
        else:
            colour = _pictures(packed, pixels, KERNELS, max(EAGER_PIXELS // (packed.height * packed.width), 1))
        rgb = colour.view(torch.uint8).view(*colour.shape, 4)[..., :3]  # the lowest byte, red, comes first in memory
        return rgb.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile has what it takes to make GPU kernels: Triton, which PyTorch for Windows lacks, and a C compiler."""
    compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


# ---------------------------------------------------------------------------------------------- plans -> tensors


def pack(plans: Sequence[Plan], locate: Locate | Layout) -> PackedPlans:
    """Put what plans of one size say into tensors; `locate` tells where the layers' pixels are."""
    lower, upper = [plan.stacks[0] for plan in plans], [plan.stacks[1] for plan in plans if len(plan.stacks) == 2]
    stacks = [[layer for layer in stack.layers if layer.rect[0] < layer.rect[2] and layer.rect[1] < layer.rect[3]] for stack in (*lower, *upper)]
    layers = [layer for stack in stacks for layer in stack]
    stack_of = np.repeat(np.arange(len(stacks)), [len(stack) for stack in stacks])
    slot_of = np.concatenate([np.zeros(0, np.int64), *(np.arange(1, len(stack) + 1) for stack in stacks)])  # slot 0 is the ground
    slots = -(-(1 + max(map(len, stacks))) // GROUP) * GROUP

    def padded(values: np.ndarray, ground: Sequence[float], kind: type) -> Tensor:
        table = np.empty((len(stacks), slots, *values.shape[1:]), kind)
        table[:] = np.reshape(ground, values.shape[1:])
        table[stack_of, slot_of] = values
        return torch.from_numpy(table)

    located = locate(layers)
    matrices = _to_crops(layers)
    corners = np.array([layer.crop for layer in layers], np.float64).reshape(-1, 4)
    bits, masks = _masks(layers)
    blended = np.array([len(plan.stacks) == 2 for plan in plans])
    number = len(plans) + np.cumsum(blended) - 1
    gains = [plan.gains or (1.0, 1.0, 1.0) for plan in plans]
    return PackedPlans(
        height=plans[0].height,
        width=plans[0].width,
        edges=padded(_edges(layers, matrices), [0, 0, -1] * 4, np.float32),
        matrix=padded(matrices.reshape(-1, 9), [0, 0, 0, 0, 0, 0, 0, 0, 1], np.float32),
        last=padded(corners[:, 2:] - corners[:, :2] - 1, [0, 0], np.float32),
        place=padded(np.stack([located.first, located.row], 1), [0, 0], np.int64),
        bits=padded(bits, [0, 0, 0], np.int64),
        masks=torch.from_numpy(masks),
        upper=torch.from_numpy(np.where(blended, number, np.arange(len(plans)))),
        opacity=torch.tensor([[s.opacity for s in plan.stacks] if len(plan.stacks) == 2 else [1.0, 0.0] for plan in plans]),
        colours=torch.from_numpy(_colour_tables(np.array(gains))),
        shifted=torch.tensor([gain != (1.0, 1.0, 1.0) for gain in gains]),
        pixels=located.pixels,
    )


def _to_crops(layers: Sequence[Layer]) -> np.ndarray:
    """(n, 3, 3) float64: pixel numbers of the canvas -> pixel numbers of each layer's crop."""
    matrix = np.array([layer.matrix for layer in layers], np.float64).reshape(-1, 3, 3)
    to_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    to_index = np.tile(np.eye(3), (len(layers), 1, 1))
    to_index[:, :2, 2] = -0.5 - np.array([layer.crop[:2] for layer in layers], np.float64).reshape(-1, 2)
    return to_index @ matrix @ to_centre


def _edges(layers: Sequence[Layer], matrices: np.ndarray) -> np.ndarray:
    """(n, 4, 3) float64: the lines around what each layer covers, in pixels' distance.

    An aligned layer or an object on its outline covers its rectangle; any other what shows its source's part in view, and that is where the
    projected point (X / w, Y / w) lies in it: X - left w >= 0 and so on, all linear in the canvas. (Where w < 0 two of these contradict.)
    """
    x0, y0, x1, y1 = np.array([layer.rect for layer in layers], np.float64).reshape(-1, 4).T
    one, zero = np.ones_like(x0), np.zeros_like(x0)
    edges = np.array([[one, zero, 0.5 - x0], [-one, zero, x1 - 0.5], [zero, one, 0.5 - y0], [zero, -one, y1 - 0.5]]).transpose(2, 0, 1)
    turned = [i for i, layer in enumerate(layers) if not layer.aligned and layer.objects is None]
    if turned:
        view = np.array([layers[i].view or layers[i].crop for i in turned], np.float64)
        corner = np.array([layers[i].crop[:2] for i in turned], np.float64)
        low, high = view[:, :2] - corner - 0.5, view[:, 2:] - corner - 0.5
        x, y, w = matrices[turned].transpose(1, 0, 2)
        lines = np.stack([x - low[:, :1] * w, high[:, :1] * w - x, y - low[:, 1:] * w, high[:, 1:] * w - y], 1)
        edges[turned] = lines / np.maximum(np.hypot(lines[:, :, 0], lines[:, :, 1]), TINY)[:, :, None]
    return edges


def _masks(layers: Sequence[Layer]) -> tuple[np.ndarray, np.ndarray]:
    """((n, 3) factors (c, a, b) of the bit for column x and row y, bytes of all masks) for outlines that four lines do not tell."""
    bits, masks, end = np.zeros((len(layers), 3), np.int64), [np.full(1, 255, np.uint8)], 1
    for i, layer in enumerate(layers):
        if layer.outline is not None and (layer.aligned or layer.objects is not None):
            x0, y0, x1, y1 = layer.rect
            packed = np.packbits(inside(layer.outline - (x0, y0), y1 - y0, x1 - x0))
            bits[i] = 8 * end - y0 * (x1 - x0) - x0, 1, x1 - x0
            masks.append(packed)
            end += len(packed)
    return bits, np.concatenate(masks)


def _colour_tables(gains: np.ndarray) -> np.ndarray:
    """(B, 3, 256) uint8: hue (wrapping at 180), saturation and value (both saturating), each times its gain (B, 3)."""
    table = np.arange(256) * gains[:, :, None]
    table[:, 0] %= 180
    return np.minimum(table, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- tensors -> pictures


def _cover(top: Tensor, slots: Tensor, edges: Tensor, bits: Tensor, masks: Tensor) -> Tensor:
    """(V, H, W) int32: the topmost of the layers that cover each pixel: one of `slots` (GROUP,) if any of them does, else the one in `top`."""
    column = torch.arange(top.shape[2], device=top.device).view(1, 1, -1)
    row = torch.arange(top.shape[1], device=top.device).view(1, -1, 1)
    x, y = column.float(), row.float()
    for slot in range(GROUP):
        a, b, c = edges[:, slot, :, :, None, None].unbind(2)  # each (V, 4, 1, 1)
        covers = (a[:, 0] * x + b[:, 0] * y + c[:, 0] >= 0) & (a[:, 1] * x + b[:, 1] * y + c[:, 1] >= 0)
        covers = covers & (a[:, 2] * x + b[:, 2] * y + c[:, 2] >= 0) & (a[:, 3] * x + b[:, 3] * y + c[:, 3] >= 0)
        if len(masks) > 1:
            start, right, down = bits[:, slot, :, None, None].unbind(1)
            bit = torch.where(covers, start + right * column + down * row, 0)
            covers = covers & ((masks[bit >> 3] >> (7 - (bit & 7)) & 1) != 0)
        top = torch.where(covers, slots[slot], top)
    return top


def _sample(pixels: Tensor, top: Tensor, matrix: Tensor, last: Tensor, place: Tensor) -> Tensor:
    """(V, H, W) int32 colours 0xBBGGRR: each pixel interpolated in the image of its layer `top` (V, H, W), grey where that is 0."""
    x = torch.arange(top.shape[2], device=top.device).float().view(1, 1, -1)
    y = torch.arange(top.shape[1], device=top.device).float().view(1, -1, 1)
    layer = top + torch.arange(len(top), device=top.device).view(-1, 1, 1) * matrix.shape[1]
    m = [number[layer] for number in matrix.flatten(0, 1).unbind(1)]
    right_end, lower_end = (number[layer] for number in last.flatten(0, 1).unbind(1))
    first, stride = (number[layer] for number in place.flatten(0, 1).unbind(1))
    depth = 1 / (m[6] * x + m[7] * y + m[8]).clamp_min(1e-12)  # written out: a compiler would make a variable of a named number
    u = ((m[0] * x + m[1] * y + m[2]) * depth).clamp_min(0).minimum(right_end)
    v = ((m[3] * x + m[4] * y + m[5]) * depth).clamp_min(0).minimum(lower_end)
    left, upper = u.floor(), v.floor()
    share_x, share_y = u - left, v - upper
    origin = first + 3 * (upper.long() * stride + left.long())
    to_right = 3 * (left < right_end).long()
    down = 3 * stride * (upper < lower_end)
    colour = torch.zeros_like(top)
    for channel in range(3):
        at = origin + channel
        above = pixels[at] * (1 - share_x) + pixels[at + to_right] * share_x
        below = pixels[at + down] * (1 - share_x) + pixels[at + down + to_right] * share_x
        value = (above * (1 - share_y) + below * share_y + 0.5).int()
        colour = colour | torch.where(top > 0, value, GREY) << 8 * channel
    return colour


def _channels(colour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green, blue as float32."""
    return (colour & 255).float(), (colour >> 8 & 255).float(), (colour >> 16 & 255).float()


def _finish(lower: Tensor, upper: Tensor, opacity: Tensor, colours: Tensor, shifted: Tensor) -> Tensor:
    """(B, H, W) int32 colours: two stacks (B, H, W) blended, then hue, saturation and value changed by the tables."""
    weight, weight_upper = opacity[:, :, None, None].unbind(1)
    red, green, blue = (
        torch.round(one * weight + other * weight_upper) for one, other in zip(_channels(lower), _channels(upper), strict=True)
    )
    value = red.maximum(green).maximum(blue)
    range_ = value - red.minimum(green).minimum(blue)
    saturation = (255 * range_ / value.clamp_min(1) + 0.5).long()
    turn = torch.where(value == red, green - blue, torch.where(value == green, blue - red + 2 * range_, red - green + 4 * range_))
    hue = (30 * turn / range_.clamp_min(1) + 0.5).floor().long()
    hue = torch.where(hue < 0, hue + 180, hue)
    table = colours.flatten()
    start = 768 * torch.arange(len(lower), device=lower.device).view(-1, 1, 1)
    new_hue = table[start + hue].float() / 30
    new_saturation, new_value = table[start + 256 + saturation].float() / 255, table[start + 512 + value.long()].float()
    result = torch.zeros_like(lower)
    for channel, (old, sector) in enumerate(((red, 5), (green, 3), (blue, 1))):
        angle = (new_hue + sector) % 6
        new = new_value - new_value * new_saturation * angle.minimum(4 - angle).clamp(0, 1)
        result = result | torch.where(shifted[:, None, None], new + 1e-3, old).int() << 8 * channel  # cut off, as OpenCV does; the rest is for rounding
    return result


KERNELS = (_cover, _sample, _finish)


@functools.cache
def _compiled() -> tuple[Callable[..., Tensor], ...]:
    """The three steps, each compiled into one kernel for pictures and batches of all sizes."""
    return tuple(torch.compile(kernel, dynamic=True) for kernel in KERNELS)


def _pictures(p: PackedPlans, pixels: Tensor, kernels: Sequence[Callable[..., Tensor]], at_once: int) -> Tensor:
    """(B, H, W) int32 colours, `at_once` pictures at a time."""
    cover, sample, finish = kernels
    slots = torch.arange(p.edges.shape[1], dtype=torch.int32, device=pixels.device)
    painted = []
    for edges, bits, matrix, last, place in zip(*(table.split(at_once) for table in (p.edges, p.bits, p.matrix, p.last, p.place)), strict=True):
        top = torch.zeros(len(edges), p.height, p.width, dtype=torch.int32, device=pixels.device)
        for group, edge, bit in zip(slots.split(GROUP), edges.split(GROUP, 1), bits.split(GROUP, 1), strict=True):
            top = cover(top, group, edge.contiguous(), bit.contiguous(), p.masks)
        painted.append(sample(pixels, top, matrix, last, place))
    colour = _joined(painted)
    parts = zip(*(table.split(at_once) for table in (colour[: len(p.upper)], p.upper, p.opacity, p.colours, p.shifted)), strict=True)
    return _joined([finish(lower, colour[upper], *rest) for lower, upper, *rest in parts])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
