"""From made-up records to tables: the figures, the marks, and the words that no output may lack."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.dataset import Sample
from data.labels import Labels
from reproduction.paper import STUDIES
from reproduction.parts import SHARES, SIZES, measure_parts, restrict
from reproduction.record import RunRecord
from reproduction.results import check_same_images, gather, shares
from reproduction.statistics import draw_weights
from reproduction.tables import all_tables, headline, latex, markdown, numbers, text, write_tables
from tests.test_statistics import made_up, truths
from utils.errors import UserError
from utils.metrics import COCO_IOUS, coco_ap, curve, match, score

IMAGES = 60
PAPERS = {"epochs": 300, "img": 640, "data": "d.yaml", "paper_data": "p.yaml", "shortened": [], "names": ["landslide"], "tested_on": "test", "device": "a GPU"}
BLIND = {"main": {"all": {"paper_AP": 11.5, "coco_AP50": 12.5, "coco_AP50:95": 3.25}}}


def record(row: str, seed: int, split: str = "main", shift: float = 0.0, noise: int | None = None, **settings: Any) -> RunRecord:
    found, truth = made_up(np.random.default_rng(seed if noise is None else noise), IMAGES, shift=shift), truths(IMAGES)
    samples = [Sample(Path(f"{'ab'[i % 2]}{i}.jpg"), 300, 300, Labels.from_rows([])) for i in range(IMAGES)]
    names = tuple(str(sample.path) for sample in samples)
    groups = measure_parts(found, found, truth, samples, [name[0] for name in names], ["landslide"])
    report = score(found, truth, ["landslide"]).to_dict()
    folder = Path("runs") / f"{row}-{split}-s{seed}"
    return RunRecord(row, seed, split, folder, {**PAPERS, **settings}, report, groups, 7012822, 15.76, 50.0, 12.5, names, names, found, found, truth)


def campaign(**settings: Any) -> list[RunRecord]:
    """The baseline; MSFE, which is its twin; LS-YOLO, which is worse for certain. Two seeds."""
    rows = (("yolov5s", 0.0, 0), ("msfe", 0.0, 0), ("ls-yolo", 15.0, 0))
    return [record(row, seed, shift=shift, noise=seed + noise, **settings) for row, shift, noise in rows for seed in (0, 1)]


def test_means_differences_and_marks() -> None:
    records = campaign()
    results = gather(STUDIES["ablation"], list(reversed(records)), BLIND, 200)
    base, msfe, worse = results.results["main"]
    assert [one.row.name for one in (base, msfe, worse)] == ["yolov5s", "msfe", "ls-yolo"]
    aps = [100 * one.report["overall"]["paper"]["AP"] for one in records[:2]]
    assert base.values["AP"].value == pytest.approx(np.mean(aps)) and base.values["AP"].spread == pytest.approx(np.std(aps, ddof=1))
    assert base.to_reference == {} and base.to_above == {}
    for key in ("AP", "AP50", "AP50:95"):
        assert (msfe.to_reference[key].value, msfe.to_reference[key].low, msfe.to_reference[key].high) == (0, 0, 0)
        one = worse.to_reference[key]
        errors = [np.std([shares(run.report)[key] for run in records[n : n + 2]], ddof=1) / np.sqrt(2) for n in (0, 4)]
        assert one.seed_error == pytest.approx(np.hypot(*errors)) and one.within_seeds == (abs(one.value) < 2 * np.hypot(*errors))
        assert replace(one, value=1.0, seed_error=0.6).within_seeds and not replace(one, value=-1.0, seed_error=0.4).within_seeds
        assert one.value == pytest.approx(worse.values[key].value - base.values[key].value) and one.low < one.value < one.high
        assert worse.to_above[key] == one  # the row above is the baseline's twin
    assert not worse.to_reference["AP50:95"].holds_zero and worse.to_reference["AP50:95"].high < 0
    table = {row[0]: row for row in all_tables(results)[1].rows}
    assert table["no-pixel rule"][6] == "12.50"
    column = all_tables(results)[1].columns.index("AP50:95 to YOLOv5s")
    assert table["+ MSFE"][column] == "+0.00 [+0.00, +0.00] ~ s" and "~" not in table["LS-YOLO (+ MSFE + W-DH)"][column]
    assert table["LS-YOLO (+ MSFE + W-DH)"][1:6] == ["✓", "", "", "", "✓"] and table["YOLOv5s"][1:6] == [""] * 5


def test_a_row_without_the_baseline_has_no_difference() -> None:
    results = gather(STUDIES["ablation"], [record("adh", 0)], {}, 20)
    (only,) = results.results["main"]
    assert only.to_reference == {} == only.to_above and only.values["AP"].spread is None and not results.no_pixel_rule
    assert all_tables(results)[0].rows[0][9:11] == ["–", "–"]


def test_what_the_paper_prints_stands_beside() -> None:
    table = all_tables(gather(STUDIES["ablation"], campaign(), BLIND, 20))[0]
    assert table.rows[0][0] == "no-pixel rule" and table.rows[0][8] == "11.50"
    assert table.rows[3][-4:] == ["97.60", "94.56", "97.06", "+2.18"]


def test_price_of_the_leak() -> None:
    records = campaign() + [record("ls-yolo", seed, "paper") for seed in (0, 1)]
    results = gather(STUDIES["ablation"], records, BLIND, 200)
    leak, shown = results.leak["ls-yolo"]["AP50:95"], results.results["main"][2].values["AP50:95"].value
    assert list(results.leak) == ["ls-yolo"] and leak.value == pytest.approx(results.results["paper"][0].values["AP50:95"].value - shown)
    assert leak.low > 0
    assert any("price of the leak" in table.title for table in all_tables(results))
    assert not any("price" in table.title for table in all_tables(gather(STUDIES["ablation"], campaign(), BLIND, 20)))


def every_output(records: list[RunRecord], planned: int, folder: Path) -> dict[str, str]:
    results = gather(STUDIES["ablation"], records, BLIND, 20)
    lines, tables = headline(results, planned), all_tables(results)
    write_tables(folder, results, lines, tables)
    return {path.suffix: path.read_text(encoding="utf-8") for path in folder.iterdir()} | {"": text(lines, tables)}


def test_a_shortened_campaign_says_so_everywhere(tmp_path: Path) -> None:
    cuts = ["12 epochs instead of 300", "192 px instead of 640"]
    outputs = every_output(campaign(epochs=12, img=192, shortened=cuts, tested_on="val"), 6, tmp_path)
    assert set(outputs) == {".md", ".csv", ".tex", ".json", ""}
    for kind, content in outputs.items():
        assert "SHORTENED" in content and "12 epochs instead of 300; 192 px instead of 640" in content, kind
    assert outputs[".md"].count("SHORTENED") == 1 + len(re.findall("^## ", outputs[".md"], re.MULTILINE))
    assert outputs[".tex"].count("SHORTENED") == 1 + outputs[".tex"].count(r"\begin{table}")
    assert all("SHORTENED" in row["campaign"] for row in csv.DictReader(io.StringIO(outputs[".csv"])))
    assert "no test split" in outputs[".md"] and "INCOMPLETE" not in outputs[".md"]


def test_a_whole_campaign_and_an_incomplete_and_a_mixed_one(tmp_path: Path) -> None:
    outputs = every_output(campaign(), 6, tmp_path)
    assert all("SHORTENED" not in content and "The paper's settings." in content for content in outputs.values())
    part = campaign()[:3] + [replace(record("ls-yolo", 0), settings={**PAPERS, "shortened": ["9 epochs instead of 300"]})]
    lines = headline(gather(STUDIES["ablation"], part, BLIND, 20), 30)
    assert "SHORTENED" in lines[0] and any("4 of 30" in line for line in lines) and any("MIXED" in line for line in lines)


def test_files_are_well_formed(tmp_path: Path) -> None:
    outputs = every_output(campaign() + [record("msfe", 0, "paper")], 7, tmp_path)
    content = json.loads(outputs[".json"])
    assert len(content["runs"]) == 7 and content["splits"]["main"][2]["values"]["AP"]["value"] > 0
    rows = list(csv.DictReader(io.StringIO(outputs[".csv"])))
    assert [row["model"] for row in rows] == ["no-pixel rule", "yolov5s", "msfe", "ls-yolo", "msfe"]
    for part in outputs[".md"].split("\n## ")[1:]:
        widths = {line.count("|") - line.count("\\|") for line in part.splitlines() if line.startswith("|")}
        assert len(widths) == 1
    for tabular in outputs[".tex"].split(r"\begin{tabular}{")[1:]:
        columns = len(tabular.partition("}")[0])
        body = tabular.partition("\\end{tabular}")[0]
        assert all(line.replace(r"\&", "").count("&") == columns - 1 for line in body.splitlines() if line.endswith(r"\\"))
        assert not re.search(r"(?<!\\)%(?!\n)", body)


def test_runs_on_different_images_are_not_compared() -> None:
    one, other = record("msfe", 0), record("adh", 0)
    check_same_images([one, other])
    with pytest.raises(UserError, match="different images"):
        check_same_images([one, replace(other, truths=other.truths[::-1])])
    with pytest.raises(UserError, match="different images"):
        check_same_images([one, replace(other, images=other.images[1:], truths=other.truths[1:])])


def test_comparison_counts_from_ls_yolo() -> None:
    results = gather(STUDIES["comparison"], campaign(), {}, 50)
    assert [one.row.name for one in results.results["main"]] == ["yolov5s", "ls-yolo"]
    assert results.results["main"][1].to_reference == {} and results.results["main"][0].to_reference["AP50:95"].low > 0
    assert "Not built yet: YOLOv7, YOLOX-L." in headline(results, 6, ["YOLOv7", "YOLOX-L"])
    assert numbers(results, ["x"]) and markdown(["x"], all_tables(results)) and latex(["x"], all_tables(results))


def test_parts_by_size_count_every_object_once_and_follow_cocos_rule() -> None:
    truth, found = truths(IMAGES), made_up(np.random.default_rng(0), IMAGES)
    samples = [Sample(Path(f"x{i}.jpg"), 300, 300, Labels.from_rows([])) for i in range(IMAGES)]
    parts = measure_parts(found, found, truth, samples, ["x"] * IMAGES, ["landslide"])
    whole = score(found, truth, ["landslide"]).to_dict()
    assert parts["source:x"] == whole
    for kind, ranges in (("size", SIZES), ("share", SHARES)):
        own = [parts[f"{kind}:{name}"]["overall"] for name in ranges]
        for key in ("tp", "fn"):
            assert sum(one["at_confidence"][key] for one in own) == whole["overall"]["at_confidence"][key]  # type: ignore[index]
        assert sum(one["objects"] for one in own) == whole["overall"]["objects"]  # type: ignore[index]
    # The rule itself, object by object.
    matches = match(found, truth, COCO_IOUS)
    areas = np.concatenate([(one.boxes[:, 2:] - one.boxes[:, :2]).prod(1) for one in found])
    truth_areas = np.concatenate([(one.boxes[:, 2:] - one.boxes[:, :2]).prod(1) for one in truth])
    low, high = SIZES["medium"]
    inside, truth_inside = (areas >= low) & (areas < high), (truth_areas >= low) & (truth_areas < high)
    for level in (0, 5):
        small = restrict(matches, level, inside, truth_inside)
        kept = [n for n in range(len(areas)) if (truth_inside[matches.truth[level, n]] if matches.truth[level, n] >= 0 else inside[n])]
        np.testing.assert_array_equal(small.scores, matches.scores[kept])
        assert 0 < len(kept) < len(areas) and len(small.truth_image) == truth_inside.sum()
        right = [matches.truth[level, n] >= 0 for n in kept]
        np.testing.assert_array_equal(small.truth[0] >= 0, right)
        hit = small.truth[0][small.truth[0] >= 0]
        assert len(set(hit.tolist())) == len(hit) and hit.max() < truth_inside.sum()
        everything = restrict(matches, level, np.ones(len(areas), bool), np.ones(len(truth_areas), bool))
        assert coco_ap(curve(everything, 0)) == coco_ap(curve(matches, 0, level))


def test_draws_of_the_two_splits_are_independent() -> None:
    names = [str(i) for i in range(30)]
    assert (draw_weights(names, 10, 0) != draw_weights(names, 10, 1)).any()
