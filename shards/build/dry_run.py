"""--dry-run: what a job would do, its size and time extrapolated from a few of its videos."""

import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shards.build.job import Job, Part
from shards.build.pool import Crashed, in_order
from shards.build.process_video import Reject, Task, process_video
from shards.build.run import Limits
from shards.tar import size_of

TRIED = 8


@dataclass(frozen=True)
class DryRun:
    """videos and bytes: of the sources. splits: column → split → videos. size: bytes of the tars; seconds: with
    the limits' workers, from `tried` videos; both None when none of these became a sample."""

    layout: str
    videos: int
    bytes: int
    shards: int
    classes: int
    unlabelled: int
    splits: dict[str, dict[str, int]]
    missing: list[str]
    unlisted: list[str]
    unreadable: list[str]
    tried: int
    rejected: dict[str, int]
    size: int | None
    seconds: float | None


def dry_run(job: Job, limits: Limits, part: Part | None = None) -> DryRun:
    """Try the first few videos of a job, in the order of its shards, which is random. Writes no shard."""
    shards = job.shards(part or Part())
    sources = [job.sources[i] for shard in shards for i in job.batches[shard]]
    splits: dict[str, Counter[str]] = {}
    for source in sources:
        for column, split in {"split": source.split, **source.columns}.items():
            if isinstance(split, str):
                splits.setdefault(column, Counter())[split] += 1
    sizes = [source.size for source in sources]
    tried = max(TRIED, 2 * limits.workers)
    with tempfile.TemporaryDirectory(prefix="dry-run-") as scratch:
        tasks = [
            Task(source.path, job.processing, Path(scratch), source.member) for source in sources[:tried]
        ]
        results = in_order(_timed, tasks, limits.workers, timeout=limits.timeout, memory=limits.memory)
        with closing(results):
            outcomes = list(results)
    seconds = made = 0.0
    rejected: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Crashed):
            rejected[outcome.reason] += 1
            continue
        seconds += outcome[0]
        if isinstance(outcome[1], Reject):
            rejected[outcome[1].reason] += 1
        else:
            made += outcome[1]
    share = sum(sizes) / max(1, sum(sizes[:tried]))
    return DryRun(
        layout=job.found.layout,
        videos=len(sources),
        bytes=sum(sizes),
        shards=len(shards),
        classes=len(job.found.classes),
        unlabelled=sum(source.label_name is None for source in sources),
        splits={column: dict(sorted(counts.items())) for column, counts in sorted(splits.items())},
        missing=job.found.missing,
        unlisted=job.found.unlisted,
        unreadable=list(job.found.unreadable),
        tried=len(tasks),
        rejected=dict(rejected),
        size=round(made * share) if made else None,
        seconds=seconds * share / limits.workers if made else None,
    )


def _timed(task: Task) -> tuple[float, int | Reject]:
    """Seconds that a video takes, and the bytes of its clip."""
    start = time.perf_counter()
    result = process_video(task)
    seconds = time.perf_counter() - start
    if isinstance(result, Reject):
        return seconds, result
    files = [file for file in (result.data, result.flow) if file]
    size = sum(map(size_of, files))
    for file in files:
        file.unlink()
    return seconds, size
