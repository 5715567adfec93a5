"""Campaigns: two processes share a folder, kills change nothing, failures wait for the next start, changed settings are refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.builder import load_config
from models.yolo import DetectionModel
from reproduction.campaign import Campaign, Stop, open_campaign, run_campaign
from reproduction.folder import FAILED, Job, claim, planned, state_of, summary
from reproduction.job import Dataset, model_yaml
from reproduction.outputs import write_outputs
from reproduction.paper import STUDIES
from reproduction.plan import plan_campaign
from reproduction.record import RECORD, load_record, load_records
from reproduction.settings import Options, PlanOptions, check, chosen_rows, deciding, differences, shortened
from tests.conftest import ROOT
from utils.checkpoint import load_checkpoint
from utils.config import parse, read_yaml
from utils.errors import Terminated, UserError
from utils.runtime import StopFlag

ROWS = ("yolov5s", "msfe", "odh")
SETTINGS = ("--epochs", "3", "--img", "64", "--batch-size", "4", "--subset", "8", "--width", "0.0625", "--optimizer", "AdamW", "--device", "cpu")
SETTINGS = (*SETTINGS, "--hyp", "data/hyps/short.yaml", "--no-page")


def start(command: str, *flags: str | Path) -> subprocess.Popen[str]:
    line = [sys.executable, str(ROOT / "reproduce.py"), command, *map(str, flags)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ablation(data: Path, out: Path, rows: tuple[str, ...], seeds: tuple[str, ...], *flags: str) -> subprocess.Popen[str]:
    return start("ablation", "--data", data, "--out", out, "--rows", *rows, "--seeds", *seeds, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def shared_campaign(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A campaign of 6 runs, done by two processes at once: its folder, and what each printed."""
    out = tmp_path_factory.mktemp("shared") / "out"
    processes = [ablation(tiny_data, out, ROWS, ("0", "1")) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return out, printed


# --------------------------------------------------------------------------------------------- real processes


def test_two_processes_do_each_of_six_runs_once(shared_campaign: tuple[Path, list[str]]) -> None:
    out, printed = shared_campaign
    begun = [re.findall(r"^=== run \d of 6: (\S+)$", text, re.MULTILINE) for text in printed]
    assert sorted(begun[0] + begun[1]) == sorted(f"{row}-main-s{seed}" for row in ROWS for seed in (0, 1))
    assert begun[0] and begun[1]
    records = load_records(out)
    assert len(records) == 6 and all(one.params > 1000 and one.gflops > 0 and one.fps > 0 and one.seconds_per_epoch > 0 for one in records)
    assert "6 done, 0 running, 0 missing, 0 failed" in printed[0] + printed[1]
    assert all((out / f"table.{suffix}").is_file() for suffix in ("md", "csv", "tex", "json"))
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "SHORTENED" in table and "8 training images" in table and "INCOMPLETE" not in table and "no test split" in table
    assert not list(out.rglob("*.part"))


def test_a_campaign_killed_twice_ends_as_one_that_never_stopped(shared_campaign: tuple[Path, list[str]], tiny_data: Path, tmp_path: Path) -> None:
    last = tmp_path / "runs" / "msfe-main-s1" / "weights" / "last.pt"
    for epochs in (1, 2):
        process = ablation(tiny_data, tmp_path, ("msfe",), ("1",))
        deadline = time.monotonic() + 120
        while not (last.is_file() and load_checkpoint(last)["progress"]["epoch"] >= epochs):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (last.parent.parent / RECORD).exists()
    flags = ("--data", str(tiny_data), "--out", str(tmp_path), "--rows", "msfe", "--seeds", "1", *SETTINGS)
    run_campaign(open_campaign(STUDIES["ablation"], parse(Options, flags)), Stop(None))
    killed, whole = load_record(last.parent.parent), load_record(shared_campaign[0] / "runs" / "msfe-main-s1")
    assert killed.report == whole.report and killed.groups == whole.groups
    for mine, other in zip((*killed.detections, *killed.coco_detections), (*whole.detections, *whole.coco_detections), strict=True):
        np.testing.assert_array_equal(mine.boxes, other.boxes)
        np.testing.assert_array_equal(mine.scores, other.scores)
    for name in ("best.pt", "last.pt"):
        weights = [load_checkpoint(one.folder / "weights" / name)["ema"] for one in (killed, whole)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_status_plan_and_tables_read_the_folder(shared_campaign: tuple[Path, list[str]]) -> None:
    out = shared_campaign[0]
    before = sorted(path for path in out.rglob("*") if path.is_file())
    (out / "table.md").unlink()
    process = start("status", "--out", out)
    assert process.communicate(timeout=120)[0].startswith("6 done, 0 running, 0 missing, 0 failed, of 6 runs") and process.returncode == 0
    cost = plan_campaign(PlanOptions(out=str(out)))
    assert "0 of 6 runs are left: 0.0 hours" in cost and "finished runs" in cost
    assert "Table III: ablation, protocol `paper`" in write_outputs(out, page=False) and (out / "table.md").is_file()
    assert {path for path in before if path.suffix != ".lock"} <= {path for path in out.rglob("*") if path.is_file()}


def test_a_plan_times_what_has_not_run(tiny_data: Path, tmp_path: Path) -> None:
    chosen = PlanOptions(data=str(tiny_data), rows=["yolov5s"], seeds=[0, 1], epochs=5, img=64, batch_size=4, width=0.0625, out=str(tmp_path / "out"))
    words = plan_campaign(chosen).splitlines()
    row = words[1].split()
    assert row[:4] == ["yolov5s", "main", "2", "10"] and float(row[4]) > 0 and words[1].endswith("short timing")
    assert words[2].startswith("2 of 2 runs are left") and not (tmp_path / "out").exists()


def test_wrong_folders_and_commands_are_told(tmp_path: Path) -> None:
    for command, words in (("status", "a campaign's folder was expected"), ("tables", "a campaign's folder was expected"), ("tabels", "was expected")):
        process = start(command, *(("--out", tmp_path) if command != "tabels" else ()))
        assert words in process.communicate(timeout=60)[0] and process.returncode == 2


@pytest.mark.parametrize("command", ["ablation", "comparison", "plan", "status", "tables"])
def test_help_answers_without_torch(command: str) -> None:
    line = [sys.executable, "-X", "importtime", "reproduce.py", command, "--help"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not re.search(r"\| *(torch|cv2|matplotlib|numpy|filelock)$", result.stderr, re.MULTILINE)
    assert "--out" in result.stdout and "--debug" in result.stdout


# ------------------------------------------------------------------------------------------------ the loop, in process


@pytest.fixture
def small(tmp_path: Path) -> Campaign:
    """A campaign of 6 runs with nothing behind it."""
    study = STUDIES["ablation"]
    rows = [row for row in study.rows if row.name in ROWS]
    jobs = tuple(Job(row, "main", seed) for seed in (0, 1) for row in rows)
    nothing: Any = None
    data = Dataset("main", "d.yaml", nothing, "test", [], [], [], [], {})
    plan = {"study": "ablation", "rows": list(ROWS), "seeds": [0, 1], "splits": ["main"], "settings": {}}
    (tmp_path / "campaign.json").write_text(json.dumps(plan), encoding="utf-8")
    return Campaign(tmp_path, study, Options(out=str(tmp_path)), {}, {"main": data}, jobs)


def finish(job: Job, data: Dataset, options: Options, settings: Any, out: Path) -> None:
    """What a run does, without the work."""
    (out / "runs" / job.name).mkdir(parents=True, exist_ok=True)
    (out / "runs" / job.name / RECORD).write_text("{}", encoding="utf-8")


def test_all_runs_are_done_in_order_and_never_again(small: Campaign) -> None:
    done: list[str] = []

    def action(job: Job, *rest: Any) -> None:
        done.append(job.name)
        finish(job, *rest)

    for _ in range(2):
        run_campaign(small, Stop(None), action)
    assert done == [job.name for job in small.jobs]
    assert summary(small.out, small.jobs)[0] == {"done": 6}


def test_a_failed_run_waits_for_the_next_start(small: Campaign) -> None:
    tried: list[str] = []

    def action(job: Job, *rest: Any) -> None:
        tried.append(job.name)
        if job.row.name == "msfe" and len(tried) < 7:
            raise ValueError("no luck\nat all")
        finish(job, *rest)

    run_campaign(small, Stop(None), action)
    assert sorted(tried) == sorted(job.name for job in small.jobs)
    counts, words = summary(small.out, small.jobs)
    assert counts == {"done": 4, "failed": 2} and "failed: msfe-main-s0 (ValueError: no luck)" in words and "at all" not in words
    run_campaign(small, Stop(None), action)
    assert tried[6:] == ["msfe-main-s0", "msfe-main-s1"] and summary(small.out, small.jobs)[0] == {"done": 6}
    assert not list(small.out.rglob(FAILED))


def test_a_run_that_another_process_fails_meanwhile_is_left_alone(small: Campaign) -> None:
    tried: list[str] = []
    other = small.jobs[-1]

    def action(job: Job, *rest: Any) -> None:
        tried.append(job.name)
        folder = small.out / "runs" / other.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_text("elsewhere", encoding="utf-8")
        finish(job, *rest)

    run_campaign(small, Stop(None), action)
    assert other.name not in tried and len(tried) == 5


def test_a_run_that_is_held_is_left_to_its_holder(small: Campaign) -> None:
    held = small.jobs[1]
    with claim(small.out, held, "process 7 on elsewhere") as mine:
        assert mine
        run_campaign(small, Stop(None), finish)
        assert state_of(small.out, held).kind == "running" and "process 7 on elsewhere" in state_of(small.out, held).detail
        counts, words = summary(small.out, small.jobs)
        assert counts == {"done": 5, "running": 1} and f"running: {held.name}" in words
    assert state_of(small.out, held).kind == "missing"
    run_campaign(small, Stop(None), finish)
    assert state_of(small.out, held).kind == "done"


def test_a_signal_ends_the_campaign_after_the_run_is_saved(small: Campaign) -> None:
    tried: list[str] = []

    def action(job: Job, *rest: Any) -> None:
        tried.append(job.name)
        raise Terminated("saved after epoch 2; go on with --resume last.pt")

    with pytest.raises(Terminated, match="yolov5s-main-s0 is saved; the same command goes on"):
        run_campaign(small, Stop(None), action)
    assert len(tried) == 1 and not list(small.out.rglob(FAILED))


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_between_trainings_ends_the_campaign_too(small: Campaign, number: signal.Signals, kind: type[BaseException]) -> None:
    def action(job: Job, *rest: Any) -> None:
        os.kill(os.getpid(), number)
        finish(job, *rest)

    with Stop(None) as stop, pytest.raises(kind):
        run_campaign(small, stop, action)
    assert summary(small.out, small.jobs)[0] == {"done": 1, "missing": 5}


def test_the_budget_stops_the_training_under_way(small: Campaign) -> None:
    """Even where the time is up before the training listens."""
    tried: list[str] = []

    def action(job: Job, *rest: Any) -> None:
        tried.append(job.name)
        deadline = time.monotonic() + 20
        while not stop.raised and time.monotonic() < deadline:
            time.sleep(0.01)
        with StopFlag() as training:
            while not training.raised and time.monotonic() < deadline:
                time.sleep(0.01)
            assert training.raised and not training.interrupted
            time.sleep(0.5)  # told once: a second signal would end the process
            raise Terminated("saved")

    threads = threading.active_count()
    with Stop(0.3 / 60) as stop:
        run_campaign(small, stop, action)
    assert stop.late and len(tried) == 1 and summary(small.out, small.jobs)[0] == {"missing": 6}
    time.sleep(0.5)
    assert threading.active_count() == threads


# ------------------------------------------------------------------------------------------------ settings


def options(data: Path, out: Path, **changes: Any) -> Options:
    chosen: dict[str, Any] = {"rows": ["yolov5s"], "seeds": [0], "epochs": 2, "img": 64, "width": 0.25, **changes}
    return Options(data=str(data), out=str(out), **chosen)


def test_changed_settings_are_refused_with_the_differences(tiny_data: Path, tmp_path: Path) -> None:
    study, out = STUDIES["ablation"], tmp_path / "out"
    open_campaign(study, options(tiny_data, out))
    open_campaign(study, options(tiny_data, out, rows=["msfe"], seeds=[3], device="cpu", workers=0, budget=1.0))  # these decide nothing
    assert [job.name for job in planned(out)[1]] == ["yolov5s-main-s0", "msfe-main-s0", "yolov5s-main-s3", "msfe-main-s3"]
    with pytest.raises(UserError, match="not the settings of the campaign") as caught:
        open_campaign(study, options(tiny_data, out, epochs=3, hyp="data/hyps/short.yaml"))
    assert "\n  epochs: 2 -> 3" in str(caught.value) and "\n  hyp.lr0: 0.01 -> 0.001" in str(caught.value) and "img" not in str(caught.value)
    with pytest.raises(UserError, match="kind 'ablation'"):
        open_campaign(STUDIES["comparison"], options(tiny_data, out))
    open_campaign(study, options(tiny_data, out, epochs=3, allow_change=True))
    open_campaign(study, options(tiny_data, out, epochs=3))


def test_changed_labels_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    from tests.conftest import make_dataset

    data, study = make_dataset(tmp_path / "data", images=4, side=64), STUDIES["ablation"]
    open_campaign(study, options(data, tmp_path / "out"))
    label = sorted((tmp_path / "data" / "labels" / "val").glob("*.txt"))[-1]
    label.write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(UserError, match="fingerprints.main.val"):
        open_campaign(study, options(data, tmp_path / "out"))


def test_a_second_dataset_may_come_later_and_stays(tiny_data: Path, tmp_path: Path) -> None:
    study, out = STUDIES["ablation"], tmp_path / "out"
    for paper, names in ((None, 1), (str(tiny_data), 2), (None, 2)):
        open_campaign(study, options(tiny_data, out, paper_data=paper))
        assert len(planned(out)[1]) == names


def test_subset_and_width_are_written_down(tiny_data: Path, tmp_path: Path) -> None:
    opened = open_campaign(STUDIES["ablation"], options(tiny_data, tmp_path, subset=8))
    data = opened.datasets["main"]
    lists = {name: (tmp_path / "data" / f"main-{name}.txt").read_text(encoding="utf-8").split() for name in ("train", "val")}
    assert data.yaml == str(tmp_path / "data" / "main.yaml") and [len(set(paths)) for paths in lists.values()] == [8, 8]
    assert len(data.samples) == 16 and data.tested_on == "val"  # tested on all
    assert opened.settings["shortened"] == ["2 epochs instead of 300", "64 px instead of 640", "width 0.25 instead of 0.5", "8 training images"]
    with pytest.raises(UserError, match="subset: 8 -> 4"):
        open_campaign(STUDIES["ablation"], options(tiny_data, tmp_path, subset=4))
    assert (tmp_path / "data" / "main-train.txt").read_text(encoding="utf-8").split() == lists["train"]  # refused before anything is written
    with pytest.raises(UserError, match="has 16 training images"):
        open_campaign(STUDIES["ablation"], options(tiny_data, tmp_path / "b", subset=17))


def test_another_width_is_a_yaml_that_says_only_that(tmp_path: Path) -> None:
    ablation, comparison = STUDIES["ablation"], STUDIES["comparison"]
    path = model_yaml(ablation.row("msfe"), 0.25, tmp_path)
    assert DetectionModel(load_config(path, 1)).config.to_dict() != DetectionModel(load_config("models/ablation/msfe.yaml", 1)).config.to_dict()
    assert set(read_yaml(path)) == {"base", "width_multiple"} and read_yaml(path)["width_multiple"] == 0.25
    assert model_yaml(ablation.row("msfe"), None, tmp_path) == "models/ablation/msfe.yaml"
    assert model_yaml(comparison.row("ssd"), 0.25, tmp_path) == "models/baselines/ssd.yaml"


def test_the_papers_own_settings_are_not_called_shortened() -> None:
    plain = Options(data="d.yaml")
    assert shortened(deciding(plain)) == []
    for change in ({"epochs": 299}, {"img": 320}, {"batch_size": 8}, {"optimizer": "Adam"}, {"subset": 5}, {"width": 0.25}, {"hyp": "data/hyps/short.yaml"}):
        assert len(shortened(deciding(replace(plain, **change)))) == 1, change  # type: ignore[arg-type]


def test_wrong_options_are_told() -> None:
    for change, words in (({"data": ""}, "--data"), ({"epochs": 0}, "--epochs"), ({"seeds": [1, 1]}, "--seeds"), ({"budget": 0.0}, "--budget"),
                          ({"width": 0.0}, "--width"), ({"subset": 0}, "--subset")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            check(replace(Options(data="d.yaml"), **change))  # type: ignore[arg-type]


def test_rows_are_taken_in_the_tables_order_and_unknown_ones_named() -> None:
    study = STUDIES["comparison"]
    there = {row.name: row.name != "yolov7" for row in study.rows}
    assert [row.name for row in chosen_rows(study, ["ls-yolo", "ssd"], there)] == ["ssd", "ls-yolo"]
    assert [row.name for row in chosen_rows(study, None, there)] == [row.name for row in study.rows if row.name != "yolov7"]
    with pytest.raises(UserError, match="did you mean 'yolov5s'"):
        chosen_rows(study, ["yolov5"], there)
    with pytest.raises(UserError, match="cannot be built yet"):
        chosen_rows(study, ["yolov7"], there)


def test_differences_name_what_changed() -> None:
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5, "d": 3}, "e": None, "f": 0}) == ["b.c: 2 -> 5", "f: None -> 0"]
    assert differences({}, {}) == []
