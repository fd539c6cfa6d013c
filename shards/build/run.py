"""The job behind tools/make_shards.py: a folder of videos to a data set, restartable at every shard.

--dry-run: what a job would do, its size and time extrapolated from a few of its videos.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shards.build.finish import Summary, already_made, finish
from shards.build.job import Job, Notes, keys
from shards.build.pool import Limits, Reject, in_order
from shards.build.process_video import Processing, Task, process_video
from shards.errors import InputError
from shards.layouts import Layout, find, hold_out
from shards.tar import Sample, size_of, write_shard
from shards.video.read import IO_ERROR
from shards.video.transcode import Clip

TOO_MANY_UNREAD = 3  # videos in a row
TRIED = 8  # videos of a dry run, or two a worker


def prepare(
    folder: Path,
    out: Path,
    processing: Processing,
    *,
    layout: Layout | None = None,
    annotations: Path | None = None,
    per_shard: int = 1000,
    seed: int = 0,
    held_out: float | None = None,
    made_for: str | None = None,
    stride: int | None = None,
) -> Job:
    """Look at the videos in `folder`, and plan their data set `out`. Writes nothing.

    layout, annotations: see `layouts.find`. held_out: see `layouts.hold_out`. made_for, stride: see `Processing.settings`. The order of the videos follows from
    `seed` and their names, a shard is `per_shard` of them, and one thread encodes each: neither workers, nor parts, nor
    a restart change a byte.

    Raises InputError when the folder holds nothing usable, or the processing cannot be done here.
    """
    if per_shard < 1:
        raise InputError(f"--per-shard {per_shard}: give 1 or more")
    if processing.stored_flow:
        processing.stored_flow.estimator()
    found = find(folder, layout, annotations, frames=processing.frames_fps is not None)
    if held_out is not None:
        found = hold_out(found, held_out)
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"--out {out}: lies inside {folder}, where the videos are; give another --out")
    sources = sorted(
        found.sources, key=lambda one: hashlib.sha256(f"{seed}/{one.relative}".encode()).digest()
    )
    # names, sizes and annotations: enough to notice other videos without reading them all again
    facts = [(one.relative, one.size, one.label_name, one.split, one.columns) for one in sources]
    settings = processing.settings(made_for, stride) | {
        "per_shard": per_shard,
        "seed": seed,
        "layout": found.layout,
    }
    settings["sources"] = hashlib.sha256("\n".join(map(repr, facts)).encode()).hexdigest()
    return Job(
        notes=Notes(out),
        processing=processing,
        found=found,
        sources=sources,
        keys=keys([source.relative for source in sources]),
        batches=[
            range(len(sources))[start : start + per_shard] for start in range(0, len(sources), per_shard)
        ],
        settings=settings if held_out is None else settings | {"hold_out": held_out},
    )


def build(
    job: Job,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    part: slice | None = None,
) -> Summary | None:
    """Make the data set of a job, or one part of its shards; None when a part is done. Draws a progress bar.

    Called again after a kill it continues with the first unfinished shard; shards that lack a video which the disk did
    not give, and now gives, are made again. A shard all of whose videos are rejected has no tar.
    Raises InputError when the job's folder holds something else, or another process is at work on it; OSError when the
    disk is full.
    """
    if summary := already_made(job):
        return summary
    with job.locked(part):
        todo = job.unfinished(part)
        with closing(process_videos(job, todo, limits)) as results, _bar(job, part, todo, results) as bar:
            counted = iter(bar)
            for shard in todo:
                make_shard(job, shard, counted)
        return finish(job.notes) if part is None else None


def _bar(
    job: Job, part: slice | None, todo: Sequence[int], results: Iterable[Clip | Reject] | None = None
) -> "tqdm[Clip | Reject]":
    """A progress bar; what an earlier run made says nothing about this one's speed, hence initial."""
    total = job.videos(job.shards(part))
    initial, name = total - job.videos(todo), job.notes.out.name
    return tqdm(results, name, total, initial=initial, unit="video", dynamic_ncols=True)


def build_on_ray(job: Job, address: str, limits: Limits) -> Summary:
    """Make the data set of a job on the Ray cluster at `address` ("auto", "local", host:port), a task a shard.

    A task takes limits.workers of the cluster's CPUs. The videos and the job's folder must have the same paths
    on every machine, and Slipstream must be installed there. A task whose machine is lost is done again
    elsewhere. Raises as `build` does, and InputError when Ray (an extra) or the cluster is not there.
    """
    if summary := already_made(job):
        return summary
    with _cluster(address) as ray, job.locked(None):
        todo = job.unfinished(None)
        shared = ray.put(job)
        make = ray.remote(num_cpus=limits.workers, max_retries=3)(_make_one_shard)
        running = {make.remote(shared, shard, limits): shard for shard in todo}
        with _bar(job, None, todo) as bar:
            while running:
                (finished,), _ = ray.wait(list(running), num_returns=1)
                try:
                    ray.get(finished)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                bar.update(job.videos([running.pop(finished)]))
        return finish(job.notes)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise InputError(f"--ray {address}: Ray is not installed; pip install ray") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: {str(error).splitlines()[0]}; give a running cluster") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _make_one_shard(job: Job, shard: int, limits: Limits) -> None:
    shutil.rmtree(job.notes.scratch(shard), ignore_errors=True)  # of a machine that was lost
    with closing(process_videos(job, [shard], limits)) as results:
        make_shard(job, shard, results)


