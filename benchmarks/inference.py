"""Rows `infer_*`: from uint8 images of 640 px in memory to decoded predictions, in eager mode.

YOLOv5s runs against the peer's network of the same weights. LS-YOLO, which the peer lacks, runs against itself built plainly, as the peer
runs its networks: fused, contiguous, single precision, the allocator as it comes.
"""

from __future__ import annotations

import torch

from benchmarks.peer import peer_model
from benchmarks.timing import OURS, PEER, Program, Recipe, Row, Settings, alternate_processes
from models.foreign import Foreign, to_ours
from models.graphs import predictor
from models.yolo import DetectionModel, build_model
from utils.complexity import synchronize
from utils.heap import keep_heap
from utils.runtime import inference_dtype, select_device

SIDE, SEED = 640, 0


def pictures(batch: int, side: int) -> torch.Tensor:
    """Images (B, H, W, 3) uint8 as they are decoded."""
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


def _settle(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(SEED)


def ours(name: str, half: bool, batch: int, side: int, graphs: bool, settings: Settings) -> Program:
    """Our network as detect.py and val.py run it; graphs: as with --cuda-graphs."""
    _settle(settings.threads)
    keep_heap()
    device = select_device(settings.device)
    model: DetectionModel
    if name == "yolov5s" and settings.peer:
        theirs = peer_model("s", 1)
        config, weights = to_ours(Foreign(theirs.state_dict(), (), dict(theirs.yaml), "the peer's network"))
        model = DetectionModel(config)
        model.load_state_dict(weights)
    else:
        model = build_model(f"models/{name}.yaml", 1)
    dtype = inference_dtype(half, device)
    model.eval().fuse().to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, predict = pictures(batch, side), predictor(model, graphs)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        predictions = predict(images.to(device).permute(0, 3, 1, 2))
        synchronize(device)
        return predictions

    return call


def plain(name: str, batch: int, side: int, settings: Settings) -> Program:
    """The peer's YOLOv5s, or our LS-YOLO built plainly."""
    _settle(settings.threads)
    device = select_device(settings.device)
    model = peer_model("s", 1) if name == "yolov5s" else build_model(f"models/{name}.yaml", 1)
    model = model.eval().fuse().to(device)
    images = pictures(batch, side).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def call() -> torch.Tensor:
        with torch.autocast("cuda", torch.float16, enabled=device.type == "cuda"):  # the usual way to half precision there; a CPU has none in the peer
            out = model(images.to(device).float() / 255)
        predictions = out[0] if name == "yolov5s" else model.decode(out)
        synchronize(device)
        return predictions

    return call


def _row(row: str, name: str, batch: int, settings: Settings, half: bool = False, graphs: bool = False) -> Row:
    side = 64 if settings.quick else SIDE
    programs: dict[str, Recipe] = {OURS: (ours, (name, half, batch, side, graphs, settings))}
    if settings.peer or name != "yolov5s":
        programs[PEER] = (plain, (name, batch, side, settings))
    found = alternate_processes(programs, settings.rounds_or(25 if batch == 1 else 9), batch, warm=2)
    peer = "the peer's network, same weights" if name == "yolov5s" else "the same network built plainly, single precision on a CPU"
    return Row(row, "s/image", found[OURS], found.get(PEER), f"batch {batch}, {side} px; peer: {peer}")


def lsyolo(row: str, batch: int, settings: Settings, half: bool = False, graphs: bool = False) -> Row:
    """A row of LS-YOLO."""
    return _row(row, "ls-yolo", batch, settings, half, graphs)


def infer_yolov5s_b1(settings: Settings) -> Row:
    """YOLOv5s, one image."""
    return _row("infer_yolov5s_b1", "yolov5s", 1, settings)


def infer_yolov5s_b8(settings: Settings) -> Row:
    """YOLOv5s, eight images."""
    return _row("infer_yolov5s_b8", "yolov5s", 8, settings)


def infer_lsyolo_b1(settings: Settings) -> Row:
    """LS-YOLO, one image."""
    return lsyolo("infer_lsyolo_b1", 1, settings)


def infer_lsyolo_b8(settings: Settings) -> Row:
    """LS-YOLO, eight images."""
    return lsyolo("infer_lsyolo_b8", 8, settings)


def infer_lsyolo_bf16_b1(settings: Settings) -> Row:
    """LS-YOLO with --half, one image."""
    return lsyolo("infer_lsyolo_bf16_b1", 1, settings, half=True)


def infer_lsyolo_bf16_b8(settings: Settings) -> Row:
    """LS-YOLO with --half, eight images."""
    return lsyolo("infer_lsyolo_bf16_b8", 8, settings, half=True)
