"""Decoded images in one file outside the dataset, mapped into memory: decoded once, and there for every later run (--cache disk).

The file holds the pixels of all images of a split one after the other, a JSON beside it which images they are. Both names begin with
a key of the images' paths and go on with a key of their sizes and times, so that a cache of older files is never taken for one of these.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

VERSION = 1  # of the files: another one is not read
LEFTOVER = 86_400  # seconds after which an unfinished file belongs to nobody any more
CHUNK = 64  # images decoded before they are written
PIXELS, INDEX, UNFINISHED = ".rgb", ".json", ".part"


class File(NamedTuple):
    """An image file with its size in pixels, the right way up."""

    path: Path
    width: int
    height: int


class MappedImages(Sequence[np.ndarray]):
    """Images of a cache file: element i is RGB uint8 (H, W, 3), read-only, read from the disk by the system when looked at.

    Another process, forked or spawned, maps the file itself; processes share the system's memory for it.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[int, int]]) -> None:
        """`shapes`: height and width of each image. Raises OSError or ValueError where the file cannot be mapped."""
        self.path, self.shapes = path, np.array(shapes, np.int64).reshape(-1, 2)
        self.ends = np.cumsum(self.shapes.prod(1) * 3)
        self.map = self._open()

    def _open(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: Any) -> Any:
        height, width = self.shapes[index].tolist()
        count = 3 * height * width
        return np.frombuffer(self.map, np.uint8, count, int(self.ends[index]) - count).reshape(height, width, 3)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.map = self._open()


def cache_folder() -> Path:
    """$LSYOLO_CACHE, else a folder among the user's caches, else runs/cache where there is no home to write to. It may not exist yet."""
    if chosen := os.environ.get("LSYOLO_CACHE"):
        return Path(chosen)
    try:
        folder = _user_caches() / "ls-yolo"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home is known
        return Path("runs", "cache")
    return folder if os.access(folder, os.W_OK) else Path("runs", "cache")


def _user_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


def open_cache(files: Sequence[File], decode: Callable[[int], np.ndarray], quiet: bool = False) -> MappedImages | None:
    """The images of `files` from their cache, built with `decode` (index -> RGB) where there is none that fits; says where it is.

    None, with a line that says why, where the disk cannot hold it. Raises what `decode` raises.
    """
    folder, key, index = cache_folder(), _key([os.path.abspath(file.path) for file in files]), _index(files)
    path = folder / f"{key}-{_key(index)}{PIXELS}"
    size = sum(3 * file.width * file.height for file in files)
    say: Callable[[str], None] = (lambda _: None) if quiet else print
    try:
        state = _state(path, index, size, key)
        if state != "good":
            if state != "missing":
                print(f"cache: {state}; it is built anew")
            _build(path, key, index, size, files, decode, quiet)
        images = MappedImages(path, [(file.height, file.width) for file in files])
    except OSError as error:
        print(f"cache: {size / 2**30:.2f} GiB of decoded images cannot be kept in {folder} ({error.strerror or error}); reading the image files")
        return None
    say(f"cache: {size / 2**30:.2f} GiB of decoded images in {path}, for later runs too; delete it (and {path.stem}{INDEX}) to have the space back")
    return images


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _index(files: Sequence[File]) -> dict[str, Any]:
    """What the pixels depend on: the images' files as they are now."""
    stats = [os.stat(file.path) for file in files]
    images = [[os.path.abspath(file.path), stat.st_size, stat.st_mtime_ns, file.width, file.height] for file, stat in zip(files, stats, strict=True)]
    return {"version": VERSION, "images": images}


def _state(path: Path, index: dict[str, Any], size: int, key: str) -> str:
    """'good', 'missing', or what is wrong with the cache that is there."""
    try:
        known = json.loads(path.with_suffix(INDEX).read_bytes())
        found = path.stat().st_size
    except FileNotFoundError:
        older = [other for other in path.parent.glob(f"{key}-*{INDEX}") if other.stem != path.stem]
        return f"the images have changed since {older[0].stem}{PIXELS} was made" if older else "missing"
    except ValueError:
        return f"{path.stem}{INDEX} is damaged"
    return "good" if found == size and known == index else f"{path} is damaged"


def _build(path: Path, key: str, index: dict[str, Any], size: int, files: Sequence[File], decode: Callable[[int], np.ndarray], quiet: bool) -> None:
    """Write the cache under a name of this process's own, then give it its name: who looks meanwhile, or builds it too, sees none or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path, key)
    free = shutil.disk_usage(path.parent).free
    if size > 0.95 * free:
        raise OSError(f"only {free / 2**30:.2f} GiB are free")
    own = path.with_name(f"{path.stem}.{os.getpid()}.{time.monotonic_ns()}{UNFINISHED}")
    try:
        with open(own, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool, _bar(size, len(files), quiet) as bar:
            for start in range(0, len(files), CHUNK):
                for image in pool.map(decode, range(start, min(start + CHUNK, len(files)))):
                    file.write(np.ascontiguousarray(image).data)
                    bar.update()
            _sync(file)
        os.replace(own, path)
        with open(own, "wb") as file:
            file.write(json.dumps(index).encode())
            _sync(file)
        os.replace(own, path.with_suffix(INDEX))
    finally:
        with suppress(OSError):
            own.unlink()


def _bar(size: int, count: int, quiet: bool) -> Any:
    return tqdm(desc=f"cache {size / 2**30:.2f} GiB", total=count, unit="img", disable=quiet, leave=False)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _clear(path: Path, key: str) -> None:
    """Delete caches of these images as they were before, and what a killed run has left unfinished."""
    for other in path.parent.glob(f"{key}-*"):
        with suppress(OSError):  # in use, on Windows
            leftover = other.suffix == UNFINISHED and time.time() - other.stat().st_mtime > LEFTOVER
            if leftover or (other.suffix in (PIXELS, INDEX) and other.stem != path.stem):
                other.unlink()
