"""The YOLOv5 package (PyPI, 7.0.14) as a measuring partner: how to have it here, and its networks with our weights.

Every benchmark runs in an environment that holds both programs: see requirements-bench.txt.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

PACKAGE = "yolov5"


def peer_environment(folder: Path) -> dict[str, str]:
    """Environment of a peer process: its settings go to `folder`, it stays offline, and it may open the files made here."""
    return {**os.environ, "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def how_to_install(package: str = PACKAGE) -> str:
    """What to say where a peer is missing."""
    return (
        f"the {package} package is not in this environment; make one with `python -m venv .venv-bench`, "
        f"`.venv-bench/bin/pip install -r requirements.txt`, `.venv-bench/bin/pip install --no-deps -r requirements-bench.txt`, "
        f"and run this with .venv-bench/bin/python"
    )


def require_peer() -> ModuleType:
    """The imported package. Raises UserError that says how to install it."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(how_to_install())
    os.environ.setdefault("YOLO_OFFLINE", "true")
    if not hasattr(np, "trapz"):  # the peer was written before numpy renamed it
        np.trapz = np.trapezoid  # type: ignore[attr-defined]
    logging.disable(logging.INFO)  # it lists every layer of every network
    return importlib.import_module(PACKAGE)


def peer_model(size: str, nc: int, state: dict[str, torch.Tensor] | None = None) -> Any:
    """The peer's network of size n, s, m, l or x, freshly made or with a state dict in its own names."""
    config = Path(str(require_peer().__file__)).parent / "models" / f"yolov5{size}.yaml"
    model = importlib.import_module(f"{PACKAGE}.models.yolo").Model(str(config), ch=3, nc=nc)
    if state is not None:
        model.load_state_dict(state, strict=True)
    return model
