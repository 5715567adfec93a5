"""The three loss terms: CIoU for boxes, binary cross-entropy for objectness (target: the IoU) and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.anchors import RawMap, decode_box
from utils.assigner import Matches, assign
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
    zero = maps[0].obj.new_zeros((), dtype=torch.float32)
    box, obj, cls = zero, zero, zero
    for raw, anchor_px, stride, balance in zip(maps, anchors, strides, settings.balance, strict=True):
        anchor = anchor_px.to(targets) / stride
        height, width = raw.obj.shape[2:]
        m = assign(targets, anchor, height, width, settings.anchor_t)
        wanted = torch.zeros(raw.obj.shape, device=raw.obj.device)
        if len(m.image):
            overlap = ciou(_matched_boxes(raw, m, anchor), m.box)
            box = box + (1 - overlap).mean()
            _raise_to(wanted, m, overlap.detach().clamp(min=0))
            if raw.cls.shape[2] > 1:
                cls = cls + _class_loss(raw.cls[m.image, m.anchor, :, m.y, m.x].float(), m.cls, settings)
        obj = obj + balance * _bce(raw.obj.float(), wanted, settings.obj_pw, settings.fl_gamma)
    box, obj, cls = box * settings.box_gain, obj * settings.obj_gain, cls * settings.cls_gain
    return LossTerms((box + obj + cls) * maps[0].obj.shape[0], box.detach(), obj.detach(), cls.detach())


def _matched_boxes(raw: RawMap, m: Matches, anchor: Tensor) -> Tensor:
    """Predicted boxes (n, 4) of the matched cells, in cells from the cell's corner."""
    logits = raw.box[m.image, m.anchor, :, m.y, m.x].float()
    return decode_box(logits, logits.new_zeros(1, 2), anchor[m.anchor])


def _raise_to(wanted: Tensor, m: Matches, overlap: Tensor) -> None:
    """Set each matched cell's objectness target to the best overlap of the objects matched there, in any order."""
    _, anchors, height, width = wanted.shape
    cell = ((m.image * anchors + m.anchor) * height + m.y) * width + m.x
    wanted.view(-1).scatter_reduce_(0, cell, overlap, "amax")


def _class_loss(logits: Tensor, cls: Tensor, settings: LossSettings) -> Tensor:
    half = settings.label_smoothing / 2
    wanted = torch.full_like(logits, half).scatter_(1, cls[:, None], 1 - half)
    return _bce(logits, wanted, settings.cls_pw, settings.fl_gamma)


def _bce(logits: Tensor, wanted: Tensor, positive_weight: float, gamma: float) -> Tensor:
    """Mean binary cross-entropy; with gamma > 0 the focal loss (Lin et al., ICCV 2017, eq. 5, alpha 0.25)."""
    weight = None if positive_weight == 1 else logits.new_tensor(positive_weight)
    if gamma == 0:
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
    p = logits.sigmoid()
    off = (wanted * (1 - p) + (1 - wanted) * p) ** gamma
    alpha = wanted * 0.25 + (1 - wanted) * 0.75
    return (loss * alpha * off).mean()
