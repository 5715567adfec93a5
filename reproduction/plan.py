"""What a campaign costs: the epochs that are left, times the seconds one takes here."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from reproduction.campaign import with_settings_of
from reproduction.folder import Job, epochs_done, existing, jobs_of, planned, read_campaign, state_of
from reproduction.job import open_dataset, time_epoch
from reproduction.record import load_records
from reproduction.settings import Options, PlanOptions, check, chosen_rows

SAME = ("img", "batch_size", "width", "subset")  # settings under which an epoch takes as long


def plan_campaign(options: PlanOptions) -> str:
    """A text: per row the runs and epochs that are left and the seconds an epoch takes, from finished runs or else from a short timing here.

    Nothing is written. Raises UserError for settings and data that no campaign could use.
    """
    out = Path(options.out)
    study, own = with_settings_of(out, options)
    check(own)
    rows = chosen_rows(study, own.rows, existing(study))
    paths = {"main": own.data} | ({"paper": own.paper_data} if own.paper_data else {})
    begun = bool(read_campaign(out))
    jobs = planned(out)[1] if begun and not options.data else jobs_of(rows, list(paths), own.seeds)
    done = {job.name for job in jobs if begun and state_of(out, job).kind == "done"}
    known: dict[tuple[str, str], list[float]] = {}
    for one in load_records(out) if begun else ():
        if not math.isnan(one.seconds_per_epoch) and all(one.settings[key] == getattr(own, key) for key in SAME):
            known.setdefault((one.row, one.split), []).append(one.seconds_per_epoch)
    lines = [f"{'row':<16} {'split':<6} {'runs left':>9} {'epochs left':>11} {'s / epoch':>10} {'hours':>8}  source"]
    total = 0.0
    for split, path in paths.items():
        for row in rows:
            left = [job for job in jobs if job.row == row and job.split == split and job.name not in done]
            epochs = sum(max(0, own.epochs - epochs_done(out / "runs" / job.name)) for job in left)
            times, source = known.get((row.name, split), []), "finished runs"
            if not times and left:
                times, source = [short_timing(Job(row, split, own.seeds[0]), path, own, read_campaign(out))], "short timing"
            seconds = sum(times) / len(times) if times else math.nan
            hours = epochs * seconds / 3600 if epochs else 0.0
            total += hours
            lines.append(f"{row.name:<16} {split:<6} {len(left):>9} {epochs:>11} {seconds:>10.1f} {hours:>8.2f}  {source}")
    lines.append(f"{len(jobs) - len(done)} of {len(jobs)} runs are left: {total:.1f} hours on this device, by one process")
    return "\n".join(lines)


def short_timing(job: Job, path: str, options: Options, begun: Mapping[str, Any]) -> float:
    """Seconds of an epoch of this run, by a few batches in a folder that is thrown away; hyper-parameters as in the campaign, if it has begun."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if begun:
            (folder / "hyp.yaml").write_text(yaml.safe_dump(begun["settings"]["hyp"]), encoding="utf-8")
            options = replace(options, hyp=str(folder / "hyp.yaml"))
        return time_epoch(job, open_dataset(job.split, path, options, folder), options, folder)
