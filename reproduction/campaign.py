"""Runs of a campaign, done one after the other, each once, by as many processes as like to help."""

from __future__ import annotations

import _thread
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.report import blind_scores
from reproduction.folder import CAMPAIGN, FAILED, Job, claim, existing, is_done, jobs_of, read_campaign
from reproduction.job import Dataset, do, open_dataset
from reproduction.paper import STUDIES, Study
from reproduction.record import write_whole
from reproduction.settings import Options, PlanOptions, check, chosen_rows, deciding, differences, shortened
from utils.errors import Terminated, UserError
from utils.runtime import StopFlag

ADDED = ("paper_data: None ->", "fingerprints.paper: None ->")  # no change: the second dataset may come later
WATCH = 0.2  # seconds between looks at the clock


@dataclass(frozen=True)
class Campaign:
    """What is to be run."""

    out: Path
    study: Study
    options: Options
    settings: dict[str, Any]  # those that decide the results, and what of them is not the paper's
    datasets: dict[str, Dataset]  # by split
    jobs: tuple[Job, ...]  # of this call; other calls may have added more to the folder


class Stop(StopFlag):
    """A wish to end: Ctrl-C, SIGTERM, or the time being up. The training under way is told, saves and raises; the loop over runs looks at `raised`.

    train.py listens to signals only between its first and its last batch; a wish that comes before that is handed to it as soon as it does.
    """

    def __init__(self, minutes: float | None) -> None:
        super().__init__()
        self.late = False
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._closed = threading.Event()

    def __enter__(self) -> Stop:
        super().__enter__()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._closed.set()
        super().__exit__(*details)

    def _watch(self) -> None:
        told: object = None
        while not self._closed.wait(WATCH):
            if self._end is not None and time.monotonic() > self._end and not self.raised:
                self.raised = self.late = True
            listener = signal.getsignal(signal.SIGTERM)
            if self.raised and listener not in (self._remember, told) and isinstance(getattr(listener, "__self__", None), StopFlag):
                told = listener
                _thread.interrupt_main(signal.SIGINT if self.interrupted else signal.SIGTERM)


# ---------------------------------------------------------------------------------------------------- opening


def open_campaign(study: Study, options: Options) -> Campaign:
    """Check settings and data, and enter them into OUT/campaign.json, or compare them with what stands there.

    Raises UserError with the differences where they are no longer the campaign's, unless --allow-change is given.
    """
    check(options)
    out = Path(options.out)
    rows = chosen_rows(study, options.rows, existing(study))
    paths = {"main": options.data} | ({"paper": options.paper_data} if options.paper_data else {})
    settings, old = deciding(options), read_campaign(out)
    if old and not options.allow_change:  # before a file of the campaign is touched
        compare(out, old, study, settings, options.allow_change)
    datasets = {split: open_dataset(split, path, options, out) for split, path in paths.items()}
    settings["fingerprints"] = {split: data.fingerprints for split, data in datasets.items()}
    blind = {split: blind_scores(data.train_samples, data.samples) for split, data in datasets.items()}
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "campaign.lock"):
        old = read_campaign(out)
        if old:
            # The runs that an earlier call did on a second dataset stay part of the campaign.
            settings["paper_data"] = options.paper_data or old["settings"]["paper_data"]
            settings["fingerprints"] = {**old["settings"]["fingerprints"], **settings["fingerprints"]}
            compare(out, old, study, settings, options.allow_change)
        plan = {
            "study": study.name,
            "rows": [row.name for row in study.rows if row in rows or row.name in old.get("rows", ())],
            "seeds": sorted({*options.seeds, *old.get("seeds", ())}),
            "splits": list({**dict.fromkeys(old.get("splits", ())), **datasets}),
            "settings": settings,
            "no_pixel_rule": {**old.get("no_pixel_rule", {}), **blind},
        }
        if plan != old:
            write_whole(out / CAMPAIGN, (json.dumps(plan, indent=1, ensure_ascii=False) + "\n").encode())
    jobs = jobs_of(rows, list(datasets), options.seeds)
    return Campaign(out, study, options, settings | {"shortened": shortened(settings)}, datasets, tuple(jobs))