def make_shard(job: Job, shard: int, results: Iterator[Clip | Reject]) -> None:
    """Write one shard from its videos' results, and the note that says so."""
    rejected: list[dict[str, str]] = []
    made = write_shard(job.notes.out, job.notes.stem(shard), _samples(job, shard, results, rejected))
    job.notes.finish(shard, made, rejected)
    shutil.rmtree(job.notes.scratch(shard), ignore_errors=True)


def process_videos(job: Job, shards: Sequence[int], limits: Limits) -> Generator[Clip | Reject]:
    """The results of the videos of some shards, in their order.

    Raises OSError when the disk gives none of several videos in a row: the folder is gone, not the videos bad.
    """
    unread, too_many = 0, min(TOO_MANY_UNREAD, len(job.sources))
    tasks = (
        Task(job.sources[i].path, job.processing, job.notes.scratch(shard), job.sources[i].member)
        for shard in shards
        for i in job.batches[shard]
    )
    results = in_order(process_video, tasks, **vars(limits))
    with closing(results):
        for result in results:
            unread = unread + 1 if isinstance(result, Reject) and result.reason == IO_ERROR else 0
            if unread == too_many:
                assert isinstance(result, Reject)
                raise OSError(f"the disk does not give {unread} videos in a row ({result.detail})")
            yield result


def _samples(
    job: Job, shard: int, results: Iterator[Clip | Reject], rejected: list[dict[str, str]]
) -> Iterator[Sample]:
    """The samples of one shard; what does not become one is appended to `rejected`."""
    for i in job.batches[shard]:
        source, result = job.sources[i], next(results)
        if isinstance(result, Reject):
            rejected.append({"source": source.relative, "reason": result.reason, "detail": result.detail})
            continue
        facts: dict[str, Any] = {"source": source.relative, "label_name": source.label_name}
        if source.split is not None:
            facts["split"] = source.split
        facts |= source.columns
        for name in ("num_frames", "fps", "width", "height"):
            facts[name] = getattr(result, name)
        label = -1 if source.label_name is None else job.found.classes.index(source.label_name)
        yield Sample(job.keys[i], result.data, facts | result.seen, label, result.flow)
        for file in filter(None, (result.data, result.flow)):
            file.unlink()  # it is in the tar


def dry_run(job: Job, limits: Limits, part: slice | None = None) -> Iterator[str]:
    """What a job would do, in lines; size and time from its first few videos, in the order of its shards: a random one."""
    found, shards = job.found, job.shards(part)
    sources = [job.sources[i] for shard in shards for i in job.batches[shard]]
    sizes = [source.size for source in sources]
    unlabelled = sum(source.label_name is None for source in found.sources)
    yield f"layout     {found.layout}"
    yield f"videos     {len(sources)} files, {sum(sizes) / 1e6:.1f} MB, in {len(shards)} shards"
    yield f"classes    {len(found.classes)}" + (f", {unlabelled} videos unlabelled" if unlabelled else "")
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for source in sources:
        for column, split in {"split": source.split, **source.columns}.items():
            splits[column].update([split] if isinstance(split, str) else [])
    for column, counts in sorted(splits.items()):
        if counts:
            yield f"{column:10s} " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    for what in ("missing", "unlisted", "unreadable"):
        if names := list(getattr(found, what)):
            yield f"{what:10s} {len(names)}: " + ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    tried = sources[: max(TRIED, 2 * limits.workers)]
    with tempfile.TemporaryDirectory(prefix="dry-run-") as scratch:
        tasks = [Task(source.path, job.processing, Path(scratch), source.member) for source in tried]
        with closing(in_order(_timed, tasks, **vars(limits))) as results:
            outcomes = list(results)
    rejected = Counter(one.reason for one in outcomes if isinstance(one, Reject))
    yield f"tried      {len(tried)} videos" + "".join(f", {n} {reason}" for reason, n in rejected.items())
    made = [one for one in outcomes if not isinstance(one, Reject)]
    if any(size for size, _ in made):
        share = sum(sizes) / max(1, sum(sizes[: len(tried)]))
        size, seconds = (sum(values) * share for values in zip(*made, strict=True))
        minutes = seconds / limits.workers / 60
        yield f"expected   {size / 1e6:.1f} MB in {minutes:.1f} minutes, {limits.workers} workers"


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
