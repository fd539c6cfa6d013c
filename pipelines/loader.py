"""The loader: an endless run of batches, made ahead of the training thread.

    planner thread   order → rows → draws          one batch after the other
    pool             row → bytes (→ views' pixels)  one task a sample, over all batches ahead
    graph thread     DALI: → views                  one batch after the other

Each process takes its own slice of every global batch. The whole state is one number: samples consumed.
"""

import logging
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.decode import DecodeError, decode_views
from pipelines.draw import Draw, draw
from pipelines.graph import Graph, Placement
from pipelines.order import Order
from pipelines.plan import ViewPlan
from shards import DamagedError, Dataset, InputError

log = logging.getLogger(__name__)
_MAKE_FLOW = "make it again with tools/make_shards.py --flow tvl1"
_ATTEMPTS = 64  # unreadable videos in a row before the data set, not the video, is to blame


@dataclass(frozen=True)
class _Sample:
    """One slot of a batch: its row, its draw, and its video's bytes or its views' pixels."""

    slot: int
    index: int  # in the run's list of rows
    draw: Draw
    material: NDArray[np.uint8]


@dataclass(frozen=True)
class _Planned:
    epoch: int
    slots: NDArray[np.int64]  # of the whole global batch
    samples: list["Future[_Sample]"]


