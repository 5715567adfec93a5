"""utils/torchfile.py: data comes out of other people's pickles, and nothing else happens."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.torchfile import MAX_OPCODES, Record, read_torch_file


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file laid out as torch.save does, around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return path


def tensor_pickle(offset: int = 0, size: tuple[int, ...] = (2,), stride: tuple[int, ...] = (1,), announced: int = 4, kind: str = "FloatStorage") -> bytes:
    """The opcodes of one tensor over storage '0'."""

    def whole(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n"
        + kind.encode()
        + b"\nU\x010U\x03cpu"
        + b"J"
        + struct.pack("<i", announced)
        + b"tQ"
        + b"\x8a\x08"
        + struct.pack("<q", offset)
        + whole(size)
        + whole(stride)
        + b"\x89NtR."
    )


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_plain_values_and_tensors_come_back_as_torch_saved_them(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    content = {
        "whole": 7, "big": 2**70, "negative": -3, "real": 0.5, "yes": True, "no": False, "none": None, "text": "滑坡",
        "list": [1, [2, (3, 4, 5, 6)]], "set": {1, 2}, "ordered": collections.OrderedDict(a=1, b=2), "size": torch.Size([3, 4]),
        "float": shared, "column": shared[:, 1], "turned": shared.T, "half": shared.half(), "bfloat": shared.bfloat16(), "double": shared.double(),
        "long": torch.arange(3), "bool": torch.tensor([True, False]), "byte": torch.tensor([250], dtype=torch.uint8), "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert list(found) == list(content)
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_inert_objects(tmp_path: Path, protocol: int) -> None:
    content = {"opt": __import__("argparse").Namespace(batch=16, path=Path("x")), "best": np.float64(0.5), "fitness": np.array([0.5]), "again": None}
    content["again"] = content["opt"]
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "a.pt")
    assert isinstance(found["opt"], Record) and (found["opt"].module, found["opt"].name) == ("argparse", "Namespace")
    assert found["opt"].attributes["batch"] == 16 and isinstance(found["opt"].attributes["path"], Record)
    assert found["again"] is found["opt"]


class Call:
    """Pickles as a call of `function`: what a malicious file does."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {0}",)),
        (exec, ("open({0!r}, 'w')",)),
        (eval, ("open({0!r}, 'w')",)),
        (getattr, ("text", "upper")),
        (__import__, ("os",)),
        (open, ("{0}", "w")),
        (__import__("subprocess").Popen, (["touch", "{0}"],)),
        (__import__("importlib").import_module, ("os",)),
        (torch.load, ("{0}",)),
        (__import__("functools").partial, (os.system, "touch {0}")),
        (np.load, ("{0}",)),
    ],
)
@pytest.mark.parametrize("nest", [lambda call: call, lambda call: {"model": [({"state": call},)]}], ids=["top", "nested"])
def test_a_call_is_refused_by_name_and_never_made(tmp_path: Path, function: Any, arguments: tuple[Any, ...], nest: Any) -> None:
    sentinel = tmp_path / "ran"
    filled = [a.format(str(sentinel)) if isinstance(a, str) else a for a in arguments]
    torch.save(nest(Call(function, *filled)), tmp_path / "bad.pt")
    with pytest.raises(UserError, match="was refused") as error:
        read_torch_file(tmp_path / "bad.pt")
    assert function.__name__ in str(error.value) or "partial" in str(error.value) or "posix" in str(error.value)
    assert not sentinel.exists()


