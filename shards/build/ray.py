"""--ray: the same shards made by a Ray cluster whose machines share the disks. Ray is an extra."""

import logging
import os
import shutil
from contextlib import closing

from shards.build.finish import Summary, already_made, finish
from shards.build.job import Job, Part
from shards.build.lock import locked_job
from shards.build.run import Limits, Progress, make_shard, process_videos
from shards.errors import InputError


def build_on_ray(job: Job, address: str, limits: Limits, *, progress: Progress | None = None) -> Summary:
    """Make the data set of a job on the cluster at `address` ("auto", "local", host:port), a task a shard.

    A task takes limits.workers of the cluster's CPUs. The videos and the job's folder must have the same paths
    on every machine, and Slipstream must be installed there. A task whose machine is lost is done again
    elsewhere. Raises as `build.build` does, and InputError when Ray or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise InputError(f"--ray {address}: Ray is not installed; pip install ray") from None
    summary = already_made(job)
    if summary is not None:
        return summary
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: {str(error).splitlines()[0]}; give a running cluster") from error
    try:
        with locked_job(job, None):
            _run(job, limits, progress)
            return finish(job.notes)
    finally:
        ray.shutdown()


def _run(job: Job, limits: Limits, progress: Progress | None) -> None:
    import ray

    total = len(job.sources)
    todo = list(job.unfinished(Part()))
    done = total - sum(len(job.batches[shard]) for shard in todo)
    if progress:
        progress(done, total)
    shared = ray.put(job)
    make = ray.remote(num_cpus=limits.workers, max_retries=3)(_make_shard)
    running = {make.remote(shared, shard, limits): shard for shard in todo}
    while running:
        (finished,), _ = ray.wait(list(running), num_returns=1)
        try:
            ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        done += len(job.batches[running.pop(finished)])
        if progress:
            progress(done, total)


def _make_shard(job: Job, shard: int, limits: Limits) -> None:
    shutil.rmtree(job.notes.scratch(shard), ignore_errors=True)  # of a machine that was lost
    with closing(process_videos(job, [shard], limits)) as results:
        make_shard(job, shard, results)
