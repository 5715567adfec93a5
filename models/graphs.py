"""Prediction as one function, and its recording as a CUDA graph: one launch instead of some hundred, which is what a single image waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.detector import Detector

Predict = Callable[[Tensor], Tensor]  # images (B, 3, H, W) uint8 on the model's device -> predictions (B, N, 5 + nc), see Detector.decode
SHAPES = 8  # of inputs that are recorded; each keeps the memory of a forward pass
WARM_UP = 3  # calls before recording, in which libraries choose their kernels and allocate


def predictor(model: Detector, graphs: bool = False) -> Predict:
    """Forward and decoding of `model` in its own precision; graphs: recorded as CUDA graphs where the model is on a GPU. Call it in inference mode."""
    parameter = next(model.parameters())

    def predict(images: Tensor) -> Tensor:
        return model.decode(model(images.to(parameter.dtype) / 255))

    return Graphed(predict) if graphs and parameter.device.type == "cuda" else predict


class Recording(NamedTuple):
    """A graph with the tensors it reads and writes."""

    images: Tensor
    replay: Callable[[], object]
    predictions: Tensor


class Graphed:
    """`predict`, recorded for each of the first shapes it is given and replayed from then on. What cannot be recorded runs as it is."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.recordings: dict[tuple[int, ...], Recording] = {}
        self.works = True

    def __call__(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self.recordings and self.works and len(self.recordings) < SHAPES:
            try:
                self.recordings[shape] = record(self.predict, images)
            except RuntimeError as error:
                self.works = False
                print(f"warning: the network runs without CUDA graphs ({str(error).strip().splitlines()[0]})")
        if shape not in self.recordings:
            return self.predict(images)
        recording = self.recordings[shape]
        recording.images.copy_(images)
        recording.replay()
        return recording.predictions.clone()  # the next call overwrites them


def record(predict: Predict, images: Tensor) -> Recording:
    """Record `predict` for images of this shape. Raises RuntimeError where something in it cannot be recorded."""
    with torch.cuda.device(images.device):
        held, side = images.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                predict(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads ask of the device meanwhile, a pinning loader say, does not spoil the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            predictions = predict(held)
    return Recording(held, graph.replay, predictions)
