"""models/weights.py: a checkpoint becomes the model it was made from; a wrong one is told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.builder import load_config
from models.weights import load_weights, model_from_checkpoint
from models.yolo import DetectionModel
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def content(narrow_cfg: Path) -> dict[str, Any]:
    """A checkpoint whose averaged weights differ from the last ones."""
    torch.manual_seed(0)
    model = DetectionModel(load_config(narrow_cfg, 2))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return {"model": model.config.to_dict(), "names": ["rock", "滑坡"], "imgsz": 96, "ema": model.state_dict(), "weights": weights}


def test_the_averaged_weights_are_loaded(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, content)
    loaded = load_weights(path)
    assert loaded.names == ("rock", "滑坡") and loaded.imgsz == 96 and loaded.model.nc == 2
    assert not loaded.model.training
    assert all(value.dtype == torch.float32 for value in loaded.model.parameters())
    assert all(torch.equal(value, content["ema"][name]) for name, value in loaded.model.state_dict().items())
    other = model_from_checkpoint(load_checkpoint(path), str(path), "weights")
    assert all(torch.equal(value, content["weights"][name]) for name, value in other.state_dict().items())
    assert not torch.equal(next(iter(other.parameters())), next(iter(loaded.model.parameters())))


@pytest.mark.parametrize("key", ["model", "names", "imgsz", "ema"])
@pytest.mark.parametrize("wrong", [None, "text"])
def test_a_part_that_is_missing_or_wrong_is_named(content: dict[str, Any], tmp_path: Path, key: str, wrong: str | None) -> None:
    path = tmp_path / "best.pt"
    changed = {**content, key: wrong} if wrong else {k: v for k, v in content.items() if k != key}
    save_checkpoint(path, changed)
    with pytest.raises(UserError, match=rf"best\.pt: the checkpoint has no '{key}'"):
        load_weights(path)


def test_weights_of_another_model_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    name = next(name for name, value in content["ema"].items() if value.ndim == 4)
    save_checkpoint(path, {**content, "ema": {**content["ema"], name: torch.zeros(1, 1, 1, 1)}})
    with pytest.raises(UserError, match=rf"best\.pt: tensor {name} has shape \(1, 1, 1, 1\)"):
        load_weights(path)


@pytest.mark.parametrize(("key", "value"), [("layers", []), ("nc", "two"), ("layers", [{"tag": "x", "block": "os.system"}]), ("anchors", [[1.0]])])
def test_a_model_that_cannot_be_built_is_the_files_fault(content: dict[str, Any], tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, {**content, "model": {**content["model"], key: value}})
    with pytest.raises(UserError, match=r"best\.pt"):
        load_weights(path)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_text("no")
    with pytest.raises(UserError, match=r"x\.pt"):
        load_weights(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pt")
