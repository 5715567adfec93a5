"""utils/checkpoint.py: no fault while writing costs the last good file, and no damaged file is ever taken for a good one."""

from __future__ import annotations

import builtins
import collections
import errno
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils import checkpoint
from utils.checkpoint import TEMPORARY, ForeignFile, load_checkpoint, load_weights_into, save_checkpoint, tensors
from utils.errors import Diverged, EnvironmentFault, UserError, exit_code


def make_content(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weights = collections.OrderedDict(a=torch.rand(4, 5, generator=generator), b=torch.arange(3), c=torch.rand(2, generator=generator).half())
    return {
        "weights": weights,
        "model": {"nc": 1, "anchors": [[1.0, 2.0]], "name": "滑坡"},
        "optimizer": {"state": {0: {"momentum_buffer": torch.rand(7, generator=generator), "step": 3}}, "param_groups": [{"params": [0]}]},
        "progress": {"epoch": 3, "best": 0.5, "rows": [{"loss": float("nan")}], "none": None, "flag": True},
    }


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "重 weights" / "last.pt"
    path.parent.mkdir()
    save_checkpoint(path, make_content())
    return path


def test_what_is_saved_comes_back(saved: Path) -> None:
    assert same(load_checkpoint(saved), {"format": "ls-yolo", "version": 1, **make_content()})
    assert [entry.name for entry in saved.parent.iterdir()] == ["last.pt"]
    assert load_checkpoint(str(saved))["model"]["name"] == "滑坡"


def test_it_is_plain_enough_for_torch_itself(saved: Path) -> None:
    assert torch.load(saved, weights_only=True)["progress"]["epoch"] == 3


# ---------------------------------------------------------------------------------------------- writing


class FailingFile:
    """A file whose n-th write raises."""

    def __init__(self, file: Any, fails_at: int, error: BaseException) -> None:
        self.file, self.fails_at, self.error, self.writes = file, fails_at, error, 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        if self.writes == self.fails_at:
            raise self.error
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[FailingFile]:
    """Make the `number`-th write of the next checkpoint raise; returns the files that get opened."""
    opened: list[FailingFile] = []

    def fake(path: Any, mode: str = "r", *rest: Any) -> Any:
        assert mode == "wb"
        opened.append(FailingFile(builtins.open(path, mode, *rest), number, error))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(checkpoint, "open", fake, raising=False)
    return opened


FULL, BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("error", [FULL, BROKEN, RuntimeError("x"), KeyboardInterrupt()])
def test_a_fault_at_any_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    before = saved.read_bytes()
    number = 0
    while True:
        number += 1
        opened = fail_at(monkeypatch, number, error)
        try:
            save_checkpoint(saved, make_content(1))
        except (EnvironmentFault, KeyboardInterrupt) as found:
            assert exit_code(found) in (3, 130)
            assert saved.read_bytes() == before
            assert [entry.name for entry in saved.parent.iterdir()] == ["last.pt"], "nothing half-written is left"
        else:
            break
    assert number > 20 and opened[0].writes == number - 1, "every write has failed once"
    assert same(load_checkpoint(saved)["weights"], make_content(1)["weights"])


def test_a_full_disk_says_what_is_needed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 5, FULL)
    content = {**make_content(1), "big": torch.zeros(3 * 2**18)}
    with pytest.raises(EnvironmentFault, match=r"last\.pt: cannot be written, about 3 MiB are needed \(.*No space left on device\); the previous file is"):
        save_checkpoint(saved, content)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_fault_after_the_writes_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = saved.read_bytes()
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(EnvironmentFault, match="Input/output error"):
        save_checkpoint(saved, make_content(1))
    assert saved.read_bytes() == before and [entry.name for entry in saved.parent.iterdir()] == ["last.pt"]


def test_a_folder_that_cannot_be_synced_is_no_fault(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if os.path.isdir(path):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    save_checkpoint(saved, make_content(1))
    assert same(load_checkpoint(saved)["weights"], make_content(1)["weights"])


def test_a_disk_that_lies_is_found_out(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_content(1)
    lost = content["weights"]["a"].numpy().tobytes()

    class Forgetful(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data).replace(lost, bytes(len(lost))))

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint, "open", Forgetful, raising=False)
    with pytest.raises(EnvironmentFault, match="did not keep what was written"):
        save_checkpoint(saved, content)
    assert saved.read_bytes() == before


def test_a_stray_part_file_is_in_nobodys_way(saved: Path) -> None:
    stray = saved.with_name(saved.name + TEMPORARY)
    stray.write_bytes(b"half of a checkpoint, left by a crash")
    assert same(load_checkpoint(saved)["weights"], make_content()["weights"])
    save_checkpoint(saved, make_content(1))
    assert not stray.exists() and same(load_checkpoint(saved)["weights"], make_content(1)["weights"])


def test_a_missing_folder_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        save_checkpoint(tmp_path / "none" / "last.pt", make_content())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_could_never_be_read_again_is_not_written(saved: Path, value: float) -> None:
    before = saved.read_bytes()
    content = make_content(1)
    content["weights"]["a"][1, 2] = value
    with pytest.raises(Diverged, match=r"last\.pt: weights\.a holds NaN or infinite values; nothing was written"):
        save_checkpoint(saved, content)
    assert saved.read_bytes() == before


def test_gradients_that_wait_for_their_step_may_overflow(saved: Path) -> None:
    gradient = torch.tensor([1.0, float("inf"), float("nan")])
    save_checkpoint(saved, {**make_content(), "gradients": {"a": gradient}})
    torch.testing.assert_close(load_checkpoint(saved)["gradients"]["a"], gradient, equal_nan=True)


