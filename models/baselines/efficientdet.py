"""EfficientDet-D0 (Tan et al., 2020): the network of the package effdet with the paper's anchors and loss."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from models.baselines.boxes import decode, encode, grid_anchors, match, normalise, objects_of, predictions
from models.baselines.config import EfficientDetConfig
from models.detector import Detector
from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import UserError
from utils.loss import LossSettings, LossTerms

STRIDES = (8, 16, 32, 64, 128)
OCTAVES = 3  # sizes of anchors from one level to the next
RATIOS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # width and height of an anchor over its size
ALPHA, GAMMA = 0.25, 1.5  # of the focal loss
DELTA, BOX_WEIGHT = 0.1, 50.0  # of the box loss, which turns from square to linear at DELTA


class Raw(NamedTuple):
    """What forward puts out; N runs over levels, rows, columns and anchors of a cell."""

    offsets: Tensor  # (B, N, 4) from the anchors
    logits: Tensor  # (B, N, nc)
    anchors: Tensor  # (N, 4) cxcywh in pixels
    size: tuple[int, int]  # H, W of the images


class EfficientDet(Detector):
    """Images (B, 3, H, W) in [0, 1], H and W multiples of 128 -> Raw. Raises UserError where effdet is missing."""

    stride, levels = STRIDES[-1], len(STRIDES)

    def __init__(self, config: EfficientDetConfig) -> None:
        super().__init__()
        self.config, self.nc = config, config.nc
        network = _network(config.nc)
        head = nn.ModuleDict({"classes": network.class_net, "boxes": network.box_net})
        self.layers = nn.ModuleDict({"backbone": network.backbone, "fpn": network.fpn, "head": head})

    def forward(self, images: Tensor) -> Raw:
        maps = self.layers["fpn"](self.layers["backbone"](normalise(images)))
        head: nn.ModuleDict = self.layers["head"]  # type: ignore[assignment]
        classes, boxes = head["classes"](maps), head["boxes"](maps)
        height, width = images.shape[2:]
        sizes = [size.to(images.device) for size in anchor_sizes(self.config.anchor_scale)]
        anchors = grid_anchors([(m.shape[2], m.shape[3]) for m in classes], sizes, height, width)
        return Raw(_rows(boxes, 4), _rows(classes, self.nc), anchors, (height, width))

    def loss(self, raw: Raw, targets: Tensor, settings: LossSettings) -> LossTerms:
        """Focal loss (cls) and Huber loss of the offsets (box), both over the matched anchors of the batch; obj is 0: there is no objectness.

        The gains in `settings` belong to YOLOv5's loss and do not enter.
        """
        offsets, logits, batch = raw.offsets.float(), raw.logits.float(), len(raw.offsets)
        corners, box, matched = cxcywh_to_xyxy(raw.anchors), offsets.sum() * 0, 0
        truth = torch.zeros_like(logits)
        for image, (boxes, classes) in enumerate(objects_of(targets, batch, *raw.size)):
            index = match(boxes, corners)
            positive = (index >= 0).nonzero()[:, 0]
            if len(positive):
                wanted = encode(xyxy_to_cxcywh(boxes)[index[positive]], raw.anchors[positive])
                box = box + F.huber_loss(offsets[image][positive], wanted, reduction="sum", delta=DELTA) / 4
                truth[image, positive, classes[index[positive]]] = 1
                matched += len(positive)
        cls = sigmoid_focal_loss(logits, truth, ALPHA, GAMMA, reduction="sum") / max(matched, 1)
        box = BOX_WEIGHT * box / max(matched, 1)
        return LossTerms((box + cls) * batch, box.detach(), torch.zeros_like(cls.detach()), cls.detach())

    def decode(self, raw: Raw) -> Tensor:
        """Predictions (B, N, 5 + nc), objectness 1."""
        classes = raw.logits.float().sigmoid()
        return predictions(decode(raw.offsets.float(), raw.anchors), torch.ones_like(classes[..., 0]), classes)


def anchor_sizes(scale: float) -> list[Tensor]:
    """Widths and heights (9, 2) in pixels of each level's anchors; the smallest has sides of `scale` strides."""
    octaves = [2 ** (octave / OCTAVES) for octave in range(OCTAVES)]
    return [torch.tensor([[octave * w, octave * h] for octave in octaves for w, h in RATIOS]) * scale * stride for stride in STRIDES]


def _rows(maps: list[Tensor], values: int) -> Tensor:
    """Maps (B, A * values, H, W) of the levels as (B, N, values)."""
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, values) for one in maps], 1)


def _network(nc: int) -> Any:
    """effdet's EfficientDet-D0 without pretrained weights. Raises UserError where the package is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it still uses torch.jit
            from effdet import EfficientDet as Network
            from effdet import get_efficientdet_config
    except ImportError as error:
        raise UserError(f"efficientdet_d0 needs the package effdet: pip install effdet ({error})") from None
    settings = get_efficientdet_config("efficientdet_d0")
    settings.num_classes = nc
    network = Network(settings, pretrained_backbone=False)
    for module in network.modules():
        if getattr(module, "size", None) is not None and hasattr(module, "scale_factor"):
            module.size, module.scale_factor = None, 2.0  # enlarge a map by two, not to what a 512 px image needs
    return network
