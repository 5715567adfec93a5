"""What a model costs: parameters, GFLOPs, frames per second (the columns Params, FLOPs and FPS of Table IV)."""

from __future__ import annotations

import contextlib
import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Complexity:
    """Size of a model."""

    params: int
    gflops: float  # 10^9 floating point operations for one image: thop's multiply-accumulates x 2


def complexity(model: nn.Module, imgsz: int, channels: int = 3) -> Complexity:
    """Parameters of `model`, and its GFLOPs for one (channels, imgsz, imgsz) image. The model itself is left as it is.

    thop counts convolutions, linear layers, normalisation, pooling and up-sampling; activations count as nothing.
    """
    params = sum(p.numel() for p in model.parameters())
    duplicate = copy.deepcopy(model).float().eval()  # thop leaves counters in the modules it has seen
    first = next(duplicate.parameters(), torch.zeros(1))
    image = torch.zeros(1, channels, imgsz, imgsz, device=first.device)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # thop still imports distutils
        from thop import profile

        macs, _ = profile(duplicate, inputs=(image,), verbose=False)
    return Complexity(params, float(macs) * 2 / 1e9)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything asked of it, so that a clock read next is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def frames_per_second(step: Callable[[], object], device: torch.device, repeats: int = 100, warmup: int = 10, seconds: float = 10.0) -> float:
    """1 / median time of `step`, which handles one image on `device`.

    `warmup` calls come first and are not counted; it ends after `repeats` calls or `seconds`, whichever is first, with 3 calls at least.
    """
    end = time.perf_counter() + seconds
    times: list[float] = []
    for call in range(warmup + repeats):
        start = time.perf_counter()
        step()
        synchronize(device)
        now = time.perf_counter()
        # A machine too slow to warm up in a quarter of the time starts counting then.
        if call >= warmup or (call and now > end - 0.75 * seconds):
            times.append(now - start)
        if now > end and len(times) >= 3:
            break
    return 1 / statistics.median(times)
