"""Train a detector: python train.py --data DATA.yaml [--cfg models/ls-yolo.yaml]

Reads top to bottom: settings, data, model, optimizer, epochs, checkpoints. What a picture shows is a function of (seed, epoch, index), the
learning rate of the batch number, and a checkpoint holds all the rest; so a resumed run ends with the weights of one that never stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace

from utils.config import Hyp, find_file, load_hyp, option, parse
from utils.errors import EnvironmentFault, Terminated, UserError, run


@dataclass(frozen=True)
class Options:
    """Train LS-YOLO, YOLOv5s or any model of a YAML on a YOLO dataset."""

    weights: str | None = option(None, "start from this checkpoint (ours, YOLOv5's or the LS-YOLO authors' .pt); none: from scratch")
    cfg: str | None = option(None, "model YAML (default: models/ls-yolo.yaml, or the model of --weights)")
    data: str = option("data/msld.yaml", "dataset YAML")
    hyp: str = option("data/hyps/ls-yolo.yaml", "hyper-parameter YAML")
    epochs: int = option(300, "number of epochs")
    batch_size: int = option(16, "images per batch; gradients are accumulated to about 64 images a step")
    imgsz: int = option(640, "image size in pixels, a multiple of 32", "--img", "--img-size")
    device: str = option("", "cpu, or a GPU number such as 0 (default: the first GPU, else the CPU)")
    resume: str | None = option(None, "continue an interrupted run: its last.pt, or nothing for the newest run", const="newest")
    allow_change: bool = option(False, "resume even if data, model, hyper-parameters or settings are no longer those of the run; the new ones hold")
    optimizer: str = option("SGD", "optimizer", choices=("SGD", "Adam", "AdamW"))
    cos_lr: bool = option(False, "cosine instead of linear learning rate")
    patience: int = option(100, "stop after this many epochs without a better result (0: never)")
    freeze: list[int] = option([0], "layers to freeze: a number N for the first N, or several layer numbers")
    workers: int | None = option(None, "processes that draw pictures (default: up to 8 with a GPU, 0 on the CPU)")
    cache: str | None = option(
        None,
        "keep decoded images: in memory, in a file that later runs find, or on the GPU; a GPU then draws the pictures itself",
        choices=("ram", "disk", "device"),
        const="ram",
    )
    rect: bool = option(False, "rectangular batches (no mosaic)")
    multi_scale: bool = option(False, "another image size for every batch, +/- 50 %")
    label_smoothing: float = option(0.0, "label smoothing of the class targets")
    seed: int = option(0, "seed of everything random")
    save_period: int = option(-1, "also keep a checkpoint every so many epochs")
    project: str = option("runs/train", "folder of all runs")
    name: str = option("exp", "name of this run's folder")
    exist_ok: bool = option(False, "write into the folder even if it exists")
    noval: bool = option(False, "validate after the last epoch only")
    nosave: bool = option(False, "save the last checkpoint only")
    noautoanchor: bool = option(False, "keep the model's anchors even if they fit the data badly")
    single_cls: bool = option(False, "treat all classes as one")
    image_weights: bool = option(False, "show images of badly recognised classes more often")
    compile: str | None = option(
        None, "compile the model with torch.compile (minutes at the start); graphs: with CUDA graphs", choices=("default", "graphs"), const="default"
    )
    profile: int = option(0, "write a Chrome trace of so many batches and a table of where their time goes")
    amp: str = option("auto", "mixed precision: auto takes bf16 or else fp16 on a GPU, nothing on the CPU", choices=("auto", "off", "bf16", "fp16"))
    strict: bool = option(False, "stop if any label row or image is wrong")
    tensorboard: bool = option(False, "write TensorBoard events (needs the package tensorboard)")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options) if __name__ == "__main__" else Options()

import csv  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import math  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import record_function  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.dataset import DatasetSpec, ImageStore, Sample, fingerprint, load_data, load_split, warn_of_shared_images  # noqa: E402
from data.device_loader import DeviceBatches, cache_on_device  # noqa: E402
from data.images import write_image  # noqa: E402
from data.loader import Batch, Pictures, TrainBatches, View, evaluation_batches, make_loader, single_thread, split_batch  # noqa: E402
from models.detector import Detector  # noqa: E402
from models.weights import build_detector, load_weights, model_from_checkpoint, new_detector, read_config  # noqa: E402
from models.yolo import DetectionModel  # noqa: E402
from utils.anchors import best_possible_recall, fit_anchors  # noqa: E402
from utils.boxes import cxcywh_to_xyxy  # noqa: E402
from utils.checkpoint import TEMPORARY, load_checkpoint, save_checkpoint  # noqa: E402
from utils.ema import EMA  # noqa: E402
from utils.loss import LossSettings, LossTerms, filled_up, loss_settings  # noqa: E402
from utils.metrics import Report  # noqa: E402
from utils.optim import Schedule, make_optimizer, set_rates  # noqa: E402
from utils.plots import mosaic, plot_labels, plot_results  # noqa: E402
from utils.runtime import StopFlag, device_line, memory_used, new_folder, out_of_memory, select_device, worker_count  # noqa: E402
from utils.stepclock import StepProfile, WaitClock  # noqa: E402
from utils.watch import Watch  # noqa: E402
from val import evaluate, save_plots  # noqa: E402

MAX_GRADIENT = 10.0  # gradients are scaled down to this norm, as YOLOv5 does
ANCHOR_RECALL = 0.98  # anchors that can predict fewer of the objects are fitted anew
# What may differ between a run and its resumption without changing the result.
FREE_TO_CHANGE = {
    *("resume", "allow_change", "device", "workers", "cache", "project", "name", "exist_ok", "nosave", "save_period", "strict", "tensorboard"),
    *("compile", "profile"),
}
RESULT_COLUMNS = (
    *("epoch", "train/box_loss", "train/obj_loss", "train/cls_loss"),
    *("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "metrics/AP_paper"),
    *("val/box_loss", "val/obj_loss", "val/cls_loss", "x/lr0", "x/lr1", "x/lr2"),
)


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer, all that a later batch depends on."""

    epoch: int = 0  # the epoch under way
    done: int = 0  # its batches that are done
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of the loss terms over those batches
    parts: int = 1  # in which a batch is computed: more than one after running out of memory
    pending: int = 0  # batches whose gradients wait for the next optimizer step
    best: float = -1.0
    best_epoch: int = -1
    rows: list[dict[str, float]] = field(default_factory=list)  # results.csv
    class_ap: list[float] = field(default_factory=list)  # of the last validation, for --image-weights


