"""benchmarks/: the arithmetic of comparisons, and a clear word where the peer is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peer_detections import compare
from benchmarks.timing import Measured, alternate, ratio_line

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


def test_the_ratio_says_how_many_times_faster_we_are() -> None:
    line = ratio_line("title", "image", Measured((0.1, 0.2, 0.3), (0.1, 0.1, 0.1)), Measured((0.4, 0.4, 0.3), (0.2, 0.3, 0.4)))
    assert line == "title: ours 200.0 ms (100.0 to 300.0), yolov5 400.0 ms (300.0 to 400.0) per image; 2.00 times as fast (1.00 to 4.00); processor time 3.00"


@pytest.mark.skipif(importlib.util.find_spec("yolov5") is not None, reason="the yolov5 package is installed here")
def test_without_the_peer_each_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.peer_detections"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "requirements-bench.txt" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["peer_detections", "train_step", "val_detect"])
def test_help_answers_without_the_heavy_imports(name: str) -> None:
    code = f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('benchmarks.{name}', run_name='__main__')\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--img" in done.stdout and done.stdout.splitlines()[-1] == "False", done.stderr
