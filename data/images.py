"""Read image files: any path, any common format, always RGB uint8 (H, W, 3) the right way up.

Rules for what is not plain 8-bit colour: grey is repeated, a palette is looked up, alpha is ignored, CMYK is converted without a profile,
and more than 8 bits a channel are stretched linearly from the 1st to the 99th percentile over all channels of the image.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from utils.errors import UserError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP")  # nothing else is ever handed to a decoder
_OPENED = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow opens an MPO as a JPEG and knows no opener of that name
MAX_PIXELS = 2**28  # larger images are refused by their header: 268 megapixels decode to 0.8 GB
STRETCH = (1.0, 99.0)  # percentiles mapped to 0 and 255

_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say."""

    width: int  # after EXIF orientation
    height: int
    format: str  # Pillow's name
    mode: str  # Pillow's mode
    bits: int  # per channel


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes. Raises UserError for a missing or empty file."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such image") from None
    if not data:
        raise UserError(f"{path}: the file is empty")
    return data


def read_header(data: bytes, path: str | Path) -> Header:
    """Size and kind of an encoded image without decoding it. Raises UserError when it is none or too large."""
    try:
        with Image.open(io.BytesIO(data), formats=_OPENED) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS / 1e6:.0f} million are read; cut it into tiles")
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            bits = _bits(image, data)
            size = (height, width) if orientation in _TRANSPOSED else (width, height)
            return Header(*size, image.format or "", image.mode, bits)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, SyntaxError, struct.error, KeyError, TypeError, OverflowError, ZeroDivisionError, IndexError, AttributeError, EOFError):
        raise UserError(f"{path}: not an image ({', '.join(FORMATS)} expected)") from None


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel: Pillow's mode hides the depth of 16-bit colour."""
    if image.format == "PNG":
        return data[24]  # IHDR: width, height, then the depth
    if image.format == "TIFF":
        value = image.tag_v2.get(258, 8)  # type: ignore[attr-defined]
        return max(value) if isinstance(value, tuple) else int(value)
    return 16 if image.mode.startswith(("I", "F")) else 8


def is_complete(data: bytes) -> bool:
    """False where a JPEG or PNG lacks its end marker, so that it may be cut short."""
    if data[:2] == b"\xff\xd8":
        return data[-2:] == b"\xff\xd9"
    if data[:4] == b"\x89PNG":
        return data[-8:-4] == b"IEND"
    return True


def decode_image(data: bytes, path: str | Path, header: Header | None = None) -> np.ndarray:
    """Encoded bytes -> RGB uint8 (H, W, 3). Raises UserError naming `path` when they are broken."""
    header = header or read_header(data, path)
    if header.bits > 8:
        return _decode_deep(data, path)
    if header.format in ("JPEG", "MPO", "PNG", "BMP") and header.mode in ("RGB", "L") and is_complete(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)  # turns by EXIF too
        if image is None:
            raise UserError(f"{path}: the image is damaged")
        return image
    try:  # a file without its end marker comes here as well: Pillow refuses what is really cut short
        with Image.open(io.BytesIO(data), formats=_OPENED) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode == "RGBA":
                return np.ascontiguousarray(np.asarray(turned)[:, :, :3])
            return np.array(turned.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError, KeyError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None


def _decode_deep(data: bytes, path: str | Path) -> np.ndarray:
    """More than 8 bits a channel: stretched by percentiles, never cut to the high byte."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: the image is damaged")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, 2)
    image = image[:, :, 2::-1].astype(np.float32)  # BGR(A) -> RGB
    low, high = np.percentile(image, STRETCH)
    return np.clip((image - low) * (255 / max(high - low, 1e-6)) + 0.5, 0, 255).astype(np.uint8)


def read_image(path: str | Path) -> np.ndarray:
    """RGB uint8 (H, W, 3) of an image file. Raises UserError when it is missing, no image or damaged."""
    return decode_image(read_bytes(path), path)


def write_image(path: str | Path, image: np.ndarray, quality: int = 95) -> None:
    """Write RGB uint8 (H, W, 3) in the format of the suffix; works with any Unicode path."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if Path(path).suffix.lower() in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(Path(path).suffix or ".png", np.ascontiguousarray(image[:, :, ::-1]), options)
    if not done:
        raise UserError(f"{path}: no image format is known by this suffix")
    Path(path).write_bytes(data.tobytes())
