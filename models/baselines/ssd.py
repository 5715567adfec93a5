"""SSD with VGG16 (Liu et al., 2016): the layers of SSD300 for images of any size, with torchvision's head."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.ssd import SSDHead

from models.baselines.boxes import decode, encode, grid_anchors, match, normalise, objects_of, predictions
from models.baselines.config import SSDConfig
from models.baselines.vgg import init_convolutions, scaled, vgg16
from models.detector import Detector
from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.loss import LossSettings, LossTerms

RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))  # of the long boxes of each level, lying and standing
EXTRAS = ((256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))  # channels of the 1x1 and the 3x3 convolution, stride
VARIANCE = (0.1, 0.2)
NEGATIVES = 3  # background boxes for every matched one, those with the highest loss


class Raw(NamedTuple):
    """What forward puts out; N runs over levels, rows, columns and boxes of a cell."""

    offsets: Tensor  # (B, N, 4) from the default boxes
    logits: Tensor  # (B, N, 1 + nc), the first for background
    anchors: Tensor  # (N, 4) default boxes, cxcywh in pixels
    size: tuple[int, int]  # H, W of the images


class L2Norm(nn.Module):
    """Scale every cell of a map to a learnt length per channel (Liu et al., section 3.1)."""

    def __init__(self, channels: int, start: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float()).to(x.dtype) * self.weight.view(1, -1, 1, 1)


class Extra(nn.Sequential):
    """1x1 and 3x3 convolution to the next coarser map; where the map is smaller than the kernel it is enlarged by zeros."""

    def forward(self, x: Tensor) -> Tensor:
        short = [max(3 - side, 0) if self.unpadded else 0 for side in x.shape[2:]]
        return super().forward(F.pad(x, (0, short[1], 0, short[0])) if any(short) else x)

    @property
    def unpadded(self) -> bool:
        """Whether the 3x3 convolution sees whole neighbourhoods only."""
        return self[2].padding == (0, 0)  # type: ignore[union-attr]


def extra(before: int, middle: int, after: int, stride: int) -> Extra:
    """One of EXTRAS: stride 2 keeps the border, stride 1 loses it."""
    last = nn.Conv2d(middle, after, 3, stride, padding=1 if stride == 2 else 0)
    return Extra(nn.Conv2d(before, middle, 1), nn.ReLU(inplace=True), last, nn.ReLU(inplace=True))


class SSD(Detector):
    """Images (B, 3, H, W) in [0, 1] -> Raw."""

    stride, levels = 32, len(RATIOS)

    def __init__(self, config: SSDConfig) -> None:
        super().__init__()
        self.config, self.nc = config, config.nc
        stages, fc = vgg16(config.width), scaled(1024, config.width)
        wide = [scaled(channels, config.width) for channels in (512, 1024, *(after for _, after, _ in EXTRAS))]
        fc6 = nn.Conv2d(wide[0], fc, 3, padding=6, dilation=6)  # VGG16's fully connected layers, thinned out to convolutions
        stages["fc"] = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), fc6, nn.ReLU(inplace=True), nn.Conv2d(fc, fc, 1), nn.ReLU(inplace=True))
        before = fc
        for number, (middle, after, stride) in enumerate(EXTRAS, 1):
            stages[f"extra{number}"] = extra(before, scaled(middle, config.width), scaled(after, config.width), stride)
            before = scaled(after, config.width)
        for stage in stages.values():
            init_convolutions(stage)
        boxes = [2 + 2 * len(ratios) for ratios in RATIOS]
        head = nn.ModuleDict({"norm": L2Norm(wide[0]), "boxes": SSDHead(wide, boxes, config.nc + 1)})
        for name, parameter in head["boxes"].named_parameters():  # undecided, so that the hardest of many thousand boxes are no worse than the rest
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.01)
        self.layers = nn.ModuleDict({**stages, "head": head})

    def forward(self, images: Tensor) -> Raw:
        x, maps = normalise(images), []
        for name, layer in list(self.layers.items())[:-1]:
            x = layer(x)
            if name == "conv4":
                maps.append(self.layers["head"]["norm"](x))  # type: ignore[index]
            elif not name.startswith("conv"):
                maps.append(x)
        out = self.layers["head"]["boxes"](maps)  # type: ignore[index]
        height, width = images.shape[2:]
        sizes = [size.to(x.device) for size in box_sizes(self.config.scales, max(height, width))]
        anchors = grid_anchors([(m.shape[2], m.shape[3]) for m in maps], sizes, height, width)
        return Raw(out["bbox_regression"], out["cls_logits"], anchors, (height, width))

    def loss(self, raw: Raw, targets: Tensor, settings: LossSettings) -> LossTerms:
        """Liu et al., eq. 1: box is the smooth L1 term, cls the cross-entropy of the matched boxes, obj that of the background boxes.

        Sums over the batch divided by its matched boxes; an image without objects counts as one with one matched box, so that it teaches
        background too. The gains in `settings` belong to YOLOv5's loss and do not enter.
        """
        offsets, logits, batch = raw.offsets.float(), raw.logits.float(), len(raw.offsets)
        corners, zero = cxcywh_to_xyxy(raw.anchors), offsets.sum() * 0  # a box term without objects has gradients too
        box, obj, cls, matched = zero, zero, zero, 0
        for image, (boxes, classes) in enumerate(objects_of(targets, batch, *raw.size)):
            index = match(boxes, corners)
            positive = index >= 0
            if len(boxes):
                wanted = encode(xyxy_to_cxcywh(boxes)[index[positive]], raw.anchors[positive], VARIANCE)
                box = box + F.smooth_l1_loss(offsets[image][positive], wanted, reduction="sum")
                cls = cls + F.cross_entropy(logits[image][positive], classes[index[positive]] + 1, reduction="sum")
            count = max(int(positive.sum()), 1)
            background = -logits[image].log_softmax(1)[~positive, 0]
            obj = obj + background.topk(min(NEGATIVES * count, len(background))).values.sum()
            matched += count
        box, obj, cls = box / matched, obj / matched, cls / matched
        return LossTerms((box + obj + cls) * batch, box.detach(), obj.detach(), cls.detach())

    def decode(self, raw: Raw) -> Tensor:
        """Predictions (B, N, 5 + nc): objectness is what background leaves, so that the score is the class's softmax."""
        logits = raw.logits.float()
        objectness = 1 - logits.softmax(2)[..., 0]
        return predictions(decode(raw.offsets.float(), raw.anchors, VARIANCE), objectness, logits[..., 1:].softmax(2))


def box_sizes(scales: tuple[float, ...], side: int) -> list[Tensor]:
    """Widths and heights (A, 2) in pixels of each level's default boxes (Liu et al., section 2.2), for images with this longer side."""
    levels = []
    for scale, following, ratios in zip(scales[:-1], scales[1:], RATIOS, strict=True):
        between = math.sqrt(scale * following)
        sizes = [(scale, scale), (between, between)]
        for ratio in ratios:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            sizes += [(long, short), (short, long)]
        levels.append(torch.tensor(sizes) * side)
    return levels
