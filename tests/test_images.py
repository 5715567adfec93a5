"""data/images.py: every kind of image becomes RGB uint8 the right way up, or one line that names it; files are never changed."""

from __future__ import annotations

import hashlib
import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.images import MAX_PIXELS, decode_image, is_complete, read_bytes, read_header, read_image, write_image
from utils.errors import UserError

BEST: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
# Four fields of different colour in a picture that is not square: every turn and mirror shows.
FIELDS = np.zeros((48, 64, 3), np.uint8)
FIELDS[:24, :32], FIELDS[:24, 32:], FIELDS[24:, :32], FIELDS[24:, 32:] = (200, 30, 30), (30, 180, 40), (40, 40, 210), (220, 220, 60)


def encode(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def close(a: np.ndarray, b: np.ndarray, limit: float) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < limit


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---------------------------------------------------------------------------------------------- the right way up


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels a camera stores so that `orientation` turns them into `upright` (EXIF 2.3, tag 274)."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: np.rot90(a, 2),
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),  # row 0 is the right side: shown after a quarter turn clockwise
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)


def with_orientation(image: np.ndarray, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    if kind == "TIFF":
        return encode(np.ascontiguousarray(image), kind, tiffinfo={274: orientation})
    if kind == "PNG 16":
        data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]).astype(np.uint16) * 257)[1].tobytes()
        return data[:33] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[33:]
    options = BEST.get(kind, {})
    return encode(np.ascontiguousarray(image), kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "PNG 16"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    data = with_orientation(stored(FIELDS, orientation), kind, orientation)
    header, image = read_header(data, "x"), decode_image(data, "x")
    assert (header.height, header.width) == (48, 64), "the header says the size after turning"
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    if kind == "PNG 16":  # stretched, so only the order of the fields counts
        assert np.array_equal(image > 127, FIELDS > 127)
    else:
        assert close(image, FIELDS, 2.0)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    for kind in ("JPEG", "PNG"):
        data = with_orientation(FIELDS, kind, orientation)
        assert (read_header(data, "x").height, read_header(data, "x").width) == (48, 64) and close(decode_image(data, "x"), FIELDS, 2.0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_turns_nothing() -> None:
    data = encode(FIELDS, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert close(decode_image(data, "x"), FIELDS, 2.0) and read_header(data, "x").width == 64


def test_only_exif_turns_an_image() -> None:
    """Orientation in an XMP block is for photo managers; header and pixels must agree that it is not followed."""
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    data = encode(FIELDS, "JPEG", xmp=xmp)
    assert (read_header(data, "x").width, read_header(data, "x").height) == (64, 48) and decode_image(data, "x").shape == (48, 64, 3)


# ---------------------------------------------------------------------------------------------- colour


GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_rgb_and_grey_of_every_format(kind: str) -> None:
    options = BEST.get(kind, {})
    assert close(decode_image(encode(FIELDS, kind, **options), "x"), FIELDS, 2.0)
    if kind != "WEBP":
        assert close(decode_image(encode(GREY, kind), "x"), np.repeat(GREY[:, :, None], 3, 2), 2.0), "grey is repeated"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_palette_is_looked_up(kind: str) -> None:
    image = Image.fromarray(FIELDS).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    assert np.array_equal(decode_image(encode(image, kind), "x"), np.asarray(image.convert("RGB")))
    assert close(decode_image(encode(image, kind), "x"), FIELDS, 2.0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_ignored(kind: str) -> None:
    alpha = np.full((48, 64, 1), 0, np.uint8)
    alpha[:, :20] = 255
    options = {"WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    assert np.array_equal(decode_image(encode(np.concatenate([FIELDS, alpha], 2), kind, **options), "x"), FIELDS)
    if kind == "PNG":
        found = decode_image(encode(np.concatenate([GREY[:, :, None], alpha], 2), kind), "x")
        assert np.array_equal(found, np.repeat(GREY[:, :, None], 3, 2))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_without_a_profile(kind: str) -> None:
    image = Image.fromarray(FIELDS).convert("CMYK")
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    assert close(decode_image(encode(image, kind, **options), "x"), FIELDS, 3.0)


def test_black_and_white() -> None:
    image = Image.fromarray(np.where(GREY > 127, 255, 0).astype(np.uint8)).convert("1")
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(decode_image(encode(image, kind), "x")[:, :, 1], np.where(GREY > 127, 255, 0))


# ---------------------------------------------------------------------------------------------- more than 8 bits


def stretched(image: np.ndarray) -> np.ndarray:
    """The rule, as slowly as it reads: the 1st percentile becomes 0, the 99th 255."""
    values = np.sort(image[np.isfinite(image)].astype(np.float64).ravel())
    low, high = (np.interp(share * (len(values) - 1), np.arange(len(values)), values) for share in (0.01, 0.99))
    return np.clip((np.where(np.isfinite(image), image, low) - low) * 255 / (high - low), 0, 255)


DEEP = np.random.default_rng(0).normal(9000, 900, (40, 50, 3)).clip(0, 65535).astype(np.uint16)  # all in one sixth of the range


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_stretched_not_cut(suffix: str, channels: int) -> None:
    colours = DEEP if channels == 3 else DEEP[:, :, 0] if channels == 1 else np.concatenate([DEEP, np.full((40, 50, 1), 65535, np.uint16)], 2)
    swapped = colours if channels == 1 else colours[:, :, [2, 1, 0, 3][:channels]]
    data = cv2.imencode(suffix, np.ascontiguousarray(swapped))[1].tobytes()
    found, expected = decode_image(data, "x"), stretched(DEEP if channels > 1 else DEEP[:, :, 0])
    assert read_header(data, "x").bits == 16 and found.shape == (40, 50, 3)
    assert np.abs(found - (expected if channels > 1 else expected[:, :, None])).max() <= 0.51
    assert len(np.unique(found)) > 200, "the full range is used; the high byte alone would leave a few levels"


def test_a_real_valued_tiff_with_gaps() -> None:
    heights = np.random.default_rng(1).normal(1200, 50, (30, 40)).astype(np.float32)
    heights[:3] = np.nan
    heights[3, :5] = np.inf
    data = encode(Image.fromarray(heights), "TIFF")
    found = decode_image(data, "x")
    assert np.abs(found[:, :, 0] - stretched(heights)).max() <= 0.51 and (found[:3] == 0).all() and (found[3, :5] == 0).all()


@pytest.mark.parametrize("value", [0, 700, 65535])
def test_a_flat_deep_image_does_not_divide_by_zero(value: int) -> None:
    data = cv2.imencode(".png", np.full((8, 8), value, np.uint16))[1].tobytes()
    assert (decode_image(data, "x") == 0).all()


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["滑坡 影像.jpg", "émoji 🏔.png", "a'b\"c;$(x).tif", "UPPER.JPG", "x" * 200 + ".png"])
def test_any_path_works(tmp_path: Path, name: str) -> None:
    path = tmp_path / "目录 dir" / name
    path.parent.mkdir()
    write_image(path, FIELDS)
    assert close(read_image(path), FIELDS, 6.0 if name.lower().endswith("jpg") else 0.01)


def test_writing_and_a_suffix_that_is_no_image(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", FIELDS, quality=30)
    write_image(tmp_path / "b.jpg", FIELDS, quality=100)
    assert (tmp_path / "a.jpg").stat().st_size < (tmp_path / "b.jpg").stat().st_size
    with pytest.raises(UserError, match=r"c\.xyz: no image format is known by this suffix"):
        write_image(tmp_path / "c.xyz", FIELDS)
    assert not (tmp_path / "c.xyz").exists()


def test_the_suffix_does_not_matter_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encode(FIELDS, "PNG"))
    assert np.array_equal(read_image(path), FIELDS)


NOISE = np.random.default_rng(2).integers(0, 256, (60, 80, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"GIF89a" + bytes(50), "not an image"),
        (b"%PDF-1.7\n" + bytes(50), "not an image"),
        (b'<VRTDataset rasterXSize="5" rasterYSize="5"></VRTDataset>', "not an image"),
        *((encode(NOISE, kind)[:-500], "the image is damaged") for kind in ("JPEG", "PNG", "BMP")),
        (encode(NOISE, "WEBP")[:-500], "not an image"),
        (encode(NOISE, "TIFF", compression="raw")[:9000], "the image is damaged|not an image"),
        (cv2.imencode(".png", NOISE.astype(np.uint16) * 257)[1].tobytes()[:-3000], "the image is damaged"),
    ],
)
def test_what_is_broken_is_refused_and_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "坏.jpg"
    path.write_bytes(content)
    digest = hashlib.sha256(content).digest()
    with pytest.raises(UserError, match=reason) as found:
        read_image(path)
    assert str(found.value).startswith(f"{path}: ") and "\n" not in str(found.value)
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_missing_files() -> None:
    for path in ("none.jpg", "."):
        with pytest.raises(UserError, match="no such image"):
            read_bytes(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_anywhere_is_seen_without_decoding(kind: str) -> None:
    data = encode(NOISE, kind)
    assert is_complete(data)
    assert not any(is_complete(data[:length]) for length in range(len(data) - 1))


def test_a_flipped_bit_in_a_png_is_seen_without_decoding() -> None:
    data = encode(NOISE[:16, :20], "PNG")
    for place in range(8 * 8 + 32, 8 * (len(data) - 12)):  # from the first chunk's name to the last chunk
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << (place % 8)
        assert not is_complete(bytes(damaged))


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_formats_without_an_end_must_be_decoded(kind: str) -> None:
    assert not is_complete(encode(NOISE, kind))


def test_a_jpeg_with_bytes_behind_its_end_is_read() -> None:
    """Phones and editors append things; such a file is not cut short."""
    data = encode(FIELDS, "JPEG", quality=95, subsampling=0) + b"appended by a phone"
    assert not is_complete(data) and close(decode_image(data, "x"), FIELDS, 2.0)


def test_a_flipped_bit_in_a_png_never_changes_pixels_silently() -> None:
    data, refused = encode(NOISE[:16, :20], "PNG"), 0
    good, rng = decode_image(data, "x"), np.random.default_rng(3)
    for place in rng.integers(8 * 8, 8 * len(data), size=150):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << int(place % 8)
        try:
            assert np.array_equal(decode_image(bytes(damaged), "x"), good)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "WEBP"]), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_gives_an_image_or_one_error(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(NOISE[:12, :15], kind))
    for place, value in changes:
        data[place % min(len(data), 600)] = value
    try:
        image = decode_image(bytes(data), "x")
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    except UserError as error:
        assert str(error).startswith("x: ")


# ---------------------------------------------------------------------------------------------- bombs


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(5_000_000))) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    data = bomb(width, height)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for function in (read_header, decode_image):
        with pytest.raises(UserError, match=r"x: has more than 179 million pixels"):
            function(data, "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB: nothing was decoded"


def test_the_header_of_a_png_is_read_without_decoding_it() -> None:
    """100 megapixels: decoding them would take a second and 300 MB."""
    data = bomb(12_000, 8_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(Image.DecompressionBombWarning):
        header = read_header(data, "x")
    assert (header.width, header.height) == (12_000, 8_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_real_images_read_alike_by_pillow(real_images: list[Path]) -> None:
    for path in real_images[::60]:
        before = path.read_bytes()
        image, header = read_image(path), read_header(before, path)
        assert close(image, np.asarray(Image.open(path).convert("RGB")), 1.0)
        assert image.shape == (header.height, header.width, 3) and path.read_bytes() == before
