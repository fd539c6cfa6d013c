"""The loader: batches of views, made ahead of whoever takes them, for training and evaluation alike.

    plan thread     sampler: position → rows, params        one batch after the other                  sampler.py, eval_clips.py
    pool            Backend.prepare: read, trim or decode   one task a video, over all batches ahead   backends/
    start thread    Backend.render: begin a batch           as many under way as the backend allows
    finish thread   wait for its views

A loader's whole state is one number, the sampler's position.
"""

import logging
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipelines.backends import BackendSettings, open_backend
from pipelines.backends.base import Backend, Rendered, Video
from pipelines.sampler import BatchIndices, Sample, Sampler
from shards import DamagedError, Dataset, InputError
from shards.video.mp4 import DecodeError

log = logging.getLogger(__name__)
_MAKE_FLOW = "make it again with tools/make_shards.py --flow tvl1"
_ATTEMPTS = 64  # unreadable videos in a row before the data set, not the video, is to blame

Prepared = tuple[Sample, Any] | None
"""A sample and what its backend needs of it; None for a place that stays empty."""
Finished = tuple[dict[str, Any], torch.cuda.Event | None]
"""A batch, and what a stream has to wait for before it looks at the views."""


class Loader:
    """The batches of a sampler, made by a backend.

    dataset: an open shards.Dataset. sampler: which videos, looked at how; see pipelines.sampler and eval_clips.
    backend: its settings, or one that is made already. prefetch: batches made ahead. device: where the views go; the
    backend's own by default. quarantine: note videos that cannot be decoded in the data set's quarantine.jsonl.

    A batch is a dict: views (B, V, C, T, H, W) float32; label (B,) int64, −1 where there is none; row (B,) int64, rows
    of the table; index (B,) int64, places in the sampler's list; key, B strings; epoch, int; params, the clips'
    ViewParams as a list; and pace (B, V) int64 where the spec has paces.
    Another sample takes the place of a video that cannot be read or decoded, or none, as the sampler says. Whether it
    can is asked again each time, so the batches depend on the videos' bytes alone, not on what this process met before.
    Raises InputError if a row lacks the flow that the spec asks for, if settings do not go together, or if nothing can
    be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        backend: BackendSettings | Backend = BackendSettings(),  # noqa: B008 (frozen)
        *,
        prefetch: int = 2,
        device: torch.device | None = None,
        quarantine: bool = False,
    ) -> None:
        spec = sampler.spec
        if spec.modality == "flow":
            _check_flow(dataset, sampler.rows)
        threads = BackendSettings.threads
        if isinstance(backend, BackendSettings):
            threads = backend.threads
            backend = open_backend(
                backend, spec, sampler.max_samples, sampler.max_clips, dataset, sampler.rows
            )
        self.dataset, self.sampler, self.backend = dataset, sampler, backend
        self._failed: dict[int, str] = {}
        self._prefetch, self._device, self._quarantine = prefetch, device, quarantine
        self._bad: set[tuple[int, int]] = set()  # epoch and row that need not be tried again
        self._noted = set(dataset.quarantined().tolist())  # rows in quarantine
        self._last, self._lock = "", threading.Lock()
        self._planner, self._starter, self._finisher = (
            ThreadPoolExecutor(1, f"slipstream-{name}") for name in ("plan", "start", "finish")
        )
        self._pool = ThreadPoolExecutor(threads, "slipstream-prepare")
        self._under_way = threading.Semaphore(self.backend.concurrent)
        self._position, self._closed, self._process = 0, False, os.getpid()
        on_gpu = device is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # for what is made ahead of the model
        self._ahead: deque[tuple[Future[Any], Future[Finished | None]]] = deque()

    @property
    def position(self) -> int:
        """The sampler's position after the batches handed out so far."""
        return self._position

    @property
    def failed(self) -> dict[int, str]:
        """Row → reason, of the videos that could not be read or decoded so far."""
        with self._lock:
            return dict(self._failed)

    def state_dict(self) -> dict[str, int]:
        return {"samples": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where the state was taken; batches already made ahead are dropped."""
        self._check_process()
        self._drop()
        self._position = int(state["samples"])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._closed:
            raise RuntimeError("the loader is closed: make another one")
        self._check_process()
        while len(self._ahead) <= self._prefetch:
            position = self._position + len(self._ahead) * self.sampler.step
            planned = self._planner.submit(self._plan, position)
            started = self._starter.submit(self._start, planned)
            self._ahead.append((planned, self._finisher.submit(self._finish, started)))
        try:
            finished = self._ahead[0][1].result()
        except StopIteration as error:  # DALI's: it would end the caller's loop without a word
            raise RuntimeError("a backend ran out of batches") from error
        except Exception:
            self.load_state_dict(self.state_dict())  # the next call tries the same batch again
            self._bad.clear()
            raise
        if finished is None:
            self._drop()
            raise StopIteration
        self._ahead.popleft()
        self._position += self.sampler.step
        batch, ready = finished
        if ready is not None:  # the GPU waits where it has to, and nobody else does
            taker = torch.cuda.current_stream(self._device)
            taker.wait_event(ready)
            batch["views"].record_stream(taker)
        return batch

    def close(self) -> None:
        """End the loader's threads; batches on their way are dropped. In a forked process nothing is to be ended."""
        self._closed = True
        if self._process != os.getpid():
            return
        self._drop()
        for executor in (self._planner, self._starter, self._finisher, self._pool):
            executor.shutdown(wait=True, cancel_futures=True)
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_process(self) -> None:
        """Raise RuntimeError in a forked process: the threads are not there, and would be waited for without end."""
        if self._process != os.getpid():
            raise RuntimeError(f"the loader belongs to process {self._process}: make one in each process")

    def _drop(self) -> None:
        """Give up the batches ahead, and wait until no thread works on one: what it met would be noted too late."""
        dropped, self._ahead = list(self._ahead), deque()
        for planned, _ in dropped:
            if not planned.cancel() and planned.exception() is None and planned.result():
                tasks = planned.result()[1]
                wait([task for task in tasks if not task.cancel()])
        # a batch that a backend has begun is taken from it
        wait([batch for _, batch in dropped])

    def _plan(self, position: int) -> "tuple[BatchIndices, list[Future[Prepared]]] | None":
        """Plan thread: sample the batch that begins at a position, and set the pool to work."""
        batch = self.sampler.batch(position)
        if batch is None:
            return None
        buffers = self.backend.buffer(batch.samples)
        return batch, [self._pool.submit(self._prepare, batch, p, out) for p, out in enumerate(buffers)]

    def _start(
        self, planned: Future[Any]
    ) -> "tuple[BatchIndices, list[tuple[Sample, Any]], Rendered] | None":
        """Start thread: wait for what the batch is made of, and begin to make it."""
        self._under_way.acquire()  # until the batch is finished
        plan = planned.result()
        if plan is None:
            return None
        batch, tasks = plan
        prepared = [one for one in (task.result() for task in tasks) if one]
        tasks.clear()  # frames in the GPU's memory are let go of once they are rendered
        return batch, prepared, self._render(prepared)

    def _finish(self, started: Future[Any]) -> Finished | None:
        """Finish thread: wait for the batch's views."""
        try:
            begun = started.result()
            if begun is None:
                return None
            batch, prepared, rendered = begun
            with torch.cuda.stream(self._stream):
                views = rendered()
                views = views if self._device is None else views.to(self._device, non_blocking=True)
                ready = self._stream.record_event() if self._stream else None
            return self._batch(batch, prepared, views), ready
        except CancelledError:
            return None
        finally:
            self._under_way.release()

    def _render(self, prepared: list[tuple[Sample, Any]]) -> Rendered:
        """Begin a batch."""
        if not prepared:
            spec = self.sampler.spec
            empty = torch.empty(0, spec.views, spec.channels, spec.frames, spec.size, spec.size)
            return lambda: empty
        return self.backend.render([sample for sample, _ in prepared], [needed for _, needed in prepared])

    def _prepare(self, batch: BatchIndices, place: int, out: Any) -> Prepared:
        """Pool: what one place of the batch needs, stepping over videos that cannot be used."""
        sample: Sample | None = batch.samples[place]
        for attempt in range(_ATTEMPTS):
            if sample is None:
                return None
            if (batch.epoch, sample.row) not in self._bad:
                try:
                    video = Video(self.dataset, sample.row, self.sampler.spec.component)
                    return sample, self.backend.prepare(video, sample, out)
                except (DecodeError, DamagedError) as error:
                    self._note_bad(batch.epoch, sample.row, str(error))
            sample = self.sampler.replacement(batch, place, attempt)
        raise InputError(
            f"{self.dataset.source}: {_ATTEMPTS} videos in a row cannot be decoded ({self._last}): "
            "the data set is damaged; restore it and go on with --resume (tools/check_shards.py says what is lost)"
        )

    def _batch(
        self, batch: BatchIndices, prepared: list[tuple[Sample, Any]], views: Tensor
    ) -> dict[str, Any]:
        samples = [sample for sample, _ in prepared]
        params = [one for sample in samples for one in sample.params.clips(sample.clips)]
        index = np.concatenate([np.zeros(0, np.int64), *(sample.index for sample in samples)])
        rows = self.sampler.rows[index]
        paces = [one.pace for one in params if one.pace is not None]
        return {
            "views": views,
            "label": torch.from_numpy(self.sampler.labels[index]),
            "row": torch.from_numpy(rows),
            "index": torch.from_numpy(index),
            "key": self.dataset.keys(rows),
            "epoch": batch.epoch,
            "params": params,
            **({"pace": torch.from_numpy(np.stack(paces))} if paces else {}),
        }

    def _note_bad(self, epoch: int, row: int, reason: str) -> None:
        """A video cannot be used, now and in this epoch: say so once, and put it into quarantine."""
        key = self.dataset.keys([row])[0]
        with self._lock:
            self._bad.add((epoch, row))
            self._last = f"{key}: {reason}"
            known = row in self._noted or row in self._failed
            self._noted.add(row)
            self._failed[row] = reason
        if not known:
            fate = "replaced" if self.sampler.replaces else "left out"
            log.warning("%s cannot be decoded and is %s: %s", key, fate, reason)
            if self._quarantine:
                self.dataset.quarantine(row, reason)


def _check_flow(dataset: Dataset, rows: np.ndarray) -> None:
    """Raise InputError where a row has no flow."""
    try:
        lacking = np.isnan(dataset.column("flow.mp4_offset")[rows].astype(np.float64))
    except InputError as error:
        raise InputError(
            f"{dataset.source}: the method looks at flow, and the data set has none; {_MAKE_FLOW}"
        ) from error
    if lacking.any():
        first = dataset.keys(rows[[int(lacking.argmax())]])[0]
        raise InputError(
            f"{dataset.source}: {lacking.sum()} of {len(lacking)} videos have no flow ({first} is the first); "
            + _MAKE_FLOW
        )


def to_device(
    batch: dict[str, Any], device: torch.device, *, channels_last: bool = True
) -> dict[str, Tensor]:
    """The tensors of a loader's batch on `device`: what Objective.forward is given.

    Views come from the loader in channels-last strides; with channels_last off they are copied out of them.
    """
    given = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
    return given if channels_last else given | {"views": given["views"].contiguous()}
