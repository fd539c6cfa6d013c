"""The loader: an endless run of batches, made ahead of the training thread.

    planner thread   order → rows → params           one batch after the other                  schedule.py, draw.py
    pool             row → bytes (→ views' pixels   one task a video, over all batches ahead   reading.py, cache.py,
                     → views, without DALI)                                                    decode.py, cut.py, painter.py
    graph thread     DALI: → views                  one batch after the other                  batches.py, graph.py

Each process takes its own slice of every global batch. The whole state is one number: samples consumed.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.batches import Batches
from pipelines.cache import Cache, Where
from pipelines.decode import keep_freed_memory
from pipelines.graph import Graph, Placement
from pipelines.painter import Painter
from pipelines.reading import Paint, Reader, Sample, check_flow, component_of
from pipelines.schedule import Schedule, Visits
from pipelines.views import ViewSpec
from shards import Dataset, InputError

Planned = tuple[Visits, "list[Future[Sample]]", torch.Tensor | None]
"""A batch's videos, the tasks that read them, and the views that they paint, if they do."""


class Loader:
    """Batches for one process, for ever.

    dataset: an open shards.Dataset. rows: (N,) its rows that take part, frozen for the run. spec: how the method
    looks at them. batch_size: samples a process and batch. rank, world: this process and how many there are.
    placement: see pipelines.graph. threads: of the pool and of DALI. prefetch: batches made ahead.
    device: where the views go; the placement's own by default. window: bytes of shards whose rows are shuffled
    together (see pipelines.order); by default dataset.window, which is all of them where they lie on this disk.

    When decoding is the limit: clips_per_decode, N neighbours of a batch are clips of one video, params apart and
    decoded together; an epoch then shows each video N times, with the params of N epochs (see sampling.sample_clip_params), and the
    order of the videos is another. cpu_share: with the placement gpu, this share of the videos goes the way of
    hybrid, spread evenly. cache: keep decoded videos in host or GPU memory, at most cache_gib GiB in this process; see
    pipelines.cache.

    A batch is a dict: views (B, V, C, T, H, W) float32; label (B,) int64, −1 where there is none; row (B,)
    int64, rows of the table; key, B strings; epoch, int; params, the samples' sampling.ViewParams as a list; and pace (B, V)
    int64 where the spec has paces.
    A video that cannot be read or decoded is quarantined and another takes its slot. Whether it can is asked anew
    each time, so the batches depend on the videos' bytes alone, not on what this process met before.
    Raises InputError if the rows are fewer than a global batch, if one of them lacks the flow that the spec asks
    for, if an option does not go with the others, or if nothing can be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        spec: ViewSpec,
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
        clips_per_decode: int = 1,
        cpu_share: float = 0.0,
        cache: Where | None = None,
        cache_gib: float = 16.0,
    ) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        if spec.modality == "flow":
            check_flow(dataset, rows)
        _check_options(batch_size, clips_per_decode, cpu_share, cache, placement, decoder)
        visits = batch_size // clips_per_decode
        self._schedule = Schedule(dataset, rows, visits, seed=seed, rank=rank, world=world, window=window)
        # asked here: threads other than the main one begin with the first GPU
        gpu = None if "cpu" in (placement, decoder) else torch.cuda.current_device()
        self.cache = Cache(dataset, rows, component_of(spec), cache, cache_gib, gpu) if cache else None
        self._reader = Reader(
            dataset,
            rows,
            spec,
            self._schedule.order,
            clips=clips_per_decode,
            placement=placement,
            cpu_share=cpu_share,
            decoder=decoder,
            cache=self.cache,
        )
        if placement != "gpu":
            keep_freed_memory()
        paints = self._reader.on_cpu == "cpu"
        self._painter = Painter(spec, visits, clips=clips_per_decode) if paints else None
        self._planner = ThreadPoolExecutor(1, "slipstream-spec")
        self._pool = ThreadPoolExecutor(threads, "slipstream-decode")
        self._grapher = ThreadPoolExecutor(1, "slipstream-graph")
        self._batches = Batches(
            self._reader,
            lambda way: Graph(
                spec,
                visits,
                way,
                threads=threads,
                decoder=decoder,
                clips=clips_per_decode,
                device_id=gpu,
            ),
            self._pool.map,
            clips=clips_per_decode,
            device=device,
        )
        self._clips, self._prefetch = clips_per_decode, prefetch
        self._global_batch = batch_size * world
        self._samples, self._closed = 0, False
        self._ahead: deque[tuple[Future[Planned], Future[dict[str, Any]]]] = deque()

    @property
    def samples(self) -> int:
        """Samples consumed by all processes together: those of the batches handed out so far."""
        return self._samples

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch, over all processes."""
        return self._schedule.order.epoch_samples * self._clips

    def state_dict(self) -> dict[str, int]:
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where the state was taken; batches already made ahead are dropped."""
        self._drop()
        self._samples = int(state["samples"])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError("the loader is closed: make another one")
        while len(self._ahead) <= self._prefetch:
            start = self._samples + len(self._ahead) * self._global_batch
            planned = self._planner.submit(self._start, start)
            self._ahead.append((planned, self._grapher.submit(self._finish, planned)))
        try:
            batch = self._ahead[0][1].result()
        except Exception:
            self.load_state_dict(self.state_dict())  # the next call tries the same batch again
            self._reader.forget()
            raise
        self._ahead.popleft()
        self._samples += self._global_batch
        return batch

    def close(self) -> None:
        """End the loader's threads; batches on their way are dropped."""
        self._closed = True
        self._drop()
        for executor in (self._planner, self._grapher, self._pool):
            executor.shutdown(wait=True, cancel_futures=True)
        self._batches.close()
        if self._painter:
            self._painter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        """Give up the batches ahead, and wait until no thread works on one: what it met would be noted too late."""
        dropped, self._ahead = list(self._ahead), deque()
        for planned, batch in dropped:
            batch.cancel()
            if not planned.cancel() and planned.exception() is None:
                tasks = planned.result()[1]
                wait([task for task in tasks if not task.cancel()])
        wait([batch for _, batch in dropped if not batch.cancelled()])

    def _start(self, samples: int) -> Planned:
        """Planner thread: draw the batch that begins at this number of samples, and set the pool to work."""
        visits = self._schedule.at(samples // self._clips)
        batch_params = self._reader.draw(visits.indices, visits.epoch)
        painted, painter = None, self._painter
        paints: list[Paint | None] = [None] * len(visits.indices)
        if painter:
            canvas = painter.canvas(len(paints))
            paints = [partial(painter.paint, out_FnC=place_FnC) for place_FnC in canvas.numpy()]
            painted = painter.views(canvas)
        tasks = [
            self._pool.submit(
                self._reader.read, visits.slot + i, int(index), batch_params.sample(i), visits, paints[i]
            )
            for i, index in enumerate(visits.indices)
        ]
        return visits, tasks, painted

    def _finish(self, planned: "Future[Planned]") -> dict[str, Any]:
        """Graph thread: wait for the batch's material and make the batch of it."""
        visits, tasks, painted = planned.result()
        return self._batches.make([task.result() for task in tasks], visits, painted)


def _check_options(
    batch_size: int, clips: int, cpu_share: float, cache: Where | None, placement: Placement, decoder: str
) -> None:
    if clips < 1 or batch_size % clips:
        raise InputError(
            f"--clips-per-decode {clips}: must be at least 1 and divide --batch-size {batch_size}: "
            "the clips of a video stand in one batch"
        )
    if not 0 <= cpu_share <= 1:
        raise InputError(f"--cpu-share {cpu_share:g}: give a share from 0 to 1")
    if cpu_share and placement != "gpu":
        raise InputError(
            f"--cpu-share {cpu_share:g}: with --device {placement} the CPU decodes all: leave it out"
        )
    if cache == "gpu" and placement == "cpu" and decoder != "cpu":
        raise InputError("--cache gpu: with --device cpu nothing is made on a GPU; use --cache host")
