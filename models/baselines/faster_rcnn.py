"""Faster R-CNN with VGG16 (Ren et al., 2015): torchvision's region proposals and region heads on VGG16's last map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from models.baselines.boxes import KEPT, normalise, objects_of
from models.baselines.config import FasterRCNNConfig
from models.baselines.vgg import STAGES, init_convolutions, scaled, vgg16
from models.detector import Detector
from utils.boxes import xyxy_to_cxcywh
from utils.loss import LossSettings, LossTerms

REGION = 7  # cells of a side of a pooled region
HIDDEN = 4096  # of fc6 and fc7
BEFORE_NMS, TRAINED = 6000, 2000  # proposals that enter NMS, and that are left of them in training
SAMPLED_ANCHORS, SAMPLED_REGIONS = 256, 128  # of each image, for the two losses
LOWEST_SCORE = 0.001  # that of the coco protocol


class Raw(NamedTuple):
    """What forward puts out."""

    features: Tensor  # (B, C, H / 16, W / 16)
    size: tuple[int, int]  # H, W of the images
    found: list[dict[str, Tensor]] | None  # boxes (k, 4) xyxy, labels (k,) from 1, scores (k,) of each image; not in training


class FasterRCNN(Detector):
    """Images (B, 3, H, W) in [0, 1] -> Raw. In training the regions wait for the targets, so they are part of `loss`."""

    stride, levels = 32, 1

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.config, self.nc = config, config.nc
        channels, hidden = scaled(STAGES[-1][0], config.width), scaled(HIDDEN, config.width)
        anchors = AnchorGenerator((config.anchor_sizes,), (config.anchor_ratios,))
        stages = vgg16(config.width)
        for stage in stages.values():
            init_convolutions(stage)
        rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, len(config.anchor_sizes) * len(config.anchor_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=SAMPLED_ANCHORS,
            positive_fraction=0.5,
            pre_nms_top_n={"training": BEFORE_NMS, "testing": BEFORE_NMS},
            post_nms_top_n={"training": TRAINED, "testing": config.proposals},
            nms_thresh=0.7,
        )
        regions = RoIHeads(
            MultiScaleRoIAlign(["0"], REGION, sampling_ratio=2),
            TwoMLPHead(channels * REGION**2, hidden),
            FastRCNNPredictor(hidden, config.nc + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=SAMPLED_REGIONS,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=LOWEST_SCORE,
            nms_thresh=1.0,  # keeps all: NMS comes after decoding, the same for every model
            detections_per_img=KEPT,
        )
        self.layers = nn.ModuleDict({**stages, "rpn": rpn, "regions": regions})

    def forward(self, images: Tensor) -> Raw:
        features, size = normalise(images), (images.shape[2], images.shape[3])
        for name in list(self.layers)[:-2]:
            features = self.layers[name](features)
        if self.training:
            return Raw(features, size, None)
        return Raw(features, size, self._regions(features, size, None)[0])

    def _regions(self, features: Tensor, size: tuple[int, int], wanted: list[dict[str, Tensor]] | None) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """(detections, losses) of the two stages: the former in evaluation mode, the latter in training mode.

        Layers compute in the precision that the features came in, coordinates in float32: in bfloat16, neighbouring numbers above 512 are 4 px apart.
        """
        sizes, reduced = [size] * len(features), features.dtype in (torch.bfloat16, torch.float16)
        images = ImageList(features.new_empty((len(features), 0, *size)), sizes)  # without pixels: only sizes are read
        with torch.autocast(features.device.type, features.dtype if reduced else None, enabled=reduced):
            maps = {"0": features.float()}
            proposals, first = self.layers["rpn"](images, maps, wanted)
            found, second = self.layers["regions"](maps, proposals, sizes, wanted)
        return found, first | second

    def loss(self, raw: Raw, targets: Tensor, settings: LossSettings) -> LossTerms:
        """Ren et al., eq. 1, of both stages with equal weights: box is the sum of the two box terms, obj the proposals' objectness, cls the regions' class.

        Proposals and regions are sampled with torch's generator. The gains in `settings` belong to YOLOv5's loss and do not enter.
        """
        batch = len(raw.features)
        wanted = [{"boxes": boxes, "labels": classes + 1} for boxes, classes in objects_of(targets, batch, *raw.size)]
        with _scoring(self.layers["rpn"], self.layers["regions"]):
            losses = {name: loss.float() for name, loss in self._regions(raw.features, raw.size, wanted)[1].items()}
        box = losses["loss_rpn_box_reg"] + losses["loss_box_reg"]
        obj, cls = losses["loss_objectness"], losses["loss_classifier"]
        return LossTerms((box + obj + cls) * batch, box.detach(), obj.detach(), cls.detach())

    def decode(self, raw: Raw) -> Tensor:
        """Predictions (B, N, 5 + nc), one row for each region and class: the score as objectness, 1 for its class. After training only."""
        assert raw.found is not None, "a model in training mode has no detections"
        rows = raw.features.new_zeros((len(raw.found), max(len(one["scores"]) for one in raw.found), 5 + self.nc), dtype=torch.float32)
        for image, one in enumerate(raw.found):
            count = len(one["scores"])
            rows[image, :count, :4] = xyxy_to_cxcywh(one["boxes"].float())
            rows[image, :count, 4] = one["scores"].float()
            rows[image, torch.arange(count, device=rows.device), 4 + one["labels"]] = 1
        return rows


@contextmanager
def _scoring(*modules: nn.Module) -> Iterator[None]:
    """torchvision's modules compute losses in training mode only. Validation wants them too; nothing else in these modules depends on the mode."""
    before = [module.training for module in modules]
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.train(mode)
