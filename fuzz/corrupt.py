"""Damage a checkpoint in random ways and read it: python -m fuzz.corrupt CHECKPOINT.pt --runs 1000

Every damaged file must be refused with one clear line, or give exactly the content of the sound one.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import option, parse
from utils.errors import run


@dataclass(frozen=True)
class Options:
    """Cut and flip copies of a checkpoint; each must be refused or read exactly."""

    checkpoint: str = option("", "a checkpoint of this program", positional=True, metavar="CHECKPOINT.pt")
    runs: int = option(1000, "damaged copies")
    seed: int = option(0, "seed of the damages")


OPTIONS = parse(Options, prog="python -m fuzz.corrupt") if __name__ == "__main__" else Options()

import random  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from utils.checkpoint import load_checkpoint  # noqa: E402
from utils.errors import UserError  # noqa: E402

KINDS = ("cut", "one bit", "several bits", "zeros", "noise", "end overwritten")


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    """A copy of `data` with one kind of damage."""
    copy = bytearray(data)
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "end overwritten":  # the archive's directory
        for _ in range(rng.randint(1, 8)):
            copy[-rng.randint(1, min(20_000, len(copy)))] = rng.randrange(256)
    elif kind in ("zeros", "noise"):
        place, length = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096, 65536))
        piece = bytes(length) if kind == "zeros" else rng.randbytes(length)
        copy[place : place + length] = piece[: len(data) - place]
    else:
        for _ in range(1 if kind == "one bit" else rng.randint(2, 32)):
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    return bytes(copy)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, nested containers and tensors included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def main() -> int:
    """Damage, read, count; 1 where a damaged file was read as something else or failed otherwise."""
    data, sound = Path(OPTIONS.checkpoint).read_bytes(), load_checkpoint(OPTIONS.checkpoint)
    found, wrong, rng, began = Counter[str](), 0, random.Random(OPTIONS.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.pt"
        for number in range(OPTIONS.runs):
            kind = KINDS[number % len(KINDS)]
            changed = damage(data, kind, rng)
            path.write_bytes(changed)
            try:
                outcome = "exact" if same(load_checkpoint(path), sound) else "OTHER CONTENT"
            except UserError as error:
                outcome = "refused" if "\n" not in str(error) else "SEVERAL LINES"
            except Exception as error:  # what is looked for
                outcome = f"{type(error).__name__}: {error}"
            outcome = "unchanged" if changed == data else outcome
            if outcome not in ("refused", "exact", "unchanged"):
                wrong += 1
                print(f"{number}: {kind}: {outcome}")
            found[f"{kind}: {outcome}"] += 1
    print(f"{OPTIONS.runs} damaged copies of {len(data):,} bytes in {time.monotonic() - began:.0f} s, {wrong} wrong")
    print("\n".join(f"  {name}: {count}" for name, count in sorted(found.items())))
    return int(wrong > 0)


if __name__ == "__main__":
    run(main)