class Loader:
    """Batches for one process, for ever.

    dataset: an open shards.Dataset. rows: (N,) its rows that take part, frozen for the run. plan: how the method
    looks at them. batch_size: samples a process and batch. rank, world: this process and how many there are.
    placement: see pipelines.graph. threads: of the pool and of DALI. prefetch: batches made ahead.
    device: where the views go; the placement's own by default. window: bytes of shards whose rows are shuffled
    together (see pipelines.order); by default dataset.window, which is all of them where they lie on this disk.

    A batch is a dict: views (B, V, C, T, H, W) float32; label (B,) int64, −1 where there is none; row (B,)
    int64, rows of the table; key, B strings; epoch, int; draw, the samples' draw.Draw as a list; and pace (B, V)
    int64 where the plan has paces.
    A video that cannot be read or decoded is quarantined and another takes its slot. Whether it can is asked anew
    each time, so the batches depend on the videos' bytes alone, not on what this process met before.
    Raises InputError if the rows are fewer than a global batch, if one of them lacks the flow that the plan asks
    for, or if nothing can be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        plan: ViewPlan,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        placement: Placement = "cpu",
        threads: int = 2,
        prefetch: int = 2,
        device: torch.device | None = None,
        decoder: str = "mixed",
        window: int | None = None,
    ) -> None:
        self._dataset, self._plan, self._placement = dataset, plan, placement
        self._rows = np.asarray(rows, dtype=np.int64)
        self._component = "flow.mp4" if plan.modality == "flow" else "mp4"
        if plan.modality == "flow":
            self._check_flow()
        window = dataset.window if window is None else window
        self._shards: NDArray[np.int64] | None = None
        shards, sizes = None, None
        if window is not None:
            self._shards, shards, sizes = self._shards_of_rows()
        self._order = Order(len(self._rows), batch_size * world, seed, window, shards, sizes)
        self._batch_size, self._seed, self._rank, self._prefetch = batch_size, seed, rank, prefetch
        self._device, self._samples, self._closed = device, 0, False
        self._make_graph = lambda: Graph(plan, batch_size, placement, threads=threads, decoder=decoder)
        self._graph: Graph | None = None
        names = ("num_frames", "width", "height", "label")
        self._columns = {name: dataset.column(name)[self._rows] for name in names}
        self._permutation: tuple[int, NDArray[np.int64]] | None = None
        self._window_of = np.zeros(1, dtype=np.int64)  # of each shard, in the permutation's epoch
        self._entered = -1, -1  # epoch and window
        self._bad: set[tuple[int, int]] = set()  # epoch and row that need not be tried again
        self._noted = set(dataset.quarantined().tolist())  # rows in quarantine
        self._bad_lock = threading.Lock()
        self._ahead: deque[Future[dict[str, Any]]] = deque()
        self._planner = ThreadPoolExecutor(1, "slipstream-plan")
        self._pool = ThreadPoolExecutor(threads, "slipstream-decode")
        self._grapher = ThreadPoolExecutor(1, "slipstream-graph")

    @property
    def samples(self) -> int:
        """Samples consumed by all processes together: those of the batches handed out so far."""
        return self._samples

    def state_dict(self) -> dict[str, int]:
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where the state was taken; batches already made ahead are dropped."""
        while self._ahead:
            self._ahead.pop().cancel()
        self._samples = int(state["samples"])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError("the loader is closed: make another one")
        while len(self._ahead) <= self._prefetch:
            start = self._samples + len(self._ahead) * self._order.global_batch
            planned = self._planner.submit(self._start, start)
            self._ahead.append(self._grapher.submit(self._finish, planned))
        try:
            batch = self._ahead[0].result()
        except Exception:
            self.load_state_dict(self.state_dict())  # the next call tries the same batch again
            self._bad.clear()
            raise
        self._ahead.popleft()
        self._samples += self._order.global_batch
        return batch

    def close(self) -> None:
        """End the loader's threads; batches on their way are dropped."""
        self._closed = True
        while self._ahead:
            self._ahead.pop().cancel()
        for executor in (self._planner, self._grapher, self._pool):
            executor.shutdown(wait=True, cancel_futures=True)
        self._graph = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, samples: int) -> _Planned:
        """Planner thread: draw the batch that begins at this number of samples, and set the pool to work."""
        epoch, slot = self._order.place(samples)
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, self._order.epoch(epoch)
            self._window_of = self._order.windows(epoch)
        whole = self._permutation[1][slot : slot + self._order.global_batch]
        self._fetch_ahead(epoch, int(whole[-1]))
        mine = slice(self._rank * self._batch_size, (self._rank + 1) * self._batch_size)
        draws = self._draw(whole[mine], epoch)
        tasks = [
            self._pool.submit(self._read, slot + mine.start + i, int(index), draws.sample(i), epoch, whole)
            for i, index in enumerate(whole[mine])
        ]
        return _Planned(epoch, whole, tasks)

    def _draw(self, indices: NDArray[np.int64], epoch: int) -> Draw:
        shape = (self._columns[name][indices] for name in ("num_frames", "width", "height"))
        return draw(self._plan, self._rows[indices], *shape, seed=self._seed, epoch=epoch)

    def _read(self, slot: int, index: int, drawn: Draw, epoch: int, whole: NDArray[np.int64]) -> _Sample:
        """Pool: the material of one slot, stepping over videos that cannot be read."""
        last = ""
        for attempt in range(_ATTEMPTS):
            row = int(self._rows[index])
            if (epoch, row) not in self._bad:
                try:
                    video = self._dataset.read(row, self._component)
                    if self._placement == "gpu":
                        return _Sample(slot, index, drawn, np.frombuffer(video, np.uint8))
                    pixels = decode_views(video, drawn, self._plan.size, self._plan.modality)
                    return _Sample(slot, index, drawn, pixels)
                except (DecodeError, DamagedError) as error:
                    self._note_bad(epoch, index, str(error))
                    last = f", the last, {self._keys(index)[0]}, by {error}"
            index = self._order.replacement(epoch, slot, attempt, whole)
            drawn = self._draw(np.array([index]), epoch).sample(0)
        raise InputError(
            f"{self._dataset.path}: {_ATTEMPTS} videos in a row cannot be decoded{last}: "
            "the data set is damaged; restore it and go on with --resume (tools/check_shards.py says what is lost)"
        )

    def _note_bad(self, epoch: int, index: int, reason: str) -> None:
        row = int(self._rows[index])
        with self._bad_lock:
            self._bad.add((epoch, row))
            known = row in self._noted
            self._noted.add(row)
        if not known:
            log.warning("%s cannot be decoded and is replaced: %s", self._keys(index)[0], reason)
            self._dataset.quarantine(row, reason)

    def _finish(self, planned: "Future[_Planned]") -> dict[str, Any]:
        """Graph thread: wait for the batch's material and run the graph on it."""
        plan = planned.result()
        samples = [task.result() for task in plan.samples]
        views = None
        while views is None:
            try:
                views = self._run_graph(samples)
            except RuntimeError as error:
                self._graph = None  # DALI's pipeline is dead after a failure
                samples = self._without_culprits(samples, plan, error)
        index = [sample.index for sample in samples]
        paces = [sample.draw.pace for sample in samples if sample.draw.pace is not None]
        return {
            "views": views if self._device is None else views.to(self._device, non_blocking=True),
            "label": torch.from_numpy(self._columns["label"][index].astype(np.int64)),
            "row": torch.from_numpy(self._rows[index]),
            "key": self._dataset.keys(self._rows[index]),
            "epoch": plan.epoch,
            "draw": [sample.draw for sample in samples],
            **({"pace": torch.from_numpy(np.stack(paces))} if paces else {}),
        }

    def _run_graph(self, samples: list[_Sample]) -> torch.Tensor:
        self._graph = self._graph or self._make_graph()
        return self._graph.run([sample.draw for sample in samples], [sample.material for sample in samples])

    def _without_culprits(self, samples: list[_Sample], plan: _Planned, error: RuntimeError) -> list[_Sample]:
        """NVDEC fails a whole batch for one bad video and does not say which."""
        if self._placement != "gpu":
            raise error
        reasons = list(self._pool.map(self._trouble, samples))
        if not any(reasons):
            reasons = [self._refusal(sample) for sample in samples]
            if all(reasons) or not any(reasons):
                keys = ", ".join(self._keys(*(sample.index for sample in samples)))
                raise RuntimeError(
                    f"{self._dataset.path}: DALI fails on a batch in which FFmpeg finds nothing wrong ({keys}); "
                    "--device hybrid or cpu decodes with FFmpeg"
                ) from error
        good: list[_Sample] = []
        for sample, reason in zip(samples, reasons, strict=True):
            if reason:
                self._note_bad(plan.epoch, sample.index, reason)
                sample = self._read(sample.slot, sample.index, sample.draw, plan.epoch, plan.slots)
            good.append(sample)
        return good

    def _trouble(self, sample: _Sample) -> str:
        """What FFmpeg says of a video, nothing where it decodes."""
        try:
            decode_views(sample.material.tobytes(), sample.draw, self._plan.size, self._plan.modality)
        except DecodeError as error:
            return str(error)
        return ""

    def _refusal(self, sample: _Sample) -> str:
        """What DALI says of a video on its own, nothing where it decodes."""
        try:
            self._run_graph([sample])
        except RuntimeError as error:
            self._graph = None
            return "DALI: " + " ".join(str(error).rpartition("encountered:")[2].split())
        return ""

    def _check_flow(self) -> None:
        try:
            lacking = np.isnan(self._dataset.column("flow.mp4_offset")[self._rows].astype(np.float64))
        except InputError as error:
            raise InputError(
                f"{self._dataset.path}: the method looks at flow, and the data set has none; {_MAKE_FLOW}"
            ) from error
        if lacking.any():
            first = self._keys(int(lacking.argmax()))[0]
            raise InputError(
                f"{self._dataset.path}: {lacking.sum()} of {len(lacking)} videos have no flow ({first} is the first); "
                + _MAKE_FLOW
            )

    def _keys(self, *indices: int) -> list[str]:
        return self._dataset.keys(self._rows[list(indices)])

    def _shards_of_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The data set's numbers of the shards that rows lie in; each row's place among these; their bytes."""
        numbers, places = np.unique(self._dataset.shard_numbers[self._rows], return_inverse=True)
        tars, names = self._dataset.info["tars"], self._dataset.shards
        sizes = np.array([tars[names[number]]["bytes"] for number in numbers], dtype=np.int64)
        return numbers.astype(np.int64), places, sizes

    def _fetch_ahead(self, epoch: int, index: int) -> None:
        """Planner thread: as the order enters a window, have the shards of the next one fetched."""
        if self._shards is None or self._order.shards is None:
            return
        window = int(self._window_of[self._order.shards[index]])
        if self._entered == (epoch, window):
            return
        self._entered = epoch, window
        last = window == self._window_of.max()
        following = self._order.windows(epoch + 1) == 0 if last else self._window_of == window + 1
        self._dataset.prefetch(self._shards[following])
