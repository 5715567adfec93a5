"""Read image files: any path, any common format, always RGB uint8 (H, W, 3) the right way up.

Rules for what is not plain 8-bit colour: grey is repeated, a palette is looked up, alpha is ignored, CMYK is converted without a profile,
and more than 8 bits a channel are stretched linearly from the 1st to the 99th percentile over all channels of the image (of four or more the
first three, of two the first); what is not a number becomes black.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from utils.errors import ENVIRONMENT, UserError, exit_code

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP")  # nothing else is ever handed to a decoder
_OPENED = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow opens an MPO as a JPEG and knows no opener of that name
MAX_PIXELS = 178_956_970  # larger images are refused by their header, by Pillow's own limit: 179 megapixels decode to 0.5 GB
STRETCH = (1.0, 99.0)  # percentiles mapped to 0 and 255

# What undoes each EXIF orientation: swap the axes, then mirror left to right, then top to bottom.
_TRANSPOSED, _MIRRORED, _UPSIDE_DOWN = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say."""

    width: int  # after EXIF orientation
    height: int
    format: str  # Pillow's name
    mode: str  # Pillow's mode
    bits: int  # per channel
    orientation: int  # by EXIF, 1 to 8; 1 where a decoder needs no help


_BROKEN = (
    *(OSError, ValueError, SyntaxError, struct.error, KeyError, TypeError, OverflowError, ZeroDivisionError, IndexError, AttributeError),
    *(EOFError, RuntimeError, Image.DecompressionBombError),
)  # what Pillow raises on a broken file


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes. Raises UserError for a missing or empty file."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such image") from None
    except OSError as error:
        if exit_code(error) == ENVIRONMENT:
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{str(path)!r}: is no file name") from None
    if not data:
        raise UserError(f"{path}: the file is empty")
    return data


def read_header(data: bytes, path: str | Path) -> Header:
    """Size and kind of an encoded image without decoding it. Raises UserError when it is none or too large."""
    try:
        with Image.open(io.BytesIO(data), formats=_OPENED) as image:
            orientation, (width, height) = _orientation(image), image.size
            size = (height, width) if orientation in _TRANSPOSED else (width, height)
            return Header(*size, image.format or "", image.mode, _bits(image, data), orientation)
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than {MAX_PIXELS / 1e6:.0f} million pixels, too many for one image; cut it into tiles") from None
    except _BROKEN:
        raise UserError(f"{path}: not an image ({', '.join(FORMATS)} expected)") from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from the bytes before the pixels, which is all that is read; a broken EXIF block says nothing.

    A TIFF has it in its own header; Pillow and OpenCV both turn one by themselves.
    """
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif") or b"")
        found = exif.get(ExifTags.Base.Orientation)
    except _BROKEN:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel: Pillow's mode hides the depth of 16-bit colour."""
    if image.format == "PNG":
        return data[24]  # IHDR: width, height, then the depth
    if image.format == "TIFF":
        value = image.tag_v2.get(258, 8)  # type: ignore[attr-defined]
        return max(value) if isinstance(value, tuple) else int(value)
    return 16 if image.mode.startswith(("I", "F")) else 8


def is_complete(data: bytes) -> bool:
    """False where a file lacks its end or a PNG a right checksum, and for formats that show neither: only decoding can tell then."""
    if data[:2] == b"\xff\xd8":
        return data[-2:] == b"\xff\xd9"
    if data[:4] == b"\x89PNG":
        return _png_is_sound(data)
    return data[:4] == b"RIFF" and len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _png_is_sound(data: bytes) -> bool:
    """Whether the checksums of all chunks are right and the last one ends the image."""
    start, view = 8, memoryview(data)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start = end + 4
    return False


def decode_image(data: bytes, path: str | Path, header: Header | None = None) -> np.ndarray:
    """Encoded bytes -> RGB uint8 (H, W, 3). Raises UserError naming `path` when they are broken."""
    header = header or read_header(data, path)
    if header.bits > 8:
        if header.format == "PNG" and not is_complete(data):  # OpenCV believes in a chunk of any length, and takes memory and time for it
            raise UserError(f"{path}: the image is damaged (a checksum is wrong, or its end is missing)")
        image = _stretch(_decode_fast(data, path, cv2.IMREAD_UNCHANGED))
    elif header.format in ("JPEG", "MPO", "PNG") and header.mode in ("RGB", "L") and is_complete(data):
        image = _decode_fast(data, path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    else:  # a file without its end comes here as well: Pillow refuses what is really cut short
        image = _decode_any(data, path)
    if header.orientation in _TRANSPOSED:
        image = image.swapaxes(0, 1)
    if header.orientation in _MIRRORED:
        image = image[:, ::-1]
    if header.orientation in _UPSIDE_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_fast(data: bytes, path: str | Path, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: the image is damaged, or of a kind that cannot be read")
    return image


def _decode_any(data: bytes, path: str | Path) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=_OPENED) as opened:
            opened.load()
            if opened.mode == "RGBA":
                return np.asarray(opened)[:, :, :3]
            return np.asarray(opened.convert("RGB"))
    except _BROKEN as error:
        raise UserError(f"{path}: the image is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _stretch(image: np.ndarray) -> np.ndarray:
    """More than 8 bits a channel (H, W) or BGR (H, W, C) -> RGB uint8: stretched by percentiles, never cut to the high byte."""
    image = image.reshape(*image.shape[:2], -1)
    image = (image[:, :, 2::-1] if image.shape[2] >= 3 else image[:, :, :1]).astype(np.float32)
    known = np.isfinite(image)
    low, high = np.percentile(image[known], STRETCH) if known.any() else (0.0, 1.0)
    image = np.clip((np.where(known, image, low) - low) * (255 / max(high - low, 1e-6)) + 0.5, 0, 255)
    return np.broadcast_to(image.astype(np.uint8), (*image.shape[:2], 3))


def read_image(path: str | Path) -> np.ndarray:
    """RGB uint8 (H, W, 3) of an image file. Raises UserError when it is missing, no image or damaged."""
    return decode_image(read_bytes(path), path)


def write_image(path: str | Path, image: np.ndarray, quality: int = 95) -> None:
    """Write RGB uint8 (H, W, 3) in the format of the suffix; works with any Unicode path."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if Path(path).suffix.lower() in (".jpg", ".jpeg") else []
    try:
        _, data = cv2.imencode(Path(path).suffix or ".png", np.ascontiguousarray(image[:, :, ::-1]), options)
    except cv2.error:
        raise UserError(f"{path}: no image format is known by this suffix") from None
    Path(path).write_bytes(data.tobytes())
