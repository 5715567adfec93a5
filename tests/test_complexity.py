"""Complexity: counts by hand, and the paper's own figures for its networks."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from models.yolo import build_model
from utils.complexity import complexity, frames_per_second

ROOT = Path(__file__).parents[1]


def test_one_convolution_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    found = complexity(conv, 32, 4)
    assert found.params == 4 * 8 * 9
    assert found.gflops == pytest.approx(2 * 4 * 8 * 9 * 32 * 32 / 1e9)
    assert capsys.readouterr().out == ""


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()).train()
    before = copy.deepcopy(model.state_dict())
    complexity(model, 32)
    assert model.training and list(model.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("cfg", "params", "gflops"), [("yolov5s.yaml", 7_012_822, 15.76), ("ls-yolo.yaml", 22_602_843, 42.54)])
def test_the_papers_figures_of_fused_models(cfg: str, params: int, gflops: float) -> None:
    found = complexity(build_model(ROOT / "models" / cfg, nc=1).eval().fuse(), 640)
    assert found.params == params
    assert found.gflops == pytest.approx(gflops, rel=0.003)


def test_frames_per_second_is_the_median_after_the_warm_up() -> None:
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.2 if calls <= 2 or calls == 5 else 0.01)  # a slow start and one outlier

    fps = frames_per_second(step, torch.device("cpu"), repeats=9, warmup=2)
    assert calls == 11
    assert 50 < fps < 100


def test_frames_per_second_ends_in_time_on_a_slow_machine() -> None:
    start = time.perf_counter()
    fps = frames_per_second(lambda: time.sleep(0.05), torch.device("cpu"), repeats=1000, warmup=1000, seconds=0.5)
    assert time.perf_counter() - start < 2
    assert fps == pytest.approx(20, rel=0.2)
