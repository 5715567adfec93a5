"""Files that other programs wrote with `torch.save`, read as data: nothing in them is imported, called or run.

Such a file is a zip archive: a pickle that describes objects, and one raw block of bytes per tensor storage. The pickle's
opcodes are interpreted here on a stack of our own. A class becomes an inert `Record`; tensors, containers and numbers
become themselves; any other name (os.system, builtins.getattr, ...) is refused before it is even looked up.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import ENVIRONMENT, UserError, exit_code

# A trained YOLOv5x with its optimizer has under 200,000 opcodes in under 2 MB; its tensors take 0.7 GB.
MAX_OPCODES = 3_000_000
MAX_PICKLE_BYTES = 64 << 20
MAX_MEMBERS = 100_000
MAX_DIMENSIONS = 8

# Classes that a YOLOv5 checkpoint's objects are of, and names that its settings, scores and dates may hold: all stay inert.
_INERT_PACKAGES = ("models", "utils", "yolov5", "torch.nn.modules", "torch.nn.parameter")
_INERT_NAMES = {
    ("torch", "device"),
    ("torch", "float16"),
    ("torch", "float32"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
    ("datetime", "datetime"),
}
_STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.uint8,  # any byte is a valid uint8, not a valid bool; read as 0 and 1 below
}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(eq=False, slots=True)
class Record:
    """An object of somebody else's class: its name, what it was made from and its attributes, with no behaviour."""

    module: str
    name: str
    args: object = ()
    state: object = None

    @property
    def attributes(self) -> dict[Any, Any]:
        """The attributes by name, empty where the object has none."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle mentions; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Malformed(Exception):
    """The pickle breaks its own rules or ours; the message says how."""


def read_torch_file(path: str | Path) -> Any:
    """The object in a `torch.save` file as plain data: dict, list, tuple, set, numbers, text, Tensor (own memory) and Record.

    Raises UserError for a file that is no such archive, is damaged, is beyond the limits above, holds anything but
    dense tensors inside their storage, or mentions a name that no YOLOv5 checkpoint holds.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, a .pt file was expected") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: {_why_not_zip(path, error)}") from None
    except _Malformed as error:
        raise UserError(f"{path}: {_one_line(error)}; nothing in the file was run") from None
    # NotImplementedError: a zip feature such as an unknown compression; RuntimeError: an encrypted member.
    # OSError: a directory that points before the file's start.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, EOFError, RuntimeError, OSError) as error:
        if exit_code(error) == ENVIRONMENT:
            raise
        raise UserError(f"{path}: not readable as a checkpoint ({type(error).__name__}: {_one_line(error)}); nothing in the file was run") from None


def _one_line(error: Exception) -> str:
    """The message, which may quote what the file holds, a whole tensor even, in one line of bearable length."""
    return " ".join(str(error).split())[:300]


def _why_not_zip(path: Path, error: zipfile.BadZipFile) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "is empty, a .pt file was expected"
    if start[:1] == b"\x80":
        return "was saved in the format of torch before 1.6; load it in the program that made it and save it again with a newer torch"
    if start == b"PK\x03\x04":
        return f"is damaged or incomplete ({error}); copy or download it again"
    return "is no torch checkpoint (not a zip archive); a .pt file written by torch.save was expected"


def _read_archive(archive: zipfile.ZipFile, file_bytes: int) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) > MAX_MEMBERS:
        raise _Malformed(f"{len(members)} archive members, at most {MAX_MEMBERS} were expected")
    # torch.save never compresses, so what the members unpack to is bounded by the file's own size.
    if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in members.values()):
        raise _Malformed("holds compressed members, which torch.save never writes")
    if sum(info.file_size for info in members.values()) > file_bytes:
        raise _Malformed("holds overlapping members")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Malformed("holds no single data.pkl, so torch.save did not write it")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") for name in members):
        raise _Malformed("is a TorchScript program, not a checkpoint; give the .pt that training wrote")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder").strip() != b"little":
        raise _Malformed("was written on a big-endian machine, which is not supported")
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise _Malformed(f"its pickle has {members[pickles[0]].file_size} bytes, at most {MAX_PICKLE_BYTES} were expected")
    return _Interpreter(lambda key: archive.read(f"{root}data/{key}")).run(archive.read(pickles[0]))


