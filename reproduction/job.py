"""One run of a campaign: a row, a seed and a dataset -> trained, tested, recorded."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import train
import val
from data.dataset import DatasetSpec, ImageStore, Sample, fingerprint, list_images, load_data, load_split
from data.groups import generator
from data.loader import TrainBatches, evaluation_batches
from reproduction.folder import Job
from reproduction.paper import Row
from reproduction.parts import measure_parts, origins_and_clusters
from reproduction.record import RunRecord, save_record, write_whole
from reproduction.settings import Options
from utils.checkpoint import load_checkpoint
from utils.complexity import synchronize
from utils.config import find_file
from utils.errors import UserError
from utils.runtime import worker_count

TIMED_SECONDS, TIMED_BATCHES = 20.0, 21  # of the short timing that a plan rests on: the first is not counted


@dataclass(frozen=True)
class Dataset:
    """What the runs of one split train and are tested on."""

    split: str  # 'main' or 'paper'
    yaml: str  # for train.py: the user's, or the lists of a subset
    spec: DatasetSpec  # the user's
    tested_on: str  # 'test', or 'val' where the YAML has no test
    train_samples: list[Sample]  # of the whole dataset
    samples: list[Sample]  # test images
    origins: list[str]  # source of each
    clusters: list[str]
    fingerprints: dict[str, str]


# ------------------------------------------------------------------------------------------------- what is trained


def open_dataset(split: str, path: str, options: Options, out: Path) -> Dataset:
    """Read a dataset YAML and scan it; with --subset write the lists of the smaller one. Raises UserError for wrong data."""
    spec = load_data(path)
    for needed in ("train", "val"):
        if needed not in spec.splits:
            raise UserError(f"{spec.source}: has no {needed!r}; train and val were expected, and test to measure on")
    scanned = {name: load_split(spec, name)[0] for name in spec.splits}
    tested_on = "test" if "test" in scanned else "val"
    origins, clusters = origins_and_clusters(spec, scanned[tested_on], options.groups)
    used = path if options.subset is None else write_subset(split, spec, options.subset, out)
    prints = {name: fingerprint(samples) for name, samples in scanned.items()}
    return Dataset(split, used, spec, tested_on, scanned["train"], scanned[tested_on], origins, clusters, prints)


def write_subset(split: str, spec: DatasetSpec, count: int, out: Path) -> str:
    """OUT/data/<split>.yaml: `count` of the training images and as large a share of the validation images, drawn once and for all."""
    images = {name: list_images(spec, name) for name in ("train", "val")}
    if count > len(images["train"]):
        raise UserError(f"--subset {count}: {spec.source} has {len(images['train'])} training images")
    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, paths in images.items():
        share = max(1, round(len(paths) * count / len(images["train"])))
        chosen = sorted(generator(0, "subset", name).permutation(len(paths))[:share].tolist())
        write_whole(folder / f"{split}-{name}.txt", "".join(f"{paths[i].resolve()}\n" for i in chosen).encode())
    content = {name: f"{split}-{name}.txt" for name in images} | {"names": dict(enumerate(spec.names))}
    write_whole(folder / f"{split}.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return str(folder / f"{split}.yaml")


def model_yaml(row: Row, width: float | None, out: Path) -> str:
    """The row's model YAML; of another width, OUT/cfg/<row>.yaml, which says only that. The comparison models have no width to change."""
    if width is None or row.foreign:
        return row.cfg
    path = out / "cfg" / f"{row.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"base": str(find_file(row.cfg).resolve()), "width_multiple": width}
    write_whole(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return str(path)


def train_options(job: Job, data: Dataset, options: Options, out: Path) -> train.Options:
    """The command line of train.py that is this run; it resumes where there is something to resume."""
    last = out / "runs" / job.name / "weights" / "last.pt"
    return train.Options(
        cfg=model_yaml(job.row, options.width, out),
        data=data.yaml,
        hyp=options.baseline_hyp if job.row.foreign else options.hyp,
        epochs=options.epochs,
        batch_size=options.batch_size,
        imgsz=options.img,
        device=options.device,
        optimizer=options.baseline_optimizer if job.row.foreign else options.optimizer,
        patience=0,  # all rows train equally long
        workers=options.workers,
        cache=options.cache,
        compile=options.compile,
        seed=job.seed,
        amp=options.amp,
        project=str(out / "runs"),
        name=job.name,
        exist_ok=True,
        resume=str(last) if last.is_file() else None,
        allow_change=options.allow_change,
    )


# ------------------------------------------------------------------------------------------------- train and test


def do(job: Job, data: Dataset, options: Options, settings: Mapping[str, Any], out: Path) -> RunRecord:
    """Train (or go on training) the job's model, test its best weights and write the record."""
    folder = out / "runs" / job.name
    wanted = train_options(job, data, options, out)
    before = progress_of(folder)
    seconds = math.nan
    if not before or before["epoch"] < wanted.epochs:
        started = time.perf_counter()
        train.train(wanted)
        done = wanted.epochs - (before["epoch"] if before else 0)
        seconds = (time.perf_counter() - started) / done
    record = test(job, data, options, settings, folder, seconds)
    save_record(record)
    return record


def progress_of(folder: Path) -> dict[str, Any]:
    """Where a run's last.pt stands; empty where there is none."""
    last = folder / "weights" / "last.pt"
    return dict(load_checkpoint(last)["progress"]) if last.is_file() else {}


def test(job: Job, data: Dataset, options: Options, settings: Mapping[str, Any], folder: Path, seconds: float) -> RunRecord:
    """Measure best.pt on the test images, as val.py does."""
    best = str(folder / "weights" / "best.pt")
    how = val.Options(weights=best, data=str(data.spec.source), task=data.tested_on, device=options.device, workers=options.workers)
    found, facts = val.measure_weights(how, data.spec.names, data.samples)
    lists = (found.detections, found.coco_detections, found.truths)
    of_run = {"row": job.row.name, "cfg": job.row.cfg, "seed": job.seed, "tested_on": data.tested_on, "images": len(data.samples)}
    of_run |= {"names": list(data.spec.names), "device": facts["device"], "imgsz": facts["imgsz"]}
    return RunRecord(
        *(job.row.name, job.seed, job.split, folder, {**settings, **of_run}),
        report=found.report.to_dict(),
        groups=measure_parts(*lists, data.samples, data.origins, data.spec.names),
        params=int(str(facts["params"])),
        gflops=float(str(facts["gflops"])),
        fps=float(str(facts["fps"])),
        seconds_per_epoch=seconds,
        images=tuple(str(sample.path) for sample in data.samples),
        clusters=tuple(data.clusters),
        detections=lists[0],
        coco_detections=lists[1],
        truths=lists[2],
    )


# ------------------------------------------------------------------------------------------------- what it costs


def time_epoch(job: Job, data: Dataset, options: Options, out: Path) -> float:
    """Seconds that an epoch of this run takes here, training and validation, from a few batches of each."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = replace(train_options(job, data, options, out), project=folder, resume=None)
        run = train.prepare(wanted)
        run.model.train()
        total = math.ceil(len(run.samples) / wanted.batch_size)
        run.samples = run.samples[: TIMED_BATCHES * wanted.batch_size]
        order = TrainBatches(run.samples, wanted.batch_size, wanted.imgsz, run.model.stride, wanted.seed)
        batches = iter(train.training_batches(run, ImageStore(run.samples), order, worker_count(wanted.workers, run.device)))
        ends = []
        for batch in batches:
            train.train_step(run, batch)
            synchronize(run.device)
            ends.append(time.perf_counter())
            if len(ends) > 1 and ends[-1] - ends[0] > TIMED_SECONDS:
                break
        del batches
        # Of a single batch nothing can be told but that the epoch is as short as it.
        step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
        some = run.val_samples[: 2 * wanted.batch_size]
        started = time.perf_counter()
        val.evaluate(run.ema.model, evaluation_batches(some, wanted.imgsz, 2 * wanted.batch_size, run.model.stride, True), run.names, run.device)
        validation = (time.perf_counter() - started) / len(some) * len(run.val_samples)
        return step * total + validation
