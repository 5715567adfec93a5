"""Weights for publishing: a .safetensors file, which can hold nothing but tensors and text.

Its metadata say what a model of this program needs beside the weights: `format`, `version`, and as JSON `model`, `names`, `imgsz`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint import FORMAT, TEMPORARY, VERSION
from utils.errors import ENVIRONMENT, EnvironmentFault, UserError, exit_code

SUFFIX = ".safetensors"
FACTS = ("model", "names", "imgsz")


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"{SUFFIX} files need the package safetensors: pip install -r requirements-extra.txt") from None
    return safetensors


def write_published(path: Path, content: Mapping[str, Any]) -> None:
    """Write the averaged weights of a checkpoint's content with its model, class names and image size. Raises EnvironmentFault.

    The file appears under its name when it is whole and has been read back.
    """
    library, temporary = _library(), path.with_name(path.name + TEMPORARY)
    tensors = {name: tensor.contiguous() for name, tensor in content["ema"].items()}
    facts = {"format": FORMAT, "version": str(VERSION), **{key: json.dumps(content[key], ensure_ascii=False) for key in FACTS}}
    try:
        temporary.write_bytes(library.torch.save(tensors, facts))
        found = read_published(temporary)
        if any(not torch.equal(tensor, found["ema"][name]) for name, tensor in tensors.items()):
            raise OSError("the disk did not keep what was written")
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_published(path: str | Path) -> dict[str, Any]:
    """`model`, `names`, `imgsz` and the weights `ema` of a published file, as `load_checkpoint` gives them.

    Raises UserError for a missing or damaged file, tensors that are not finite, and a file of another program.
    """
    library = _library()
    try:
        with library.safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise UserError(f"{path}: holds weights of another program: its metadata do not say which model of ours they belong to")
            if facts.get("version") != str(VERSION):
                raise UserError(f"{path}: has format version {facts.get('version')!r}, this program reads {VERSION}")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        content = {key: json.loads(facts[key]) for key in FACTS}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, library.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        if exit_code(error) == ENVIRONMENT:
            raise
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError(f"{path}: {name} holds NaN or infinite values")
    return {**content, "ema": weights}