@dataclass
class Run:
    """Everything a training run works with."""

    options: Options
    hyp: Hyp
    folder: Path
    device: torch.device
    spec: DatasetSpec
    names: tuple[str, ...]
    samples: list[Sample]
    val_samples: list[Sample]
    data: dict[str, str]  # fingerprints of the two
    model: Detector
    ema: EMA[Detector]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: LossSettings
    amp: torch.dtype | None
    scaler: torch.amp.GradScaler
    progress: Progress
    losses: Callable[[Tensor, Tensor], LossTerms]  # (images uint8, targets) -> loss
    watch: Watch

    def state(self) -> dict[str, Any]:
        """What last.pt holds: everything needed to go on exactly here."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None} if self.progress.pending else {}
        return {
            **self.published(),
            "weights": self.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradients": gradients,
            "generator": torch.get_rng_state(),
            "data": self.data,
            "progress": asdict(self.progress),
        }

    def published(self) -> dict[str, Any]:
        """What best.pt holds: the averaged weights and what they were trained for."""
        return {
            "model": self.model.config.to_dict(),
            "names": list(self.names),
            "imgsz": self.options.imgsz,
            "options": asdict(self.options),
            "hyp": asdict(self.hyp),
            "ema": self.ema.model.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.ema.updates = content["ema_updates"]
        self.ema.model.load_state_dict(content["ema"])
        torch.set_rng_state(content["generator"])
        for name, parameter in self.model.named_parameters():
            if name in content["gradients"]:
                parameter.grad = content["gradients"][name].to(self.device, memory_format=torch.preserve_format)
        self.progress = Progress(**content["progress"])
        self.watch.start(self.progress.sums)


# ---------------------------------------------------------------------------------------------- setting up


def prepare(options: Options) -> Run:
    """Settings -> a run that is ready for its next epoch; resumed where the options say so."""
    content: dict[str, Any] | None = None
    if options.resume:
        options, content, folder = read_resumed(options)
    check_options(options)
    hyp = load_hyp(options.hyp) if content is None else Hyp(**content["hyp"])
    if content is None:
        folder = new_folder(options.project, options.name, options.exist_ok)
    (folder / "weights").mkdir(exist_ok=True)
    for stray in (folder / "weights").glob(f"*{TEMPORARY}"):  # left by a crash in the middle of writing
        stray.unlink()
    device = select_device(options.device)
    torch.manual_seed(options.seed)
    single_thread()
    print(f"{folder}: {device_line(device)}")
    spec = load_data(options.data)
    names = (spec.names[0] if spec.nc == 1 else "object",) if options.single_cls else spec.names
    samples, _ = load_split(spec, "train", options.strict, options.single_cls)
    val_samples, _ = load_split(spec, "val", options.strict, options.single_cls)
    warn_of_shared_images(samples, val_samples, "train and val")
    data = {"train": fingerprint(samples), "val": fingerprint(val_samples)}
    if content:
        hyp = check_unchanged(content, options, hyp, names, data)
    model = model_from_checkpoint(content, str(options.resume), "weights") if content else new_model(options, len(names))
    if options.imgsz % model.stride:
        raise UserError(f"--imgsz {options.imgsz}: a multiple of {model.stride}, the model's largest stride, is needed")
    if content is None and not options.noautoanchor and isinstance(model, DetectionModel):
        check_anchors(model, samples, options, hyp)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_layers(model, options.freeze)
    batches = math.ceil(len(samples) / options.batch_size)
    schedule = Schedule(hyp, options.epochs, batches, options.batch_size, options.cos_lr)
    amp = amp_dtype(options.amp, device)
    loss = loss_settings(hyp, len(names), model.levels, options.imgsz, options.label_smoothing)
    result = Run(
        *(options, hyp, folder, device, spec, names, samples, val_samples, data, model, EMA(model)),
        optimizer=make_optimizer(model, options.optimizer, hyp, schedule.weight_decay),
        schedule=schedule,
        loss=loss,
        amp=amp,
        scaler=torch.amp.GradScaler(device.type, enabled=amp is torch.float16),
        progress=Progress(),
        losses=loss_function(model, loss, amp, options.compile),
        watch=Watch(device, every=1 if amp is torch.float16 else None),  # a gradient scaler does not heed the watch
    )
    if content:
        result.restore(content)
    return result


def read_resumed(options: Options) -> tuple[Options, dict[str, Any], Path]:
    """(settings, checkpoint, folder) of the run that --resume names.

    Settings given on this command line must be the run's own, or --allow-change must be given and they replace them. Raises UserError.
    """
    last = newest_run(Path(options.project)) if options.resume == "newest" else Path(str(options.resume))
    content = load_checkpoint(last)
    if "progress" not in content:
        raise UserError(f"{last}: holds weights only; --resume needs a last.pt")
    old, plain = Options(**content["options"]), Options()
    given = {f.name: getattr(options, f.name) for f in fields(Options) if getattr(options, f.name) != getattr(plain, f.name)}
    changed = {name: value for name, value in given.items() if name not in FREE_TO_CHANGE and value != getattr(old, name)}
    if changed and not options.allow_change:
        refuse_change(last, [f"--{name.replace('_', '-')}: {getattr(old, name)} -> {value}" for name, value in changed.items()])
    free = {name: value for name, value in given.items() if name in FREE_TO_CHANGE - {"project", "name"}}
    return replace(old, **changed, **{"device": options.device, "workers": options.workers, **free, "resume": str(last)}), content, last.parent.parent


def refuse_change(last: Path | str, differences: Sequence[str]) -> None:
    """UserError with everything that is no longer as it was when the run started."""
    lines = "".join(f"\n  {line}" for line in differences)
    raise UserError(f"{last}: this is no longer the run that was interrupted; undo the change, or resume with --allow-change:{lines}")


def check_unchanged(content: dict[str, Any], options: Options, hyp: Hyp, names: Sequence[str], data: dict[str, str]) -> Hyp:
    """Compare hyper-parameters, model and data with the checkpoint's; the hyper-parameters to go on with.

    Raises UserError with the differences unless --allow-change is given; a changed model YAML never changes the checkpoint's model.
    """
    differences = [f"{split} data: {content['data'][split]} -> {now} (names, sizes or labels)" for split, now in data.items() if content["data"][split] != now]
    if list(names) != content["names"]:
        differences.append(f"class names: {content['names']} -> {list(names)}")
        if len(names) != len(content["names"]):
            refuse_change(str(options.resume), [*differences, "the number of classes cannot change: start a new run with --weights"])
    now = load_hyp(options.hyp) if find_file(options.hyp).is_file() else hyp
    differences += [
        f"{options.hyp}: {f.name}: {getattr(hyp, f.name)} -> {getattr(now, f.name)}" for f in fields(Hyp) if getattr(hyp, f.name) != getattr(now, f.name)
    ]
    if options.cfg and find_file(options.cfg).is_file():
        described = read_config(options.cfg, len(names)).to_dict()
        if described.get("layers", described) != content["model"].get("layers", content["model"]):  # a comparison model is its settings
            differences.append(f"{options.cfg}: its layers are no longer those of the checkpoint, whose model is used")
    if differences and not options.allow_change:
        refuse_change(str(options.resume), differences)
    for line in differences:
        print(f"changed: {line}")
    return now


def check_options(options: Options) -> None:
    """UserError for a value that cannot work."""
    for name in ("epochs", "batch_size", "imgsz"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1 was expected")
    if not 0 <= options.label_smoothing < 1:
        raise UserError(f"--label-smoothing {options.label_smoothing}: 0 to below 1 was expected")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 or more was expected")
    if options.compile and (options.multi_scale or options.rect):
        raise UserError("--compile: works for one image size; leave out --multi-scale and --rect")
    if options.profile < 0:
        raise UserError(f"--profile {options.profile}: a number of batches was expected")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: a whole number from 0 was expected")


def newest_run(project: Path) -> Path:
    """last.pt of the run that was written to last."""
    found = sorted(project.glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"--resume: no */weights/last.pt in {project}; name the checkpoint")
    return found[-1]


def new_model(options: Options, nc: int) -> Detector:
    """The model of --cfg or --weights for `nc` classes; tensors that fit are taken over from --weights."""
    if options.weights is None:
        return new_detector(options.cfg or "models/ls-yolo.yaml", nc)
    old = load_weights(options.weights).model
    model = build_detector(read_config(options.cfg, nc) if options.cfg else replace(old.config, nc=nc))
    own, given = model.state_dict(), old.state_dict()
    fitting = {name: given[name] for name, tensor in own.items() if name in given and given[name].shape == tensor.shape}
    model.load_state_dict({**own, **fitting})
    print(f"{options.weights}: {len(fitting)} of {len(own)} tensors taken over")
    return model


def check_anchors(model: DetectionModel, samples: Sequence[Sample], options: Options, hyp: Hyp) -> None:
    """Print the best possible recall of the model's anchors; where it is low, fit new ones and keep them if they are better."""
    sizes = [(s.labels.boxes[:, 2:] - s.labels.boxes[:, :2]) * (s.width, s.height) * (options.imgsz / max(s.width, s.height)) for s in samples if len(s.labels)]
    if not sizes:
        return
    objects = np.concatenate(sizes)
    before = best_possible_recall(objects, model.anchors.view(-1, 2).numpy(), hyp.anchor_t)
    if before >= ANCHOR_RECALL:
        print(f"anchors: best possible recall {before:.4f}, kept")
        return
    count = model.anchors.shape[0] * model.anchors.shape[1]
    try:
        fitted = fit_anchors(objects, count, hyp.anchor_t, np.random.default_rng(options.seed))
    except ValueError as reason:
        print(f"anchors: best possible recall {before:.4f}, kept ({reason})")
        return
    after = best_possible_recall(objects, fitted, hyp.anchor_t)
    if after > before:
        model.set_anchors(torch.from_numpy(fitted).float().view_as(model.anchors))
    print(f"anchors: best possible recall {before:.4f}, refitted {after:.4f}, {'new anchors taken' if after > before else 'kept'}")


