#!/usr/bin/env python3
"""Does the loader's memory stay flat? Thousands of batches on the CPU: memory, threads, open files, and a new epoch's price.

    benchmarks/bench_memory.py --json benchmarks/results/DATE-MACHINE-memory.json       10,000 batches, rendered videos
    benchmarks/bench_memory.py --batches 300 --settled 100                      a first look

Resident memory (RSS) is noted every hundredth part of the run. From batch --settled on, when pools and caches are
filled, it has to stay within 5 %, and threads and file descriptors have to stay the same; else the exit status is 1.
The first batches of each epoch are compared with the median batch: opening an epoch should not be seen.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from tqdm import tqdm

from benchmarks.machine import describe
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, at_least, demo, one_line

ALLOWED = 0.05  # growth of memory
FIRST = 5  # batches of an epoch that are its opening


@dataclass(frozen=True)
class Arguments:
    """What is run."""

    batches: int = 10_000
    """Batches taken from the loader."""
    settled: int = 1_000
    """The batch from which on nothing may grow."""
    epoch: int = 3_000
    """Batches an epoch: rows are repeated until there are as many."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; 18 rendered videos of 48 frames by default."""
    batch_size: int = 2
    """Clips a batch."""
    size: int = 64
    """Side of a clip, pixels."""
    frames: int = 8
    """Frames of a clip."""
    threads: int = 2
    """Decoding threads."""
    prefetch: int = 2
    """Batches made ahead."""
    json: Path | None = None
    """Write the result here as well."""


def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    at_least(arguments, 1, "settled", "epoch", "batch_size", "size", "frames", "threads")
    at_least(arguments, arguments.settled + 1, "batches")
    with ExitStack() as stack:
        data = arguments.data or rendered(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        dataset = Dataset(data)
        stack.callback(dataset.close)
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["benchmarks/bench_memory.py", *argv]),
            "machine": describe("torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "numpy"),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(arguments).items()},
            **run(dataset, arguments),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0 if result["flat"] else 1


def rendered(folder: Path) -> Path:
    return demo.render(folder / "demo", clips_per_class=(2, 1), frames=48)


def run(dataset: Dataset, arguments: Arguments) -> dict[str, Any]:
    """Take the batches; what was seen of memory and of time."""
    spec = ViewSpec(
        offsets=(tuple(range(arguments.frames)),), size=arguments.size, rotation=10, jitter=Jitter()
    )
    rows = np.resize(dataset.select(), arguments.epoch * arguments.batch_size)
    every = max(1, arguments.batches // 100)
    seen: list[dict[str, int]] = []
    seconds: list[float] = []
    openings: list[int] = []
    sampler = TrainSampler(dataset, rows, spec, arguments.batch_size)
    with Loader(dataset, sampler, threads=arguments.threads, prefetch=arguments.prefetch) as loader:
        for number in tqdm(range(1, arguments.batches + 1), unit="batch", smoothing=0.01):
            began = time.perf_counter()
            batch = next(loader)
            seconds.append(time.perf_counter() - began)
            if batch["epoch"] > len(openings):
                openings.append(number - 1)
            if number % every == 0 or number == arguments.settled:
                seen.append({"batch": number, **footprint()})
    return judged(seen, arguments.settled) | opened(seconds, openings, arguments)


def footprint() -> dict[str, int]:
    """Resident memory (bytes), threads and open file descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def judged(seen: list[dict[str, int]], settled: int) -> dict[str, Any]:
    """growth: of memory, the largest seen after the batch `settled` over that at it, minus 1."""
    later = [one for one in seen if one["batch"] >= settled]
    growth = max(one["rss"] for one in later) / later[0]["rss"] - 1
    constant = {name: len({one[name] for one in later}) == 1 for name in ("threads", "descriptors")}
    return {
        "flat": growth <= ALLOWED and all(constant.values()),
        "growth": growth,
        "growth_at_the_end": later[-1]["rss"] / later[0]["rss"] - 1,
        "constant": constant,
        "seen": seen,
    }


def opened(seconds: list[float], openings: list[int], arguments: Arguments) -> dict[str, Any]:
    """What the first batches of the second epoch and of those that follow took, in medians of a batch."""
    median = statistics.median(seconds)
    first = [statistics.fmean(seconds[place : place + FIRST]) / median for place in openings]
    return {
        "clips_per_s": arguments.batch_size * len(seconds) / sum(seconds),
        "batch_ms": {"median": 1000 * median, "p99": 1000 * float(np.quantile(seconds, 0.99))},
        "epochs": 1 + len(openings),
        "first_batches_of_an_epoch_over_median": first,
        "any_batches_over_median": quantiles(
            statistics.fmean(seconds[i : i + FIRST]) / median for i in range(0, len(seconds) - FIRST, FIRST)
        ),
    }


def quantiles(values: Iterable[float]) -> dict[str, float]:
    found = np.quantile(list(values), [0.5, 0.9, 0.99])
    return dict(zip(("median", "p90", "p99"), found.tolist(), strict=True))


if __name__ == "__main__":
    with one_line():
        sys.exit(main(sys.argv[1:]))
