"""The report's numbers on hand-made data, and the rule that looks at no pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.dataset import Sample
from data.images import read_image, write_image
from data.labels import Labels
from data.msld import build
from data.options import BuildOptions, ReportOptions
from data.report import blind_scores, colour_statistics, prefix, report, statistics
from data.shortcut import NoPixelRule
from data.synthetic import write_sources
from utils.boxes import iou


def sample(name: str, width: int, height: int, *boxes: tuple[float, float, float, float]) -> Sample:
    """An image that is only described; boxes in pixels."""
    size = np.array([width, height, width, height])
    return Sample(Path(f"{name}.png"), width, height, Labels.from_rows((0, np.array(box) / size, None) for box in boxes))


def test_statistics_by_hand() -> None:
    found = statistics([sample("a", 100, 200, (0, 0, 20, 20), (40, 90, 60, 110)), sample("b", 400, 400, (0, 0, 200, 100)), sample("c", 10, 10)])
    assert (found["images"], found["objects"], found["backgrounds"]) == (3, 3, 1)
    assert found["objects_per_image"] == {"0": 1, "1": 1, "2": 1}
    assert found["coco_sizes"] == pytest.approx({"small": 2 / 3, "medium": 0, "large": 1 / 3})
    assert found["box_width_to_height"]["95%"] == pytest.approx(1.9, abs=0.01)
    assert found["box_area_share"]["50%"] == pytest.approx(0.02, abs=1e-4)
    assert found["boxes_within_2_percent_of_the_centre"] == pytest.approx(1 / 3)
    assert statistics([sample("c", 10, 10)])["objects"] == 0


def test_colours_by_hand(tmp_path: Path) -> None:
    samples = []
    for i, level in enumerate((10, 30, 200)):
        one = sample(str(tmp_path / f"{i}"), 8, 8, *([(1, 1, 5, 5)] if i < 2 else []))
        write_image(one.path, np.full((8, 8, 3), (level, level + 5, 0), np.uint8))
        samples.append(one)
    found = colour_statistics(samples)
    assert found["with_objects"] == {"images": 2, "mean_rgb": [20, 25, 0], "spread_between_images_rgb": [10, 10, 0]}
    assert found["backgrounds"]["mean_rgb"] == [200, 205, 0]


@pytest.mark.parametrize(("name", "expected"), [("bijie_df002", "bijie"), ("bj012_flip", "bj"), ("100_1_rota_90", "numbered"), ("neg0001", "neg")])
def test_prefix(name: str, expected: str) -> None:
    assert prefix(Path(f"{name}.jpg")) == expected


def crops(rng: np.random.Generator, count: int, margin: int) -> list[Sample]:
    """Bijie-like crops: one box with a fixed margin around it."""
    sides = rng.integers(40, 300, (count, 2)).tolist()
    return [sample(f"c{i}", w + 2 * margin, h + 2 * margin, (margin, margin, margin + w, margin + h)) for i, (w, h) in enumerate(sides)]


def test_a_fixed_margin_is_found_out() -> None:
    rng = np.random.default_rng(0)
    scores = blind_scores(crops(rng, 300, 80), crops(rng, 80, 80))
    assert scores["all"]["coco_AP50"] > 99 and scores["all"]["paper_AP"] > 99 and scores["all"]["coco_AP50:95"] > 95


def test_a_fixed_share_is_found_out() -> None:
    def made(count: int, seed: int) -> list[Sample]:
        sides = np.random.default_rng(seed).integers(100, 900, (count, 2)).tolist()
        return [sample(f"s{i}", w, h, (0.1 * w, 0.5 * h, 0.4 * w, 0.9 * h)) for i, (w, h) in enumerate(sides)]

    assert blind_scores(made(300, 0), made(60, 1))["all"]["coco_AP50"] > 99


def test_random_places_cannot_be_guessed() -> None:
    def made(count: int, seed: int) -> list[Sample]:
        rng = np.random.default_rng(seed)
        corners = rng.uniform(0, 300, (count, 2))
        return [sample(f"r{i}", 400, 400, (x, y, x + 60, y + 60)) for i, (x, y) in enumerate(corners.tolist())]

    assert blind_scores(made(400, 0), made(200, 1))["all"]["coco_AP50"] < 10


def test_the_score_of_a_guess_is_the_share_of_neighbours_it_would_hit() -> None:
    boxes = [np.array([[10.0, 10, 50, 50]])] * 15 + [np.zeros((0, 4))] * 10
    guess = NoPixelRule.fit(np.full((25, 2), 60.0), boxes).guess(60, 60)
    assert guess.scores.tolist() == pytest.approx([0.6]) and iou(guess.boxes, np.array([[10, 10, 50, 50]])) > 0.99
    assert len(NoPixelRule.fit(np.full((5, 2), 60.0), [np.zeros((0, 4))] * 5).guess(60, 60)) == 0


def test_the_report_of_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sources(tmp_path / "in", 30, 1, (128, 128))
    build(BuildOptions(bijie=str(tmp_path / "in/bijie"), southwest=str(tmp_path / "in/southwest"), out=str(tmp_path / "msld"), split="paper"))
    assert report(ReportOptions(data=str(tmp_path / "msld/msld.yaml"), out=str(tmp_path / "rep"))) == 0
    found = json.loads((tmp_path / "rep/report.json").read_text())
    told = json.loads((tmp_path / "msld/build.json").read_text())
    assert {split: found["splits"][split]["images"] for split in found["splits"]} == told["images"]
    assert found["test_images_with_a_twin_in_train"] == told["test_images_with_a_twin_in_train"]["paper"] > 0
    assert {"all", "with_objects"} <= set(found["no_pixel_rule"]) and found["no_pixel_rule"]["scored_on"] == "test"
    for name in ("shapes.png", "places.png", "colours.png", "techniques.jpg"):
        assert read_image(tmp_path / "rep" / name).std() > 10
    assert "need not have seen anything" in capsys.readouterr().out
