"""benchmarks/: the arithmetic of comparisons, and a clear word where the peer is missing."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import benchmarks.__main__ as benchmarks
from benchmarks import gpu, inference, on_gpu
from benchmarks.nms import predictions
from benchmarks.peer_detections import compare
from benchmarks.timing import Measured, Row, Settings, alternate, alternate_processes
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, float).reshape(-1, 6)


def test_detections_are_paired_by_class_and_overlap() -> None:
    a = rows((0, 10, 10, 50, 50, 0.9), (1, 10, 10, 50, 50, 0.8), (0, 100, 100, 120, 140, 0.5))
    same = compare(a, a[::-1])
    assert (same.pairs, same.only_ours, same.only_theirs, same.pixels, same.score) == (3, 0, 0, 0, 0)
    b = rows((0, 10, 12, 50, 50, 0.91), (1, 10, 10, 50, 50, 0.8), (2, 100, 100, 120, 140, 0.5))
    other = compare(a, b)
    assert (other.pairs, other.only_ours, other.only_theirs) == (2, 1, 1)
    assert other.pixels == 2 and other.score == pytest.approx(0.01)
    assert compare(rows(), a).only_theirs == 3 and compare(a, rows()).only_ours == 3 and compare(rows(), rows()).pairs == 0


def test_programs_take_turns_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert all(len(measured.seconds) == 3 for measured in found.values())


@pytest.mark.skipif(importlib.util.find_spec("yolov5") is not None, reason="the yolov5 package is installed here")
def test_without_the_peer_each_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.peer_detections"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "requirements-bench.txt" in done.stderr and "Traceback" not in done.stderr


def test_a_row_says_how_many_times_better_ours_is() -> None:
    row = Row("nms_all", "s/image", Measured((1.0, 2.0, 3.0), (1.0, 1.0, 1.0)), Measured((4.0, 4.0, 3.0), (2.0, 3.0, 4.0)))
    assert (row.ratio, row.work, row.spread) == (2.0, 3.0, (1.0, 4.0))
    assert row.to_dict() == {"row": "nms_all", "ours": 2.0, "peer": 4.0, "unit": "s/image", "ratio": 2.0, "spread": (1.0, 4.0), "work": 3.0}
    alone = Row("nms_all", "s/image", row.ours, None)
    assert alone.ratio is None and alone.spread is None and " - " in benchmarks.line(alone)


def build(log: str, word: str) -> Callable[[], None]:
    def call() -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{word} {os.getpid()}\n")

    return call


def test_programs_in_processes_of_their_own_take_turns(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    found = alternate_processes({"a": (build, (log, "a")), "b": (build, (log, "b"))}, rounds=2, warm=1)
    rows = [line.split() for line in Path(log).read_text(encoding="utf-8").splitlines()]
    assert [word for word, _ in rows] == ["a", "b", "b", "a", "a", "b"]
    assert len({process for _, process in rows} | {str(os.getpid())}) == 3
    assert len(found["a"].seconds) == len(found["b"].cpu) == 2


def test_rows_are_known_by_name() -> None:
    assert benchmarks.chosen_rows(["startup", "nms_val"]) == ["nms_val", "startup"]
    assert benchmarks.chosen_rows(None) == list(benchmarks.ROWS)
    with pytest.raises(UserError, match="infer_lsyolo_b11: no such row; did you mean infer_lsyolo_b1"):
        benchmarks.chosen_rows(["infer_lsyolo_b11"])


@pytest.mark.parametrize(("name", "module"), [*benchmarks.ROWS.items(), *benchmarks.SECOND.items()])
def test_every_row_is_a_function_of_the_settings(name: str, module: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert [argument.arg for argument in function.args.args] == ["settings"]


def test_the_table_and_the_file_without_a_peer(tmp_path: Path) -> None:
    """Two real rows at their smallest, ours alone; a GPU row is named as not run where there is no GPU."""
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks", "--peer", "none", "--quick", "--only", "ap", "nms_detect", "gpu_render", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["row"] for row in rows] == ["nms_detect", "ap"] and all(row["ours"] > 0 and row["peer"] is None and "PyTorch" in row["machine"] for row in rows)
    assert "gpu_render" in done.stdout.splitlines()[-1]


def test_rows_of_a_gpu_work_at_their_smallest_on_the_cpu() -> None:
    """What they do is tried here; what they measure, only a GPU tells."""
    settings = Settings(quick=True)
    rows = [gpu.gpu_render(settings), gpu.gpu_wait(settings), on_gpu.epoch_row(settings), inference.lsyolo("gpu_infer_b1", 1, settings, half=True, graphs=True)]
    assert all(row.ours.median > 0 for row in rows) and [row.row for row in rows] == ["gpu_render", "gpu_wait", "gpu_epoch", "gpu_infer_b1"]


def test_predictions_of_the_nms_rows_pass_as_many_as_they_say() -> None:
    for passing, conf in ((25_200, 0.001), (1450, 0.001), (8, 0.5)):
        assert int((predictions(passing, conf)[0, :, 4] > conf).sum()) == passing
