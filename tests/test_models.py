"""The ten networks of Table III: parameters, GFLOPs, fusing, any size; bad YAMLs are one line with file and row."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.blocks import Conv
from models.builder import config_from_dict, load_config
from models.cem import CEM
from models.heads import DecoupledHead
from models.msfe import ECA, MSFE, nearest_odd
from models.registry import BLOCKS
from models.yolo import DetectionModel, build_model, summary
from tests.conftest import ROOT
from utils.errors import UserError

MODELS = ROOT / "models"
# name: parameters unfused, fused, GFLOPs at 640 unfused, fused (PAPER.md)
TABLE_III = {
    "yolov5s": (7_022_326, 7_012_822, 15.95, 15.76),
    "ablation/msfe": (8_844_283, 8_833_115, 17.56, 17.37),
    "ablation/odh": (13_564_918, 13_552_726, 27.93, 27.71),
    "ablation/adh": (20_807_304, 20_790_623, 41.23, 40.95),
    "ablation/cdh": (21_833_206, 21_815_638, 43.10, 42.81),
    "ablation/wdh": (20_799_222, 20_782_550, 41.20, 40.92),
    "ablation/msfe-odh": (15_386_875, 15_373_019, 29.55, 29.32),
    "ablation/msfe-adh": (22_629_261, 22_610_916, 42.85, 42.56),
    "ablation/msfe-cdh": (23_655_163, 23_635_931, 44.72, 44.42),
    "ls-yolo": (22_621_179, 22_602_843, 42.82, 42.54),
}


def with_random_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: fusing must handle any statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", TABLE_III)
def test_table_iii(name: str) -> None:
    params, params_fused, gflops, gflops_fused = TABLE_III[name]
    figures = summary(build_model(MODELS / f"{name}.yaml").eval(), 640)
    assert (figures["params"], figures["params_fused"]) == (params, params_fused)
    assert figures["gflops"] == pytest.approx(gflops, rel=0.003)
    assert figures["gflops_fused"] == pytest.approx(gflops_fused, rel=0.003)


@pytest.mark.parametrize("name", TABLE_III)
def test_fused_equals_unfused(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(MODELS / f"{name}.yaml").eval()
    image = torch.rand(1, 3, 640, 640)
    with torch.inference_mode():
        before = model.decode(model(image))
    model.fuse()
    with torch.inference_mode():
        after = model.decode(model(image))
    assert (before[..., :4] - after[..., :4]).abs().max() < 1e-4  # pixels
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["ablation/msfe-adh", "ls-yolo"])
def test_fusing_costs_no_accuracy(name: str) -> None:
    """With any statistics: in double precision the same boxes, in single precision as near to them as unfused."""
    torch.manual_seed(0)
    model = with_random_statistics(build_model(MODELS / f"{name}.yaml"))
    image = torch.rand(1, 3, 96, 96)
    exact, fused, exact_fused = copy.deepcopy(model).double(), copy.deepcopy(model).fuse(), copy.deepcopy(model).double().fuse()
    with torch.inference_mode():
        logits = [torch.cat([raw.box.flatten() for raw in m(x)]) for m, x in ((model, image), (fused, image), (exact, image.double()))]
        difference = torch.cat([(a.box - b.box).flatten() for a, b in zip(exact(image.double()), exact_fused(image.double()), strict=True)])
    assert difference.abs().max() < 1e-12
    unfused_error, fused_error = ((value.double() - logits[2]).abs().max() for value in logits[:2])
    assert fused_error < 3 * unfused_error + 1e-7


def test_command_line_prints_json() -> None:
    command = [sys.executable, "-m", "models.yolo", "--cfg", "models/ls-yolo.yaml", "--nc", "3", "--img", "64", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout)
    assert {"params", "params_fused", "gflops", "gflops_fused"} <= figures.keys()
    assert figures["nc"] == 3 and figures["params"] > 22_621_179


@pytest.mark.parametrize("changes", ["nc: 7", "channels: 5", "width_multiple: 0.25", "depth_multiple: 1.0", "width_multiple: 0.3"])
def test_other_sizes(changes: str, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"base: {MODELS / 'ls-yolo.yaml'}\n{changes}\n", encoding="utf-8")
    model = build_model(path).eval()
    with torch.inference_mode():
        maps = model(torch.rand(2, model.config.channels, 64, 96))
    assert [tuple(raw.cls.shape) for raw in maps] == [(2, 3, model.nc, 64 // s, 96 // s) for s in (8, 16, 32)]
    assert model.decode(maps).shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 5 + model.nc)


def test_four_levels_and_two_anchors(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        """nc: 2
channels: 1
anchors: [[4, 4, 8, 8], [16, 16, 24, 24], [32, 32, 48, 48], [64, 64, 96, 96]]
layers:
  - {tag: a, block: Conv, out: 16, kernel: 3, stride: 2}
  - {tag: b, block: Conv, out: 16, kernel: 3, stride: 2}
  - {tag: c, block: Conv, out: 24, kernel: 3, stride: 2}
  - {tag: d, block: C3, out: 32}
  - {tag: e, block: Conv, out: 40, kernel: 3, stride: 2}
  - {tag: head, block: DecoupledHead, from: [a, b, d, e], context: concat}
