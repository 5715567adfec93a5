"""The nine offline techniques: labels move with the pixels, and nothing leaves its bounds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.formats import labels_from_mask
from data.labels import Labels
from data.offline import BRIGHTER, CONTRAST, DARKER, GAUSS_SIGMA, SALT_SHARE, TECHNIQUES

GEOMETRIC = ("rota_90", "rota_180", "rota_270", "flip")


def picture(seed: int = 0, width: int = 83, height: int = 61) -> tuple[np.ndarray, np.ndarray, Labels]:
    """A smooth image, a mask of two blobs, and the mask's labels."""
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 3)
    image = np.clip(image.astype(np.float32) * 2 - 120, 20, 200).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [rng.integers((5, 5), (38, 55), (6, 2)).astype(np.int32)], 1)
    cv2.ellipse(mask, (60, 30), (11, 17), 30, 0, 360, 1, -1)
    return image, mask, labels_from_mask(mask)[0]


def ordered(labels: Labels) -> np.ndarray:
    return labels.boxes[np.lexsort(labels.boxes.round(4).T)]


def test_there_are_nine() -> None:
    assert list(TECHNIQUES) == ["rota_90", "rota_180", "rota_270", "flip", "salt", "gauss", "darker", "brighter", "contrast"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TECHNIQUES)
def test_boxes_of_the_moved_mask_are_the_moved_boxes(name: str, seed: int) -> None:
    image, mask, labels = picture(seed)
    if name in GEOMETRIC:  # the mask goes through the technique as an image of its own
        moved_mask = TECHNIQUES[name](np.repeat(mask[..., None], 3, 2), labels, np.random.default_rng(1))[0][..., 0]
    else:
        moved_mask = mask
    moved, moved_labels = TECHNIQUES[name](image, labels, np.random.default_rng(1))
    expected = labels_from_mask(moved_mask)[0]
    assert moved.shape[:2] == moved_mask.shape and moved.dtype == np.uint8 and moved.flags.c_contiguous
    np.testing.assert_allclose(ordered(moved_labels), ordered(expected), atol=1e-6)
    large = cv2.resize(moved_mask, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    drawn = np.zeros_like(large)
    for box, polygon in zip(moved_labels.boxes, moved_labels.polygons, strict=True):
        assert polygon is not None
        np.testing.assert_allclose(np.concatenate([polygon.min(0), polygon.max(0)]), box, atol=1e-6)
        cv2.fillPoly(drawn, [np.round(polygon * large.shape[::-1]).astype(np.int32)], 1)
    assert np.logical_and(drawn, large).sum() > 0.88 * np.logical_or(drawn, large).sum()  # the outlines went the same way


def test_rotation_is_clockwise() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0] = 255  # upper left goes to the upper right
    turned, _ = TECHNIQUES["rota_90"](image, Labels.from_rows([]), np.random.default_rng(0))
    assert turned.shape == (3, 2, 3) and turned[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("seed", range(20))
def test_bounds(seed: int) -> None:
    image = np.full((200, 200, 3), 100, np.uint8)
    image[:, 100:] = 120
    drawn = {name: TECHNIQUES[name](image, Labels.from_rows([]), np.random.default_rng(seed))[0].astype(float) for name in TECHNIQUES}
    white = (drawn["salt"] == 255).all(-1)
    assert 0.6 * SALT_SHARE[0] < white.mean() < 1.4 * SALT_SHARE[1] and (drawn["salt"][~white] == image[~white]).all()
    noise = drawn["gauss"] - image
    assert 0.95 * GAUSS_SIGMA[0] < noise.std() < 1.05 * GAUSS_SIGMA[1] and abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03
    assert DARKER[0] * 100 - 0.5 <= drawn["darker"][0, 0, 0] <= DARKER[1] * 100 + 0.5
    assert BRIGHTER[0] * 100 - 0.5 <= drawn["brighter"][0, 0, 0] <= BRIGHTER[1] * 100 + 0.5
    spread = (drawn["contrast"][0, -1, 0] - drawn["contrast"][0, 0, 0]) / 20
    assert any(low - 0.06 <= spread <= high + 0.06 for low, high in CONTRAST) and abs(drawn["contrast"].mean() - 110) < 1


def test_levels_saturate_instead_of_wrapping() -> None:
    image = np.full((50, 50, 3), 250, np.uint8)
    image[:25] = 5
    for name in ("gauss", "brighter", "contrast"):
        for seed in range(5):
            moved = TECHNIQUES[name](image, Labels.from_rows([]), np.random.default_rng(seed))[0]
            assert moved[25:].min() > 100 and moved[:25].max() < 150, name


@pytest.mark.parametrize("name", TECHNIQUES)
def test_same_seed_same_pixels_and_the_source_is_left_alone(name: str) -> None:
    image, _, labels = picture()
    before, boxes = image.copy(), labels.boxes.copy()
    one, two = (TECHNIQUES[name](image, labels, np.random.default_rng(3))[0] for _ in range(2))
    assert (one == two).all() and (image == before).all() and (labels.boxes == boxes).all()
