"""train.py as a user runs it: exact resume, safe stops, what a run leaves behind, and that it learns."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from models.weights import load_weights
from tests.conftest import ROOT
from utils.anchors import RawMap
from utils.checkpoint import load_checkpoint
from utils.errors import Diverged, EnvironmentFault, UserError
from utils.loss import LossTerms, filled_up

HYP = "mosaic: 1.0\nmixup: 0.3\ncopy_paste: 0.5\nwarmup_epochs: 1\n"


@pytest.fixture(scope="module")
def settings(tiny_data: Path, narrow_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run of 4 short epochs with mosaic, mixup and copy-paste on."""
    hyp = tmp_path_factory.mktemp("hyp") / "hyp.yaml"
    hyp.write_text(HYP, encoding="utf-8")
    flags = ["--cfg", narrow_cfg, "--data", tiny_data, "--hyp", hyp, "--epochs", "4", "--batch-size", "6", "--imgsz", "64", "--device", "cpu", "--seed", "3"]
    return [str(flag) for flag in flags]


def command(*flags: object) -> list[str]:
    return [sys.executable, "train.py", *map(str, flags)]


def run_train(*flags: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command(*flags), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == check, result.stderr[-3000:]
    return result


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(path / "weights" / "last.pt") for path in (a, b))
    pairs = [(first[key][name], second[key][name]) for key in ("weights", "ema") for name in first[key]]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def whole_run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    project = tmp_path_factory.mktemp("whole")
    run_train(*settings, "--project", project, "--save-period", "2", "--workers", "0")
    return project / "exp"


