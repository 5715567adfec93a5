"""What machines and people do to a run: full and read-only disks, kills in the middle of a write, dead workers, no network, odd paths.

Each row of docs/reliability.md names its test; those of one module alone stand in that module's own test file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from data.dataset import list_images, load_data, load_split, scan, shared_images
from data.formats import read_coco
from data.images import decode_image, read_image
from models.builder import load_config
from models.foreign import load_foreign
from tests.conftest import ROOT, make_dataset
from utils.checkpoint import TEMPORARY, load_checkpoint
from utils.config import read_yaml
from utils.errors import Diverged, UserError
from utils.results import read_coco_results

HYP = "warmup_epochs: 1\nmixup: 0.3\ncopy_paste: 0.5\n"


@pytest.fixture(scope="module")
def flags(tiny_data: Path, narrow_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a short run."""
    hyp = tmp_path_factory.mktemp("hyp") / "hyp.yaml"
    hyp.write_text(HYP, encoding="utf-8")
    found = ["--cfg", narrow_cfg, "--data", tiny_data, "--hyp", hyp, "--epochs", 2, "--batch-size", 8, "--imgsz", 64, "--device", "cpu", "--workers", 0]
    return [str(flag) for flag in found]


@pytest.fixture(scope="module")
def options(flags: list[str]) -> train.Options:
    """The same as an object."""
    given = {flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    whole = {name: int(given[name]) for name in ("epochs", "batch_size", "imgsz", "workers")}
    return train.Options(**{**given, **whole})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(options: train.Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run without any fault."""
    return train.train(replace(options, project=str(tmp_path_factory.mktemp("whole"))))


def python(*words: object, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=180, **keywords)  # type: ignore[call-overload, no-any-return]


# ---------------------------------------------------------------------------------------------- disks


def in_namespace(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script with mounts of its own, or skip where the system does not allow them."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode:
        pytest.skip("this system lets an ordinary user mount nothing, so that no disk can be made small")
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_a_full_disk_ends_with_3_and_the_old_checkpoint_stands(flags: list[str], whole: Path, tmp_path: Path) -> None:
    """The disk has room for the files of the first epoch, but not for a second last.pt beside the first."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    last = (whole / "weights" / "last.pt").stat().st_size
    room = sum(path.stat().st_size for path in whole.rglob("*.*")) - (whole / "results.png").stat().st_size + last // 2
    script = f'disk=$1; out=$2; shift 2; mount -t tmpfs -o size={room} x "$disk" && {{ "$@"; code=$?; cp -r "$disk" "$out"; exit $code; }}'
    result = in_namespace(script, disk, out, sys.executable, "train.py", *flags, "--project", disk)
    assert result.returncode == 3, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"error: {disk / 'exp' / 'weights' / 'last.pt'}: ") and "MiB are needed" in line and "untouched" in line
    assert load_checkpoint(out / "exp" / "weights" / "last.pt")["progress"]["epoch"] == 1
    assert not list((out / "exp" / "weights").glob(f"*{TEMPORARY}")) and all(path.stat().st_size for path in out.rglob("*.*"))


@pytest.mark.parametrize(("mount", "words"), [("ro", "cannot be written"), ("size=4k", "No space left")])
def test_a_disk_that_takes_nothing_ends_with_3_before_the_first_epoch(mount: str, words: str, flags: list[str], tmp_path: Path) -> None:
    script = 'disk=$1; shift; mount -t tmpfs -o "$0" x "$disk" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, mount, str(tmp_path), sys.executable, "train.py", *flags, "--project", str(tmp_path)]
    in_namespace("true")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 3 and words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert "project" in result.stderr and "1/2:" not in result.stderr


KILLED_WHILE_WRITING = """
import builtins, itertools, os, signal, sys
from pathlib import Path
import torch
import utils.checkpoint as checkpoint

path, writes = Path(sys.argv[1]), 0

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Deadly:
    def __init__(self, file, limit):
        self.file, self.limit = file, limit
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        global writes
        if writes == self.limit:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            die()
        writes += 1
        return self.file.write(data)

def content(value):
    return {"weights": {"a": torch.full((50,), float(value)), "b": torch.full((3, 4), float(value))}, "epoch": value}

def killed(change):
    child = os.fork()
    if not child:
        change()
        checkpoint.save_checkpoint(path, content(1))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def check(epoch):
    found = checkpoint.load_checkpoint(path)
    assert found["epoch"] == epoch and torch.equal(found["weights"]["a"], torch.full((50,), float(epoch)))

checkpoint.save_checkpoint(path, content(0))
for name in ("fsync", "replace"):
    assert killed(lambda: setattr(os, name, die))
    check(0)
for limit in itertools.count():
    if not killed(lambda: setattr(checkpoint, "open", lambda *a: Deadly(builtins.open(*a), limit))):
        break
    check(0)
    assert path.with_name(path.name + checkpoint.TEMPORARY).exists()
check(1)
print("KILLS", limit)
"""


def test_killed_inside_any_write_of_a_checkpoint(tmp_path: Path) -> None:
    """SIGKILL in the middle of the n-th write, for every n: the old file stands."""
    result = python("-c", KILLED_WHILE_WRITING, tmp_path / "last.pt")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) > 5


