"""Write a large georeferenced RGB image tile by tile: TIFF 6.0 with the OGC GeoTIFF 1.1 keys, nothing held but one row of tiles."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError

TILE = 512  # pixels, width and height
_SHORT, _LONG, _DOUBLE = 3, 4, 12  # TIFF value types
_CODES = {_SHORT: "H", _LONG: "I", _DOUBLE: "d"}  # the same for struct


@dataclass(frozen=True)
class Place:
    """Where a north-up image lies."""

    left: float  # easting of the image's left edge in metres
    top: float  # northing of its top edge
    metres: float  # side of a pixel
    epsg: int = 32648  # a projected coordinate system: WGS 84 / UTM zone 48N holds most of Guizhou and eastern Sichuan

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Easting and northing of a place given in pixels from the image's upper left corner."""
        return self.left + x * self.metres, self.top - y * self.metres


def write_geotiff(path: Path, width: int, height: int, strips: Iterable[np.ndarray], place: Place) -> None:
    """Write RGB uint8 strips (TILE rows each, the last one may have fewer; (rows, width, 3)) as tiles compressed by deflate.

    The file appears under its name when it is whole. Raises UserError beyond the 4 GiB of classic TIFF.
    """
    part = path.with_name(f".{path.name}.part")
    offsets: list[int] = []
    sizes: list[int] = []
    rows = 0
    with part.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))  # the place of the directory follows at the end
        for strip in strips:
            rows += len(strip)
            padded = np.zeros((TILE, -(-width // TILE) * TILE, 3), np.uint8)
            padded[: len(strip), :width] = strip
            for left in range(0, padded.shape[1], TILE):
                data = zlib.compress(np.ascontiguousarray(padded[:, left : left + TILE]).data, 1)
                offsets.append(file.tell())
                sizes.append(len(data))
                file.write(data)
            if file.tell() > 2**32 - 2**24:
                part.unlink()
                raise UserError(f"{path}: larger than 4 GiB; a smaller scene was expected")
        if rows != height:
            raise ValueError(f"{rows} rows were given, {height} announced")
        directory = file.tell() + file.tell() % 2
        file.seek(directory)
        file.write(_directory(directory, width, height, offsets, sizes, place))
        file.seek(4)
        file.write(struct.pack("<I", directory))
    os.replace(part, path)


def _directory(start: int, width: int, height: int, offsets: list[int], sizes: list[int], place: Place) -> bytes:
    """The image file directory that begins at byte `start`, values that do not fit an entry behind it."""
    # Model type 1 = projected, raster type 1 = a pixel is an area, then the code of the coordinate system, its unit 9001 = metre.
    keys = [1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, place.epsg, 3076, 0, 1, 9001]
    tags: list[tuple[int, int, list[float] | list[int]]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [8]),  # deflate
        (262, _SHORT, [2]),  # RGB
        (277, _SHORT, [3]),
        (284, _SHORT, [1]),  # interleaved
        (322, _LONG, [TILE]),
        (323, _LONG, [TILE]),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (33550, _DOUBLE, [place.metres, place.metres, 0.0]),
        (33922, _DOUBLE, [0.0, 0.0, 0.0, place.left, place.top, 0.0]),
        (34735, _SHORT, keys),
    ]
    entries, behind = b"", b""
    free = start + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{_CODES[kind]}", *values)
        if len(data) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), free + len(behind))
            behind += data + b"\0" * (len(data) % 2)
        else:
            entries += struct.pack("<HHI4s", tag, kind, len(values), data)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + behind
