"""Loss sums and the first value that is not finite, kept on the device and looked at now and then: asking a GPU every batch would make it wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.errors import Diverged

EVERY = 20  # batches between two looks at a GPU; the CPU has nothing to wait for
CAUSES = ("the loss", "a gradient")


class Watch:
    """Adds up losses and keeps an optimizer from stepping once a value was not finite; `look` tells, and then raises Diverged."""

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self.every = every or (1 if device.type == "cpu" else EVERY)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.bad = torch.zeros((), dtype=torch.int64, device=device)  # 0, or 1 + len(CAUSES) * batch since the last look + cause
        self.batches: list[Callable[[str], str]] = []

    def start(self, sums: Sequence[float]) -> None:
        """Begin from these sums (of box, objectness and class loss)."""
        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self.batches.clear()

    def add(self, losses: Tensor, message: Callable[[str], str]) -> None:
        """Take in a batch: its losses (3,), and what to say of it where a value, named by its argument, is not finite."""
        self.batches.append(message)
        self.sums += losses
        self._flag(losses, 0)

    def guard(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Let the (fused) optimizer's next step do nothing if the norm of the gradients, or anything before, is not finite."""
        self._flag(norm, 1)
        optimizer.found_inf = (self.bad > 0).float()  # type: ignore[attr-defined]  # the flag by which a gradient scaler tells it the same

    def look(self) -> list[float]:
        """The sums so far. Raises Diverged with the message of the first bad batch."""
        *sums, bad = torch.cat([self.sums, self.bad[None].double()]).tolist()
        if bad:
            batch, cause = divmod(int(bad) - 1, len(CAUSES))
            raise Diverged(self.batches[batch](CAUSES[cause]))
        self.batches.clear()
        return sums

    def _flag(self, values: Tensor, cause: int) -> None:
        code = 1 + len(CAUSES) * (len(self.batches) - 1) + cause
        self.bad = torch.where((self.bad == 0) & ~torch.isfinite(values).all(), code, self.bad)