def test_a_stray_part_of_a_killed_write_is_removed_at_the_next_start(options: train.Options, tmp_path: Path) -> None:
    run = train.prepare(replace(options, project=str(tmp_path)))
    stray = run.folder / "weights" / f"last.pt{TEMPORARY}"
    stray.write_bytes(b"half a checkpoint")
    train.prepare(replace(options, project=str(tmp_path), exist_ok=True))
    assert not stray.exists()


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("part", ["ema", "model"])
def test_nan_in_a_buffer_is_never_saved(part: str, options: train.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running mean goes bad in the second epoch: the run ends as diverged and names it, both files stay those of the first epoch."""
    weights, kept = tmp_path / "exp" / "weights", {}
    finish, spoilt = train.finish_epoch, ""

    def spoil(run: train.Run, *arguments: object) -> bool:
        nonlocal spoilt
        if run.progress.epoch == 1:
            kept.update({path.name: path.read_bytes() for path in weights.iterdir()})
            model = run.ema.model if part == "ema" else run.model
            spoilt, buffer = next((name, tensor) for name, tensor in model.named_buffers() if name.endswith("running_mean"))
            buffer[0] = float("nan")
        return finish(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "finish_epoch", spoil)
    with pytest.raises(Diverged) as found:
        train.train(replace(options, project=str(tmp_path)))
    assert spoilt in str(found.value)
    after = {path.name: path.read_bytes() for path in weights.iterdir()}
    assert set(kept) == {"best.pt", "last.pt"} == set(after) and after["last.pt"] == kept["last.pt"]
    load_checkpoint(weights / "best.pt")  # of the second epoch only where the averaged weights themselves were sound
    assert part == "model" or after["best.pt"] == kept["best.pt"]


def test_a_batch_without_any_object_is_no_trouble(narrow_cfg: Path, options: train.Options, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", images=8, backgrounds=8, side=64)
    folder = train.train(replace(options, data=str(data), epochs=1, project=str(tmp_path)))
    progress = load_checkpoint(folder / "weights" / "last.pt")["progress"]
    assert all(value == value and abs(value) < 1e6 for value in (progress["rows"][0][f"train/{term}_loss"] for term in ("box", "obj", "cls")))


# ---------------------------------------------------------------------------------------------- processes


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_dead_data_worker_ends_the_run_with_3(flags: list[str], tmp_path: Path) -> None:
    """SIGKILL of one worker, as the kernel does when memory runs out."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("child processes are found through /proc, which this system has not")
    command = [sys.executable, "train.py", *flags, "--project", str(tmp_path), "--epochs", "500", "--workers", "2", "--noval", "--nosave"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for(process, b"2/500")
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 3, rest.decode()
    line = rest.decode().strip().splitlines()[-1]
    assert line.startswith("error: DataLoader worker") and "--workers 0" in line


def wait_for(process: subprocess.Popen[bytes], word: bytes) -> None:
    """Read the process's errors until the word has come."""
    assert process.stderr is not None
    seen = b""
    while word not in seen:
        piece = os.read(process.stderr.fileno(), 65536)
        assert piece, seen.decode()
        seen += piece


def test_too_little_shared_memory_ends_with_3(flags: list[str], tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=64k x /dev/shm && exec "$@"'
    result = in_namespace(script, sys.executable, "train.py", *flags, "--project", tmp_path, "--workers", 2)
    # torch's own handler may complain behind that line about the workers that are ended then.
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert result.returncode == 3 and "shared memory" in line and "--workers 0" in line, result.stderr[-2000:]


START = """
import multiprocessing, runpy, sys
multiprocessing.get_all_start_methods = lambda: ["spawn"]
sys.argv = sys.argv[1:]
if __name__ == "__main__":
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_spawned_workers_draw_what_no_workers_draw(flags: list[str], whole: Path, tmp_path: Path) -> None:
    """Windows and macOS start workers anew instead of forking: the same results to the last digit."""
    result = python("-c", START, "train.py", *flags, "--project", tmp_path, "--workers", 2)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "exp" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


@pytest.mark.parametrize(("sign", "code", "how"), [(signal.SIGINT, 130, []), (signal.SIGINT, 130, ["-c", START])], ids=["fork", "spawn"])
def test_ctrl_c_reaches_all_processes_of_a_run_and_it_is_saved(sign: int, code: int, how: list[str], flags: list[str], tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the workers too: they must go on until the main process has saved, and end with it."""
    command = [sys.executable, *how, "train.py", *flags, "--project", str(tmp_path), "--epochs", "500", "--workers", "2", "--noval", "--nosave"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for(process, b"2/500")
        os.killpg(process.pid, sign)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == code and b"go on with --resume" in rest, rest.decode()
    assert load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["progress"]["epoch"] >= 1
    with pytest.raises(ProcessLookupError):  # multiprocessing's own bookkeeper may take a moment longer
        for _ in range(200):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- surroundings

SEALED = """
import os, runpy, socket, sys
from pathlib import Path

class Sealed(socket.socket):
    def __init__(self, family=-1, *rest, **more):
        if family not in (getattr(socket, "AF_UNIX", None),):  # between processes of one machine
            Path(os.environ["TRIED"]).write_text(f"{family} {rest}")
            raise OSError("no network here")
        super().__init__(family, *rest, **more)

def look_up(*words, **more):
    Path(os.environ["TRIED"]).write_text(str(words))
    raise OSError("no network here")

socket.socket, socket.getaddrinfo, socket.gethostbyname = Sealed, look_up, look_up
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_offline_headless_without_home_in_a_folder_of_many_scripts(flags: list[str], tmp_path: Path) -> None:
    """train, val and detect with sockets blocked, no display, a home that cannot be written, and a folder that few tools survive."""
    place = tmp_path / "two words 滑坡 🏔"
    data = make_dataset(place / "数据 set", images=8, side=64)
    tried, home = tmp_path / "tried", tmp_path / "file"
    home.write_text("a file, in which nothing can be made, even by root")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "MPLCONFIGDIR")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home), "TRIED": str(tried), "LC_ALL": "C"}
    best = place / "rún" / "weights" / "best.pt"
    runs = [
        ["train.py", *flags, "--data", data, "--project", place, "--name", "rún", "--workers", 1],
        ["val.py", "--weights", best, "--data", data, "--project", place, "--name", "vál", "--plots", "--save-txt", "--save-json"],
        ["detect.py", "--weights", best, "--source", data.parent / "images" / "val", "--project", place, "--name", "détect", "--save-csv"],
    ]
    for words in runs:
        result = python("-c", SEALED, *words, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        assert not tried.exists(), tried.read_text()
    assert (place / "rún" / "results.png").stat().st_size and (place / "vál" / "PR_curve.png").stat().st_size
    assert len(list((place / "détect").glob("*.png"))) == 8


# ---------------------------------------------------------------------------------------------- data


def test_images_that_train_and_val_share_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: train.Options) -> None:
    data = make_dataset(tmp_path / "data", images=8, side=64)
    images = data.parent / "images"
    shutil.copy(images / "train" / "003.png", images / "val" / "copy.png")
    twin = bytearray((images / "train" / "004.png").read_bytes())
    twin[-1] ^= 1  # as large, with the same beginning
    (images / "val" / "twin.png").write_bytes(twin)
    spec = load_data(data)
    train_samples, val_samples = (load_split(spec, split, quiet=True)[0] for split in ("train", "val"))
    reference = {(a.path, b.path) for a in train_samples for b in val_samples if a.path.read_bytes() == b.path.read_bytes()}
    assert set(shared_images(train_samples, val_samples)) == reference == {(images / "train" / "003.png", images / "val" / "copy.png")}
    assert shared_images(train_samples[:2], val_samples[:2]) == []
    train.prepare(replace(options, data=str(data), project=str(tmp_path)))
    out = capsys.readouterr().out
    assert "warning: train and val share 1 pairs" in out and "copy.png" in out


def test_a_list_may_name_images_anywhere_and_they_stay_as_they_are(tmp_path: Path) -> None:
    """Lists are the user's own: absolute paths and `..` in them are read, as YOLOv5's users write them; names in annotations never are."""
    data = make_dataset(tmp_path / "elsewhere", images=4, side=64)
    images = sorted((data.parent / "images" / "train").iterdir())
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.txt").write_text(f"{images[2]}\n../elsewhere/images/train/{images[3].name}\n", encoding="utf-8")
    (folder / "data.yaml").write_text("train: train.txt\nnames: [landslide]\n", encoding="utf-8")
    before = [path.read_bytes() for path in images]
    samples, report = scan(list_images(load_data(folder / "data.yaml"), "train"), 1, quiet=True)
    assert [sample.path.name for sample in samples] == ["002.png", "003.png"] and report.objects > 0
    assert [path.read_bytes() for path in images] == before


# ---------------------------------------------------------------------------------------------- found by fuzzing


@pytest.mark.parametrize("entry", ["x" * 300, "a/" * 3000, "images/train/000.png/x"])
def test_names_that_no_file_system_takes(entry: str, tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "d", images=2, side=64, backgrounds=0)
    good = path.read_text(encoding="utf-8")
    path.write_text(f"train: {entry}\nnames: [a]\n", encoding="utf-8")
    with pytest.raises(UserError, match="does not exist"):
        load_data(path)
    path.write_text(f"path: {entry}\n{good}", encoding="utf-8")
    with pytest.raises(UserError, match="data.yaml:1"):
        load_data(path)
    with pytest.raises(UserError):
        read_image(entry)
    model = tmp_path / "model.yaml"
    model.write_text(f"base: {entry}\n", encoding="utf-8")
    with pytest.raises(UserError):
        load_config(model)


def test_a_zero_byte_in_a_list_or_a_base(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "d", images=2, side=64, backgrounds=0)
    good = sorted((path.parent / "images" / "train").iterdir())[0]
    samples, report = scan([good, Path("a\0b.png")], 1, quiet=True)
    assert len(samples) == 1 and report.corrupt == 1
    model = tmp_path / "model.yaml"
    model.write_text('base: "a\\0b"\n', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(model)


def test_a_zip_directory_that_points_before_the_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2)}}, buffer)
    data = bytearray(buffer.getvalue())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where the directory begins
    path = tmp_path / "x.pt"
    for size in (0, 2**31):
        data[end + 12 : end + 16] = size.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(UserError):
            load_foreign(path)


@pytest.mark.parametrize("place", ["categories.id", "images.id", "images.width", "annotations.image_id", "annotations.category_id", "annotations.bbox"])
def test_infinite_numbers_in_a_coco_file(place: str) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
    }
    key, name = place.split(".")
    content[key][0][name] = [1, 1, 2, float("inf")] if name == "bbox" else float("inf")
    for data in (json.dumps(content), json.dumps(content).replace("Infinity", "1e999")):
        with pytest.raises(UserError):
            read_coco(data.encode(), "x.json")


@pytest.mark.parametrize(("row", "base"), [("{tag: a, block: [Conv]}", True), ("{tag: [a], block: Conv}", True), ("{tag: {}, block: {}}", False)])
def test_a_list_where_a_word_was_expected_in_a_model(row: str, base: bool, tmp_path: Path) -> None:
    path, variant = tmp_path / "model.yaml", tmp_path / "variant.yaml"
    path.write_text(f"anchors: [[10, 13]]\nlayers:\n  - {row}\n", encoding="utf-8")
    variant.write_text("base: model.yaml\nreplace:\n  a: {block: MSFE}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"model.yaml|no layer"):
        load_config(variant if base and "tag: a" not in row else path)
    path.write_text("anchors: [[10, 13]]\nlayers: 3\n", encoding="utf-8")
    with pytest.raises(UserError, match="no layer"):
        load_config(variant)


def test_aliases_of_aliases_of_a_yaml_take_no_memory(tmp_path: Path) -> None:
    """Nine lists of nine aliases each stand for 9^9 values, which an error message would have to spell out."""
    levels = ", ".join(f"&l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))
    path = tmp_path / "data.yaml"
    path.write_text(f"train: images\nnames: [[&l0 [{', '.join('x' * 9)}], {levels}]]\n", encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"data.yaml:2: more than \d+ aliases"):
        load_data(path)
    assert time.monotonic() - start < 1
    path.write_text("a: &x [1, 2]\nb: *x\n", encoding="utf-8")
    assert read_yaml(path)["b"] == [1, 2]


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "1e999", "1e300", "NaN"])
@pytest.mark.parametrize("name", ["category_id", "bbox", "score", "image_id"])
def test_numbers_that_no_result_can_have(value: str, name: str, tmp_path: Path) -> None:
    row = {"image_id": 7, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    row[name] = [1, 2, 3, "#"] if name == "bbox" else "#"
    path = tmp_path / "r.json"
    path.write_text(json.dumps([row]).replace('"#"', value), encoding="utf-8")
    with pytest.raises(UserError):
        read_coco_results(path, [7], 1)


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(2**20, 2**20), torch.zeros(4).as_strided((100, 100), (0, 0))])
def test_a_few_bytes_that_pose_as_many_elements_are_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"format": "ls-yolo", "version": 1, "ema": {"a": tensor}}, path)
    with pytest.raises(UserError, match="ema.a has more elements than the file holds"):
        load_checkpoint(path)


def test_a_tensor_where_a_word_was_expected_is_not_spelt_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.rand(50, 50)}, buffer)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            # The dict as the identifier of a storage: a whole tensor would stand in the message.
            new.writestr(name, content[:-1] + b"Q." if name.endswith("data.pkl") else content)
    with pytest.raises(UserError) as found:
        load_foreign(path)
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


def test_a_16_bit_png_that_announces_a_giant_chunk(tmp_path: Path) -> None:
    image = np.arange(20 * 12 * 3, dtype=np.uint16).reshape(12, 20, 3)
    data = bytearray(cv2.imencode(".png", image)[1].tobytes())
    assert decode_image(bytes(data), "x").shape == (12, 20, 3)
    data[33:37] = (2**32 - 129).to_bytes(4, "big")  # the length of the chunk behind the header
    start = time.monotonic()
    with pytest.raises(UserError, match="damaged"):
        decode_image(bytes(data), "x")
    assert time.monotonic() - start < 1
