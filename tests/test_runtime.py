"""utils/runtime.py: devices that are not there, folders of runs, and signals that let a loop save first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from utils.errors import EnvironmentFault, UserError
from utils.runtime import StopFlag, device_line, memory_used, new_folder, select_device


def test_the_cpu_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cpu", "CPU", " cpu ", ""):
        assert select_device(name) == torch.device("cpu")
    assert "cpu" in device_line(torch.device("cpu")) and torch.__version__ in device_line(torch.device("cpu"))


@pytest.mark.parametrize("name", ["0", "cuda", "cuda:0", "cuda:3", "3"])
def test_no_gpu_is_a_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=f"--device {name}: .* sees no CUDA device"):
        select_device(name)


@pytest.mark.parametrize("name", ["gpu", "0,1", "-1", "cuda:x", "\u00b2", "1.0"])
def test_a_device_that_does_not_exist_at_all(name: str) -> None:
    with pytest.raises(UserError, match="was expected"):
        select_device(name)


def test_a_number_beyond_the_last_gpu_and_a_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentFault, match="there are 2 CUDA devices"):
        select_device("2")

    def no_kernel(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nsecond line")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch, "zeros", no_kernel)
    with pytest.raises(EnvironmentFault, match=r"Some GPU \(compute capability 12\.0\) .*no kernel image is available\)") as found:
        select_device("1")
    assert "\n" not in str(found.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu() -> None:
    assert select_device("") == select_device("0") == select_device("cuda") == torch.device("cuda", 0)
    assert "GiB" in device_line(torch.device("cuda", 0))


def test_memory_is_that_of_this_process() -> None:
    assert 0.05 < memory_used(torch.device("cpu")) < 100


# ---------------------------------------------------------------------------------------------- folders


def test_folders_are_counted_on(tmp_path: Path) -> None:
    project = tmp_path / "runs" / "滑坡 train"
    assert new_folder(project, "exp", False) == project / "exp"
    assert new_folder(project, "exp", False) == project / "exp2"
    (project / "exp7").mkdir()
    (project / "expert").mkdir()
    (project / "exp2b").mkdir()
    assert new_folder(project, "exp", False) == project / "exp8"
    assert new_folder(project, "exp", True) == project / "exp"
    assert new_folder(project, "a.b+c", False) == project / "a.b+c" and new_folder(project, "a.b+c", False) == project / "a.b+c2"
    assert not any((project / "exp").iterdir()), "the write test leaves nothing behind"


def test_runs_started_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path, "exp", False), range(40)))
    assert len(set(folders)) == 40


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file stands where a folder was expected"):
        new_folder(tmp_path / "file", "exp", False)
    with pytest.raises(UserError, match="a file stands where a folder was expected"):
        new_folder(tmp_path, "file", True)
    assert new_folder(tmp_path, "file", False) == tmp_path / "file2" and (tmp_path / "file").read_text() == "x"


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(EnvironmentFault, match=r"exp: cannot be written \(Read-only file system\)"):
        new_folder(tmp_path, "exp", False)


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(("name", "interrupted"), [("SIGTERM", False), ("SIGUSR1", False), ("SIGINT", True)])
def test_the_first_signal_is_remembered(name: str, interrupted: bool) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert (stop.raised, stop.interrupted) == (False, False)
        os.kill(os.getpid(), number)
        assert (stop.raised, stop.interrupted) == (True, interrupted)
    assert signal.getsignal(number) == before, "what stood before is put back"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_second_signal_ends_the_process(name: str, code: int) -> None:
    program = (
        "import os, signal\nfrom utils.runtime import StopFlag\n"
        f"with StopFlag():\n    os.kill(os.getpid(), signal.{name})\n    os.kill(os.getpid(), signal.{name})\n    print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == code and b"alive" not in done.stdout


# ---------------------------------------------------------------------------------------------- a bare machine


CUT_OFF = """
import runpy, socket, sys
connect = socket.socket.connect
def refuse(*_, **__):
    raise AssertionError("something asked for the network")
def local_only(self, address):  # workers hand over their batches through sockets of the machine's own
    return connect(self, address) if self.family == socket.AF_UNIX else refuse()
socket.socket.connect = socket.socket.connect_ex = local_only
socket.getaddrinfo = socket.create_connection = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="DISPLAY and HOME are of POSIX systems")
def test_no_screen_no_network_no_home(tiny_data: Path, narrow_cfg: Path, tmp_path: Path) -> None:
    """val.py with its plots needs nothing but its files; `tiny_data` is read where it lies, results go to the folder asked for."""
    from models.builder import load_config
    from models.yolo import DetectionModel
    from utils.checkpoint import save_checkpoint

    model = DetectionModel(load_config(narrow_cfg, 1))
    weights = tmp_path / "权重 w.pt"
    save_checkpoint(weights, {"model": model.config.to_dict(), "names": ["滑坡"], "imgsz": 64, "ema": model.state_dict()})
    gone = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "MPLCONFIGDIR", "XDG_CONFIG_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in gone} | {"HOME": "/dev/null", "PYTHONPATH": str(ROOT)}
    flags = ["--weights", weights, "--data", tiny_data, "--img", 64, "--device", "cpu", "--plots", "--project", tmp_path / "运行 runs", "--name", "v"]
    command = [str(word) for word in (sys.executable, "-c", CUT_OFF, ROOT / "val.py", *flags)]
    before = {path: path.stat().st_mtime_ns for path in tiny_data.parent.rglob("*")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "运行 runs" / "v").glob("*.png")), "the plots are there"
    assert {path: path.stat().st_mtime_ns for path in tiny_data.parent.rglob("*")} == before, "nothing is written beside the data"
