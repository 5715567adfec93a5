"""What training, validation and detection ask of a network; the YOLO models and the comparison models of models/baselines answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from utils.loss import LossSettings, LossTerms


class Detector(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> raw output, of which `loss` and `decode` know the form."""

    config: Any  # its `to_dict()` gives plain values, from which models/weights.py builds the network again
    nc: int
    stride: int  # image sides must be multiples of it
    levels: int  # feature maps that predict: the loss gains are shared among them
    layers: nn.ModuleDict  # in the order of the data, the head last: what --freeze counts

    def loss(self, raw: Any, targets: Tensor, settings: LossSettings) -> LossTerms:
        """Loss of a batch: `raw` is forward's output, `targets` (N, 6) [image, class, cx, cy, w, h in shares of the image]."""
        raise NotImplementedError

    def decode(self, raw: Any) -> Tensor:
        """Predictions (B, N, 5 + nc): cx, cy, w, h in input pixels, objectness, class probabilities; rows without a prediction score 0."""
        raise NotImplementedError

    def fuse(self) -> Detector:
        """Fold what can be folded for inference, in place; training ends here."""
        return self