@dataclass
class _Interpreter:
    """A pickle machine that builds data only. `read_storage` gives the bytes of a storage by its key."""

    read_storage: Callable[[str], bytes]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)  # the stacks below each open MARK
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Tensor] = field(default_factory=dict)

    def run(self, data: bytes) -> Any:
        """The object that the pickle describes."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise _Malformed(f"its pickle has more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise _Malformed(f"uses the pickle opcode {opcode.name}, which no checkpoint needs")
            step(self, argument)
        raise _Malformed("its pickle has no end")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        """The topmost `count` values, lowest first."""
        if count > len(self.stack):
            raise _Malformed("its pickle takes more values than it put")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values

    def mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """All values since the last MARK."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else int(index)] = self.stack[-1]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _Malformed("its pickle appends to something that is no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _Malformed("its pickle sets keys of something that is no dict")
        target.update(_mapping(zip(values[::2], values[1::2], strict=True)))

    def add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise _Malformed("its pickle adds to something that is no set")
        target.update(map(_key, values))

    def name(self, module: object, name: object) -> None:
        self.push(_allowed(module, name))

    def construct(self, function: object, arguments: Any) -> None:
        """What `function(*arguments)` stands for: data for the few names in _CONSTRUCTORS, a Record for every other class."""
        if not isinstance(function, _Name):
            raise _Malformed("its pickle calls something that is no class")
        if not isinstance(arguments, (tuple, list)):
            raise _Malformed(f"its pickle calls {function} without a list of arguments")
        known = _CONSTRUCTORS.get((function.module, function.name))
        if known is not None:
            self.push(known(*arguments))
        elif function.module == "torch" and function.name in _STORAGES:
            raise _Malformed(f"its pickle makes a {function} by itself, outside a tensor")
        else:
            self.push(Record(function.module, function.name, tuple(arguments)))

    def build(self, _: object) -> None:
        """Give the object below the top its state. A dict's extra attributes (`_metadata` of a state dict) are left out."""
        target, state = self.pop(2)
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):
            raise _Malformed("its pickle sets the state of something that is no object")
        self.push(target)

    def load_storage(self, _: object) -> None:
        """Replace a persistent id ('storage', type, key, location, elements) by a 1-D tensor of the storage's elements."""
        (identity,) = self.pop(1)
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise _Malformed("its pickle refers to something that is no tensor storage")
        _, kind, key, _, elements = identity
        if not isinstance(kind, _Name) or kind.module != "torch" or kind.name not in _STORAGES or not isinstance(key, str):
            raise _Malformed(f"its pickle refers to a storage of unknown type {kind}")
        dtype = _STORAGES[kind.name]
        if key not in self.storages:
            data = bytearray(self.read_storage(key))
            if len(data) % dtype.itemsize:
                raise _Malformed(f"storage {key} has {len(data)} bytes, a multiple of {dtype.itemsize} was expected")
            values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self.storages[key] = values.ne(0) if kind.name == "BoolStorage" else values
        storage = self.storages[key]
        if storage.dtype != (torch.bool if kind.name == "BoolStorage" else dtype) or len(storage) != elements:
            raise _Malformed(f"storage {key} holds {len(storage)} {storage.dtype} values, {elements} {dtype} were announced")
        self.push(storage)


def _allowed(module: object, name: object) -> _Name:
    """The name, if a YOLOv5 checkpoint may hold it; else _Malformed."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Malformed("its pickle names a class by something that is no text")
    package_known = any(module == package or module.startswith(f"{package}.") for package in _INERT_PACKAGES)
    known = (
        (module, name) in _CONSTRUCTORS
        or (module, name) in _INERT_NAMES
        or (module == "torch" and name in _STORAGES)
        or (package_known and all(_IDENTIFIER.fullmatch(part) for part in (*module.split("."), name)))
    )
    if not known:
        raise _Malformed(f"refers to {f'{module}.{name}'[:200]!r}, which no YOLOv5 checkpoint holds: it may be malicious and was refused")
    return _Name(module, name)


def _key(value: Any) -> Any:
    # Only flat keys: hashing a deeply nested tuple would overflow the C stack.
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise _Malformed(f"its pickle uses a {type(value).__name__} as a key")


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _set(values: Any = ()) -> set[Any]:
    return {_key(value) for value in values}


def _whole(values: Any) -> tuple[int, ...]:
    """A tensor's size or stride, checked."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS or not all(type(value) is int and 0 <= value < 2**40 for value in values):
        raise _Malformed("a tensor's size or stride is not a short tuple of whole numbers")
    return values


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor | Record:
    """A dense view of a storage, refused where it would reach outside it.

    A view that repeats elements (YOLOv5's cached grids) is no weight and could claim any amount of memory: it stays a record.
    """
    if not isinstance(storage, Tensor):
        raise _Malformed("a tensor has no storage")
    size, stride = _whole(size), _whole(stride)
    (offset,) = _whole((offset,))
    if len(size) != len(stride):
        raise _Malformed("a tensor's size and stride do not match")
    elements = 1
    for side in size:
        elements *= side
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if elements else 0
    if elements and last >= len(storage):
        raise _Malformed(f"a tensor of {elements} elements reaches to element {last} of a storage of {len(storage)}")
    if elements > len(storage):
        return Record("torch", "Tensor", (size, stride))
    return storage.as_strided(size, stride, offset) if elements else storage.new_empty(size)


def _parameter(data: Any, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise _Malformed("a parameter has no tensor")
    return data


def _method(owner: Any, name: Any, *_: object) -> Record:
    """`owner.name`, as a fused YOLOv5 network stores the method it swapped in; stays inert, and of anything but a record it is refused."""
    if not isinstance(owner, Record) or not isinstance(name, str) or name.startswith("_"):
        raise _Malformed("refers to 'builtins.getattr' for something that is no network part: it may be malicious and was refused")
    return Record("builtins", "getattr", (owner, name))


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _mapping,
    ("__builtin__", "set"): _set,
    ("builtins", "set"): _set,
    ("__builtin__", "getattr"): _method,
    ("builtins", "getattr"): _method,
    ("torch", "Size"): _whole,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}

_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_Step = Callable[[_Interpreter, Any], object]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_LITERALS, _Interpreter.push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Interpreter.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[int(index)])),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "MARK": _Interpreter.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "FROZENSET": lambda machine, _: machine.push(_set(machine.pop_mark())),
    "POP": lambda machine, _: machine.pop(1),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "APPEND": lambda machine, _: machine.append(list(machine.pop(1))),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.pop_mark()),
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.construct(*machine.pop(2)),
    "NEWOBJ": lambda machine, _: machine.construct(*machine.pop(2)),
    "BUILD": _Interpreter.build,
    "BINPERSID": _Interpreter.load_storage,
}
