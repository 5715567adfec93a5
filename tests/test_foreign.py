"""models/foreign.py against networks built here in YOLOv5's and the LS-YOLO authors' own layout, with forward passes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models.yolo
from models.foreign import load_foreign, read_foreign
from models.weights import load_weights
from models.yolo import DetectionModel, build_model
from utils.anchors import RawMap
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
OFFICIAL = ROOT.parent / "shared" / "weights" / "yolov5n.pt"
VARIANTS = {"yolov5s": (False, "coupled"), "ls-yolo": (True, "weighted"), "ablation/msfe": (True, "coupled")} | {
    f"ablation/{prefix}{letter}dh": (bool(prefix), context)
    for prefix in ("", "msfe-")
    for letter, context in {"o": "conv", "a": "adaptive", "c": "concat", "w": "weighted"}.items()
    if (prefix, letter) != ("msfe-", "w")
}
NARROW = 16  # channels of the first layer: width 0.25


class TheirConv(nn.Module):
    def __init__(self, c1: int, c2: int, k: Any = 1, s: int = 1, d: int = 1, p: int | None = None) -> None:
        super().__init__()
        size = (k, k) if isinstance(k, int) else k
        self.conv = nn.Conv2d(c1, c2, size, s, tuple(d * (side // 2) for side in size) if p is None else p, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(self.bn(y) if hasattr(self, "bn") else y)

    def fold(self) -> None:
        """What their fusing leaves: a convolution with a bias and no `bn`."""
        std = (self.bn.running_var + self.bn.eps).sqrt()
        self.conv.bias = nn.Parameter(self.bn.bias.detach() - self.bn.running_mean * self.bn.weight.detach() / std)
        self.conv.weight.data *= (self.bn.weight.detach() / std).view(-1, 1, 1, 1)
        del self.bn
        self.forward = self.forward  # a bound method of its own lands in the pickle, as after their fusing


class TheirBottleneck(nn.Module):
    def __init__(self, c: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = TheirConv(c, c), TheirConv(c, c, 3), add

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x)) + (x if self.add else 0)


class TheirC3(nn.Module):
    def __init__(self, c1: int, c2: int, n: int, add: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = TheirConv(c1, c2 // 2), TheirConv(c1, c2 // 2), TheirConv(c2, c2)
        self.m = nn.Sequential(*[TheirBottleneck(c2 // 2, add) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class TheirSPPF(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = TheirConv(c, c // 2), TheirConv(2 * c, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.cv1(x)
        return self.cv2(torch.cat((a, self.m(a), self.m(self.m(a)), self.m(self.m(self.m(a)))), 1))


class TheirECA(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x)[:, None, :, 0, 0]).sigmoid()[:, 0, :, None, None] * x


class TheirMSFE(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        h = c // 4
        self.ECA, self.branch1, self.branch2 = TheirECA(k), TheirConv(c, h), nn.AvgPool2d(3, 1, 1)
        self.branch3 = nn.Sequential(TheirConv(c, h, (3, 1)), TheirConv(h, h, (1, 3)))
        self.branch4 = nn.Sequential(TheirConv(c, h, (3, 1)), TheirConv(h, h, (1, 3)), TheirConv(h, h, (3, 1)), TheirConv(h, h, (1, 3)))
        self.branch5 = nn.Sequential(TheirConv(c, h, (5, 1)), TheirConv(h, h, (1, 5)), TheirConv(h, h, (5, 1)), TheirConv(h, h, (1, 5)))
        self.conv = TheirConv(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ECA(x)
        return self.conv(torch.cat((self.branch1(y), self.branch2(y), self.branch3(y), self.branch4(y), self.branch5(y)), 1)) + x


class TheirCAM(nn.Module):
    def __init__(self, c: int, fusion: str) -> None:
        super().__init__()
        for number, rate in ((1, 1), (2, 3), (3, 5)):
            setattr(self, f"conv{number}", TheirConv(c, c, 3, d=rate))
            setattr(self, f"fusion_{number}", TheirConv(c, c))
        if fusion == "adaptive":
            self.fusion_4 = TheirConv(3 * c, 3)
        if fusion == "concat":
            self.fusion_5 = TheirConv(3 * c, c)
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        f = [self.conv1(x), self.conv2(x), self.conv3(x)]
        g = [self.fusion_1(f[0]), self.fusion_2(f[1]), self.fusion_3(f[2])]
        if self.fusion == "concat":
            return self.fusion_5(torch.cat(g, 1))
        if self.fusion == "weighted":
            return sum(g)  # type: ignore[return-value]
        weight = F.softmax(self.fusion_4(torch.cat(g, 1)), 1)
        return sum(weight[:, i : i + 1] * f[i] for i in range(3))  # type: ignore[return-value]


class TheirHead(nn.Module):
    def __init__(self, c: tuple[int, ...], nc: int, context: str, anchors: Tensor) -> None:
        super().__init__()
        self.nc, self.context = nc, context
        self.register_buffer("anchors", anchors / torch.tensor([8.0, 16.0, 32.0]).view(3, 1, 1))
        if context == "coupled":
            self.m = nn.ModuleList(nn.Conv2d(x, 3 * (5 + nc), 1) for x in c)
            return
        self.m_stem = nn.ModuleList(TheirConv(x, x) for x in c)
        self.m_cls = nn.ModuleList(nn.Sequential(TheirConv(x, x, 3), nn.Conv2d(x, 3 * nc, 1)) for x in c)
        if context == "conv":
            self.m_reg_conf = nn.ModuleList(TheirConv(x, x, 3) for x in c)
        else:
            self.cam = nn.ModuleList(TheirCAM(x, context) for x in c)
        self.m_reg = nn.ModuleList(nn.Conv2d(x, 12, 1) for x in c)
        self.m_conf = nn.ModuleList(nn.Conv2d(x, 3, 1) for x in c)

    def forward(self, features: list[Tensor]) -> list[RawMap]:
        maps = []
        for i, x in enumerate(features):
            if self.context == "coupled":
                y = self.m[i](x).unflatten(1, (3, 5 + self.nc))
                maps.append(RawMap(y[:, :, :4], y[:, :, 4], y[:, :, 5:]))
                continue
            x = self.m_stem[i](x)
            region = self.m_reg_conf[i](x) if self.context == "conv" else self.cam[i](x)
            maps.append(RawMap(self.m_reg[i](region).unflatten(1, (3, 4)), self.m_conf[i](region), self.m_cls[i](x).unflatten(1, (3, self.nc))))
        return maps


class TheirModel(nn.Module):
    """YOLOv5 v6 n-size, 25 numbered layers, with an MSFE at 10 or another head at 24 where asked."""

    def __init__(self, msfe: bool, context: str, nc: int) -> None:
        super().__init__()
        w = NARROW
        blank = nn.Identity()
        anchors = torch.tensor([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]).float().view(3, 3, 2)
        ten, t = (TheirMSFE(16 * w, 5), 16 * w) if msfe else (TheirConv(16 * w, 8 * w), 8 * w)
        self.model = nn.Sequential(
            TheirConv(3, w, 6, 2, p=2), TheirConv(w, 2 * w, 3, 2), TheirC3(2 * w, 2 * w, 1), TheirConv(2 * w, 4 * w, 3, 2), TheirC3(4 * w, 4 * w, 2),
            TheirConv(4 * w, 8 * w, 3, 2), TheirC3(8 * w, 8 * w, 3), TheirConv(8 * w, 16 * w, 3, 2), TheirC3(16 * w, 16 * w, 1), TheirSPPF(16 * w),
            ten, nn.Upsample(scale_factor=2), blank, TheirC3(t + 8 * w, 8 * w, 1, False),
            TheirConv(8 * w, 4 * w), nn.Upsample(scale_factor=2), blank, TheirC3(8 * w, 4 * w, 1, False),
            TheirConv(4 * w, 4 * w, 3, 2), blank, TheirC3(8 * w, 8 * w, 1, False),
            TheirConv(8 * w, 8 * w, 3, 2), blank, TheirC3(t + 8 * w, 16 * w, 1, False),
            TheirHead((4 * w, 8 * w, 16 * w), nc, context, anchors),
        )  # fmt: skip
        self.names: Any = [f"kind{i}" for i in range(nc)]
        self.yaml = {"nc": nc, "depth_multiple": 0.33, "width_multiple": 0.25}

    def forward(self, x: Tensor) -> list[RawMap]:
        layer = self.model
        c3 = layer[4](layer[3](layer[2](layer[1](layer[0](x)))))
        c4 = layer[6](layer[5](c3))
        top = layer[10](layer[9](layer[8](layer[7](c4))))
        middle = layer[14](layer[13](torch.cat((layer[11](top), c4), 1)))
        p3 = layer[17](torch.cat((layer[15](middle), c3), 1))
        p4 = layer[20](torch.cat((layer[18](p3), middle), 1))
        p5 = layer[23](torch.cat((layer[21](p4), top), 1))
        return layer[24]([p3, p4, p5])


@pytest.fixture
def their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the time of a test, these classes are what `models.common.Conv` and `models.yolo.Model` mean to pickle."""
    common = types.ModuleType("models.common")
    places = {"Conv": TheirConv, "Bottleneck": TheirBottleneck, "C3": TheirC3, "SPPF": TheirSPPF, "ECA": TheirECA, "MSFE": TheirMSFE, "CAM": TheirCAM}
    monkeypatch.setitem(sys.modules, "models.common", common)
    for module, names in ((common, places), (models.yolo, {"Detect": TheirHead, "Model": TheirModel})):
        for name, cls in names.items():
            monkeypatch.setattr(module, name, cls, raising=False)
            cls.__module__, cls.__name__, cls.__qualname__ = module.__name__, name, name


