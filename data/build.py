"""Build a dataset folder: pieces of work by several processes, files whole or absent, an interrupted build continued."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2

from data.groups import SPLITS
from utils.errors import UserError
from utils.heap import keep_heap

UNFINISHED, FINISHED = ".building.json", "build.json"
LISTED = 20  # problems shown; the rest is counted
Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """What makes two builds the same, and what a build is made of."""

    identity: dict[str, object]  # inputs' digest and settings
    summary: dict[str, object]  # counts

    def text(self) -> str:
        """The plan as JSON."""
        return json.dumps({"identity": self.identity, **self.summary}, indent=1, sort_keys=True) + "\n"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def one_thread() -> None:
    """Set up a process that does its work by itself, beside others like it."""
    cv2.setNumThreads(1)
    keep_heap()


def spread(call: Callable[[Given], Found], work: Sequence[Given], jobs: int, title: str) -> Iterator[Found | UserError]:
    """`call` on every piece of `work` by `jobs` processes, in order, with a progress bar; a UserError is handed back, not raised."""
    from tqdm import tqdm

    with tqdm(total=len(work), desc=title, unit="img", disable=None, file=sys.stderr) as bar:
        if jobs <= 1:
            for piece in work:
                yield _attempt(call, piece)
                bar.update()
            return
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=one_thread)
        try:
            for found in pool.map(_attempt, [call] * len(work), work, chunksize=8):
                yield found
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(call: Callable[[Given], Found], piece: Given) -> Found | UserError:
    try:
        return call(piece)
    except UserError as error:
        return error


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one UserError that lists the problems of the sources, if there are any."""
    if problems:
        more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the sources"
        raise UserError("\n  ".join([f"{count}; nothing was written", *problems[:LISTED], *more]))


def start(out: Path, plan: Plan) -> bool:
    """Make `out` ready for `plan`, or for going on with it; False when it is built already.

    Until `finish`, a hidden file marks the folder as unfinished and there is no dataset YAML. Raises UserError when `out` holds something else.
    """
    for mark in (FINISHED, UNFINISHED):
        if (out / mark).exists():
            if json.loads((out / mark).read_text("utf-8")).get("identity") != json.loads(plan.text())["identity"]:
                raise UserError(f"{out}: holds a dataset built from other files or settings; give another --out or remove the folder")
            if mark == FINISHED:
                return False
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; a folder was expected of --out")
    if out.exists() and any(out.iterdir()) and not (out / UNFINISHED).exists():
        raise UserError(f"{out}: is not empty and holds no dataset of this kind; give another --out")
    for split in SPLITS:
        for kind in ("images", "labels"):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
            for rest in (out / kind / split).glob(".*.part"):
                rest.unlink()
    replace_file(out / UNFINISHED, plan.text().encode())
    return True


def finish(out: Path, plan: Plan, header: Sequence[str], rows: Sequence[Sequence[object]], names: Sequence[str], yaml_name: str) -> None:
    """Write manifest.csv, the dataset YAML and build.json, and take the mark away."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    replace_file(out / "manifest.csv", table.getvalue().encode())
    classes = "".join(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(names))
    replace_file(out / yaml_name, f"path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{classes}".encode())
    replace_file(out / FINISHED, plan.text().encode())
    (out / UNFINISHED).unlink()
