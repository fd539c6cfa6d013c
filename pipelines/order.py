"""Which row of the run's list stands in which slot of which epoch: pure arithmetic on one number.

A run's place is the count of samples that all processes together have consumed. Each epoch is a new permutation
of the rows; the last, incomplete global batch of an epoch is dropped.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.streams import ORDER, REPLACEMENT, generator
from shards import InputError


@dataclass(frozen=True, eq=False)
class Order:
    """The order of `count` rows under `seed`, `global_batch` samples at a time over all processes.

    window: where a cache holds a part of the data set only, rows are shuffled within a window: whole shards in
    random order, as many as fit into this size together, or a single larger one. shards: (count,) the shard
    of each row, from 0. sizes: of each shard, in the window's unit (bytes); by default its number of rows.
    None, or a window that holds all shards, shuffles all rows together.
    """

    count: int
    global_batch: int
    seed: int
    window: int | None = None
    shards: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.count < self.global_batch:
            raise InputError(
                f"a global batch of {self.global_batch} needs as many videos, and {self.count} are selected: "
                "lower --batch-size, or select more (--split, --min-frames, --data)"
            )
        if self.window is not None and (self.shards is None or self.window < 1):
            raise ValueError(f"a window ({self.window}) is of at least 1, and needs the rows' shards")

    @property
    def epoch_samples(self) -> int:
        """Samples consumed in an epoch, over all processes."""
        return self.count // self.global_batch * self.global_batch

    def place(self, samples: int) -> tuple[int, int]:
        """Samples consumed → (epoch, slot of the next sample in it)."""
        return divmod(samples, self.epoch_samples)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The permutation of range(count) that is this epoch's order."""
        shuffled = generator(ORDER, self.seed, epoch).permutation(self.count)
        if self.window is None or self.shards is None:
            return shuffled
        # a stable sort keeps the rows of a window in their shuffled order
        return shuffled[np.argsort(self.windows(epoch)[self.shards[shuffled]], kind="stable")]

    def windows(self, epoch: int) -> NDArray[np.int64]:
        """The window of each shard in this epoch, from 0; all are in window 0 where there is one only."""
        if self.window is None or self.shards is None:
            return np.zeros(1, dtype=np.int64)
        sizes = np.bincount(self.shards) if self.sizes is None else self.sizes
        return _windows(generator(ORDER, self.seed, epoch, 1).permutation(len(sizes)), sizes, self.window)

    def replacement(self, epoch: int, slot: int, attempt: int, batch: NDArray[np.int64]) -> int:
        """What stands in for a row that cannot be read: the attempt-th of a list params for this slot.

        It avoids the rows of its own global batch, where the set is larger than the batch: there it would be
        a negative of itself. For the same reason the slots of a batch divide the rows outside it among them, and
        one takes another's only after all of its own.
        """
        G, place = self.global_batch, slot % self.global_batch
        candidates = generator(REPLACEMENT, self.seed, epoch, slot - place).permutation(self.count)
        outside = candidates[~np.isin(candidates, batch)]
        chosen = outside if len(outside) else candidates
        attempt %= len(chosen)
        for owner in range(place, place + G):
            own = chosen[owner % G :: G]
            if attempt < len(own):
                return int(own[attempt])
            attempt -= len(own)
        raise AssertionError("the slots divide all rows among them")


def in_share(slot: int, share: float) -> bool:
    """Whether this slot is one of the `share` (0–1) of all slots, which are spread evenly over them."""
    return int((slot + 1) * share) > int(slot * share)


def _windows(order: NDArray[np.int64], sizes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The window of each shard, filled one after the other with the shards in this order."""
    window_of, window, filled = np.empty(len(sizes), dtype=np.int64), 0, 0
    for shard in order.tolist():
        size = int(sizes[shard])
        if filled and filled + size > limit:
            window, filled = window + 1, 0
        window_of[shard] = window
        filled += size
    return window_of
