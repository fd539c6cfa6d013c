"""Which videos a training batch shows: a shuffled order of the rows, and each process's slice of every global batch.

A run's place is one number: the samples that all processes together have consumed. Each epoch is a new permutation of
the rows; the last, incomplete global batch of an epoch is dropped.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.sampling import ORDER, REPLACEMENT, ViewParams, generator, sample_params
from pipelines.views import ViewSpec
from shards import Dataset, InputError


@dataclass(frozen=True)
class Sample:
    """A video of a batch, and what of it is shown.

    index: its place in the sampler's list. row: of the table. params: of the clips' views, (clips·V, …). clips: how
    many clips of it are shown. slot: the sample's number in the epoch, counted over all processes.
    """

    index: NDArray[np.int64]
    row: int
    params: ViewParams
    clips: int
    slot: int

    def filled(self, clips: int) -> ViewParams:
        """The parameters, those of the last clip repeated up to this number of clips."""
        if self.clips == clips:
            return self.params
        parts = self.params.clips(self.clips)
        return ViewParams.concatenated([*parts, *[parts[-1]] * (clips - self.clips)])


@dataclass(frozen=True)
class BatchIndices:
    """The samples of one batch of this process.

    epoch: whether a video decodes is asked once in each; of an evaluation it is the batch's number. whole: places in the
    sampler's list of the samples of all processes.
    """

    epoch: int
    samples: list[Sample]
    whole: NDArray[np.int64]


class Sampler(Protocol):
    """What a loader loads: batch after batch of samples, and what takes the place of a video that cannot be decoded.

    spec: how the videos are looked at. rows, labels: (N,) int64, the sampler's list. max_samples: videos in a batch, at
    most. max_clips: clips of one video in a batch, at most. step: how far a batch moves the position. replaces: whether
    another sample takes the place of one that cannot be decoded.
    """

    spec: ViewSpec
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    max_samples: int
    max_clips: int
    step: int
    replaces: bool

    def batch(self, position: int) -> BatchIndices | None:
        """The batch that begins at a position, which counts from 0; None beyond the last one."""

    def replacement(self, batch: BatchIndices, place: int, attempt: int) -> Sample | None:
        """Another sample for this place of the batch; None where the place stays empty."""


@dataclass(frozen=True, eq=False)
class ShuffledOrder:
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
        window_of, window, filled = np.empty(len(sizes), dtype=np.int64), 0, 0
        for shard in generator(ORDER, self.seed, epoch, 1).permutation(len(sizes)).tolist():
            size = int(sizes[shard])
            if filled and filled + size > self.window:
                window, filled = window + 1, 0
            window_of[shard] = window
            filled += size
        return window_of

    def replacement(self, epoch: int, slot: int, attempt: int, batch: NDArray[np.int64]) -> int:
        """What stands in for a row that cannot be read: the attempt-th of a list drawn for this slot.

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


class TrainSampler:
    """Endless shuffled batches of a data set's rows, each row with other parameters in each epoch.

    batch_size: clips a process and batch. clips: of one video, which stand side by side in the batch. window: bytes of
    shards whose rows are shuffled together, see ShuffledOrder; by default dataset.window. As the order enters a window,
    the shards of the next one are fetched. Another sample takes the place of one that cannot be decoded. A position counts
    clips, those of all processes.
    """

    replaces = True

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        spec: ViewSpec,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        clips: int = 1,
        window: int | None = None,
    ) -> None:
        if clips < 1 or batch_size % clips:
            raise InputError(
                f"--clips-per-decode {clips}: must be at least 1 and divide --batch-size {batch_size}: "
                "the clips of a video stand in one batch"
            )
        self.spec, self.rows = spec, np.asarray(rows, dtype=np.int64)
        self.labels = dataset.column("label")[self.rows].astype(np.int64)
        self.max_samples, self.max_clips = batch_size // clips, clips
        if len(self.rows) < self.max_samples * world and spec.padding == "error":
            short = int((dataset.column("num_frames") < spec.span).sum())
            raise InputError(
                f"a global batch of {self.max_samples * world} needs as many videos, and {len(self.rows)} are selected. "
                f"{short} of the data set's {len(dataset)} videos are shorter than a clip's {spec.span} frames and left out: "
                "--padding repeat_last keeps them, and --batch-size may be lower"
            )
        window = dataset.window if window is None else window
        self._shards: NDArray[np.int64] | None = None
        shards, sizes = None, None
        if window is not None:
            self._shards, shards, sizes = _shards_of(dataset, self.rows)
        global_batch = self.max_samples * world
        self.order = ShuffledOrder(len(self.rows), global_batch, seed, window, shards, sizes)
        self.step, self._rank, self._dataset = global_batch * clips, rank, dataset
        self._facts = [dataset.column(name)[self.rows] for name in ("num_frames", "width", "height")]
        self._permutation: tuple[int, NDArray[np.int64]] | None = None
        self._window_of = -1, np.zeros(1, dtype=np.int64)  # an epoch, and the window of each shard in it
        self._entered = -1, -1  # epoch and window

    @property
    def epoch_clips(self) -> int:
        """Clips of an epoch, over all processes."""
        return self.order.epoch_samples * self.max_clips

    def batch(self, position: int) -> BatchIndices:
        epoch, slot = self.order.place(position // self.max_clips)
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, self.order.epoch(epoch)
        whole = self._permutation[1][slot : slot + self.order.global_batch]
        self._fetch_ahead(epoch, int(whole[-1]))
        first = self._rank * self.max_samples
        return BatchIndices(
            epoch, self._samples(epoch, whole[first : first + self.max_samples], slot + first), whole
        )

    def replacement(self, batch: BatchIndices, place: int, attempt: int) -> Sample:
        slot = batch.samples[place].slot
        index = self.order.replacement(batch.epoch, slot, attempt, batch.whole)
        return self._samples(batch.epoch, np.array([index]), slot)[0]

    def params(self, epoch: int, indices: NDArray[np.int64]) -> ViewParams:
        """What is shown in an epoch of the rows at these places of the list."""
        facts = (column[indices] for column in self._facts)
        numbers, seed = self.rows[indices], self.order.seed
        return sample_params(self.spec, numbers, *facts, seed=seed, epoch=epoch, clips=self.max_clips)

    def _samples(self, epoch: int, indices: NDArray[np.int64], slot: int) -> list[Sample]:
        """The samples at these places of the list; the first has this slot."""
        params, clips = self.params(epoch, indices), self.max_clips
        return [
            Sample(np.full(clips, index), int(self.rows[index]), params.sample(place), clips, slot + place)
            for place, index in enumerate(indices)
        ]

    def _fetch_ahead(self, epoch: int, index: int) -> None:
        if self._shards is None or self.order.shards is None:
            return
        if self._window_of[0] != epoch:
            self._window_of = epoch, self.order.windows(epoch)
        window_of = self._window_of[1]
        window = int(window_of[self.order.shards[index]])
        if self._entered == (epoch, window):
            return
        self._entered = epoch, window
        last = window == window_of.max()
        following = self.order.windows(epoch + 1) == 0 if last else window_of == window + 1
        self._dataset.prefetch(self._shards[following])


def _shards_of(
    dataset: Dataset, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The data set's numbers of the shards that rows lie in; each row's place among these; their bytes."""
    numbers, places = np.unique(dataset.shard_numbers[rows], return_inverse=True)
    tars, names = dataset.info["tars"], dataset.shards
    sizes = np.array([tars[names[number]]["bytes"] for number in numbers], dtype=np.int64)
    return numbers.astype(np.int64), places, sizes
