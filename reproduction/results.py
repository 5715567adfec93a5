"""Records of a campaign -> what they say of every row: means and spread over seeds, differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reproduction.paper import Row, Study
from reproduction.record import RunRecord
from reproduction.statistics import RESAMPLES, Interval, coco_samples, draw_weights, interval, paper_samples
from utils.errors import UserError

SHARES = ("P", "R", "AP", "AP50", "AP50:95")  # in %; P, R and AP under the `paper` protocol, the others under `coco`
COMPARED = ("AP", "AP50", "AP50:95")  # with intervals


@dataclass(frozen=True)
class Mean:
    """Of several seeds."""

    value: float
    spread: float | None  # standard deviation (n - 1); None of a single seed
    count: int = 1  # seeds


@dataclass(frozen=True)
class Result:
    """What the runs of one row on one split say; shares in %, differences in points."""

    row: Row
    split: str
    seeds: tuple[int, ...]
    values: dict[str, Mean]  # of SHARES
    to_reference: dict[str, Interval]  # of COMPARED; empty for the reference itself, and where it has no run
    to_above: dict[str, Interval]  # the same against the row before
    parts: dict[str, dict[str, Mean]]  # part of the test images or objects -> SHARES, and 'objects'
    params: int
    gflops: float
    fps: float
    seconds_per_epoch: float  # NaN where no run knows


@dataclass(frozen=True)
class Results:
    """All that a campaign's records say."""

    study: Study
    records: tuple[RunRecord, ...]
    results: dict[str, tuple[Result, ...]]  # by split, in the table's order
    leak: dict[str, dict[str, Interval]]  # row name -> COMPARED: `paper` split minus `main`
    no_pixel_rule: dict[str, dict[str, float]]  # by split: COMPARED in %


def gather(study: Study, records: Sequence[RunRecord], no_pixel_rule: Mapping[str, Any], resamples: int = RESAMPLES) -> Results:
    """Means, spreads and intervals of all records. Raises UserError where runs of one split were tested on different images."""
    order = {row.name: number for number, row in enumerate(study.rows)}
    records = sorted((one for one in records if one.row in order), key=lambda one: (one.split, order[one.row], one.seed))
    found: dict[str, tuple[Result, ...]] = {}
    drawn: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for seed, split in enumerate(sorted({one.split for one in records})):
        own = [one for one in records if one.split == split]
        check_same_images(own)
        weights = draw_weights(own[0].clusters, resamples, seed)
        names = [row.name for row in study.rows if any(one.row == row.name for one in own)]
        for name in names:
            drawn[split, name] = bootstrap([one for one in own if one.row == name], weights)
        means = {name: average([one for one in own if one.row == name]) for name in names}
        results = []
        for number, name in enumerate(names):
            reference = study.reference if study.reference in names and name != study.reference else None
            above = names[number - 1] if number else None
            against = [_differences(means, drawn, split, name, other) if other else {} for other in (reference, above)]
            results.append(summarise(study.row(name), [one for one in own if one.row == name], means[name], *against))
        found[split] = tuple(results)
    leak = {}
    if {"main", "paper"} <= set(found):
        values = {split: {result.row.name: result.values for result in found[split]} for split in found}
        for name in [name for name in values["main"] if name in values["paper"]]:
            # Different test images, so nothing is paired: the samples of the two splits are independent.
            leak[name] = {
                key: interval(values["paper"][name][key].value - values["main"][name][key].value, drawn["paper", name][key] - drawn["main", name][key])
                for key in COMPARED
            }
    blind = {split: _blind(no_pixel_rule[split]) for split in found if no_pixel_rule.get(split, {}).get("all")}
    return Results(study, tuple(records), found, leak, blind)


def check_same_images(records: Sequence[RunRecord]) -> None:
    """UserError where two runs saw different test images or labels: they could not be compared."""
    first = records[0]
    for one in records[1:]:
        same = len(one.images) == len(first.images) and all(
            np.array_equal(a.boxes, b.boxes) and np.array_equal(a.classes, b.classes) for a, b in zip(one.truths, first.truths, strict=True)
        )
        if not same:
            raise UserError(f"{one.folder} and {first.folder}: were tested on different images or labels; delete the older one's record.json and start again")


def bootstrap(records: Sequence[RunRecord], weights: np.ndarray) -> dict[str, np.ndarray]:
    """COMPARED -> (b,) in %: the mean over a row's seeds on every bootstrap sample."""
    sums = {key: np.zeros(len(weights)) for key in COMPARED}
    for one in records:
        classes = len(one.settings["names"])
        coco = coco_samples(one.coco_detections, one.truths, classes, weights)
        for key, values in zip(COMPARED, (paper_samples(one.detections, one.truths, classes, weights), coco[:, 0], coco[:, 1]), strict=True):
            sums[key] += 100 * values / len(records)
    return sums


def shares(report: Mapping[str, Any]) -> dict[str, float]:
    """SHARES of a report (Report.to_dict), in %."""
    overall = report["overall"]
    point, coco = overall["at_confidence"], overall["coco"]
    values = (point["precision"], point["recall"], overall["paper"]["AP"], coco["AP50"], coco["AP50:95"])
    return {name: 100 * float(value) for name, value in zip(SHARES, values, strict=True)}


def average(records: Sequence[RunRecord]) -> dict[str, Mean]:
    """SHARES of a row over its seeds."""
    each = [shares(one.report) for one in records]
    return {key: mean([one[key] for one in each]) for key in SHARES}


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard deviation."""
    return Mean(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def summarise(row: Row, records: Sequence[RunRecord], values: dict[str, Mean], to_reference: dict[str, Interval], to_above: dict[str, Interval]) -> Result:
    """The Result of a row's runs on one split."""
    parts = {}
    for part in records[0].groups:
        each = [shares(one.groups[part]) for one in records]
        objects = float(records[0].groups[part]["overall"]["objects"])
        parts[part] = {key: mean([one[key] for one in each]) for key in SHARES} | {"objects": Mean(objects, None)}
    times = [one.seconds_per_epoch for one in records if not math.isnan(one.seconds_per_epoch)]
    seeds = tuple(one.seed for one in records)
    first, fps = records[0], float(np.mean([one.fps for one in records]))
    seconds = float(np.mean(times)) if times else math.nan
    return Result(row, first.split, seeds, values, to_reference, to_above, parts, first.params, first.gflops, fps, seconds)


def _differences(
    means: Mapping[str, Mapping[str, Mean]], drawn: Mapping[tuple[str, str], Mapping[str, np.ndarray]], split: str, name: str, other: str
) -> dict[str, Interval]:
    """`name` minus `other` in points, paired: both on the same bootstrap samples."""
    found = {}
    for key in COMPARED:
        one, two = means[name][key], means[other][key]
        bounds = interval(one.value - two.value, drawn[split, name][key] - drawn[split, other][key])
        found[key] = replace(bounds, seed_error=seed_error(one, two))
    return found


def seed_error(one: Mean, two: Mean) -> float | None:
    """Standard error of the difference of two means over seeds; None where one of them has a single seed."""
    if one.spread is None or two.spread is None:
        return None
    return math.sqrt(one.spread**2 / one.count + two.spread**2 / two.count)


def _blind(scores: Mapping[str, Any]) -> dict[str, float]:
    """The no-pixel rule's figures by our names."""
    whole = scores["all"]
    return {"AP": whole["paper_AP"], "AP50": whole["coco_AP50"], "AP50:95": whole["coco_AP50:95"]}
