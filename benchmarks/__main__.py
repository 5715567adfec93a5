"""Every stage measured against YOLOv5 in the same run: `python -m benchmarks`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run

# Row -> the module of benchmarks/ that holds the function of this name.
ROWS = {
    **dict.fromkeys(("pipeline_ram", "pipeline_disk", "pipeline_cached"), "data_pipeline"),
    **dict.fromkeys(("step_fp32", "step_bf16", "step_lsyolo_fp32", "step_lsyolo_bf16", "loss", "loss_lsyolo"), "train_step"),
    **dict.fromkeys(("infer_yolov5s_b1", "infer_yolov5s_b8", "infer_lsyolo_b1", "infer_lsyolo_b8"), "inference"),
    **dict.fromkeys(("infer_lsyolo_bf16_b1", "infer_lsyolo_bf16_b8"), "inference"),
    **dict.fromkeys(("nms_all", "nms_val", "nms_detect"), "nms"),
    **dict.fromkeys(("matching", "ap", "coco"), "metrics"),
    **dict.fromkeys(("val", "detect"), "val_detect"),
    "startup": "startup",
    **dict.fromkeys(("epoch", "memory"), "epoch"),
    **dict.fromkeys(("gpu_render", "gpu_wait"), "gpu"),
    **dict.fromkeys(("gpu_step", "gpu_epoch", "gpu_infer_b1", "gpu_infer_b32"), "on_gpu"),
}
# The same for --peer ultralytics, where it does the same work.
SECOND = dict.fromkeys(("pipeline_ram", "pipeline_disk", "nms_all", "nms_val", "nms_detect", "ap", "startup"), "second_peer")


@dataclass(frozen=True)
class Options:
    """Measure this program and YOLOv5 (or Ultralytics) alternately; a ratio above 1 says how many times better ours is."""

    only: list[str] | None = option(None, "rows to measure (default: all): " + " ".join(ROWS), metavar="ROW")
    peer: str = option("yolov5", "what to compare with; it is never installed here, see requirements-bench.txt", choices=("yolov5", "ultralytics", "none"))
    device: str = option("cpu", "cpu, or a GPU number such as 0; the rows gpu_* use the first GPU where there is one")
    rounds: int = option(0, "measured rounds of each program (default: each row's own number)")
    threads: int = option(0, "threads of PyTorch (default: its own choice)")
    quick: bool = option(False, "smallest sizes: to see that the rows work, not for figures")
    json: str = option("", "also write the rows to this file", metavar="FILE")


# --help and wrong flags are answered before the seconds that importing torch takes.
OPTIONS = parse(Options, prog="python -m benchmarks") if __name__ == "__main__" else Options()

import difflib  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.peer import how_to_install, peer_environment  # noqa: E402
from benchmarks.timing import Row, Settings, row_of  # noqa: E402
from utils.errors import UserError  # noqa: E402


def chosen_rows(wanted: Sequence[str] | None) -> list[str]:
    """The rows asked for, in the order of the table. Raises UserError naming the nearest for a word that is none."""
    for name in wanted or ():
        if name not in ROWS:
            near = difflib.get_close_matches(name, ROWS, 1)
            raise UserError(f"--only {name}: no such row{f'; did you mean {near[0]}?' if near else ''} Rows: {' '.join(ROWS)}")
    return [name for name in ROWS if not wanted or name in wanted]


def machine() -> str:
    """One line about where this was measured."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}; {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}"


def number(value: float | None, unit: str) -> str:
    """A value in the unit of its row, short."""
    if value is None:
        return "-"
    return f"{value * 1000:.4g} ms" if unit.startswith("s") else f"{value:.4g}"


def line(row: Row) -> str:
    """A row of the printed table."""
    ratio, spread = (f"{row.ratio:.2f}", f"{row.spread[0]:.2f} to {row.spread[1]:.2f}") if row.ratio and row.spread else ("-", "-")
    work = f"{row.work:.2f}" if row.work else "-"
    unit = row.unit.removeprefix("s").removeprefix("/") or "run"
    peer = number(row.peer.median if row.peer else None, row.unit)
    return f"{row.row:21} {number(row.ours.median, row.unit):>12} {peer:>12} {unit:>8} {ratio:>8} {spread:>18} {work:>8}  {row.note}"


def write(path: str, rows: Sequence[Row], where: str) -> None:
    """The rows as a JSON list, each with the machine's description."""
    Path(path).write_text(json.dumps([{**row.to_dict(), "machine": where, "note": row.note} for row in rows], indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure row after row, print and write each as it comes; 1 where one failed."""
    import torch

    names = chosen_rows(OPTIONS.only)
    peer: str | None = OPTIONS.peer if OPTIONS.peer != "none" else None
    if peer and importlib.util.find_spec(peer) is None:
        print(f"{how_to_install(peer)}; ours is measured alone", file=sys.stderr)
        peer = None
    modules = SECOND if peer == "ultralytics" else ROWS
    left_out = {name: f"{peer} does no such work" for name in names if name not in modules}
    if not torch.cuda.is_available():
        left_out |= {name: "there is no CUDA device" for name in names if name.startswith("gpu_")}
    against = f"{peer} {importlib.metadata.version(peer)}" if peer else "none"
    settings, where = Settings(OPTIONS.device, peer, OPTIONS.rounds, OPTIONS.threads, OPTIONS.quick), f"{machine()}; peer: {against}"
    print(f"{where}\n{'row':21} {'ours':>12} {'peer':>12} {'per':>8} {'ratio':>8} {'lowest to highest':>18} {'cpu time':>8}", flush=True)
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(peer_environment(Path(folder)))
        for name in names:
            if name in left_out:
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                future = pool.submit(row_of, modules[name], name, settings)
                error = future.exception()
            if error:  # the other rows are measured all the same
                failed.append(name)
                print(f"{name:21} failed: {type(error).__name__}: {error}", flush=True)
                continue
            rows.append(future.result())
            print(line(rows[-1]), flush=True)
            if OPTIONS.json:
                write(OPTIONS.json, rows, where)
    for reason in dict.fromkeys(left_out.values()):
        print(f"not run, for {reason}: {' '.join(name for name in left_out if left_out[name] == reason)}")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
