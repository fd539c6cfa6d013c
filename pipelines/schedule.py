"""Which videos a batch looks at: the run's order, cut into global batches, and each process's slice of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.order import Order
from shards import Dataset


@dataclass(frozen=True)
class Visits:
    """The videos of one batch. slot: of its first video in the epoch, counted over all processes. indices: (b,) this
    process's, places in the run's list of rows. whole: (b·world,) those of all processes."""

    epoch: int
    slot: int
    indices: NDArray[np.int64]
    whole: NDArray[np.int64]


class Schedule:
    """Visits of the rows of a data set, `batch` of them a process and batch; see pipelines.order for window.

    As the order enters a window, the shards of the next one are fetched.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        batch: int,
        *,
        seed: int,
        rank: int,
        world: int,
        window: int | None,
    ) -> None:
        self._dataset, self._rank, self._batch = dataset, rank, batch
        window = dataset.window if window is None else window
        self._shards: NDArray[np.int64] | None = None
        shards, sizes = None, None
        if window is not None:
            self._shards, shards, sizes = _shards_of(dataset, rows)
        self.order = Order(len(rows), batch * world, seed, window, shards, sizes)
        self._permutation: tuple[int, NDArray[np.int64]] | None = None
        self._window_of = np.zeros(1, dtype=np.int64)  # of each shard, in the permutation's epoch
        self._entered = -1, -1  # epoch and window

    def at(self, visits: int) -> Visits:
        """The batch that begins when all processes together have made this number of visits."""
        epoch, slot = self.order.place(visits)
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, self.order.epoch(epoch)
            self._window_of = self.order.windows(epoch)
        whole = self._permutation[1][slot : slot + self.order.global_batch]
        self._fetch_ahead(epoch, int(whole[-1]))
        first = self._rank * self._batch
        return Visits(epoch, slot + first, whole[first : first + self._batch], whole)

    def _fetch_ahead(self, epoch: int, index: int) -> None:
        if self._shards is None or self.order.shards is None:
            return
        window = int(self._window_of[self.order.shards[index]])
        if self._entered == (epoch, window):
            return
        self._entered = epoch, window
        last = window == self._window_of.max()
        following = self.order.windows(epoch + 1) == 0 if last else self._window_of == window + 1
        self._dataset.prefetch(self._shards[following])


def _shards_of(
    dataset: Dataset, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The data set's numbers of the shards that rows lie in; each row's place among these; their bytes."""
    numbers, places = np.unique(dataset.shard_numbers[rows], return_inverse=True)
    tars, names = dataset.info["tars"], dataset.shards
    sizes = np.array([tars[names[number]]["bytes"] for number in numbers], dtype=np.int64)
    return numbers.astype(np.int64), places, sizes
