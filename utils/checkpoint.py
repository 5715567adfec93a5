"""Checkpoints: tensors and plain values, written so that a crash never costs the last good one, read without executing anything."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import Diverged, EnvironmentFault, UserError

FORMAT, VERSION = "ls-yolo", 1
TEMPORARY = ".part"  # suffix of a file that is still being written


class ForeignFile(UserError):
    """A readable checkpoint that is not one of ours."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`: temporary file, sync, checksums read back, rename. The old file stays until the new one is proven.

    Raises EnvironmentFault when the disk cannot take it, and Diverged when a tensor is not finite: such a file could never be read again.
    """
    for name, tensor in tensors(content):
        if not _is_finite(name, tensor):
            raise Diverged(f"{path}: {name} holds NaN or infinite values; nothing was written, the previous file is untouched")
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if damage := _damage(temporary):
            raise OSError(f"the disk did not keep what was written: {damage}")
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        size = sum(t.numel() * t.element_size() for _, t in tensors(content))
        # torch reports a failed write as an error of its own, raised while it handled the cause.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise EnvironmentFault(f"{path}: cannot be written, about {size / 2**20:.0f} MiB are needed ({cause}); the previous file is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last, where the file system can: Windows and some network shares cannot, and the new file stands all the same."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damage(path: Path) -> str:
    """What is wrong with the archive; empty if nothing. Whatever another zip reader could take differently counts as damage too."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                # torch stores entries as they are, and leaves the memory of one that is marked as a folder uninitialised.
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr:
                    return f"the entry of {entry.filename!r} is wrong"
            bad = archive.testzip()
            return f"the checksum of {bad!r} is wrong" if bad else ""
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
        return str(error) or type(error).__name__


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an archive of several parts
        return False


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints (all tensors on the CPU).

    Raises UserError for a missing, damaged or inconsistent file and ForeignFile for a checkpoint of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if not _is_archive(path):
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
        if tensor.layout != torch.strided or tensor.is_quantized:  # a sparse one can read outside its memory
            raise UserError(f"{path}: {name} is not a plain dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a few bytes may pose as any number of elements
            raise UserError(f"{path}: {name} has more elements than the file holds")
        if not _is_finite(name, tensor):
            raise UserError(f"{path}: {name} holds NaN or infinite values")
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


def _is_finite(name: str, tensor: Tensor) -> bool:
    """False for NaN and infinity, but for gradients that wait for their step: under fp16 they may overflow, and the scaler skips that step."""
    return name.startswith("gradients.") or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def load_weights_into(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill the model; UserError naming the first tensor that is missing, left over or of the wrong shape."""
    check_weights(model.state_dict(), weights, source)
    model.load_state_dict(dict(weights))


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """UserError naming the first tensor of `weights` that does not fit the model's `own`."""
    for name, tensor in own.items():
        if name not in weights:
            raise UserError(f"{source}: tensor {name} is missing")
        given = weights[name]
        if not isinstance(given, Tensor):
            raise UserError(f"{source}: {name} is no tensor")
        if given.shape != tensor.shape:
            raise UserError(f"{source}: tensor {name} has shape {tuple(given.shape)}, {tuple(tensor.shape)} was expected")
    if extra := sorted(set(weights) - set(own)):
        raise UserError(f"{source}: tensor {extra[0]} belongs to no layer of the model")