def compare(out: Path, old: dict[str, Any], study: Study, settings: dict[str, Any], allow_change: bool) -> None:
    """Raise UserError with all that is no longer as it was, or print it where changes are allowed."""
    if old["study"] != study.name:
        raise UserError(f"{out / CAMPAIGN}: this folder holds a campaign of kind {old['study']!r}; choose another --out")
    before = {name: value for name, value in old["settings"].items() if name in settings and not (name == "paper_data" and settings[name] is None)}
    changed = [line for line in differences(before, {name: settings[name] for name in before}) if not line.startswith(ADDED)]
    if changed and not allow_change:
        lines = "".join(f"\n  {line}" for line in changed)
        raise UserError(f"{out / CAMPAIGN}: these are not the settings of the campaign in this folder; choose another --out, or --allow-change:{lines}")
    for line in changed:
        print(f"changed: {line}")


# ---------------------------------------------------------------------------------------------------- running


def run_campaign(campaign: Campaign, stop: Stop, action: Callable[..., object] = do) -> None:
    """Do every run that is neither done, nor done elsewhere right now, nor has failed since this call began; a failed run of an earlier
    call is tried again. Returns when nothing is left to begin, or when `stop` is raised.

    Raises KeyboardInterrupt or Terminated, with the run saved, where a signal asked for the end.
    """
    out, device = campaign.out, campaign.options.device or "default device"
    untried = {job.name for job in campaign.jobs}
    failed = {name for name in untried if (out / "runs" / name / FAILED).is_file()}  # by an earlier call, or another process before this one began
    began = True
    while began and not stop.raised:
        began = False
        for number, job in enumerate(campaign.jobs, 1):
            folder = out / "runs" / job.name
            if stop.raised or is_done(folder) or job.name not in untried:
                continue
            who = f"process {os.getpid()} on {platform.node()}, {device}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            with claim(out, job, who) as mine:
                if not mine or is_done(folder) or ((folder / FAILED).is_file() and job.name not in failed):
                    continue
                began = True
                untried.discard(job.name)
                print(f"\n=== run {number} of {len(campaign.jobs)}: {job.name}", flush=True)
                attempt(campaign, job, stop, action)
    if stop.raised and not stop.late:
        words = "saved; the same command goes on"
        raise KeyboardInterrupt(words) if stop.interrupted else Terminated(words)


def attempt(campaign: Campaign, job: Job, stop: Stop, action: Callable[..., object]) -> None:
    """Do one run; whatever goes wrong is written into its failed.txt, and the others go on."""
    folder = campaign.out / "runs" / job.name
    try:
        action(job, campaign.datasets[job.split], campaign.options, campaign.settings, campaign.out)
    except (KeyboardInterrupt, Terminated) as reason:
        if not stop.late:
            raise type(reason)(f"{job.name} is saved; the same command goes on") from reason
        print(f"the time is up: {reason}")
    except Exception as error:  # one run's fault, of whatever kind, is no reason to lose the others
        line = (str(error).splitlines() or [""])[0]
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FAILED, f"{type(error).__name__}: {line}\n".encode())
        print(f"failed: {job.name}: {line}")
    else:
        (folder / FAILED).unlink(missing_ok=True)


def with_settings_of(out: Path, options: PlanOptions) -> tuple[Study, Options]:
    """For a plan: the study, and the options; where no --data is given, with the settings of the campaign in the folder."""
    plan = read_campaign(out)
    study = STUDIES[plan["study"] if plan else options.study]
    if not plan or options.data:
        return study, options
    own = {name: value for name, value in plan["settings"].items() if name not in ("hyp", "baseline_hyp", "fingerprints")}
    return study, replace(options, **own, rows=plan["rows"], seeds=plan["seeds"])
