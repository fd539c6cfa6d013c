"""Features of video files, without shards that somebody made before."""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.eval_clips import EvalClips, EvalSampler
from pipelines.loader import Loader
from shards import Dataset, InputError
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding
from shards.video.read import Rejected, Unread
from shards.video.transcode import transcode

if TYPE_CHECKING:
    from objectives.base import Objective


def embed_videos(
    objective: "Objective",
    videos: Sequence[str | Path],
    *,
    batch_size: int = 8,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Features (N, D) float32, one a video: the mean of its clips' features.

    videos: files of any format that FFmpeg reads. Of each the clips are taken that the method's paper tests
    (Objective.downstream), in the middle crop or crops that it names, without augmentation. Each file is first encoded as
    tools/make_shards.py encodes it, into a temporary folder, so that the features are those that evaluate.py finds. A
    method with a fixed number of frames a second (ShardSettings.rate) gets the frame rate that suits its stride.

    batch_size: clips a batch. threads: that encode and decode, by default as many as there are cores. The network
    works on the device that it is on, and in evaluation mode.
    Raises InputError, naming the file, for one that cannot be decoded; and for a method that looks at optical flow.
    """
    down = objective.downstream()
    if down.spec.modality == "flow":
        raise InputError(
            f"{objective.name} looks at optical flow, which files do not hold: make shards of them with "
            "tools/make_shards.py --flow tvl1, and use evaluate.py embed"
        )
    threads = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="slipstream-") as folder:
        dataset = _as_dataset(objective, [Path(video) for video in videos], Path(folder), threads)
        clips = EvalClips.of(dataset, np.arange(len(dataset)), down.spec, down.test)
        sampler = EvalSampler(dataset, clips, down.spec, batch_size)
        device = next(objective.parameters()).device
        training = objective.training
        objective.eval()
        features, places = [], []
        try:
            with Loader(dataset, sampler, threads=threads, device=device) as loader, torch.inference_mode():
                for batch in loader:
                    features.append(objective.represent(batch["views"]).float().cpu().numpy())
                    places.append(batch["row"].numpy())
                failed = loader.failed
        finally:
            objective.train(training)
    for row, reason in failed.items():
        raise InputError(f"{videos[row]}: {reason}; leave it out")
    sums = np.zeros((len(videos), features[0].shape[1]))
    rows = np.concatenate(places)
    np.add.at(sums, rows, np.concatenate(features))
    return (sums / np.bincount(rows)[:, None]).astype(np.float32)


def _as_dataset(objective: "Objective", videos: list[Path], folder: Path, threads: int) -> Dataset:
    """One shard of the videos, in their order."""
    if not videos:
        raise InputError("embed_videos: name at least one video")
    suits, size = objective.shards, objective.view_spec(objective.config).size
    stride = getattr(objective.config, suits.stride) if suits.stride else None
    encoding = Encoding(
        short_side=max(Encoding.short_side, -(-size // 16) * 16),
        fps=suits.rate * stride if suits.rate and stride else None,
    )

    def sample(number: int) -> Sample:
        try:
            clip = transcode(videos[number], encoding, folder)
        except Rejected as rejected:
            raise InputError(f"{videos[number]}: {rejected.detail}; leave it out") from rejected
        except Unread as error:
            raise InputError(f"{videos[number]}: {error.strerror}; name a file that can be read") from error
        names = ("num_frames", "fps", "width", "height")
        facts = {name: getattr(clip, name) for name in names} | {"source": str(videos[number])}
        return Sample(f"{number:06d}", clip.data, facts)

    with ThreadPoolExecutor(threads) as pool:
        shard = write_shard(folder, "videos", pool.map(sample, range(len(videos))))
    assert shard is not None
    publish(folder, [], [asdict(shard)], encoding.settings(), name="videos")
    return Dataset(folder)
