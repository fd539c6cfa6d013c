"""Which row of the run's list stands in which slot of which epoch: pure arithmetic on one number.

A run's place is the count of samples that all processes together have consumed. Each epoch is a new permutation
of the rows; the last, incomplete global batch of an epoch is dropped.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.streams import ORDER, REPLACEMENT, generator
from shards import InputError


@dataclass(frozen=True)
class Order:
    """The order of `count` rows under `seed`, `global_batch` samples at a time over all processes."""

    count: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < self.global_batch:
            raise InputError(
                f"a global batch of {self.global_batch} needs as many videos, and {self.count} are selected: "
                "lower --batch-size, or select more (--split, --min-frames, --data)"
            )

    @property
    def epoch_samples(self) -> int:
        """Samples consumed in an epoch, over all processes."""
        return self.count // self.global_batch * self.global_batch

    def place(self, samples: int) -> tuple[int, int]:
        """Samples consumed → (epoch, slot of the next sample in it)."""
        return divmod(samples, self.epoch_samples)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The permutation of range(count) that is this epoch's order."""
        return generator(ORDER, self.seed, epoch).permutation(self.count)

    def replacement(self, epoch: int, slot: int, attempt: int, batch: NDArray[np.int64]) -> int:
        """What stands in for a row that cannot be read: the attempt-th of a list drawn for this slot.

        It avoids the rows of its own global batch, where the set is larger than the batch: there it would be
        a negative of itself.
        """
        candidates = generator(REPLACEMENT, self.seed, epoch, slot).permutation(self.count)
        outside = candidates[~np.isin(candidates, batch)]
        chosen = outside if len(outside) else candidates
        return int(chosen[attempt % len(chosen)])
