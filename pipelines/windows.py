"""Evaluation's way through videos: every window of every video once, in order, nothing drawn at random.

Letters: W windows of a video, N windows of all videos, V views, T frames a view.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.damage import DecodeError
from pipelines.decode import check_whole, decode_views
from pipelines.graph import Graph, Placement
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec, plain
from shards import DamagedError, Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Which windows of a video are looked at.

    count: so many, spread evenly from its beginning to its end, each start once; or, with 0, one every `hop` frames
    as long as it fits. A video shorter than a window has one, padded. crops: 1, the middle; 5, the middle and the
    four corners; 10, these and their mirror images.
    """

    count: int = 0
    hop: int = 0
    crops: Literal[1, 5, 10] = 1

    def __post_init__(self) -> None:
        if (self.count > 0) == (self.hop > 0) or self.crops not in (1, 5, 10):
            raise ValueError(
                f"a layout has either count ({self.count}) or hop ({self.hop}), and 1, 5 or 10 crops ({self.crops})"
            )

    def starts(self, num_frames: int, span: int) -> NDArray[np.int64]:
        """First frames (W,), ascending, of a video's windows; span: frames from a window's first to its last."""
        room = max(num_frames - span, 0)
        if self.hop:
            return np.arange(0, room + 1, self.hop, dtype=np.int64)
        if self.count == 1:
            return np.array([room // 2], dtype=np.int64)
        return np.unique(np.linspace(0, room, self.count).round().astype(np.int64))


@dataclass(frozen=True)
class Windows:
    """row, start, crop: (N,) int64 each, the row of the table, the window's first frame, which of the crops."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    crop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: NDArray) -> "Windows":
        """Those at some places, or where a mask is true."""
        return Windows(self.row[places], self.start[places], self.crop[places])

    @classmethod
    def of(cls, dataset: Dataset, rows: Sequence[int] | NDArray, spec: ViewSpec, layout: Layout) -> "Windows":
        """All windows of the rows, in their order; a video's windows in ascending order, each with all its crops."""
        num_frames = dataset.column("num_frames")
        found = [
            (int(row), int(start), crop)
            for row in rows
            for start in layout.starts(int(num_frames[row]), spec.span)
            for crop in range(layout.crops)
        ]
        return cls(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def eval_params(spec: ViewSpec, dataset: Dataset, windows: Windows) -> ViewParams:
    """The spec of N windows: frames from their start, boxes of their crop. The spec is used without augmentation.

    A window that runs over its video's end repeats the last frame, one that starts before it (start < 0) the first; with
    the policy "wrap" videos start over. Raises
    ValueError for a spec with paces: a window's frames are fixed.
    """
    if spec.paces:
        raise ValueError("an evaluation's windows have one pace: set the spec's paces to ()")
    still = replace(plain(spec), padding="wrap" if spec.padding == "wrap" else "repeat_last")
    facts = [dataset.column(name)[windows.row] for name in ("num_frames", "width", "height")]
    straight, mirrored = (
        sample_params(replace(still, flip=flip), windows.row, *facts, seed=0, epoch=0) for flip in (0.0, 1.0)
    )
    turned = windows.crop >= 5
    colours = np.where(turned[:, None, None, None, None], mirrored.colours, straight.colours)
    boxes = _placed(straight.boxes, windows.crop % 5, *facts[1:])
    flips = np.repeat(turned[:, None], spec.views, axis=1)
    return replace(
        straight,
        frames=frames_from(still, windows.start, facts[0]),
        boxes=boxes,
        flips=flips,
        colours=colours,
    )


def frames_from(spec: ViewSpec, start_N: NDArray[np.int64], num_frames_N: NDArray) -> NDArray[np.int32]:
    """The frames (N, V, T), one more of a difference, of windows that begin at these frames."""
    offsets_VT = np.asarray(spec.offsets)
    if spec.modality == "difference":
        offsets_VT = np.concatenate([offsets_VT, offsets_VT[:, -1:] + 1], axis=1)
    numbers = start_N[:, None, None] + offsets_VT
    length = num_frames_N[:, None, None]
    return (numbers % length if spec.padding == "wrap" else numbers.clip(0, length - 1)).astype(np.int32)


def _placed(
    boxes_NV4: NDArray[np.int32], corner_N: NDArray[np.int64], width_N: NDArray, height_N: NDArray
) -> NDArray[np.int32]:
    """Centred boxes moved into a corner: 1 top left, 2 top right, 3 bottom left, 4 bottom right; 0 stays."""
    boxes = boxes_NV4.copy()
    for axis, full_N, far in ((0, width_N, (2, 4)), (1, height_N, (3, 4))):
        room = (full_N[:, None] - boxes[..., 2 + axis]) // 2 * 2
        at_end = np.isin(corner_N, far)[:, None]
        moved = np.where(at_end, room, 0)
        boxes[..., axis] = np.where(corner_N[:, None] == 0, boxes[..., axis], moved)
    return boxes


@dataclass(frozen=True)
class _Task:
    """The windows of one video in a batch, on their way."""

    row: int
    places: NDArray[np.int64]  # among all windows
    params: ViewParams
    material: "Future[list[NDArray[np.uint8]]]"


class WindowLoader:
    """Batches of windows, each window once, in order; the windows of one video in a batch are decoded together.

    Iterating gives dicts: views (n, V, C, T, H, W) float32 on `device`; index (n,) int64, which of the windows they
    are; batch, the batch's number. n is below batch_size in the last batch and where videos are left out, perhaps 0. batches: which batches of `batch_size` windows to make, all by default: what a batch holds does not
    depend on how the batches are divided among processes.
    failed: row → reason, of videos that could not be read or decoded where a batch wanted them; of these the batch's windows
    are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        windows: Windows,
        spec: ViewSpec,
        *,
        batch_size: int,
        batches: Sequence[int] | None = None,
        placement: Placement = "cpu",
        threads: int = 2,
        prefetch: int = 2,
        device: torch.device | None = None,
        decoder: str = "mixed",
        params: Callable[[NDArray[np.int64]], ViewParams] | None = None,
    ) -> None:
        self.failed: dict[int, str] = {}
        self._drawn = params or (lambda places: eval_params(spec, dataset, windows.at(places)))
        self._dataset, self._windows, self._spec = dataset, windows, spec
        self._batch_size, self._prefetch, self._device = batch_size, prefetch, device
        self._batches = range(self.count(windows, batch_size)) if batches is None else batches
        self._placement, self._threads, self._decoder = placement, threads, decoder
        self._component = "flow.mp4" if spec.modality == "flow" else "mp4"
        self._graph: Graph | None = None

    @staticmethod
    def count(windows: Windows, batch_size: int) -> int:
        """How many batches the windows make."""
        return -(-len(windows) // batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(self._threads, "slipstream-windows") as pool:
            ahead: deque[tuple[int, list[_Task]]] = deque()
            try:
                for batch in self._batches:
                    ahead.append((batch, self._start(pool, batch)))
                    if len(ahead) > self._prefetch:
                        yield self._finish(*ahead.popleft())
                while ahead:
                    yield self._finish(*ahead.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                if self._graph:
                    self._graph.close()
                self._graph = None

    def _start(self, pool: ThreadPoolExecutor, batch: int) -> "list[_Task]":
        first = batch * self._batch_size
        index = np.arange(first, min(first + self._batch_size, len(self._windows)))
        tasks = []
        for _, group in groupby(index.tolist(), key=lambda i: int(self._windows.row[i])):
            places = np.array(list(group))
            params = self._drawn(places)
            row = int(self._windows.row[places[0]])
            tasks.append(_Task(row, places, params, pool.submit(self._read, row, params)))
        return tasks

    def _read(self, row: int, params: ViewParams) -> list[NDArray[np.uint8]]:
        """The material of one video's windows: its bytes for each, or each window's pixels from one decoding."""
        video = self._dataset.read(row, self._component)
        W, V, T = params.frames.shape
        if self._placement == "gpu":
            return [np.frombuffer(video, np.uint8)] * W
        together = replace(
            params,
            frames=params.frames.reshape(W * V, T),
            boxes=params.boxes.reshape(W * V, 4),
            flips=params.flips.reshape(W * V),
        )
        pixels = decode_views(video, together, self._spec.size, self._spec.modality)
        return [np.ascontiguousarray(window) for window in pixels.reshape(W, V * T, *pixels.shape[1:])]

    def _finish(self, batch: int, tasks: "list[_Task]") -> dict[str, Any]:
        while True:
            good = [(task, self._material(task)) for task in tasks]
            tasks = [task for task, pieces in good if pieces]
            index = [int(i) for task, pieces in good for i in task.places[: len(pieces)]]
            batch_params = [task.params.sample(i) for task, pieces in good for i in range(len(pieces))]
            try:
                views = self._run(batch_params, [piece for _, pieces in good for piece in pieces])
                break
            except RuntimeError:
                self._graph = None  # DALI's pipeline is dead after a failure
                if not (culprits := self._culprits(tasks)):
                    raise
                tasks = [task for task in tasks if task.row not in culprits]
        views = views if self._device is None else views.to(self._device, non_blocking=True)
        return {"views": views, "index": torch.tensor(index, dtype=torch.int64), "batch": batch}

    def _material(self, task: "_Task") -> list[NDArray[np.uint8]]:
        """Of a task's windows, or none where its video cannot be decoded."""
        try:
            return task.material.result()
        except (DecodeError, DamagedError) as error:
            self._fail(task.row, str(error))
            return []

    def _run(self, batch_params: list[ViewParams], material: list[NDArray[np.uint8]]) -> torch.Tensor:
        if not batch_params:
            spec = self._spec
            return torch.empty(0, spec.views, spec.channels, spec.frames, spec.size, spec.size)
        self._graph = self._graph or Graph(
            self._spec, self._batch_size, self._placement, threads=self._threads, decoder=self._decoder
        )
        return self._graph.run(batch_params, material)

    def _culprits(self, tasks: "list[_Task]") -> set[int]:
        """NVDEC fails a whole batch for one bad video and does not say which: FFmpeg finds the rows."""
        found = set()
        for row in sorted({task.row for task in tasks}) if self._placement == "gpu" else ():
            try:
                check_whole(self._dataset.read(row, self._component))
            except (DecodeError, DamagedError) as error:
                self._fail(row, str(error))
                found.add(row)
        return found

    def _fail(self, row: int, reason: str) -> None:
        if row not in self.failed:
            self.failed[row] = reason
            log.warning("%s cannot be decoded and is left out: %s", self._dataset.keys([row])[0], reason)