def test_a_run_leaves_what_users_of_yolov5_know(whole_run: Path) -> None:
    names = {path.name for path in whole_run.iterdir()}
    expected = {"weights", "results.csv", "args.yaml", "results.png", "labels.png", "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"}
    expected |= {f"train_batch{i}.png" for i in range(3)} | {f"val_batch0_{kind}.png" for kind in ("labels", "pred")}
    assert expected <= names, expected - names
    assert {path.name for path in (whole_run / "weights").iterdir()} == {"best.pt", "last.pt", "epoch1.pt", "epoch3.pt"}
    rows = list(csv.DictReader((whole_run / "results.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"] and tuple(rows[0]) == train.RESULT_COLUMNS
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    arguments = yaml.safe_load((whole_run / "args.yaml").read_text(encoding="utf-8"))
    assert arguments["epochs"] == 4 and arguments["hyp"]["mixup"] == 0.3 and arguments["names"] == ["landslide"]


def test_best_weights_can_be_used(whole_run: Path) -> None:
    loaded = load_weights(whole_run / "weights" / "best.pt")
    assert loaded.names == ("landslide",) and loaded.imgsz == 64 and not loaded.model.training
    content = load_checkpoint(whole_run / "weights" / "best.pt")
    assert "optimizer" not in content and all(t.dtype in (torch.float32, torch.int64) for t in content["ema"].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted(workers: int, settings: list[str], whole_run: Path, tmp_path: Path) -> None:
    """SIGKILL somewhere after the second epoch, then --resume: equal bits and equal results.csv."""
    process = subprocess.Popen(command(*settings, "--project", tmp_path, "--workers", workers), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = tmp_path / "exp" / "results.csv"
    deadline = time.monotonic() + 120
    while not (results.exists() and len(results.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    run_train("--resume", tmp_path / "exp" / "weights" / "last.pt", "--workers", workers)
    assert same_weights(tmp_path / "exp", whole_run)
    assert results.read_bytes() == (whole_run / "results.csv").read_bytes()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_in_the_middle_of_an_epoch_saves_and_resumes_exactly(sign: int, code: int, settings: list[str], whole_run: Path, tmp_path: Path) -> None:
    with subprocess.Popen(command(*settings, "--project", tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        seen = b""
        while b"1/4:  33%" not in seen:  # the first of three batches is done
            piece = os.read(process.stdout.fileno(), 65536)
            assert piece, seen.decode()
            seen += piece
        process.send_signal(sign)
        rest = process.stdout.read()
    assert process.returncode == code, rest.decode()
    progress = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["progress"]
    assert (progress["epoch"], progress["done"]) != (4, 0)
    run_train("--resume", "--project", tmp_path)
    assert same_weights(tmp_path / "exp", whole_run)
    assert (tmp_path / "exp" / "results.csv").read_bytes() == (whole_run / "results.csv").read_bytes()


def test_same_seed_same_results_other_seed_others(settings: list[str], whole_run: Path, tmp_path: Path) -> None:
    run_train(*settings, "--project", tmp_path, "--cache", "--workers", "1")
    assert (tmp_path / "exp" / "results.csv").read_bytes() == (whole_run / "results.csv").read_bytes()
    run_train(*settings, "--project", tmp_path, "--seed", "4", "--epochs", "1", "--name", "other")
    assert (tmp_path / "other" / "results.csv").read_text().splitlines()[1] != (whole_run / "results.csv").read_text().splitlines()[1]


def test_every_flag_works(settings: list[str], whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSYOLO_CACHE", str(tmp_path / "cache"))
    flags = [*settings, "--project", tmp_path, "--epochs", "2"]
    others = ("--rect", "--multi-scale", "--cos-lr", "--optimizer", "AdamW", "--label-smoothing", "0.1", "--single-cls", "--cache", "disk")
    run_train(*flags, *others, "--name", "a")
    assert len(list((tmp_path / "cache").iterdir())) == 4  # pixels and index of train and of val
    others = ("--noval", "--nosave", "--image-weights", "--freeze", "3", "--noautoanchor", "--optimizer", "Adam", "--strict", "--profile", "2")
    profiled = run_train(*flags, *others, "--name", "b")
    assert "profile: 2 steps" in profiled.stdout and "backward" in profiled.stdout and json.loads((tmp_path / "b" / "trace.json").read_text())["traceEvents"]
    assert (tmp_path / "b" / "weights" / "last.pt").exists()
    first = (tmp_path / "b" / "results.csv").read_text().splitlines()[1].split(",")
    assert first[train.RESULT_COLUMNS.index("metrics/mAP_0.5")] == "nan"  # --noval: only the last epoch is validated
    others = ("--patience", "1", "--amp", "bf16", "--exist-ok", "--image-weights", "--cache", "device")
    run_train(*flags, *others, "--weights", whole_run / "weights" / "best.pt", "--name", "c")
    run_train(*flags, "--epochs", "1", "--name", "c", "--exist-ok", "--tensorboard")
    assert list((tmp_path / "c").glob("events.out.tfevents.*"))
    run_train(*flags, "--epochs", "1", "--name", "c")
    assert (tmp_path / "c2").is_dir()
    options = set(run_train("--help").stdout.replace("_", "-").split())
    assert all(f"--{field.name.replace('_', '-')}" in options for field in fields(train.Options))


def test_frozen_layers_stay(settings: list[str], tiny_data: Path, narrow_cfg: Path, tmp_path: Path) -> None:
    options = train.Options(cfg=str(narrow_cfg), data=str(tiny_data), epochs=2, batch_size=64, imgsz=64, device="cpu", freeze=[3], project=str(tmp_path))
    run = train.prepare(options)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    train.train(options)
    after = load_checkpoint(tmp_path / "exp2" / "weights" / "last.pt")["weights"]
    first = tuple(list(run.model.layers)[:3])
    frozen = [name for name in before if name.split(".")[1] in first]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before if name not in frozen)
    with pytest.raises(UserError, match="head"):
        train.prepare(replace(options, freeze=[99]))


def test_gradients_are_accumulated_to_the_nominal_batch(tiny_data: Path, narrow_cfg: Path, tmp_path: Path) -> None:
    """After warm-up, batches of 4 step once every 16 batches, also across the ends of epochs."""
    hyp = tmp_path / "h.yaml"
    hyp.write_text("warmup_epochs: 0\n", encoding="utf-8")
    options = train.Options(cfg=str(narrow_cfg), data=str(tiny_data), hyp=str(hyp), epochs=5, batch_size=4, imgsz=64, device="cpu", project=str(tmp_path))
    train.train(options)
    content = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert content["ema_updates"] == 20 // 16 and content["progress"]["pending"] == 20 % 16 and content["gradients"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_data: Path, narrow_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = train.Options(cfg=str(narrow_cfg), data=str(tiny_data), epochs=1, batch_size=4, imgsz=64, device="cpu", project=str(tmp_path))
    run = train.prepare(options)
    real_losses, calls = run.losses, []

    def poisoned(images: torch.Tensor, targets: torch.Tensor) -> LossTerms:
        terms = real_losses(images, targets)
        calls.append(1)
        return LossTerms(*(term * math.nan for term in terms)) if len(calls) == 3 else terms

    run.losses = poisoned
    order = train.TrainBatches(run.samples, 4, 64, run.model.stride, 0)
    batches = train.make_loader(train.Pictures(run.samples, train.ImageStore(run.samples), run.hyp), order, 0)
    weights: list[torch.Tensor] = []
    with pytest.raises(Diverged) as found:
        for batch in batches:
            weights = [p.detach().clone() for p in run.model.parameters()]
            train.train_step(run, batch)
            run.watch.look()
    assert len(calls) == 3 and all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    assert "batch 3" in str(found.value) and all(view.path.name in str(found.value) for view in batch.views)


def test_compiled_losses_equal_the_plain_ones_and_compile_once(tiny_data: Path, narrow_cfg: Path, tmp_path: Path) -> None:
    """As one graph, whatever the number of objects; traced here without generating code, which would take minutes."""
    options = train.Options(cfg=str(narrow_cfg), data=str(tiny_data), epochs=1, batch_size=4, imgsz=64, device="cpu", project=str(tmp_path))
    run = train.prepare(options)
    run.model.train()
    loader = train.make_loader(train.Pictures(run.samples, train.ImageStore(run.samples), run.hyp), train.TrainBatches(run.samples, 4, 64, 32, 0), 0)
    traced: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        traced.append(len(graph.graph.nodes))
        return graph.forward

    state = copy.deepcopy(run.model.state_dict())
    fast = torch.compile(run.losses, backend=count, dynamic=False, fullgraph=True)
    results = []
    for losses, fill in ((run.losses, False), (fast, True)):
        run.model.load_state_dict(state)
        for batch in loader:
            terms = losses(batch.images, filled_up(batch.targets) if fill else batch.targets)
            gradients = torch.autograd.grad(terms.total, [p for p in run.model.parameters() if p.requires_grad], allow_unused=True)
            results.append((fill, *terms, *(g for g in gradients if g is not None)))
    assert len(traced) == 1, "other numbers of objects were compiled anew"
    half = len(results) // 2
    for plain, compiled in zip(results[:half], results[half:], strict=True):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain[1:], compiled[1:], strict=True))


def test_out_of_memory_halves_and_goes_on(
    tiny_data: Path, narrow_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than 3 images at once are too much, in training and in validation: the run ends well, with as many steps as ever."""
    forward = train.DetectionModel.forward

    def small(self: train.DetectionModel, images: torch.Tensor) -> list[RawMap]:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, images)

    options = train.Options(cfg=str(narrow_cfg), data=str(tiny_data), epochs=2, batch_size=8, imgsz=64, device="cpu", project=str(tmp_path), name="whole")
    train.train(options)
    monkeypatch.setattr(train.DetectionModel, "forward", small)
    train.train(replace(options, name="short"))
    assert "going on with 2 images at a time, 8 per batch as before" in capsys.readouterr().out
    whole, short = (load_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("whole", "short"))
    assert short["progress"]["parts"] == 4 and short["ema_updates"] == whole["ema_updates"]
    monkeypatch.setattr(train.DetectionModel, "forward", lambda self, images: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(EnvironmentFault, match="single image"):
        train.train(replace(options, name="none"))


def test_it_runs_from_any_folder(tiny_data: Path, tmp_path: Path) -> None:
    """The program's own YAMLs are found, the results go to the current folder, and names may be in any script."""
    folder = tmp_path / "山体 滑坡 🏔"
    folder.mkdir()
    flags = ["--cfg", "models/demo.yaml", "--data", tiny_data, "--epochs", "1", "--batch-size", "16", "--imgsz", "64", "--device", "cpu", "--name", "é"]
    result = subprocess.run([sys.executable, ROOT / "train.py", *map(str, flags)], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "runs" / "train" / "é" / "weights" / "best.pt").exists()


def test_errors_are_one_line_and_exit_2(tmp_path: Path, tiny_data: Path) -> None:
    for flags, words in ((["--data", tmp_path / "no.yaml"], "no such file"), (["--data", tiny_data, "--imgsz", "100"], "multiple of 32")):
        result = run_train(*flags, "--project", tmp_path, check=2)
        assert words in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert "unrecognized arguments" in run_train("--epoch", "3", check=2).stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cfg": "no.yaml"}, "no such file"),
        ({"batch_size": 0}, "at least 1"),
        ({"label_smoothing": 1.5}, "label-smoothing"),
        ({"seed": -1}, "seed"),
        ({"resume": "newest"}, "last.pt"),
        ({"resume": "x.pt"}, "no such checkpoint"),
        ({"weights": "README.md"}, "no checkpoint"),
        ({"device": "gpu"}, "--device"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], words: str, tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match=words):
        train.prepare(replace(train.Options(data=str(tiny_data), project=str(tmp_path), device="cpu"), **changes))  # type: ignore[arg-type]


def test_resuming_a_finished_run_or_a_weights_file_is_refused(whole_run: Path) -> None:
    assert "epochs are done" in run_train("--resume", whole_run / "weights" / "last.pt", check=2).stderr
    assert "weights only" in run_train("--resume", whole_run / "weights" / "best.pt", check=2).stderr


def test_resuming_something_else_is_refused_unless_allowed(settings: list[str], tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data.parent, data)
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text(HYP, encoding="utf-8")
    options = train.Options(cfg=settings[1], data=str(data / "data.yaml"), hyp=str(hyp), epochs=1, batch_size=8, imgsz=64, device="cpu", project=str(tmp_path))
    last = train.train(options) / "weights" / "last.pt"
    before = last.read_bytes()
    resumed = train.Options(resume=str(last), device="cpu")
    with pytest.raises(UserError, match=r"allow-change:\n  --epochs: 1 -> 2"):
        train.prepare(replace(resumed, epochs=2))
    hyp.write_text(HYP + "lr0: 0.02\n", encoding="utf-8")
    with pytest.raises(UserError, match="lr0: 0.01 -> 0.02"):
        train.prepare(resumed)
    hyp.write_text(HYP, encoding="utf-8")
    label = data / "labels" / "train" / "003.txt"
    label.write_text(label.read_text(encoding="utf-8").replace("0.", "0.0", 1), encoding="utf-8")
    with pytest.raises(UserError, match="train data"):
        train.prepare(resumed)
    assert last.read_bytes() == before
    hyp.write_text(HYP + "lr0: 0.02\n", encoding="utf-8")
    run = train.prepare(replace(resumed, epochs=2, allow_change=True))
    assert run.options.epochs == 2 and run.hyp.lr0 == 0.02 and run.progress.epoch == 1


def test_image_weights_favour_bad_classes() -> None:
    from data.dataset import Sample
    from data.labels import Labels

    def sample(*classes: int) -> Sample:
        return Sample(Path("x"), 10, 10, Labels.from_rows([(c, np.array([0.1, 0.1, 0.5, 0.5]), None) for c in classes]))

    weights = train.image_weights([sample(0), sample(1), sample(0, 1), sample()], [0.9, 0.1])
    assert weights[1] > 10 * weights[0] and weights[2] == pytest.approx(weights[0] + weights[1]) and weights[3] > 0


def test_anchors_are_refitted_where_they_do_not_fit(tiny_data: Path, tmp_path: Path, narrow_cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tmp_path / "big.yaml"
    cfg.write_text(f"base: {narrow_cfg}\nanchors: [[400, 400], [500, 500], [600, 600]]\n", encoding="utf-8")
    options = train.Options(cfg=str(cfg), data=str(tiny_data), imgsz=64, device="cpu", project=str(tmp_path))
    run = train.prepare(options)
    text = capsys.readouterr().out
    assert "best possible recall 0.0000, refitted 1.0000, new anchors taken" in text
    assert run.model.anchors.max() < 100 and max(map(max, run.model.config.to_dict()["anchors"])) < 100
    kept = train.prepare(replace(options, noautoanchor=True))
    assert kept.model.anchors.max() == 600
