"""Training on given windows of videos, where a loader of videos would draw its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pipelines.graph import Placement
from pipelines.order import Order
from pipelines.windows import WindowLoader, Windows, frames_from

from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec
from shards import Dataset, InputError


class ClipBatches:
    """Endless batches of windows, augmented as the spec says, in a new order each epoch.

    windows, labels: (N,) each; one that occurs k times is shown k times an epoch, each time params anew. Batches have
    views and label, as those of pipelines.loader; the whole state is samples consumed. A video that cannot be decoded
    leaves its place to others of the batch. Raises InputError where that is all of them.
    """

    def __init__(
        self,
        dataset: Dataset,
        windows: Windows,
        labels: NDArray[np.int64],
        spec: ViewSpec,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        placement: Placement,
        threads: int,
        device: torch.device,
    ) -> None:
        self._dataset, self._windows, self._labels, self._spec = dataset, windows, labels, spec
        self._order = Order(len(windows), batch_size * world, seed)
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._placement, self._threads, self._device = placement, threads, device
        self._samples = 0
        self._running: Iterator[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, int]:
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self._samples = int(state["samples"])

    def close(self) -> None:
        """End the threads that make batches ahead."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._running = None

    def __iter__(self) -> "ClipBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self._running, None) if self._running is not None else None
        if batch is None:
            self._running = self._epoch()
            batch = next(self._running)
        self._samples += self._order.global_batch
        return batch

    def _epoch(self) -> Iterator[dict[str, Any]]:
        """What is left of this epoch for this process."""
        epoch, slot = self._order.place(self._samples)
        whole = self._order.epoch(epoch)[slot : self._order.epoch_samples]
        mine = whole.reshape(-1, self._world, self._batch_size)[:, self._rank].ravel()

        def params(places: NDArray[np.int64]) -> ViewParams:
            numbers = mine[places]
            of = self._windows.at(numbers)
            facts = [self._dataset.column(name)[of.row] for name in ("num_frames", "width", "height")]
            found = sample_params(self._spec, numbers, *facts, seed=self._seed, epoch=epoch)
            return replace(found, frames=frames_from(self._spec, of.start, facts[0]))

        loader = WindowLoader(
            self._dataset,
            self._windows.at(mine),
            self._spec,
            batch_size=self._batch_size,
            placement=self._placement,
            threads=self._threads,
            device=self._device,
            params=params,
        )
        for batch in loader:
            there = batch["index"]
            if not len(there):
                raise InputError(
                    f"{self._dataset.path}: none of a batch's videos can be decoded ({loader.failed})"
                )
            filled = torch.arange(self._batch_size) % len(there)
            yield {
                "views": batch["views"] if len(there) == self._batch_size else batch["views"][filled],
                "label": torch.from_numpy(self._labels[mine[there.numpy()]])[filled],
            }
