"""A campaign's folder: what is planned in it, where each run stands, and who does it.

    OUT/campaign.json      what is to be run, under which settings
    OUT/runs/<run>/        train.py's folder, record.json once the run is done, failed.txt with the reason where it failed
    OUT/locks/<run>.lock   held by the process that does the run; the system frees it when that process ends, however it ends
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reproduction.paper import STUDIES, Row, Study
from reproduction.record import RECORD, write_whole
from utils.config import find_file
from utils.errors import UserError

CAMPAIGN, FAILED = "campaign.json", "failed.txt"
STATES = ("done", "running", "missing", "failed")


@dataclass(frozen=True)
class Job:
    """A run to be done."""

    row: Row
    split: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name of the run."""
        return f"{self.row.name}-{self.split}-s{self.seed}"


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    kind: str  # one of STATES
    detail: str = ""


# ---------------------------------------------------------------------------------------------------- plan


def existing(study: Study) -> dict[str, bool]:
    """Row name -> whether its model YAML is there."""
    return {row.name: find_file(row.cfg).is_file() for row in study.rows}


def missing_models(study: Study) -> list[Row]:
    """Rows of the paper's table whose model is not there yet."""
    there = existing(study)
    return [row for row in study.rows if not there[row.name]]


def jobs_of(rows: Sequence[Row], splits: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All runs, in the order in which they are done: a first seed of every row before the second of any."""
    return [Job(row, split, seed) for seed in seeds for split in splits for row in rows]


def read_campaign(out: Path) -> dict[str, Any]:
    """campaign.json; empty where there is none. Raises UserError where it is damaged."""
    path = out / CAMPAIGN
    if not path.is_file():
        return {}
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it and start the campaign again: finished runs are kept") from None
    if not isinstance(plan, dict) or not {"study", "rows", "seeds", "splits", "settings"} <= set(plan) or plan["study"] not in STUDIES:
        raise UserError(f"{path}: is not a campaign's file; choose another --out")
    return plan


def planned(out: Path) -> tuple[Study, list[Job]]:
    """The study of a campaign's folder, and all runs that were ever asked for. Raises UserError where it holds no campaign."""
    plan = read_campaign(out)
    if not plan:
        raise UserError(f"{out}: no {CAMPAIGN} in it; a campaign's folder was expected (--out)")
    study = STUDIES[plan["study"]]
    rows = [row for row in study.rows if row.name in plan["rows"]]
    return study, jobs_of(rows, plan["splits"], plan["seeds"])


# ---------------------------------------------------------------------------------------------------- states


def is_done(folder: Path) -> bool:
    """Whether the run has its record."""
    return (folder / RECORD).is_file()


def epochs_done(folder: Path) -> int:
    """Rows of a run's results.csv: for a look at the state, without reading a checkpoint."""
    path = folder / "results.csv"
    if not path.is_file():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def state_of(out: Path, job: Job) -> State:
    """Whether a run is done, running (somewhere), missing or failed."""
    folder = out / "runs" / job.name
    if is_done(folder):
        return State("done")
    with claim(out, job) as mine:
        if not mine:
            return State("running", f"{progress(folder)}, {holder(out, job)}")
    if (folder / FAILED).is_file():
        return State("failed", (folder / FAILED).read_text(encoding="utf-8").strip())
    return State("missing", progress(folder) if (folder / "weights" / "last.pt").is_file() else "")


def progress(folder: Path) -> str:
    """'3 epochs done'."""
    return f"{epochs_done(folder)} epochs done"


def holder(out: Path, job: Job) -> str:
    """Who does a run, as that process wrote it down."""
    try:
        return (out / "locks" / f"{job.name}.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "by another process"


@contextmanager
def claim(out: Path, job: Job, who: str = "") -> Iterator[bool]:
    """Hold a run's lock inside; False where another process holds it. `who` is written down for the others."""
    folder = out / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{job.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        if who:
            write_whole(folder / f"{job.name}.txt", f"{who}\n".encode())
        yield True
    finally:
        lock.release()


def summary(out: Path, jobs: Sequence[Job]) -> tuple[Counter[str], str]:
    """How many runs are in which state, and a text that names all that are not done."""
    states = {job.name: state_of(out, job) for job in jobs}
    counts = Counter(state.kind for state in states.values())
    lines = [", ".join(f"{counts[kind]} {kind}" for kind in STATES) + f", of {len(jobs)} runs in {out}"]
    for kind in STATES[1:]:
        lines += [f"  {kind}: {name}{f' ({state.detail})' if state.detail else ''}" for name, state in states.items() if state.kind == kind]
    return counts, "\n".join(lines)
