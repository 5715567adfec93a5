"""Two programs measured alternately in one process, so that what the machine does meanwhile falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Seconds of each round: on the clock, and of the processors for this process (all threads), which other programs disturb less."""

    seconds: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median * 1000:.1f} ms ({min(self.seconds) * 1000:.1f} to {max(self.seconds) * 1000:.1f})"


def alternate(programs: Mapping[str, Callable[[], object]], rounds: int, per: int = 1, warm: int = 1) -> dict[str, Measured]:
    """Seconds per item of each program: `rounds` rounds in turn after `warm` unmeasured ones; a call handles `per` items."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(warm + rounds):
        order = list(programs) if number % 2 == 0 else list(programs)[::-1]
        for name in order:
            start, start_cpu = time.perf_counter(), time.process_time()
            programs[name]()
            if number >= warm:
                seconds[name].append(((time.perf_counter() - start) / per, (time.process_time() - start_cpu) / per))
    return {name: Measured(*zip(*values, strict=True)) for name, values in seconds.items()}


def ratio_line(title: str, unit: str, ours: Measured, theirs: Measured) -> str:
    """One line of a result: medians with their range, and how many times faster ours is."""
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    speed = f"{theirs.median / ours.median:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    work = statistics.median(theirs.cpu) / statistics.median(ours.cpu)
    return f"{title}: ours {ours}, yolov5 {theirs} per {unit}; {speed}; processor time {work:.2f}"
