"""What is timed: the samples of a run, in the order and with the draws that pipelines.loader gives them."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from pipelines.order import Order

from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec
from shards import Dataset


@dataclass(frozen=True)
class Source:
    """Rows (N,) of a data set, looked at through a spec; a pickled one opens its files anew."""

    dataset: Dataset
    rows: NDArray[np.int64]
    spec: ViewSpec
    batch_size: int
    seed: int

    @property
    def component(self) -> str:
        """Which of a row's files is decoded."""
        return "flow.mp4" if self.spec.modality == "flow" else "mp4"

    @cached_property
    def order(self) -> Order:
        return Order(len(self.rows), self.batch_size, self.seed)

    def sample(self, number: int) -> tuple[int, ViewParams]:
        """The row and the draw of a run's sample; `number` counts over all epochs, from 0."""
        epoch, slot = self.order.place(number)
        row = self.rows[_permutation(self.order, epoch)[slot : slot + 1]]
        facts = (self.dataset.column(name)[row] for name in ("num_frames", "width", "height"))
        return int(row[0]), sample_params(self.spec, row, *facts, seed=self.seed, epoch=epoch).sample(0)

    def samples(self, first: int, batches: int) -> list[tuple[int, ViewParams]]:
        """Those of whole batches, from sample `first` on."""
        return [self.sample(first + n) for n in range(batches * self.batch_size)]


@lru_cache(maxsize=2)
def _permutation(order: Order, epoch: int) -> NDArray[np.int64]:
    return order.epoch(epoch)