def freeze_layers(model: Detector, layers: Sequence[int]) -> None:
    """Exclude layers from training: [N] the first N, several numbers just those."""
    frozen = range(layers[0]) if len(layers) == 1 else layers
    tags = list(model.layers)
    for number in frozen:
        if not 0 <= number < len(tags) - 1:
            raise UserError(f"--freeze {number}: the model has layers 0 to {len(tags) - 1}, and the last, the head, must train")
        model.layers[tags[number]].requires_grad_(False)


def amp_dtype(choice: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision to compute in; None: float32."""
    if choice == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


# ---------------------------------------------------------------------------------------------- training


def loss_function(model: Detector, settings: LossSettings, amp: torch.dtype | None, compiled: str | None) -> Callable[[Tensor, Tensor], LossTerms]:
    """(images (B, 3, H, W) uint8, targets (N, 6)) -> loss; compiled as one graph, with targets filled up to lengths that are few."""

    def losses(images: Tensor, targets: Tensor) -> LossTerms:
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            raw = model(images.float().div_(255))
        with record_function("loss"):
            return model.loss(raw, targets, settings)

    if compiled is None:
        return losses
    fast = torch.compile(losses, dynamic=False, mode="reduce-overhead" if compiled == "graphs" else None)
    return lambda images, targets: fast(images, filled_up(targets))


def train_one_epoch(run: Run, batches: Iterable[Batch], stop: StopFlag, profile: StepProfile, picture_folder: Path | None = None) -> None:
    """One pass over the data, from where the run's progress stands. Raises Diverged before a bad value reaches the weights."""
    progress, total = run.progress, run.schedule.batches
    run.model.train()
    bar = tqdm(total=total, initial=progress.done, desc=f"{progress.epoch + 1}/{run.options.epochs}", unit="batch", dynamic_ncols=True)
    clock, images = WaitClock(), 0
    with bar:
        for batch in clock.waiting(batches):
            if picture_folder is not None and progress.done < 3:
                write_image(picture_folder / f"train_batch{progress.done}.png", batch_picture(batch, run.names))
            train_step(run, batch)
            images += len(batch.views)
            if progress.done % run.watch.every == 0 or progress.done == total or stop.raised:
                progress.sums = run.watch.look()
                means = [value / progress.done for value in progress.sums]
                bar.set_postfix_str(
                    f"mem {memory_used(run.device):.1f}G box {means[0]:.4f} obj {means[1]:.4f} cls {means[2]:.4f} inst {len(batch.targets)} "
                    f"size {batch.images.shape[3]}x{batch.images.shape[2]} {images / clock.spent():.1f} img/s wait {clock.share():.0%}",
                    refresh=False,
                )
            bar.update()
            profile.step(clock.last)
            if stop.raised:
                save_checkpoint(run.folder / "weights" / "last.pt", run.state())
                where = f"saved in epoch {progress.epoch + 1} after batch {progress.done} of {total}; go on with --resume {run.folder / 'weights' / 'last.pt'}"
                raise KeyboardInterrupt(where) if stop.interrupted else Terminated(where)
    if clock.share() > 0.2 and clock.waited > 2:
        print(f"data-bound: {clock.share():.0%} of the epoch was spent waiting for pictures; try --cache ram or more --workers")


def train_step(run: Run, batch: Batch) -> None:
    """Forward, loss, backward, and where enough batches are together an optimizer step. On a GPU nothing here waits for its result."""
    progress = run.progress
    rate, bias_rate, momentum, accumulate = run.schedule.at(progress.epoch * run.schedule.batches + progress.done)
    set_rates(run.optimizer, rate, bias_rate, momentum)
    terms = None
    while terms is None:
        try:
            terms = forward_backward(run, batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if terms is None:  # outside the handler: the exception holds on to the memory of its frames
            halve(run, batch, reason)
    run.watch.add(terms, functools.partial(bad_batch, run, batch.views, progress.epoch, progress.done))
    progress.pending += 1
    if progress.pending >= accumulate:
        with record_function("optimizer"):
            run.scaler.unscale_(run.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), MAX_GRADIENT)
            if not run.scaler.is_enabled():  # under fp16 the scaler skips a step whose gradients are not finite by itself
                run.watch.guard(run.optimizer, norm)
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad()
        with record_function("ema"):
            run.ema.update()
        progress.pending = 0
    progress.done += 1


def forward_backward(run: Run, batch: Batch) -> Tensor:
    """Add the batch's gradients, in `progress.parts` parts where memory is short; box, objectness and class loss per image, (3,) float64."""
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    for part in split_batch(batch, run.progress.parts):
        with record_function("transfer"):
            images, targets = (values.to(run.device, non_blocking=True) for values in (part.images, part.targets))
        with record_function("forward"):
            terms = run.losses(images, targets)
        with record_function("backward"):
            run.scaler.scale(terms.total).backward()
        sums += torch.stack(terms[1:]).double() * (len(part.views) / len(batch.views))
    return sums


def halve(run: Run, batch: Batch, reason: str) -> None:
    """After running out of memory: compute every batch in twice as many parts from now on, which leaves the images per step as they are.

    What the failed backward pass may have left in the gradients is dropped. Raises EnvironmentFault where one image is too much.
    """
    if run.progress.parts >= len(batch.views):
        raise EnvironmentFault(
            f"out of memory with a single image of {batch.images.shape[3]} x {batch.images.shape[2]} ({reason}); use a smaller --imgsz or model"
        )
    run.progress.parts *= 2
    run.optimizer.zero_grad()
    run.progress.pending = 0
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    size = math.ceil(run.options.batch_size / run.progress.parts)
    tqdm.write(f"out of memory ({reason}): going on with {size} images at a time, {run.options.batch_size} per batch as before")


def bad_batch(run: Run, views: Sequence[View], epoch: int, done: int, what: str) -> str:
    """The message for a batch that gave a value that is not finite."""
    images = ", ".join(str(view.path) for view in views)
    advice = "lower lr0, or train with --amp off" if run.amp else "lower lr0, or look at these images and their labels"
    return f"{what} is not finite in epoch {epoch + 1}, batch {done + 1}; the weights are unchanged. {advice}. Images: {images}"


def validate(run: Run, batches: DataLoader[Batch]) -> tuple[Report, dict[str, float]]:
    """(report, validation columns of results.csv) of the averaged weights."""
    found = evaluate(run.ema.model, batches, run.names, run.device, loss=run.loss)
    assert found.losses is not None
    overall = found.report.overall
    metrics = (overall.chosen.precision, overall.chosen.recall, overall.coco_ap50, overall.coco_ap50_95, overall.paper_ap)
    return found.report, dict(zip(RESULT_COLUMNS[4:12], (*metrics, *found.losses), strict=True))


def fitness(report: Report) -> float:
    """What 'best' means: 0.1 AP50 + 0.9 AP50:95 of the coco protocol."""
    return 0.1 * report.overall.coco_ap50 + 0.9 * report.overall.coco_ap50_95


def finish_epoch(run: Run, batches: DataLoader[Batch], stop: StopFlag) -> bool:
    """Validate, then write results and checkpoints of the epoch that just ended; True when training should end."""
    progress, options = run.progress, run.options
    row = dict.fromkeys(RESULT_COLUMNS, math.nan)
    row |= {"epoch": progress.epoch} | dict(zip(RESULT_COLUMNS[1:4], (value / progress.done for value in progress.sums), strict=True))
    row |= {f"x/lr{i}": group["lr"] for i, group in enumerate(run.optimizer.param_groups)}
    last, better = progress.epoch + 1 == options.epochs, False
    if last or not options.noval:
        report, columns = validate(run, batches)
        row |= columns
        better = fitness(report) > progress.best
        if better:
            progress.best, progress.best_epoch = fitness(report), progress.epoch
        progress.class_ap = [scores.coco_ap50_95 for scores in report.classes]
        print(epoch_line(row))
    progress.rows.append(row)
    stale = options.patience > 0 and progress.best_epoch >= 0 and progress.epoch - progress.best_epoch >= options.patience
    progress.epoch, progress.done, progress.sums = progress.epoch + 1, 0, [0.0, 0.0, 0.0]
    run.watch.start(progress.sums)
    weights = run.folder / "weights"
    if not options.nosave or last or stale:
        if better:
            save_checkpoint(weights / "best.pt", run.published() | {"epoch": progress.epoch - 1})
        if options.save_period > 0 and progress.epoch % options.save_period == 0:
            save_checkpoint(weights / f"epoch{progress.epoch - 1}.pt", run.state())
        save_checkpoint(weights / "last.pt", run.state())
    write_results(run)
    if stop.raised:
        go_on = f"saved after epoch {progress.epoch}; go on with --resume {weights / 'last.pt'}"
        raise KeyboardInterrupt(go_on) if stop.interrupted else Terminated(go_on)
    if stale:
        print(f"no better result for {options.patience} epochs (best: epoch {progress.best_epoch + 1}); stopping early")
    return last or stale


def epoch_line(row: dict[str, float]) -> str:
    """The validation of an epoch in one line."""
    p, r, ap50, ap, paper = (100 * row[key] for key in RESULT_COLUMNS[4:9])
    return f"    val: P {p:.2f} R {r:.2f} at confidence 0.5, AP {paper:.2f} (paper), AP50 {ap50:.2f}, AP50:95 {ap:.2f} (coco)"


def write_results(run: Run) -> None:
    """results.csv anew from the run's own memory, so that a resumed run's file is the file of one that never stopped."""
    with open(run.folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, RESULT_COLUMNS)
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in run.progress.rows)


