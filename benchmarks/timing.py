"""Two programs measured alternately, so that what the machine does meanwhile falls on both; and the rows that come of it."""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OURS, PEER = "ours", "peer"
Program = Callable[[], object]
Recipe = tuple[Callable[..., Program], tuple[Any, ...]]  # a function of a module and its arguments, both picklable: called, it makes the program


@dataclass(frozen=True)
class Settings:
    """How rows are measured. Every row function takes this and nothing else."""

    device: str = "cpu"  # as --device
    peer: str | None = None  # "yolov5", or None where it is not installed: then ours is measured alone
    rounds: int = 0  # measured rounds per program; 0: each row's own number
    threads: int = 0  # threads of PyTorch; 0: its own choice
    quick: bool = False  # the smallest sizes, to see that a row works

    def rounds_or(self, usual: int) -> int:
        """The number of rounds of a row that usually takes `usual`."""
        return self.rounds or (1 if self.quick else usual)


@dataclass(frozen=True)
class Measured:
    """Values of each round, as a rule seconds: on the clock, and of the processors for this process (all threads), which others disturb less."""

    seconds: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median * 1000:.1f} ms ({min(self.seconds) * 1000:.1f} to {max(self.seconds) * 1000:.1f})"


@dataclass(frozen=True)
class Row:
    """One line of the result. Less is better in both columns: `ratio` says how many times better ours is."""

    row: str  # its name on the command line
    unit: str  # of the numbers: "s/image", "s/step", "bytes"
    ours: Measured
    peer: Measured | None
    note: str = ""  # what was compared, where that is not plain

    @property
    def ratio(self) -> float | None:
        """The peer's median over ours."""
        return self.peer.median / self.ours.median if self.peer else None

    @property
    def work(self) -> float | None:
        """The same of processor time, which other programs on the machine disturb less; None where a row has none."""
        return statistics.median(self.peer.cpu) / statistics.median(self.ours.cpu) if self.peer and self.ours.cpu and self.peer.cpu else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest ratio of a round."""
        if self.peer is None:
            return None
        ratios = [theirs / ours for ours, theirs in zip(self.ours.seconds, self.peer.seconds, strict=True)]
        return min(ratios), max(ratios)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, numbers in `unit`."""
        peer = self.peer.median if self.peer else None
        return {"row": self.row, "ours": self.ours.median, "peer": peer, "unit": self.unit, "ratio": self.ratio, "spread": self.spread, "work": self.work}


def row_of(module: str, name: str, settings: Settings) -> Row:
    """The row `name` of benchmarks/`module`.py. Called in a process of its own: what a row imports, allocates and sets touches no other."""
    row: Row = getattr(importlib.import_module(f"benchmarks.{module}"), name)(settings)
    return row


def alternate(programs: Mapping[str, Program], rounds: int, per: int = 1, warm: int = 1) -> dict[str, Measured]:
    """Seconds per item of each program: `rounds` rounds in turn after `warm` unmeasured ones; a call handles `per` items."""
    return _take_turns({name: _timed(program) for name, program in programs.items()}, rounds, per, warm)


def alternate_processes(programs: Mapping[str, Recipe], rounds: int, per: int = 1, warm: int = 1) -> dict[str, Measured]:
    """As `alternate`, each program made and called in a process of its own, where allocator, threads and imports are its own."""
    context = multiprocessing.get_context("spawn")
    children = {}
    try:
        for name, (build, arguments) in programs.items():
            here, there = context.Pipe()
            children[name] = (context.Process(target=_serve, args=(there, build, arguments)), here)  # no daemon: the peer starts a pool
            children[name][0].start()
            there.close()
        return _take_turns({name: lambda here=here: _asked(here) for name, (_, here) in children.items()}, rounds, per, warm)  # type: ignore[misc]
    finally:
        for process, here in children.values():
            here.close()
            process.join()


def measure(row: str, unit: str, programs: Mapping[str, Program], rounds: int, per: int = 1, warm: int = 1, note: str = "") -> Row:
    """A row of the programs OURS and, where the peer is there, PEER."""
    found = alternate(programs, rounds, per, warm)
    return Row(row, unit, found[OURS], found.get(PEER), note)


def _take_turns(programs: Mapping[str, Callable[[], tuple[float, float]]], rounds: int, per: int, warm: int) -> dict[str, Measured]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(warm + rounds):
        order = list(programs) if number % 2 == 0 else list(programs)[::-1]
        for name in order:
            seconds, cpu = programs[name]()
            if number >= warm:
                found[name].append((seconds / per, cpu / per))
    return {name: Measured(*zip(*values, strict=True)) for name, values in found.items()}


def _timed(program: Program) -> Callable[[], tuple[float, float]]:
    def call() -> tuple[float, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        program()
        return time.perf_counter() - start, time.process_time() - start_cpu

    return call


def _serve(connection: Any, build: Callable[..., Program], arguments: tuple[Any, ...]) -> None:
    """The life of a program's process: one call for every word that comes, until the other end closes."""
    timed = _timed(build(*arguments))
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(timed())


def _asked(connection: Any) -> tuple[float, float]:
    connection.send("go")
    seconds, cpu = connection.recv()
    return seconds, cpu
