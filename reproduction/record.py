"""What a finished run leaves on disk: record.json (plain values) and detections.npz (arrays), and nothing that could be half of it.

The arrays are written first. record.json comes last, holds their checksum and is renamed into place; so a folder with a record.json is a
finished run, and one whose arrays are not those of its record is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.detections import Detections, Truth
from utils.errors import UserError

RECORD, ARRAYS = "record.json", "detections.npz"
LISTS = ("detections", "coco_detections", "truths")
VERSION = 1
TEMPORARY = ".part"  # suffix of a file that is still being written


@dataclass(frozen=True)
class RunRecord:
    """One finished run, as it lies in OUT/runs/<row>-<split>-s<seed>/. The lists have one entry per test image, in the same order."""

    row: str  # yolov5s, msfe, ..., ls-yolo, or the name of a comparison model
    seed: int
    split: str  # 'main': trained and tested on --data; 'paper': on --paper-data
    folder: Path  # train.py's folder: weights/best.pt, results.csv, args.yaml; beside them record.json and detections.npz
    settings: dict[str, Any]  # how it was trained and tested; 'shortened': what differs from the paper's settings, in words
    report: dict[str, Any]  # Report.to_dict of the test images, both protocols
    groups: dict[str, dict[str, Any]]  # the same of a part of them: 'source:NAME', 'size:small|medium|large' (COCO), 'share:RANGE' (box area / image area)
    params: int  # of the fused model
    gflops: float  # of the fused model, for one square image of the size it was tested at
    fps: float  # batch 1, model and NMS
    seconds_per_epoch: float  # training and validation, the wall clock of the last session; NaN where that had no epoch left to do
    images: tuple[str, ...]  # test images: paths as in the dataset
    clusters: tuple[str, ...]  # per image: the source it was made from; versions of one source are one draw of the bootstrap
    detections: list[Detections]  # from score 0.001, NMS at IoU 0.5 (cut at 0.5 for the `paper` protocol)
    coco_detections: list[Detections]  # from score 0.001, NMS at IoU 0.6 (the `coco` protocol)
    truths: list[Truth]

    @property
    def name(self) -> str:
        """The run's folder name."""
        return self.folder.name


def save_record(record: RunRecord) -> None:
    """Write the record into its folder. Raises OSError where the disk cannot take it; nothing half-written is ever read as finished."""
    arrays: dict[str, np.ndarray] = {}
    for key in LISTS:
        arrays |= _pack(key, getattr(record, key))
    memory = io.BytesIO()
    np.savez_compressed(memory, **arrays)  # type: ignore[arg-type]  # of NumPy's stubs
    data = memory.getvalue()
    plain = {f.name: getattr(record, f.name) for f in fields(RunRecord) if f.name not in (*LISTS, "folder")}
    plain |= {"version": VERSION, "arrays_sha256": hashlib.sha256(data).hexdigest()}
    if math.isnan(record.seconds_per_epoch):
        plain["seconds_per_epoch"] = None
    text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(record.folder / ARRAYS, data)
    write_whole(record.folder / RECORD, text.encode())


def load_record(folder: Path) -> RunRecord:
    """Read a finished run. Raises UserError where it is not finished, damaged, or of another version of this program."""
    folder = Path(folder)
    path = folder / RECORD
    advice = f"delete {path.name} and start the campaign again: the run is tested anew"
    if not path.is_file():
        raise UserError(f"{folder}: no {RECORD}; the run is not finished")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        data = (folder / ARRAYS).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the record cannot be read ({error}); {advice}") from None
    if not isinstance(plain, dict) or plain.pop("version", None) != VERSION:
        raise UserError(f"{path}: is no record of version {VERSION}; {advice}")
    if plain.pop("arrays_sha256", "") != hashlib.sha256(data).hexdigest():
        raise UserError(f"{folder / ARRAYS}: is not the file that {RECORD} speaks of; {advice}")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        lists: dict[str, Any] = {key: _unpack(key, dict(arrays), Truth if key == "truths" else Detections) for key in LISTS}
    wrong = ({f.name for f in fields(RunRecord)} - {*LISTS, "folder"}) ^ set(plain)
    if wrong:
        raise UserError(f"{path}: keys that are missing or unknown: {', '.join(sorted(wrong))}; {advice}")
    if plain["seconds_per_epoch"] is None:
        plain["seconds_per_epoch"] = math.nan
    plain |= {"images": tuple(plain["images"]), "clusters": tuple(plain["clusters"])}
    return RunRecord(folder=folder, **plain, **lists)


def load_records(out: Path) -> list[RunRecord]:
    """All finished runs of a campaign, by folder name; runs without a record are passed over. Raises UserError for a damaged record."""
    return [load_record(path.parent) for path in sorted(Path(out).glob(f"runs/*/{RECORD}"))]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or, after a crash, as it was before."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pack(key: str, items: Sequence[Detections | Truth]) -> dict[str, np.ndarray]:
    """Lists of arrays end to end, and how many belong to each image."""
    packed = {
        f"{key}_count": np.array([len(item.classes) for item in items], np.int64),
        f"{key}_boxes": np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes for item in items)]),
        f"{key}_classes": np.concatenate([np.zeros(0, np.int64), *(item.classes for item in items)]),
    }
    scores = [item.scores for item in items if isinstance(item, Detections)]
    return packed | ({f"{key}_scores": np.concatenate([np.zeros(0, np.float32), *scores])} if key != "truths" else {})


def _unpack(key: str, arrays: dict[str, np.ndarray], kind: type[Detections] | type[Truth]) -> list[Any]:
    """What _pack put together."""
    ends = np.cumsum(arrays[f"{key}_count"])[:-1]
    columns = [np.split(arrays[f"{key}_{f.name}"], ends) for f in fields(kind)]
    return [kind(*parts) for parts in zip(*columns, strict=True)] if len(arrays[f"{key}_count"]) else []
