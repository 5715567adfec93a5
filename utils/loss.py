"""The three loss terms: CIoU for boxes, binary cross-entropy for objectness (target: the IoU) and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.anchors import RawMap, decode_box
from utils.assigner import assign
from utils.boxes import ciou
from utils.config import Hyp


class LossTerms(NamedTuple):
    """Weighted terms, each the mean per image; `total` is their sum times the batch size, as the optimizer sees it."""

    total: Tensor
    box: Tensor
    obj: Tensor
    cls: Tensor


@dataclass(frozen=True)
class LossSettings:
    """Everything the loss needs beside logits, targets and anchors; derived from the hyper-parameters by `loss_settings`."""

    box_gain: float
    obj_gain: float
    cls_gain: float
    cls_pw: float
    obj_pw: float
    anchor_t: float
    fl_gamma: float
    label_smoothing: float
    balance: tuple[float, ...]  # weight of each level's objectness


def loss_settings(hyp: Hyp, nc: int, levels: int, imgsz: int, label_smoothing: float = 0.0) -> LossSettings:
    """Scale the gains to the model: box by levels, classes by nc / 80 and levels, objectness by image area and levels."""
    share = 3 / levels
    balance = (4.0, 1.0, 0.4) if levels == 3 else (4.0, 1.0, 0.25, 0.06, 0.02)[:levels]
    return LossSettings(
        box_gain=hyp.box * share,
        obj_gain=hyp.obj * share * (imgsz / 640) ** 2,
        cls_gain=hyp.cls * share * nc / 80,
        cls_pw=hyp.cls_pw,
        obj_pw=hyp.obj_pw,
        anchor_t=hyp.anchor_t,
        fl_gamma=hyp.fl_gamma,
        label_smoothing=label_smoothing,
        balance=balance + (0.02,) * (levels - len(balance)),
    )


def detection_loss(maps: Sequence[RawMap], targets: Tensor, anchors: Tensor, strides: Sequence[int], settings: LossSettings) -> LossTerms:
    """Loss of a batch: `targets` (N, 6) [image, class, cx, cy, w, h in shares], `anchors` (L, A, 2) in pixels.

    A batch without objects has only an objectness term. Computed in float32 whatever the logits are.
    """
    levels = torch.stack([level.to(targets) / stride for level, stride in zip(anchors, strides, strict=True)])
    m = assign(targets, levels, [(raw.obj.shape[2], raw.obj.shape[3]) for raw in maps], settings.anchor_t)
    rows, objs = zip(*(_take(raw, place) for raw, place in zip(maps, m.place, strict=True)), strict=True)
    logits = torch.stack(rows).float()  # (L, n, 4 + nc)
    matched = m.valid.sum(1).clamp(min=1)
    overlap = ciou(decode_box(logits[..., :4], logits.new_zeros(2), m.anchor), m.box)
    box = (torch.where(m.valid, 1 - overlap, 0).sum(1) / matched).sum()
    cls = box.new_zeros(())
    if logits.shape[2] > 5:
        cls = (torch.where(m.valid, _class_loss(logits[..., 4:], m.cls, settings), 0).sum(1) / matched).sum()
    best = torch.where(m.valid, overlap.detach(), 0).clamp(min=0)
    obj = box.new_zeros(())
    for logit, place, target, balance in zip(objs, m.place, best, settings.balance, strict=True):
        # In a matched cell the best overlap of the objects matched there, whatever their order; 0 elsewhere.
        wanted = torch.zeros(logit.shape, device=logit.device).scatter_reduce_(0, place, target, "amax")
        obj = obj + balance * _bce(logit.float(), wanted, settings.obj_pw, settings.fl_gamma, "sum") / logit.numel()
    box, obj, cls = box * settings.box_gain, obj * settings.obj_gain, cls * settings.cls_gain
    return LossTerms((box + obj + cls) * maps[0].obj.shape[0], box.detach(), obj.detach(), cls.detach())


def filled_up(targets: Tensor, least: int = 64) -> Tensor:
    """Targets (N, 6) with rows of zeros, which match nothing, up to the next power of two: few lengths, so that little is compiled."""
    length = max(least, 1 << (len(targets) - 1).bit_length()) if len(targets) else least
    return F.pad(targets, (0, 0, 0, length - len(targets)))


def _take(raw: RawMap, place: Tensor) -> tuple[Tensor, Tensor]:
    """(box and class logits (n, 4 + nc) at the places, objectness logits (B H W A,) of all), in the order in which channels_last lies in memory."""
    if raw.packed is not None:
        rows, obj = _TakePacked.apply(raw.packed.flatten(0, 3), place)
        return torch.cat([rows[:, :4], rows[:, 5:]], 1), obj
    box, cls = (part.permute(0, 3, 4, 1, 2).flatten(0, 3)[place] for part in (raw.box, raw.cls))
    return torch.cat([box, cls], 1), raw.obj.permute(0, 2, 3, 1).flatten()


class _TakePacked(torch.autograd.Function):
    """(rows (n, 5 + nc) at the places, objectness (m,)) of packed logits (m, 5 + nc), with one gradient map for both instead of one each."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(place)
        ctx.shape = packed.shape
        return packed[place], packed[:, 4].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, obj = grads  # the rows' own objectness is not used, its gradient is 0
        grad = rows.new_zeros(ctx.shape)
        grad[:, 4] = obj
        return grad.index_put_(ctx.saved_tensors, rows, accumulate=True), None


def _class_loss(logits: Tensor, cls: Tensor, settings: LossSettings) -> Tensor:
    """(...,) for logits (..., nc) and classes (...,)."""
    half = settings.label_smoothing / 2
    wanted = torch.full_like(logits, half).scatter_(-1, cls[..., None], 1 - half)
    return _bce(logits, wanted, settings.cls_pw, settings.fl_gamma, "none").mean(-1)


def _bce(logits: Tensor, wanted: Tensor, positive_weight: float, gamma: float, reduction: str) -> Tensor:
    """Binary cross-entropy of each value ('none') or their 'sum'; with gamma > 0 the focal loss (Lin et al., ICCV 2017, eq. 5, alpha 0.25)."""
    weight = None if positive_weight == 1 else torch.full((), positive_weight, device=logits.device)
    if gamma == 0:
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction=reduction)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
    p = logits.sigmoid()
    off = (wanted * (1 - p) + (1 - wanted) * p) ** gamma
    alpha = wanted * 0.25 + (1 - wanted) * 0.75
    loss = loss * alpha * off
    return loss.sum() if reduction == "sum" else loss