def test_an_allowed_package_gives_no_way_out(tmp_path: Path) -> None:
    odd = [("models.common", "os.system"), ("models.common;x", "C"), ("modelsX", "C"), ("torch.nn.modules.container", "torch.os"), ("torch", "load")]
    for module, name in odd:
        data = f"\x80\x02c{module}\n{name}\n.".encode("latin-1")
        with pytest.raises(UserError, match="was refused"):
            read_torch_file(archive(tmp_path / "a.pt", data))
    # A class of an allowed package stays a record even where such a class really exists here.
    found = read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02cmodels.builder\nload_config\n(U\x0b/etc/passwdtR."))
    assert isinstance(found, Record) and found.args == ("/etc/passwd",)


def test_a_bound_method_of_a_record_is_inert_and_getattr_of_anything_else_is_refused(tmp_path: Path) -> None:
    def read(owner: bytes, name: bytes) -> Any:
        return read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02cbuiltins\ngetattr\n" + owner + b"U" + bytes([len(name)]) + name + b"\x86R."))

    found = read(b"cmodels.common\nConv\n)\x81", b"forward_fuse")
    assert isinstance(found, Record) and found.args[1] == "forward_fuse"  # type: ignore[index]
    for owner, name in [(b"cmodels.common\nConv\n", b"os"), (b"cmodels.common\nConv\n)\x81", b"__class__"), (b"}", b"get"), (b"U\x01a", b"upper")]:
        with pytest.raises(UserError, match="was refused"):
            read(owner, name)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="sparse"):
        read_torch_file(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (tensor_pickle(size=(5,)), "5 elements reaches to element 4 of a storage of 4"),
        (tensor_pickle(offset=3), "2 elements reaches to element 4"),
        (tensor_pickle(offset=2**62), "whole numbers"),
        (tensor_pickle(offset=-1), "whole numbers"),
        (tensor_pickle(size=(2, 2), stride=(3, 1)), "reaches to element 4"),
        (tensor_pickle(size=(2**30,), stride=(1,)), "1073741824 elements"),
        (tensor_pickle(size=(2**30, 1), stride=(0, 9), offset=4), "1073741824 elements"),
        (tensor_pickle(size=(1,), stride=(-1,)), "whole numbers"),
        (tensor_pickle(size=(1, 1)), "do not match"),
        (tensor_pickle(size=(1,) * 9, stride=(1,) * 9), "short tuple"),
        (tensor_pickle(size=(2**39, 2**39, 0), stride=(1, 1, 1)), "not readable"),
        (tensor_pickle(announced=5), "5 torch.float32 were announced"),
        (tensor_pickle(kind="DoubleStorage"), "4 torch.float64 were announced"),
        (tensor_pickle(kind="UntypedStorage"), "was refused"),
        (b"\x80\x02U\x05wrongQ.", "no tensor storage"),
        (b"\x80\x02ctorch\nFloatStorage\n(tR.", "by itself"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n(NNNtR.", "no tensor"),
        (b"\x80\x02ccollections\nOrderedDict\n((K\x01K\x02ttR.", "not readable"),
        (b"\x80\x02}((K\x01tK\x02u.", "as a key"),
        (b"\x80\x02NNR.", "calls something"),
        (b"\x80\x02.", "not readable"),
        (b"\x80\x02t.", "not readable"),
        (b"\x80\x02h\x05.", "not readable"),
        (b"\x80\x02K\x01", "not readable"),
        (b"\x80\x02\x86.", "more values than"),
        (b"\x80\x02\x82\x05.", "EXT1"),
        (b"(iposix\nsystem\n.", "INST"),
        (b"\xff", "not readable"),
        (b"", "not readable"),
    ],
)
def test_a_broken_or_hostile_pickle_is_one_line(tmp_path: Path, pickled: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        read_torch_file(archive(tmp_path / "a.pt", pickled, {"0": FOUR}))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_tensor_that_repeats_elements_takes_no_memory(tmp_path: Path) -> None:
    for size, stride in [((2**31, 2**33), (0, 0)), ((3, 2), (1, 1))]:
        found = read_torch_file(archive(tmp_path / "a.pt", tensor_pickle(size=size, stride=stride), {"0": FOUR}))
        assert isinstance(found, Record) and found.args == (size, stride)


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="opcodes"):
        read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02" + b"N0" * (MAX_OPCODES // 2) + b"N."))
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(archive(tmp_path / "a.pt", tensor_pickle(), {"0": bytes(1000)}, zipfile.ZIP_DEFLATED))
    # Tuples nested far deeper than any stack: built, and let go, without recursion.
    deep = read_torch_file(archive(tmp_path / "a.pt", b"\x80\x02)" + b"\x85" * 200_000 + b"."))
    assert len(deep) == 1


def test_files_that_are_no_such_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(UserError, match="no such file"):
        read_torch_file(path)
    with pytest.raises(UserError, match="folder"):
        read_torch_file(tmp_path)
    for content, reason in [(b"", "empty"), (b"<html>", "not a zip"), (pickle.dumps({"a": 1}), "before 1.6")]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_torch_file(path)
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_torch_file(path)
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="before 1.6"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello.txt", "x")
    with pytest.raises(UserError, match="data.pkl"):
        read_torch_file(path)


def test_a_flipped_byte_in_a_tensor_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.full((1000,), 0.7)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(struct.pack("<f", 0.7)) + 400] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(tmp_path / "a.pt")


def sample() -> tuple[bytes, dict[str, bytes]]:
    """The pickle and storages of a small module."""
    buffer = io.BytesIO()
    torch.save({"model": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2)), "epoch": 3}, buffer)
    with zipfile.ZipFile(buffer) as file:
        names = file.namelist()
        root = names[0].split("/")[0]
        keys = [name.rsplit("/", 1)[1] for name in names if name.startswith(f"{root}/data/")]
        return file.read(f"{root}/data.pkl"), {key: file.read(f"{root}/data/{key}") for key in keys}


PICKLE, STORAGES = sample()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PICKLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_gives_data_or_one_error(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    data = bytearray(PICKLE)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    with contextlib.suppress(UserError):
        read_torch_file(archive(path, bytes(data), STORAGES))


def test_the_sample_is_read_without_damage(tmp_path: Path) -> None:
    found = read_torch_file(archive(tmp_path / "a.pt", PICKLE, STORAGES))
    assert found["epoch"] == 3 and found["model"].name == "Sequential"
    assert {op.name for op, _, _ in pickletools.genops(PICKLE)} >= {"NEWOBJ", "BUILD", "BINPERSID", "REDUCE"}
