"""Checkpoints: tensors and plain values, written so that a crash never costs the last good one, read without executing anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import EnvironmentFault, UserError

FORMAT, VERSION = "ls-yolo", 1
TEMPORARY = ".part"  # suffix of a file that is still being written


class ForeignFile(UserError):
    """A readable checkpoint that is not one of ours."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`: temporary file, sync, checksums read back, rename. The old file stays until the new one is proven.

    Raises EnvironmentFault when the disk cannot take it.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if damage := _damage(temporary):
            raise EnvironmentFault(f"{path}: the disk did not keep what was written ({damage}); the previous file is untouched")
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        size = sum(t.numel() * t.element_size() for _, t in tensors(content))
        temporary.unlink(missing_ok=True)
        raise EnvironmentFault(f"{path}: cannot be written, about {size / 2**20:.0f} MiB are needed ({error}); the previous file is untouched") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; Windows cannot sync a folder and does not need to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damage(path: Path) -> str:
    """What is wrong with the archive's checksums; empty if nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            return f"the checksum of {bad} is wrong" if bad else ""
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints (all tensors on the CPU).

    Raises UserError for a missing, damaged or inconsistent file and ForeignFile for a checkpoint of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is no checkpoint, or it is cut short; take an earlier one (best.pt, last.pt, epoch*.pt)")
    if damage := _damage(path):
        raise UserError(f"{path}: is damaged ({damage}); take an earlier one (best.pt, last.pt, epoch*.pt)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ForeignFile(f"{path}: holds more than tensors and plain values; it was not written by this program") from None
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ForeignFile(f"{path}: is not a checkpoint of this program")
    if content.get("version") != VERSION:
        raise UserError(f"{path}: has format version {content.get('version')!r}, this program reads {VERSION}")
    for name, tensor in tensors(content):
        check_tensor(tensor, f"{path}: {name}")
    return content


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested dicts and lists, with its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{name}.{index}")


def check_tensor(tensor: Tensor, name: str) -> None:
    """UserError unless the tensor is dense and finite: a sparse one can read outside its memory."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"{name} is not a plain dense tensor")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds NaN or infinite values")


def load_weights_into(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill the model; UserError naming the first tensor that is missing, left over or of the wrong shape."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise UserError(f"{source}: tensor {name} is missing")
        if weights[name].shape != tensor.shape:
            raise UserError(f"{source}: tensor {name} has shape {tuple(weights[name].shape)}, {tuple(tensor.shape)} was expected")
    if extra := sorted(set(weights) - set(own)):
        raise UserError(f"{source}: tensor {extra[0]} belongs to no layer of the model")
    model.load_state_dict(dict(weights))
