"""Rows `gpu_step`, `gpu_epoch`, `gpu_infer_b1` and `gpu_infer_b32`: rows of the other modules, measured on the first GPU."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import epoch, inference, train_step
from benchmarks.timing import Row, Settings


def _on_gpu(settings: Settings) -> Settings:
    return replace(settings, device="0")


def gpu_step(settings: Settings) -> Row:
    """A training step of LS-YOLO in mixed precision."""
    return replace(train_step.step_lsyolo_bf16(_on_gpu(settings)), row="gpu_step")


def gpu_epoch(settings: Settings) -> Row:
    """An epoch from start to end."""
    return replace(epoch.epoch(_on_gpu(settings)), row="gpu_epoch")


def gpu_infer_b1(settings: Settings) -> Row:
    """LS-YOLO with --half, one image, against the same network under autocast."""
    return inference.lsyolo("gpu_infer_b1", 1, _on_gpu(settings), half=True)


def gpu_infer_b32(settings: Settings) -> Row:
    """LS-YOLO with --half, 32 images."""
    return inference.lsyolo("gpu_infer_b32", 32, _on_gpu(settings), half=True)
