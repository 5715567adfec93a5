"""Where the time of training goes: waiting for pictures, and a profile of some steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from utils.complexity import synchronize

Item = TypeVar("Item")
PARTS = ("wait", "transfer", "forward", "loss", "backward", "optimizer", "ema")  # the record_function names of a training step
WARM_UP = 3  # steps before the profile
OPERATORS = 12  # rows of the second table


class WaitClock:
    """Seconds that a loop over `waiting(items)` spends waiting for the next item."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = self.last = 0.0  # altogether, and for the last item

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the clock running between one and the next."""
        iterator, end = iter(items), object()
        while True:
            asked = time.perf_counter()
            with record_function("wait"):
                item = next(iterator, end)
            self.last = time.perf_counter() - asked
            self.waited += self.last
            if item is end:
                return
            yield item  # type: ignore[misc]

    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def share(self) -> float:
        """Share of the time spent waiting."""
        return self.waited / self.spent()


class StepProfile:
    """Records `steps` steps after a few warm ones, then writes folder/trace.json (for chrome://tracing or Perfetto) and prints where the time went."""

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.folder, self.steps, self.device, self.done = folder, steps, device, 0
        self.started = self.waited = 0.0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self.profile = profile(activities=activities) if steps else None

    def step(self, waited: float) -> None:
        """Called after every step with the seconds it waited for data."""
        if self.profile is None:
            return
        self.done += 1
        if self.done == WARM_UP:
            synchronize(self.device)
            self.profile.start()
            self.started, self.waited = time.perf_counter(), 0.0
        elif self.done > WARM_UP:
            self.waited += waited
            if self.done == WARM_UP + self.steps:
                self.close()

    def close(self) -> None:
        """Write and print what was recorded; called at the latest when training ends."""
        if self.profile is None or self.done <= WARM_UP:
            return
        synchronize(self.device)
        self.steps, seconds = self.done - WARM_UP, time.perf_counter() - self.started
        self.profile.stop()
        self.profile.export_chrome_trace(str(self.folder / "trace.json"))
        print(self.table(seconds, self.waited))
        self.profile = None

    def table(self, seconds: float, waited: float) -> str:
        """Milliseconds a step of each part and of the costliest operators; `seconds` and `waited` are of all the recorded steps."""
        assert self.profile is not None
        events, on_cpu = self.profile.key_averages(), self.device.type == "cpu"
        each, step = 1e-3 / self.steps, 1000 * seconds / self.steps  # the profiler counts microseconds
        lines = [f"profile: {self.steps} steps, {step:.1f} ms each, {waited / seconds:.1%} waiting for data; {self.folder / 'trace.json'}"]
        lines.append(f"{'part':<12} {'host ms':>9} {'share':>7}")
        named = {event.key: event for event in events}
        for part in PARTS:
            if part in named:
                spent = named[part].cpu_time_total * each
                lines.append(f"{'  ' * (part == 'loss') + part:<12} {spent:9.2f} {spent / step:7.1%}")
        busy = [(event.self_cpu_time_total if on_cpu else event.self_device_time_total, event) for event in events if event.key not in PARTS]
        if not on_cpu:
            lines.append(f"the device works {sum(time for time, _ in busy) * 1e-6 / seconds:.1%} of the time")
        lines.append(f"{'operator':<48} {'ms':>9} {'calls':>7}")
        for spent, event in sorted(busy, key=lambda pair: -pair[0])[:OPERATORS]:
            lines.append(f"{event.key[:48]:<48} {spent * each:9.2f} {event.count / self.steps:7.1f}")
        return "\n".join(lines)