def image_weights(samples: Sequence[Sample], class_ap: Sequence[float]) -> np.ndarray:
    """How often to show each image: the sum of (1 - AP)^2 / objects of the class over its objects; backgrounds as the middle image."""
    weight = (1 - np.array(class_ap)) ** 2 + 1e-3
    counts = np.bincount(np.concatenate([s.labels.classes for s in samples]), minlength=len(weight))
    weight = weight / np.maximum(counts, 1)
    found = np.array([weight[s.labels.classes].sum() for s in samples])
    found[found == 0] = np.median(found[found > 0]) if (found > 0).any() else 1.0
    return found


# ---------------------------------------------------------------------------------------------- the whole run


def batch_picture(batch: Batch, names: Sequence[str]) -> np.ndarray:
    """The pictures of a training batch with their targets."""
    images = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    scale = np.array([images.shape[2], images.shape[1]] * 2)
    targets = batch.targets.cpu().numpy()
    rows = [targets[targets[:, 0] == i] for i in range(len(images))]
    boxes = [cxcywh_to_xyxy(r[:, 2:]) * scale for r in rows]
    return mosaic(list(images), boxes, [r[:, 1].astype(int) for r in rows], names, [view.path.name for view in batch.views])


def train(options: Options) -> Path:
    """Train as the options say; returns the run's folder."""
    run = prepare(options)
    options, progress = run.options, run.progress
    if progress.epoch >= options.epochs:
        raise UserError(f"{run.folder}: all {options.epochs} epochs are done")
    write_arguments(run)
    store, val_store = ImageStore(run.samples), ImageStore(run.val_samples)
    workers = worker_count(options.workers, run.device)
    order = TrainBatches(run.samples, options.batch_size, options.imgsz, run.model.stride, options.seed, options.rect, options.multi_scale)
    batches = training_batches(run, store, order, workers)
    if options.cache:
        val_store.keep("disk" if options.cache == "disk" else "ram")
    pin = run.device.type == "cuda"
    val_batches = evaluation_batches(run.val_samples, options.imgsz, 2 * options.batch_size, run.model.stride, True, workers, val_store, pin)
    writer = tensorboard_writer(run.folder) if options.tensorboard else None
    profile = StepProfile(run.folder, options.profile, run.device)
    with StopFlag() as stop:
        ended = False
        while not ended:
            order.epoch, order.start = progress.epoch, progress.done
            if options.image_weights and progress.class_ap:
                order.weights = image_weights(run.samples, progress.class_ap)
            train_one_epoch(run, batches, stop, profile, run.folder if progress.epoch == 0 else None)
            ended = finish_epoch(run, val_batches, stop)
            if writer is not None:
                for key, value in progress.rows[-1].items():
                    writer.add_scalar(key, value, progress.epoch - 1)
    profile.close()
    if writer is not None:
        writer.close()
    conclude(run, val_batches)
    return run.folder


