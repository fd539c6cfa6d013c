"""--dry-run: what a job would do, its size and time extrapolated from a few of its videos."""

import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shards.build.job import Job, Part
from shards.build.pool import Reject, in_order
from shards.build.process_video import Task, process_video
from shards.build.run import Limits
from shards.tar import size_of

TRIED = 8


@dataclass(frozen=True)
class DryRun:
    """videos and bytes: of the sources. splits: column → split → videos. size: bytes of the tars; seconds: with
    the limits' workers, from `tried` videos; both None when none of these became a sample."""

    videos: int
    bytes: int
    shards: int
    splits: dict[str, Counter[str]]
    tried: int
    rejected: Counter[str]
    size: int | None
    seconds: float | None


def dry_run(job: Job, limits: Limits, part: Part | None = None) -> DryRun:
    """Try the first few videos of a job, in the order of its shards, which is random. Writes no shard."""
    shards = job.shards(part)
    sources = [job.sources[i] for shard in shards for i in job.batches[shard]]
    splits: dict[str, Counter[str]] = {}
    for source in sources:
        for column, split in {"split": source.split, **source.columns}.items():
            if isinstance(split, str):
                splits.setdefault(column, Counter())[split] += 1
    sizes = [source.size for source in sources]
    tried = sources[: max(TRIED, 2 * limits.workers)]
    with tempfile.TemporaryDirectory(prefix="dry-run-") as scratch:
        tasks = [Task(source.path, job.processing, Path(scratch), source.member) for source in tried]
        results = in_order(_timed, tasks, limits.workers, timeout=limits.timeout, memory=limits.memory)
        with closing(results):
            outcomes = list(results)
    made = [one for one in outcomes if isinstance(one, tuple)]
    size = sum(size for size, _ in made)
    share = sum(sizes) / max(1, sum(sizes[: len(tried)]))
    return DryRun(
        videos=len(sources),
        bytes=sum(sizes),
        shards=len(shards),
        splits=dict(sorted(splits.items())),
        tried=len(tasks),
        rejected=Counter(one.reason for one in outcomes if isinstance(one, Reject)),
        size=round(size * share) if size else None,
        seconds=sum(seconds for _, seconds in made) * share / limits.workers if size else None,
    )


def _timed(task: Task) -> tuple[int, float] | Reject:
    """Bytes of a video's clip, and the seconds that it takes."""
    start = time.perf_counter()
    result = process_video(task)
    if isinstance(result, Reject):
        return result
    files = [file for file in (result.data, result.flow) if file]
    size = sum(map(size_of, files))
    for file in files:
        file.unlink()
    return size, time.perf_counter() - start
