"""How long the training loop waits for data, and the means of its metrics, between two log lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Meter:
    """Sums over some optimizer steps; begins when it is made."""

    def __init__(self) -> None:
        self._began, self._waited, self._steps, self._batches = time.perf_counter(), 0.0, 0, 0
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches a batch."""
        since = time.perf_counter()
        yield
        self._waited += time.perf_counter() - since

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Scalars of one batch, on any device; nothing is synchronised here."""
        self._batches += 1
        for name, value in metrics.items():
            self._sums[name] = (
                self._sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            )

    def step(self) -> None:
        """An optimizer step is done."""
        self._steps += 1

    def names(self) -> list[str]:
        return list(self._sums)

    def means(self, device: torch.device) -> Tensor:
        """Means over the batches, in the order of `names`, as one tensor."""
        return torch.stack([value.to(device) for value in self._sums.values()]) / self._batches

    def speed(self, clips: int) -> dict[str, float]:
        """data_ms and step_ms, milliseconds a step; clips_per_s for `clips` a step; wait_share, 0–1."""
        seconds = time.perf_counter() - self._began
        return {
            "data_ms": 1000 * self._waited / self._steps,
            "step_ms": 1000 * seconds / self._steps,
            "clips_per_s": clips * self._steps / seconds,
            "wait_share": self._waited / seconds,
        }