def training_batches(run: Run, store: ImageStore, order: TrainBatches, workers: int) -> DataLoader[Batch] | DeviceBatches:
    """The epochs' batches in `order`: drawn by the CPU or, where images are kept and there is a GPU, on the GPU."""
    options, on_gpu = run.options, run.device.type != "cpu"
    hyp = replace(run.hyp, mosaic=0.0) if options.rect else run.hyp
    pictures = Pictures(run.samples, store, hyp, options.seed)
    images = cache_on_device(store, run.device) if options.cache == "device" else None
    if images is None and options.cache:
        store.keep("disk" if options.cache == "disk" else "ram")
    if on_gpu and options.cache:
        return DeviceBatches(pictures, order, run.device, images, workers)
    return make_loader(pictures, order, workers, run.device.type == "cuda")


def write_arguments(run: Run) -> None:
    """args.yaml and labels.png, before the first epoch."""
    settings = {**asdict(run.options), "hyp": asdict(run.hyp), "names": list(run.names), "device_used": device_line(run.device)}
    (run.folder / "args.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    boxes, classes = (np.concatenate([getattr(s.labels, key) for s in run.samples]) for key in ("boxes", "classes"))
    plot_labels(boxes, classes, run.names, run.folder / "labels.png")


def tensorboard_writer(folder: Path) -> Any:
    """TensorBoard's event writer, or a UserError that says what is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder))


def conclude(run: Run, val_batches: DataLoader[Batch]) -> None:
    """Validate the best weights once more, with all plots, and say where everything is."""
    plot_results(run.folder / "results.csv", run.folder / "results.png")
    best = run.folder / "weights" / "best.pt"
    if not best.exists():
        return
    model = model_from_checkpoint(load_checkpoint(best), str(best)).to(run.device).to(memory_format=torch.channels_last)
    found = evaluate(model.fuse().eval(), val_batches, run.names, run.device, title="best")
    save_plots(found, run.names, run.folder)
    print(f"best epoch {run.progress.best_epoch + 1} of {run.progress.epoch}")
    print(found.report.table())
    print(f"results: {run.folder}")


def main() -> None:
    train(OPTIONS)


if __name__ == "__main__":
    run(main)