""",
        encoding="utf-8",
    )
    model = build_model(path)
    assert model.strides == [2, 4, 8, 16] and model.stride == 16
    assert [tuple(raw.box.shape) for raw in model(torch.rand(1, 1, 32, 32))] == [(1, 2, 4, 32 // s, 32 // s) for s in (2, 4, 8, 16)]


def test_config_survives_a_checkpoint() -> None:
    config = load_config(MODELS / "ablation" / "msfe-adh.yaml", nc=4)
    again = config_from_dict(json.loads(json.dumps(config.to_dict())), "x.pt")
    torch.manual_seed(0)
    first = DetectionModel(config)
    torch.manual_seed(0)
    second = DetectionModel(again)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


GOOD = """nc: 1
anchors: [[10, 13]]
layers:
  - {tag: a, block: Conv, out: 16, kernel: 3, stride: 2}
  - {tag: b, block: Conv, out: 16, kernel: 3, stride: 2}
  - {tag: head, block: CoupledHead}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("block: Conv, out: 16, kernel: 3, stride: 2}\n  - {tag: b", "block: Cnov, out: 16}\n  - {tag: b", 4, "did you mean 'Conv'"),
        ("tag: b, block: Conv, out: 16", "tag: b, block: Conv, width: 16", 5, "no argument 'width'"),
        ("tag: b, block: Conv, out: 16,", "tag: b, block: Conv,", 5, "needs the argument 'out'"),
        ("tag: b, block: Conv, out: 16", "tag: b, block: Conv, out: -3", 5, "whole number"),
        ("tag: b, block: Conv", "tag: b, from: zz, block: Conv", 5, "does not exist"),
        ("tag: a, block: Conv", "tag: a, from: b, block: Conv", 4, "cycle"),
        ("tag: b, block: Conv", "tag: b, from: b, block: Conv", 5, "cycle"),
        ("tag: b, block: Conv", "tag: b, from: [a, image], block: Conv", 5, "2 inputs, 1 expected"),
        ("{tag: b, block: Conv, out: 16, kernel: 3, stride: 2}", "{tag: b, block: Concat, from: [a]}", 5, "1 inputs, 2 or more"),
        ("{tag: b, block: Conv, out: 16, kernel: 3, stride: 2}", "{tag: b, block: Concat, from: [a, image]}", 5, "strides"),
        ("tag: b, block", "tag: a, block", 5, "taken"),
        ("  - {tag: head, block: CoupledHead}\n", "", 5, "head is missing"),
        ("block: CoupledHead}", "block: CoupledHead, from: [a, b]}", 6, "anchors are given for 1"),
        ("nc: 1", "nc: one", 1, "number"),
        ("nc: 1", "ncc: 1", 1, "did you mean 'nc'"),
        ("nc: 1", "nc: !!python/object/apply:os.system ['true']", 1, "not readable"),
        ("nc: 1", "nc: 1\nnc: 2", 2, "twice"),
        ("anchors: [[10, 13]]", "anchors: [[10, 13, 4]]", 2, "w, h"),
    ],
)
def test_bad_yaml_is_one_line_with_file_and_row(old: str, new: str, line: int, words: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as found:
        build_model(path)
    message = str(found.value)
    assert f"bad.yaml:{line}" in message and words in message and "\n" not in message


def test_bases_that_chase_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match="comes back"):
        load_config(tmp_path / "a.yaml")


