"""Longer runs: training learns, and takes no more memory from epoch to epoch."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, make_dataset

LEARN = "mosaic: 0\nmixup: 0\ncopy_paste: 0\nscale: 0.2\nlr0: 0.002\nmomentum: 0.9\nwarmup_epochs: 5\nwarmup_bias_lr: 0.01\n"


def test_memory_does_not_grow(tmp_path: Path, narrow_cfg: Path) -> None:
    """Resident memory after the fifth epoch is within 3 % of that after the second."""
    code = (
        "import sys, train\n"
        "from pathlib import Path\n"
        "sizes = []\n"
        "old = train.finish_epoch\n"
        "def finish(*a):\n"
        "    ended = old(*a)\n"
        "    sizes.append(int(Path('/proc/self/statm').read_text().split()[1]))\n"
        "    return ended\n"
        "train.finish_epoch = finish\n"
        f"train.train(train.Options(cfg={str(narrow_cfg)!r}, data=sys.argv[1], epochs=6, batch_size=8, imgsz=96, device='cpu', project=sys.argv[2]))\n"
        "print('PAGES', *sizes)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc, which this system has not")
    data = make_dataset(tmp_path / "d", images=24, side=128)
    result = subprocess.run([sys.executable, "-c", code, str(data), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = [int(word) for word in result.stdout.split("PAGES")[1].split()]
    assert pages[4] < 1.03 * pages[1], pages


def test_it_learns(tmp_path: Path) -> None:
    """A narrow LS-YOLO trained from scratch on 16 pictures finds what is in them."""
    data = make_dataset(tmp_path / "data", images=16, side=160)
    data.write_text("train: images/train\nval: images/train\nnames: [landslide]\n", encoding="utf-8")
    cfg, hyp = tmp_path / "narrow.yaml", tmp_path / "hyp.yaml"
    cfg.write_text(f"base: {ROOT / 'models' / 'ls-yolo.yaml'}\nwidth_multiple: 0.25\n", encoding="utf-8")
    hyp.write_text(LEARN, encoding="utf-8")
    flags = ["--epochs", 180, "--batch-size", 64, "--imgsz", 160, "--cache", "--noval", "--nosave", "--optimizer", "AdamW"]
    command = [sys.executable, "train.py", "--cfg", cfg, "--data", data, "--hyp", hyp, *flags, "--project", tmp_path]
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, capture_output=True)
    last = list(csv.DictReader((tmp_path / "exp" / "results.csv").open()))[-1]
    assert float(last["metrics/mAP_0.5"]) >= 0.9