# ---------------------------------------------------------------------------------------------- reading what is damaged


def refused_or_the_same(path: Path, original: dict[str, Any]) -> bool:
    """True where `path` is refused by a UserError of one line; fails where it loads as anything but the original."""
    try:
        found = load_checkpoint(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return True
    assert same(found, original)
    return False


def test_a_flipped_bit_anywhere_is_refused_or_harmless(saved: Path) -> None:
    raw, original = saved.read_bytes(), load_checkpoint(saved)
    directory = zipfile.ZipFile(saved).start_dir
    rng = np.random.default_rng(0)
    places = [*rng.integers(len(raw) * 8, size=300), *rng.integers(directory * 8, len(raw) * 8, size=300)]
    refused = 0
    for place in places:
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << int(place % 8)
        saved.write_bytes(damaged)
        refused += refused_or_the_same(saved, original)
    assert refused > 200


def test_every_flipped_bit_of_data_is_refused(saved: Path) -> None:
    raw, original = saved.read_bytes(), load_checkpoint(saved)
    payload = make_content()["weights"]["a"].numpy().tobytes()
    start = raw.index(payload)
    for place in range(start, start + len(payload)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << (place % 8)
        saved.write_bytes(damaged)
        assert refused_or_the_same(saved, original)


def test_several_flipped_bits_in_the_directory(saved: Path) -> None:
    raw, original = saved.read_bytes(), load_checkpoint(saved)
    directory = zipfile.ZipFile(saved).start_dir
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(raw)
        for place in rng.integers(directory, len(raw), size=int(rng.integers(2, 5))):
            damaged[place] = int(rng.integers(256))
        saved.write_bytes(damaged)
        refused_or_the_same(saved, original)


def test_an_entry_marked_as_a_folder_is_refused(saved: Path) -> None:
    """torch reads nothing for such an entry and hands out whatever the memory held before."""
    raw = bytearray(saved.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 38] |= 0x10
    saved.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(saved)


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    raw, original = saved.read_bytes(), load_checkpoint(saved)
    for length in [*range(0, len(raw), 13), *range(len(raw) - 60, len(raw))]:
        saved.write_bytes(raw[:length])
        assert refused_or_the_same(saved, original)


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, b"<html>not found</html>", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt: "):
        load_checkpoint(path)
    assert path.read_bytes() == content


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match="no such checkpoint"):
            load_checkpoint(path)


# ---------------------------------------------------------------------------------------------- reading what is hostile or foreign


class Malicious:
    """Pickled as a call of os.mkdir."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "sentinel", tmp_path / "bad.pt"
    torch.save({"format": "ls-yolo", "version": 1, "x": Malicious(target)}, path)
    with pytest.raises(ForeignFile) as found:
        load_checkpoint(path)
    assert exit_code(found.value) == 2 and not target.exists()
    path.write_bytes(pickle.dumps(Malicious(target)))  # torch's old format was a bare pickle
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not target.exists()


def test_checkpoints_of_other_programs_and_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for content in ({"model": torch.zeros(3)}, {"format": "other", "version": 1}, [torch.zeros(2)], torch.zeros(2)):
        torch.save(content, path)
        with pytest.raises(ForeignFile, match="is not a checkpoint of this program"):
            load_checkpoint(path)
    torch.save({"model": torch.nn.Conv2d(3, 4, 1)}, path)
    with pytest.raises(ForeignFile, match="more than tensors and plain values"):
        load_checkpoint(path)
    torch.save({"format": "ls-yolo", "version": 2}, path)
    with pytest.raises(UserError, match="format version 2, this program reads 1") as found:
        load_checkpoint(path)
    assert not isinstance(found.value, ForeignFile)


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 5]]), torch.tensor([1.0, 2.0]), (9,), check_invariants=True)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (sparse(), "is not a plain dense tensor"),
        (torch.tensor([1.0, float("nan")]), "holds NaN or infinite values"),
        (torch.tensor([float("-inf")]).half(), "holds NaN or infinite values"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, tensor: torch.Tensor, reason: str) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"format": "ls-yolo", "version": 1, "optimizer": {"state": [{"m": torch.zeros(2)}, {"m": tensor}]}}, path)
    with pytest.raises(UserError, match=rf"bad\.pt: optimizer\.state\.1\.m {reason}"):
        load_checkpoint(path)


def test_names_of_nested_tensors() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [(name, id(tensor)) for name, tensor in tensors({"x": {"y": a, 0: [b, 1, ("z", c)]}})] == [("x.y", id(a)), ("x.0.0", id(b)), ("x.0.2.1", id(c))]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": torch.zeros(4, 3, 3, 3)}, r"x\.pt: tensor weight has shape \(4, 3, 3, 3\), \(4, 3, 1, 1\) was expected"),
        ({"weight": None}, "x.pt: weight is no tensor"),
        ({"more": torch.zeros(1)}, "x.pt: tensor more belongs to no layer"),
        ({"bias": "missing"}, "x.pt: tensor bias is missing"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], reason: str) -> None:
    model = torch.nn.Conv2d(3, 4, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights: dict[str, Any] = {**{name: torch.ones_like(value) for name, value in before.items()}, **change}
    if change.get("bias") == "missing":
        del weights["bias"]
    with pytest.raises(UserError, match=reason):
        load_weights_into(model, weights, "x.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing is filled half-way"


def test_weights_that_fit() -> None:
    model = torch.nn.Conv2d(3, 4, 1)
    load_weights_into(model, {"weight": torch.full((4, 3, 1, 1), 2.0), "bias": torch.ones(4)}, "x.pt")
    assert model.weight.eq(2).all() and model.bias is not None and model.bias.eq(1).all()
