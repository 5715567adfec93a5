"""models/publish.py and utils/published.py: what is published is used as the checkpoint is, and a damaged or foreign file is refused."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.builder import load_config
from models.publish import publish
from models.weights import load_weights
from models.yolo import DetectionModel
from tests.conftest import ROOT
from utils import published
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is optional: pip install -r requirements-extra.txt")


@pytest.fixture(scope="module")
def source(narrow_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two classes."""
    torch.manual_seed(0)
    model = DetectionModel(load_config(narrow_cfg, 2))
    path = tmp_path_factory.mktemp("published") / "best.pt"
    save_checkpoint(path, {"model": model.config.to_dict(), "names": ["rock", "滑坡"], "imgsz": 96, "ema": model.state_dict()})
    return path


@pytest.fixture
def file(source: Path, tmp_path: Path) -> Path:
    publish(source, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def rewrite(path: Path, change: dict[str, str] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write the file anew with other metadata or tensors."""
    with published._library().safe_open(path, framework="pt") as old:
        facts, weights = old.metadata(), {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118
    path.write_bytes(safetensors.save({**weights, **(tensors or {})}, {**facts, **(change or {})}))


def test_published_weights_are_those_of_the_checkpoint(source: Path, file: Path) -> None:
    ours, theirs = load_weights(source), load_weights(file)
    assert (ours.names, ours.imgsz, ours.model.config.to_dict()) == (theirs.names, theirs.imgsz, theirs.model.config.to_dict())
    first, second = ours.model.state_dict(), theirs.model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    images = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a.box, b.box) for a, b in zip(ours.model(images), theirs.model(images), strict=True))
    assert not list(file.parent.glob("*.part"))


def test_the_command(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.safetensors"
    result = subprocess.run([sys.executable, "-m", "models.publish", str(source), "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "2 classes, 96 px" in result.stdout and out.exists(), result.stderr
    for wrong in (tmp_path / "b.pt", tmp_path / "none" / "b.safetensors"):
        with pytest.raises(UserError):
            publish(source, wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "another program"),
        ({"version": "7"}, "version"),
        ({"model": "{"}, "cannot be read"),
        ({"model": "[" * 100_000}, "cannot be read"),
        ({"model": "3"}, "no 'model'"),
        ({"names": '["a"]'}, "class names"),
        ({"names": "[1, 2]"}, "class names"),
        ({"imgsz": '"96"'}, "imgsz"),
        ({"imgsz": "-1"}, "imgsz"),
    ],
)
def test_metadata_that_do_not_fit_are_named(file: Path, change: dict[str, str], words: str) -> None:
    rewrite(file, change)
    with pytest.raises(UserError, match=words):
        load_weights(file)


def test_a_description_of_a_giant_takes_no_memory(file: Path) -> None:
    """Wider than its tensors, or deeper: refused by the file's own numbers before a layer is made."""
    with published._library().safe_open(file, framework="pt") as old:
        model = json.loads(old.metadata()["model"])
    rewrite(file, {"model": json.dumps({**model, "width_multiple": 16.0})})
    with pytest.raises(UserError, match="shape"):
        load_weights(file)
    for layer in model["layers"]:
        if layer["block"] == "C3":
            layer["repeat"] = 65536
    rewrite(file, {"model": json.dumps({**model, "depth_multiple": 16.0})})
    with pytest.raises(UserError, match="more layers"):
        load_weights(file)


def test_tensors_that_do_not_fit_are_named(file: Path) -> None:
    sound = file.read_bytes()
    for tensors, words in (
        ({"anchors": torch.zeros(2)}, "anchors has shape"),
        ({"anchors": torch.full((3, 3, 2), float("nan"))}, "anchors holds NaN"),
        ({"surplus": torch.zeros(1)}, "surplus belongs"),
    ):
        file.write_bytes(sound)
        rewrite(file, tensors=tensors)
        with pytest.raises(UserError, match=words):
            load_weights(file)


def test_damage_of_the_header_or_the_length_is_refused(file: Path, tmp_path: Path) -> None:
    sound = file.read_bytes()
    rng, header = random.Random(0), struct.unpack("<Q", sound[:8])[0]
    for _ in range(60):
        data = bytearray(sound)
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(8)] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(UserError):
            load_weights(file)
    assert header < len(sound)
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "none.safetensors")
    file.write_bytes(safetensors.save({"a": torch.zeros(1)}))
    with pytest.raises(UserError, match="another program"):
        load_weights(file)


def test_without_the_package_one_line_says_what_to_install(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="requirements-extra.txt"):
        publish(source, tmp_path / "c.safetensors")
