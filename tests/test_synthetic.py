"""Synthetic scenes: pure functions of seed and number, exact masks, the sources' own formats, blocks that fit."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.formats import labels_from_mask, read_voc
from data.geotiff import Place, write_geotiff
from data.images import read_image
from data.msld import find_sources
from data.noise import AGAIN, SIDE, Noise, crown_tile, crowns, noise_tile
from data.scene import plan_scene, visible_box
from data.scene_render import render
from data.synthetic import SHARES, Options, counts, landslides_geojson, main, make_scene, plan_large, write_large, write_sources
from utils.config import parse
from utils.errors import UserError


def test_counts_are_the_papers_shares() -> None:
    assert counts(3273) == {"bijie": 770, "southwest": 500, "negative": 2003}
    for scenes in (1, 2, 3, 7, 100, 1001):
        assert sum(counts(scenes).values()) == scenes
        assert scenes < 3 or min(counts(scenes).values()) >= 1


@pytest.mark.parametrize("kind", [kind for kind, _ in SHARES])
def test_a_scene_depends_on_seed_and_number_alone(kind: str) -> None:
    first = make_scene(4, kind, 7, (160, 128))  # type: ignore[arg-type]
    make_scene(9, "bijie", 1, (128, 128))
    again = make_scene(4, kind, 7, (160, 128))  # type: ignore[arg-type]
    assert first[0].shape == (128, 160, 3) and first[0].dtype == np.uint8
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (make_scene(4, kind, 8, (160, 128))[0] != first[0]).any() and (make_scene(5, kind, 7, (160, 128))[0] != first[0]).any()  # type: ignore[arg-type]


def whole_and_cut(outline: np.ndarray) -> np.ndarray:
    """An outline on 256 x 224 pixels with so much room around that nothing is clipped while it is drawn."""
    room = 1000
    return cv2.fillPoly(np.zeros((224 + 2 * room, 256 + 2 * room), np.uint8), [outline + room], 255)[room : room + 224, room : room + 256]


@pytest.mark.parametrize("number", range(12))
def test_masks_are_the_landslides(number: int) -> None:
    for kind in ("bijie", "southwest"):
        image, mask, scene = make_scene(1, kind, number, (256, 224))  # type: ignore[arg-type]
        assert scene.slides and set(np.unique(mask)) == {0, 255} and image.std() > 5
        drawn = np.zeros_like(mask)
        for slide in scene.slides:
            drawn |= whole_and_cut(slide.outline)
        assert (drawn == mask).all()
        # Landslides never touch: each that lies wholly inside is a region of its own, with the box of the plan.
        labels, _ = labels_from_mask(mask, 0)
        regions = {tuple(row) for row in np.round(labels.boxes * (256, 224, 256, 224)).astype(int).tolist()}
        for slide in scene.slides:
            alone = whole_and_cut(slide.outline)
            x, y, w, h = cv2.boundingRect(alone)
            assert visible_box(slide, 256, 224) == (x, y, x + w, y + h)
            assert slide.box in regions or slide.box != (x, y, x + w, y + h)
        assert labels_from_mask(mask)[0]  # none of them so small that the build would take it for a speck
    assert not make_scene(1, "negative", number, (256, 224))[1].any()


def test_landslides_run_downhill() -> None:
    drops = []
    for number in range(30):
        scene = make_scene(2, "southwest", number, (320, 320))[2]
        for slide in scene.slides:
            drops.append(scene.terrain[scene.cell(*slide.head)] - scene.terrain[scene.cell(*slide.toe)])
    assert np.mean(np.array(drops) > 0) > 0.95


def test_landslides_are_not_always_centred() -> None:
    centres = []
    for number in range(40):
        mask = make_scene(3, "bijie", number, (192, 192))[1]
        y, x = np.nonzero(mask)
        centres.append(((x.min() + x.max()) / 2 / 192, (y.min() + y.max()) / 2 / 192))
    assert (np.abs(np.array(centres) - 0.5).max(1) <= 0.02).mean() < 0.15 and np.array(centres).std(0).min() > 0.1


def test_blocks_fit() -> None:
    scene = plan_large(5, 500, 420)
    whole, mask = render(scene)
    for window in ((0, 0, 200, 200), (133, 77, 300, 250), (320, 300, 180, 120)):
        left, top, width, height = window
        part, part_mask = render(scene, window)
        off = np.abs(part.astype(int) - whole[top : top + height, left : left + width]).max(-1)
        assert (off > 0).mean() < 1e-3 and (off > 1).mean() < 1e-4  # sums in another order round differently here and there
        assert (part_mask == mask[top : top + height, left : left + width]).all()


def test_noise_belongs_to_the_place() -> None:
    noise = Noise(np.random.default_rng(0))
    for period, octaves in ((1, 1), (8, 4), (64, 4), (128, 2)):
        whole = noise.fractal((-40, 13, 700, 300), period, octaves, 5)
        part = noise.fractal((211, 60, 90, 111), period, octaves, 5)
        np.testing.assert_allclose(part, whole[47 : 47 + 111, 251 : 251 + 90], atol=1e-5)
        assert 0.1 < whole.std() < 0.8 and np.abs(whole).max() < 2


def test_noise_repeats_without_a_seam() -> None:
    tile = noise_tile(4, 0.7, False)
    assert tile.shape == (SIDE + AGAIN, SIDE + AGAIN) and (tile[SIDE:] == tile[:AGAIN]).all() and (tile[:, SIDE:] == tile[:, :AGAIN]).all()
    steps = np.abs(np.diff(tile, axis=1)).mean(0)
    assert steps[SIDE - 1] < 1.3 * steps.mean() and np.abs(np.diff(tile, axis=0)).mean(1)[SIDE - 1] < 1.3 * steps.mean()
    # A window wider than what is kept is put together from pieces; far away the field is there again.
    noise = Noise(np.random.default_rng(1))
    wide = noise.fractal((-900, -30, 2000, 40), 8, 4, 2, gain=0.7)
    for left in (-900, -100, 700):
        np.testing.assert_array_equal(noise.fractal((left, -30, 300, 40), 8, 4, 2, gain=0.7), wide[:, left + 900 : left + 1200])
        np.testing.assert_array_equal(noise.fractal((left - SIDE, -30 + SIDE, 300, 40), 8, 4, 2, gain=0.7), wide[:, left + 900 : left + 1200])
    assert (noise.fractal((-900, -30, 2000, 40), 8, 4, 3, gain=0.7) != wide).mean() > 0.9


def test_crowns_belong_to_the_place() -> None:
    for diameter in (2.6, 5.0, 11.0):
        wide = crowns((-40, 7, 1500, 60), diameter, (11, 400))
        part = crowns((900, 20, 300, 30), diameter, (11, 400))
        for whole, cut in zip(wide, part, strict=True):
            assert whole.dtype == np.uint8 and whole.shape == (60, 1500) and (cut == whole[13:43, 940:1240]).all()
        assert wide[0].std() > 20 and 100 < wide[1].mean() < 155


def test_the_crown_tile_has_no_seam() -> None:
    height, _ = crown_tile()
    inner = np.abs(np.diff(height, axis=1)).mean()
    assert np.abs(height[:, 0] - height[:, -1]).mean() < 1.5 * inner and np.abs(height[0] - height[-1]).mean() < 1.5 * inner


def test_sources_are_written_in_their_own_formats(tmp_path: Path) -> None:
    many = write_sources(tmp_path, 13, 2, (128, 112))
    assert many == {"bijie": 3, "southwest": 2, "negative": 8}
    sources, problems = find_sources(tmp_path / "bijie", tmp_path / "southwest")
    assert len(sources) == 13 and not problems
    xml = tmp_path / "southwest" / "1_2.xml"
    voc = read_voc(xml.read_bytes(), xml)
    assert voc.filename == "1_2.jpg" and (voc.width, voc.height) == (128, 112) and {item.name for item in voc.objects} == {"slide"}
    image = read_image(tmp_path / "bijie/landslide/image/bj002.png")
    assert (image == make_scene(2, "bijie", 1, (128, 112))[0]).all()
    assert (read_image(tmp_path / "bijie/landslide/mask/bj002.png")[..., 0] == make_scene(2, "bijie", 1, (128, 112))[1]).all()


def test_processes_change_nothing(tmp_path: Path) -> None:
    for folder, jobs in (("one", 1), ("two", 2)):
        write_sources(tmp_path / folder, 6, 0, (96, 96), jobs)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert files and all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_large_scene_is_a_geotiff_with_its_landslides(tmp_path: Path) -> None:
    from PIL import Image

    assert write_large(tmp_path, 1, 1100, 600, geotiff=True) >= 1
    with Image.open(tmp_path / "scene.tif") as opened:
        tags = opened.tag_v2  # type: ignore[attr-defined]
        pixels = np.asarray(opened)
    scene = plan_large(1, 1100, 600)
    assert (np.abs(pixels.astype(int) - render(scene)[0]) > 1).mean() < 1e-4
    assert tags[322] == 512 and tags[33922][3:5] == (500_000.0, 3_000_000.0) and tags[33550][0] == pytest.approx(scene.look.metres, abs=0.01)
    keys = dict(zip(tags[34735][4::4], tags[34735][7::4], strict=True))
    assert keys[3072] == 32648 and keys[1024] == 1 and keys[1025] == 1
    content = json.loads((tmp_path / "scene.geojson").read_text())
    assert content["crs"]["properties"]["name"].endswith("32648") and len(content["features"]) == len(scene.slides)
    ring = np.array(content["features"][0]["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    back = np.stack([(ring[:, 0] - 500_000) / tags[33550][0], (3_000_000 - ring[:, 1]) / tags[33550][0]], 1)[:-1]
    np.testing.assert_allclose(back, scene.slides[0].outline + 0.5, atol=1e-4)


def test_geojson_without_a_place_is_in_pixels() -> None:
    scene = plan_large(1, 400, 400)
    content = json.loads(landslides_geojson(scene, None))
    assert "crs" not in content
    np.testing.assert_allclose(content["features"][0]["geometry"]["coordinates"][0][0], scene.slides[0].outline[0] + 0.5)


def test_an_unfinished_geotiff_has_no_name(tmp_path: Path) -> None:
    def strips() -> object:
        yield np.zeros((512, 600, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_geotiff(tmp_path / "a.tif", 600, 700, strips(), Place(0, 0, 1))  # type: ignore[arg-type]
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size", "20", "20"], "--size 20 20"), (["--size", "200", "200", "200"], "from 96 to 2048"), (["--scenes", "0"], "1 or more"),
     (["--scene", "9000", "9000"], "with --geotiff up to"), (["--scene", "500"], "width and height")],
)
def test_wrong_options(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.synthetic.OPTIONS", parse(Options, ["--out", str(tmp_path), *arguments]))
    with pytest.raises(UserError, match=message):
        main()
    assert not list(tmp_path.iterdir())


def test_a_plan_asks_for_landslides() -> None:
    scene = plan_scene(np.random.default_rng(0), 800, 800, "southwest", slides=6)
    assert 4 <= len(scene.slides) <= 6
