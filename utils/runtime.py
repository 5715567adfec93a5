"""The machine a script runs on: device, threads, memory, signals, and the folder of a run."""

from __future__ import annotations

import os
import re
import signal
import sys
import types
from pathlib import Path

import torch

from utils.errors import EnvironmentFault, UserError


def select_device(name: str) -> torch.device:
    """'' -> the first GPU or the CPU; 'cpu', '0', 'cuda:1', 'mps'. Raises EnvironmentFault where it is not there."""
    word = name.strip().lower()
    if word == "cpu" or (not word and not torch.cuda.is_available()):
        return torch.device("cpu")
    if word == "mps":
        if not torch.backends.mps.is_available():
            raise EnvironmentFault("--device mps: this PyTorch has no Metal device; use --device cpu")
        return torch.device("mps")
    index = word.removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdecimal():
        raise UserError(f"--device {name!r}: cpu, a GPU number such as 0, or cuda:0 was expected (one device; several are not supported yet)")
    if not torch.cuda.is_available():
        raise EnvironmentFault(f"--device {name}: PyTorch {torch.__version__} sees no CUDA device; check the driver, or use --device cpu")
    if int(index) >= torch.cuda.device_count():
        raise EnvironmentFault(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    device = torch.device("cuda", int(index))
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise EnvironmentFault(
            f"--device {name}: {torch.cuda.get_device_name(device)} (compute capability {capability}) does not run with PyTorch {torch.__version__} "
            f"({str(error).splitlines()[0]}); install a build for this GPU"
        ) from error
    return device


def inference_dtype(half: bool, device: torch.device) -> torch.dtype:
    """What a network computes in: with `half` float16 on a GPU and bfloat16 on a CPU (which has no fast float16), else float32."""
    if not half:
        return torch.float32
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def precision_line(dtype: torch.dtype) -> str:
    """The name of what a network computes in, with a warning where bfloat16 is asked of a CPU without instructions for it (AVX512-BF16, AMX, ARM's)."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not torch.bfloat16:
        return name
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:  # another system
        return name
    return name if flags & {"avx512_bf16", "amx_bf16", "bf16"} else f"{name} (slower than float32 on this CPU, which has no instructions for it)"


def device_line(device: torch.device) -> str:
    """One line that says what the run computes on."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, PyTorch {torch.__version__}"
    return f"{device.type}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def worker_count(wanted: int | None, device: torch.device) -> int:
    """Processes that draw pictures: as many as `wanted`; by default up to 8 beside a GPU, none on the CPU, where the model needs the cores more."""
    if wanted is not None:
        return wanted
    return min(os.cpu_count() or 1, 8) if device.type == "cuda" else 0


def memory_used(device: torch.device) -> float:
    """GiB: reserved on the GPU, or the peak resident memory of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory, of the GPU or of the machine, is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))


def new_folder(project: str | Path, name: str, exist_ok: bool) -> Path:
    """Make and return project/name, or name2, name3, ... where it exists and `exist_ok` is not given; no two runs are given the same."""
    wanted = folder = Path(project) / name
    try:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=exist_ok)
                break
            except FileExistsError:
                if exist_ok:
                    raise
            pattern = re.compile(re.escape(wanted.name) + r"([1-9][0-9]*)")
            numbers = [int(found.group(1)) for entry in wanted.parent.iterdir() if (found := pattern.fullmatch(entry.name))]
            folder = wanted.with_name(f"{wanted.name}{max([1, *numbers]) + 1}")
        probe = folder / ".write-test"
        probe.write_bytes(b"x")
        probe.unlink()
    except (NotADirectoryError, FileExistsError):
        raise UserError(f"{folder}: a file stands where a folder was expected; choose another --project or --name") from None
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be written ({error.strerror}); choose another --project") from error
    return folder


class StopFlag:
    """Remembers SIGTERM, Slurm's SIGUSR1 or Ctrl-C so that the loop can save first; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.raised = False
        self.interrupted = False  # by Ctrl-C
        self._old: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if self.raised:
            os._exit(130 if number == signal.SIGINT else 143)
        self.raised, self.interrupted = True, number == signal.SIGINT
