"""What is timed: the samples of a run, in the order and with the parameters that a loader gives them."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loader.rounds import Figures, Part, rate
from pipelines.sampler import Sample, ShuffledOrder, TrainSampler
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec
from shards import Dataset

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Source:
    """Rows (N,) of a data set, viewed through a spec; a pickled one opens its files again. clips: of one video in a batch."""

    dataset: Dataset
    rows: NDArray[np.int64]
    spec: ViewSpec
    batch_size: int
    seed: int
    clips: int = 1

    @property
    def component(self) -> str:
        """Which of a row's files is decoded."""
        return "flow.mp4" if self.spec.modality == "flow" else "mp4"

    @cached_property
    def sampler(self) -> TrainSampler:
        return TrainSampler(
            self.dataset, self.rows, self.spec, self.batch_size, seed=self.seed, clips=self.clips
        )

    def batches(self, first: int, count: int) -> list[list[Sample]]:
        """`count` batches from sample `first` on, which begins a batch; `first` counts over all epochs, from 0."""
        return [self.sampler.batch(first + n * self.batch_size).samples for n in range(count)]

    def samples(self, first: int, count: int) -> list[Sample]:
        """Those of `count` batches."""
        return [sample for batch in self.batches(first, count) for sample in batch]

    def sample(self, number: int) -> tuple[int, ViewParams]:
        """Row and parameters of one sample, whose number counts as `first` does; a peer samples for itself."""
        order = self.sampler.order
        epoch, slot = order.place(number)
        row = self.rows[_permutation(order, epoch)[slot : slot + 1]]
        facts = (self.dataset.column(name)[row] for name in ("num_frames", "width", "height"))
        return int(row[0]), sample_params(self.spec, row, *facts, seed=self.seed, epoch=epoch).sample(0)

    def read(self, row: int) -> bytes:
        """The row's video, as our loader reads it: its sha256 is checked."""
        return self.dataset.read(row, self.component)

    def in_pool(
        self,
        work: Callable[[Any], Any],
        threads: int,
        batches: int,
        prepare: Callable[[Sample], Any] = lambda sample: sample,
        workers: Callable[[], Iterable[int]] = tuple,
    ) -> Part:
        """Times `work` on every sample of so many batches, in a pool of threads.

        prepare: gives `work` its argument, before the time is taken. workers: ids of processes that do the work for it.
        """

        def part(first: int) -> Figures:
            items = [prepare(sample) for sample in self.samples(first, batches)]

            def run() -> None:
                with ThreadPoolExecutor(threads) as pool:
                    for _ in pool.map(work, items):
                        pass

            return rate(run, 1, len(items), CPU, workers())

        return part


@dataclass
class UncheckedReads:
    """The videos of a source as a user's own data set would read them: nothing is checked."""

    source: Source
    _tars: dict[str, int] = field(default_factory=dict)

    def __call__(self, row: int) -> bytes:
        dataset, component = self.source.dataset, self.source.component
        tar = dataset.shards[dataset.shard_numbers[row]]
        if tar not in self._tars:
            self._tars[tar] = os.open(dataset.path / tar, os.O_RDONLY | os.O_CLOEXEC)
        size, offset = (int(dataset.column(f"{component}_{what}")[row]) for what in ("size", "offset"))
        return os.pread(self._tars[tar], size, offset)


@lru_cache(maxsize=2)
def _permutation(order: ShuffledOrder, epoch: int) -> NDArray[np.int64]:
    return order.epoch(epoch)