def test_unknown_layer_in_replace(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text(f"base: {MODELS / 'yolov5s.yaml'}\nreplace:\n  haed: {{block: CoupledHead}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"v.yaml:3.*did you mean 'head'"):
        load_config(path)


def test_every_block_is_used_by_some_yaml() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in MODELS.rglob("*.yaml"))
    assert all(f"block: {name}" in text for name in BLOCKS)


def test_eca_against_its_equation() -> None:
    """Eq. (1)-(3), channel by channel."""
    torch.manual_seed(0)
    eca, x = ECA(64), torch.rand(2, 64, 5, 7)
    kernel = eca.conv.weight[0, 0]
    half = len(kernel) // 2
    for b in range(2):
        means = x[b].mean((1, 2))
        for c in range(64):
            value = sum(float(kernel[k]) * float(means[c + k - half]) for k in range(len(kernel)) if 0 <= c + k - half < 64)
            expected = x[b, c] * torch.sigmoid(torch.tensor(value))
            assert torch.allclose(eca(x)[b, c], expected, atol=1e-6)
    assert [nearest_odd(v) for v in (3.0, 3.9, 4.5, 5.0)] == [3, 3, 5, 5] and ECA(512).conv.kernel_size == (5,)


def test_msfe_adds_its_input() -> None:
    module = with_random_statistics(MSFE(32))
    with torch.no_grad():
        module.conv.bn.weight.zero_()
        module.conv.bn.bias.zero_()
        x = torch.rand(1, 32, 8, 8)
        assert torch.equal(module(x), x)


def test_cem_fusions_against_their_equations() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 8, 12, 12)
    for fusion in ("weighted", "concat", "adaptive"):
        cem = with_random_statistics(CEM(8, fusion))
        f = [conv(x) for conv in cem.dilated]
        g = [mix(feature) for mix, feature in zip(cem.mix, f, strict=True)]
        if fusion == "weighted":
            expected = sum(g)
        elif fusion == "concat":
            expected = cem.join(torch.cat(g, 1))
        else:
            weight = torch.softmax(cem.join(torch.cat(g, 1)), 1)
            expected = sum(weight[:, i : i + 1] * f[i] for i in range(3))
        assert torch.allclose(cem(x), expected, atol=1e-6)
    assert [conv.conv.dilation[0] for conv in CEM(8).dilated] == [1, 3, 5]
    with pytest.raises(ValueError, match="fusion"):
        CEM(8, "sum")


def test_starting_biases() -> None:
    model = build_model(MODELS / "ls-yolo.yaml", nc=3)
    head = model.head
    assert isinstance(head, DecoupledHead)
    for level, stride in zip(head.levels, model.strides, strict=True):
        assert level.obj_out.bias.mean().item() == pytest.approx(torch.tensor(8 / (640 / stride) ** 2).log().item(), abs=0.2)
        assert level.cls_out.bias.mean().item() == pytest.approx(torch.tensor(0.6 / (3 - 0.99999)).log().item(), abs=0.2)


def test_conv_keeps_size_with_any_kernel_and_dilation() -> None:
    for kernel in (1, 3, 5, (3, 1), (1, 5)):
        for dilation in (1, 3, 5):
            assert Conv(4, 4, kernel, dilation=dilation)(torch.rand(1, 4, 16, 16)).shape == (1, 4, 16, 16)
