"""The clips that an evaluation looks at: given places of given videos, batches of them, and features of video files.

Letters: W clips of a video, N clips of all videos, V views, T frames a view.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.backends import BackendSettings
from pipelines.loader import Loader
from pipelines.sampler import BatchIndices, Sample, TrainSampler
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec, eval_view
from shards import Dataset, InputError, tar
from shards.table import publish
from shards.video.encode import Encoding
from shards.video.read import Rejected, Unread
from shards.video.transcode import transcode


@dataclass(frozen=True)
class EvalLayout:
    """Which clips of a video are looked at.

    count: this many, spread evenly from its beginning to its end, each start once; or, with 0, one every `hop` frames
    as long as it fits. A video shorter than a clip has one, padded. crops: 1, the middle; 5, the middle and the
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
        """First frames (W,), ascending, of a video's clips; span: frames from a clip's first to its last."""
        room = max(num_frames - span, 0)
        if self.hop:
            return np.arange(0, room + 1, self.hop, dtype=np.int64)
        if self.count == 1:
            return np.array([room // 2], dtype=np.int64)
        return np.unique(np.linspace(0, room, self.count).round().astype(np.int64))


@dataclass(frozen=True)
class EvalClips:
    """row, start, crop: (N,) int64 each, the row of the table, the clip's first frame, which of the crops."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    crop: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: NDArray) -> "EvalClips":
        """Those at some places, or where a mask is true."""
        return EvalClips(self.row[places], self.start[places], self.crop[places])

    @classmethod
    def of(
        cls, dataset: Dataset, rows: Sequence[int] | NDArray, spec: ViewSpec, layout: EvalLayout
    ) -> "EvalClips":
        """All clips of the rows, in their order; a video's clips in ascending order, each with all its crops."""
        num_frames = dataset.column("num_frames")
        found = [
            (int(row), int(start), crop)
            for row in rows
            for start in layout.starts(int(num_frames[row]), spec.span)
            for crop in range(layout.crops)
        ]
        return cls(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def eval_params(spec: ViewSpec, dataset: Dataset, clips: EvalClips) -> ViewParams:
    """The parameters of N clips: frames from their start, boxes of their crop. The spec is used without augmentation.

    A clip that runs over its video's end repeats the last frame, one that starts before it (start < 0) the first; with
    the policy "wrap" videos start over. Raises
    ValueError for a spec with paces: a clip's frames are fixed.
    """
    if spec.paces:
        raise ValueError("an evaluation's clips have one pace: set the spec's paces to ()")
    still = replace(eval_view(spec), padding="wrap" if spec.padding == "wrap" else "repeat_last")
    facts = [dataset.column(name)[clips.row] for name in ("num_frames", "width", "height")]
    straight, mirrored = (
        sample_params(replace(still, flip=flip), clips.row, *facts, seed=0, epoch=0) for flip in (0.0, 1.0)
    )
    turned = clips.crop >= 5
    colours = np.where(turned[:, None, None, None, None], mirrored.colours, straight.colours)
    boxes = _placed(straight.boxes, clips.crop % 5, *facts[1:])
    flips = np.repeat(turned[:, None], spec.views, axis=1)
    return replace(
        straight,
        frames=frames_from(still, clips.start, facts[0]),
        boxes=boxes,
        flips=flips,
        colours=colours,
    )


def frames_from(spec: ViewSpec, start_N: NDArray[np.int64], num_frames_N: NDArray) -> NDArray[np.int32]:
    """The frames (N, V, T), one more of a difference, of clips that begin at these frames."""
    numbers = start_N[:, None, None] + spec.decoded_offsets
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


class EvalSampler:
    """Batches of given clips, each once, in order; a video that cannot be decoded is left out.

    The clips of one video are decoded together: a batch holds whole videos, as many as fit into batch_size clips. Only a
    video of more clips than that is divided: each of its batches decodes the frames of its own clips, so those that clips of
    two batches share are decoded twice. So what a batch holds does not depend on how the batches are divided among
    processes. batches: which of them to make, all by default. A position counts batches.
    """

    step, replaces = 1, False

    def __init__(
        self,
        dataset: Dataset,
        clips: EvalClips,
        spec: ViewSpec,
        batch_size: int,
        batches: Sequence[int] | None = None,
    ) -> None:
        self.spec, self.clips, self.rows = spec, clips, clips.row
        self.labels = dataset.column("label")[clips.row].astype(np.int64)
        self.bounds = batch_bounds(clips.row, batch_size)
        self.batches = range(self.count) if batches is None else batches
        self.max_samples = self.max_clips = 1
        for first, end in pairwise(self.bounds):
            _, counts = _by_video(clips.row[first:end])
            self.max_samples = max(self.max_samples, len(counts))
            self.max_clips = max(self.max_clips, int(counts.max()))
        self._dataset = dataset

    @property
    def count(self) -> int:
        """How many batches the clips make."""
        return len(self.bounds) - 1

    def batch(self, position: int) -> BatchIndices | None:
        if position >= len(self.batches):
            return None
        number = self.batches[position]
        index = np.arange(self.bounds[number], self.bounds[number + 1])
        params = eval_params(self.spec, self._dataset, self.clips.at(index))
        return BatchIndices(number, _samples(index, self.rows[index], params), index)

    def replacement(self, batch: BatchIndices, place: int, attempt: int) -> None:
        return None


class ClipSampler(TrainSampler):
    """Shuffled batches of given clips, augmented as the spec says. labels: (N,), of the clips.

    A clip that occurs k times is shown k times an epoch, each time with other parameters.
    """

    def __init__(
        self,
        dataset: Dataset,
        clips: EvalClips,
        labels: NDArray[np.int64],
        spec: ViewSpec,
        batch_size: int,
        *,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        super().__init__(dataset, clips.row, spec, batch_size, seed=seed, rank=rank, world=world)
        self.labels, self._starts = labels, clips.start

    def params(self, epoch: int, indices: NDArray[np.int64]) -> ViewParams:
        facts = [column[indices] for column in self._facts]
        params = sample_params(self.spec, indices, *facts, seed=self.order.seed, epoch=epoch)
        return replace(params, frames=frames_from(self.spec, self._starts[indices], facts[0]))


def batch_bounds(row_N: NDArray[np.int64], batch_size: int) -> list[int]:
    """Where batches of clips begin, and the end: whole videos, a video of more than batch_size clips in several."""
    bounds, filled = [0], 0
    firsts, counts = _by_video(row_N)
    for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
        if filled and filled + count > batch_size:
            bounds.append(first)
            filled = 0
        bounds += range(first + batch_size, first + count, batch_size)
        filled = (filled + count - 1) % batch_size + 1
    return [*bounds, len(row_N)] if len(row_N) else bounds


def _by_video(row_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of clips of one video: where each begins, and how many clips it has."""
    firsts = np.flatnonzero(np.diff(row_N, prepend=row_N[:1] - 1))
    return firsts, np.diff(firsts, append=len(row_N))


def _samples(index: NDArray[np.int64], rows: NDArray[np.int64], params: ViewParams) -> list[Sample]:
    """The clips of each video as one sample."""
    found = []
    for slot, (first, count) in enumerate(zip(*_by_video(rows), strict=True)):
        places = np.arange(first, first + count)
        found.append(Sample(index[places], int(rows[first]), params.joined(places), int(count), slot))
    return found


def video_means(row_N: NDArray[np.int64], x_ND: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Values of windows → the rows (M,), ascending, and each one's mean (M, D)."""
    rows, place = np.unique(row_N, return_inverse=True)
    sums = np.zeros((len(rows), x_ND.shape[1]))
    np.add.at(sums, place, x_ND)
    return rows, sums / np.bincount(place)[:, None]


def video_features(
    represent: Callable[[Tensor], Tensor],
    videos: Sequence[str | Path],
    spec: ViewSpec,
    layout: EvalLayout,
    encoding: Encoding,
    device: torch.device,
    batch_size: int,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Features (N, D) of video files, one a video: the mean of what `represent` makes of its clips.

    represent: views (B, V, C, T, H, W) on the device → (B, D). encoding: how each file is encoded first, into a temporary
    folder. threads: that encode and decode, by default as many as there are cores.
    Raises InputError, naming the file, for one that cannot be decoded.
    """
    threads = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
        dataset = _as_dataset([Path(video) for video in videos], encoding, Path(folder), threads)
        clips = EvalClips.of(dataset, np.arange(len(dataset)), spec, layout)
        sampler = EvalSampler(dataset, clips, spec, batch_size)
        features, places = [], []
        settings = BackendSettings(threads=threads)
        with Loader(dataset, sampler, settings, device=device) as loader, torch.inference_mode():
            for batch in loader:
                features.append(represent(batch["views"]).float().cpu().numpy())
                places.append(batch["row"].numpy())
            failed = loader.failed
    for row, reason in failed.items():
        raise InputError(f"{videos[row]}: {reason}; leave it out")
    return video_means(np.concatenate(places), np.concatenate(features))[1].astype(np.float32)


def _as_dataset(videos: list[Path], encoding: Encoding, folder: Path, threads: int) -> Dataset:
    """One shard of the videos, in their order."""
    if not videos:
        raise InputError("embed_videos: name at least one video")

    def sample(number: int) -> tar.Sample:
        try:
            clip = transcode(videos[number], encoding, folder)
        except Rejected as rejected:
            raise InputError(f"{videos[number]}: {rejected.detail}; leave it out") from rejected
        except Unread as error:
            raise InputError(f"{videos[number]}: {error.strerror}; name a file that can be read") from error
        names = ("num_frames", "fps", "width", "height")
        facts = {name: getattr(clip, name) for name in names} | {"source": str(videos[number])}
        return tar.Sample(f"{number:06d}", clip.data, facts)

    with ThreadPoolExecutor(threads) as pool:
        shard = tar.write_shard(folder, "videos", pool.map(sample, range(len(videos))))
    publish(folder, [], [shard], encoding.settings(), name="videos")
    return Dataset(folder)