def make(msfe: bool = False, context: str = "coupled", nc: int = 2) -> TheirModel:
    """A network whose every tensor is random, the statistics too."""
    torch.manual_seed(0)
    model = TheirModel(msfe, context, nc)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)):
                assert tensor is not None
                tensor.data.uniform_(low, high)
    return model.eval()


@torch.no_grad()
def assert_same(theirs: TheirModel, ours: DetectionModel, tolerance: float) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for level, (a, b) in enumerate(zip(theirs(images), ours(images), strict=True)):
        for name in ("box", "obj", "cls"):
            torch.testing.assert_close(getattr(b, name), getattr(a, name), atol=tolerance, rtol=0, msg=lambda text, n=name, at=level: f"level {at} {n}: {text}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_ten_variants_give_their_own_outputs(tmp_path: Path, their_names: None, variant: str) -> None:
    theirs = make(*VARIANTS[variant])
    torch.save({"epoch": 5, "model": theirs, "ema": None, "optimizer": None, "date": "2024"}, tmp_path / "a.pt")
    ours, names = load_foreign(tmp_path / "a.pt")
    assert names == ["kind0", "kind1"] and (ours.config.width_multiple, ours.config.depth_multiple) == (0.25, 0.33)
    wanted = build_model(ROOT / "models" / f"{variant}.yaml", nc=2)
    assert [(row.tag, row.block, dict(row.args)) for row in ours.config.rows] == [(row.tag, row.block, dict(row.args)) for row in wanted.config.rows]
    assert torch.equal(ours.anchors, wanted.anchors)
    assert_same(theirs, ours, 2e-5)


def test_half_precision_ema_names_dict_and_fused(tmp_path: Path, their_names: None) -> None:
    theirs = make(True, "adaptive", nc=3)
    theirs.names = {2: "c", 0: "a", 1: "b"}
    for module in theirs.modules():
        if isinstance(module, TheirConv):
            module.fold()
    other = make(nc=3)
    torch.save({"model": other, "ema": theirs.half(), "updates": 7}, tmp_path / "a.pt")
    ours, names = load_foreign(tmp_path / "a.pt")
    assert names == ["a", "b", "c"]
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    assert_same(theirs.float(), ours, 5e-5)
    assert_same(theirs, ours.fuse(), 5e-5)


def test_a_whole_model_a_state_dict_and_another_size(tmp_path: Path, their_names: None) -> None:
    theirs = make()
    torch.save(theirs, tmp_path / "a.pt")
    assert_same(theirs, load_foreign(tmp_path / "a.pt")[0], 2e-5)
    torch.save(theirs.state_dict(), tmp_path / "b.pt")
    loaded = load_weights(tmp_path / "b.pt")
    assert loaded.names == ("class0", "class1") and loaded.imgsz == 640
    assert_same(theirs, loaded.model, 2e-5)


def change(path: Path, model: TheirModel, **attributes: Any) -> Path:
    for name, value in attributes.items():
        setattr(model, name, value)
    torch.save({"model": model}, path)
    return path


def test_what_is_no_such_network_is_named(tmp_path: Path, their_names: None) -> None:
    path = tmp_path / "a.pt"

    def reason(content: Any) -> str:
        torch.save(content, path)
        with pytest.raises(UserError) as error:
            load_foreign(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    state = make().state_dict()
    assert "holds no model" in reason({"epoch": 3})
    assert "holds no model" in reason([1, 2])
    assert "not those of a YOLOv5" in reason({"a": torch.ones(2)})
    assert "lacks 'layers.p5.cv3.bn.bias'" in reason({k: v for k, v in state.items() if k != "model.23.cv3.bn.bias"})
    assert "'layers.p5.extra'" in reason(state | {"model.23.extra": torch.ones(1)})
    assert "no layer of YOLOv5" in reason(state | {"model.25.conv.weight": torch.ones(1)})
    assert "has the shape (1, 3)" in reason(state | {"model.23.cv3.bn.bias": torch.ones(1, 3)})
    assert "not finite" in reason(state | {"model.23.cv3.bn.bias": state["model.23.cv3.bn.bias"] / 0})
    assert "above 0" in reason(state | {"model.24.anchors": -state["model.24.anchors"]})
    assert "not those of" in reason(state | {"model.24.anchors": torch.ones(4, 3, 2)})
    wrong = make()
    wrong.names = ["one"]
    assert "for 2 classes, but it names 1" in reason({"model": wrong})
    wrong.names = {0: "a", 5: "b"}
    assert "not 0 to 1" in reason({"model": wrong})


def test_modules_that_contain_themselves_end(tmp_path: Path, their_names: None) -> None:
    theirs = make()
    theirs.model._modules["0"] = theirs
    torch.save({"model": theirs}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="nested too deeply"):
        read_foreign(tmp_path / "a.pt")


class Malice:
    """Pickles as a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_malicious_checkpoint_is_refused_with_exit_2_and_nothing_runs(tmp_path: Path, their_names: None) -> None:
    sentinel, path = tmp_path / "ran", tmp_path / "bad.pt"
    theirs = make()
    theirs.hook = Malice(f"touch {sentinel}")  # type: ignore[assignment]
    torch.save({"model": theirs}, path)
    with pytest.raises(UserError, match="system"):
        load_weights(path)
    command = [sys.executable, "-m", "models.foreign", str(path), "--out", str(tmp_path / "out.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "system" in done.stderr and "Traceback" not in done.stderr
    assert not sentinel.exists() and not (tmp_path / "out.pt").exists()


def test_the_command_converts_and_guards_its_input(tmp_path: Path, their_names: None) -> None:
    theirs = make(True, "weighted")
    torch.save({"model": theirs}, tmp_path / "in.pt")
    before = (tmp_path / "in.pt").read_bytes()
    command = [sys.executable, "-m", "models.foreign", str(tmp_path / "in.pt"), "--out"]
    done = subprocess.run([*command, str(tmp_path / "out.pt")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MSFE, DecoupledHead weighted, width 0.25" in done.stdout
    assert_same(theirs, load_weights(tmp_path / "out.pt").model, 2e-5)
    assert subprocess.run([*command, str(tmp_path / "in.pt")], cwd=ROOT, capture_output=True, check=False).returncode == 2
    assert (tmp_path / "in.pt").read_bytes() == before


@pytest.mark.skipif(not OFFICIAL.is_file(), reason="the official yolov5n.pt is not in ../shared/weights")
def test_the_official_checkpoint() -> None:
    loaded = load_weights(OFFICIAL)
    assert len(loaded.names) == 80 and loaded.names[0] == "person" and loaded.model.strides == [8, 16, 32]
    assert sum(parameter.numel() for parameter in loaded.model.fuse().parameters()) == 1_867_405
    with torch.no_grad():
        rows = loaded.model.decode(loaded.model(torch.full((1, 3, 64, 64), 114 / 255)))
    assert rows.shape == (1, 252, 85) and torch.isfinite(rows).all()
