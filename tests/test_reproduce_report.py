"""A campaign's page from made-up runs: every figure drawn, every table there, in headless Chromium."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.builder import load_config
from models.yolo import DetectionModel
from reproduction import report
from reproduction.paper import STUDIES
from reproduction.record import RunRecord
from reproduction.results import Results, gather
from reproduction.tables import all_tables, headline
from tests.conftest import ROOT
from tests.test_figures import images, run  # noqa: F401  (a fixture)
from tests.test_page import Visit, browser, check  # noqa: F401  (a fixture)
from utils.checkpoint import save_checkpoint

SETTINGS = {"epochs": 4, "img": 64, "imgsz": 64, "data": "d.yaml", "paper_data": "p.yaml", "names": ["landslide"], "tested_on": "test", "device": "CPU"}
BLIND = {"main": {"all": {"paper_AP": 11.5, "coco_AP50": 12.5, "coco_AP50:95": 3.25}}}
CFG = {"yolov5s": "yolov5s.yaml", "wdh": "ablation/wdh.yaml"}


@pytest.fixture
def runs(tmp_path: Path, images: tuple[str, ...]) -> list[RunRecord]:  # noqa: F811
    """Two rows with narrow untrained networks, the first with two seeds, and one of them on the paper's split."""
    records = []
    for row, seed, split in (("yolov5s", 0, "main"), ("yolov5s", 1, "main"), ("wdh", 0, "main"), ("wdh", 0, "paper")):
        record = run(tmp_path / "runs", images, row, seed, 2 + 2 * (row == "wdh"), split)
        config = replace(load_config(ROOT / "models" / CFG[row], nc=1), width_multiple=0.125, depth_multiple=0.1)
        content = {"model": config.to_dict(), "names": ["landslide"], "imgsz": 64, "ema": DetectionModel(config).state_dict()}
        (record.folder / "weights").mkdir()
        save_checkpoint(record.folder / "weights" / "best.pt", content)
        records.append(replace(record, settings={**SETTINGS, "shortened": ["4 epochs instead of 300"]}))
    return records


def results_of(records: list[RunRecord]) -> Results:
    return gather(STUDIES["ablation"], records, BLIND, 20)


def test_the_page_of_a_campaign(runs: list[RunRecord], tmp_path: Path, browser: Any) -> None:  # noqa: F811
    results = results_of(runs)
    lines, tables = headline(results, 6), all_tables(results)
    path = report.write_report(tmp_path, results, lines, tables)
    drawn = {str(one.relative_to(tmp_path / "figures")) for one in (tmp_path / "figures").rglob("*.png")}
    charts = {"metrics.png", "differences.png", "cost.png", "training.png", "pr.png", "detections.png", "receptive_fields.png"}
    assert drawn == charts | {f"rows/{row}_{kind}.png" for row in ("yolov5s", "wdh") for kind in ("training", "pr", "failures")}
    with Visit(browser, path) as visit:
        check(visit, images=len(drawn))
        assert visit.page.title() == "Table III: ablation, reproduced"
        warning = visit.page.locator(".warning").inner_text()
        assert "SHORTENED" in warning and "4 epochs instead of 300" in warning and "INCOMPLETE: 4 of 6" in warning
        assert visit.page.locator("table").count() == len(tables) + 1
        first = visit.page.locator("table").first.locator("tbody tr")
        assert first.locator("th").all_inner_texts() == ["no-pixel rule", "YOLOv5s", "+ W-DH"]
        assert "marked" in (first.first.get_attribute("class") or "")
        assert visit.page.locator("table").last.locator("tbody tr").count() == 4  # the runs


def test_pictures_that_cannot_be_drawn_any_more_are_left_out(runs: list[RunRecord], tmp_path: Path) -> None:
    gone = [replace(record, images=tuple(f"gone/{n}.jpg" for n in range(5))) for record in runs]
    assert report.image_pictures(results_of(gone), tmp_path, "") == []
    assert list(report.context_fields([runs[2]])) == ["wdh"]
    (runs[2].folder / "weights" / "best.pt").unlink()
    assert report.context_fields([runs[2]]) == {}


def test_receptive_fields_are_of_the_trained_weights_and_the_test_images(runs: list[RunRecord]) -> None:
    field = report.context_fields([runs[2]])["wdh"]
    assert field.map.shape == (64, 64) and field.map.max() == 1 and field.centre == (40, 40)
