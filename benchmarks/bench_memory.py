#!/usr/bin/env python3
"""Does the loader's memory stay flat? Thousands of batches on the CPU: memory, threads, open files, and the time that a new epoch takes.

    benchmarks/bench_memory.py --json benchmarks/results/DATE-MACHINE-memory.json       10,000 batches, rendered videos
    benchmarks/bench_memory.py --batches 300 --settled 100                      a first look

Resident memory (RSS) is noted every hundredth part of the run. From batch --settled on, when pools and caches are
filled, it has to stay within 5 %, and threads and file descriptors have to stay the same; else the exit status is 1.
The first batches of each epoch are compared with the median batch: opening an epoch should take no time.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from tqdm import tqdm

from benchmarks.report import origin
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, at_least, demo, one_line
from shards.documents import write_json

ALLOWED = 0.05  # growth of memory
CLIPS = 2  # a batch, of 8 frames of 64² each
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
    json: Path | None = None
    """Write the result here as well."""


def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    at_least(arguments, 1, "settled", "epoch")
    at_least(arguments, arguments.settled + 1, "batches")
    result = origin("benchmarks/bench_memory.py", argv)
    result["settings"] = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(arguments).items()}
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or demo.render(Path(folder) / "demo", clips_per_class=(2, 1), frames=48)
        dataset = Dataset(data)
        result |= run(dataset, arguments)
        dataset.close()
    print(json.dumps(result, indent=1))
    if arguments.json:
        write_json(arguments.json, result)
    return 0 if result["flat"] else 1


def run(dataset: Dataset, arguments: Arguments) -> dict[str, Any]:
    """Take the batches, and note memory and time."""
    spec = ViewSpec(offsets=(tuple(range(8)),), size=64, rotation=10, jitter=Jitter())
    rows = np.resize(dataset.select(), arguments.epoch * CLIPS)
    every = max(1, arguments.batches // 100)
    process, seen, seconds, openings = psutil.Process(), [], [], []
    with Loader(dataset, TrainSampler(dataset, rows, spec, CLIPS)) as loader:
        for number in tqdm(range(1, arguments.batches + 1), unit="batch", smoothing=0.01):
            began = time.perf_counter()
            batch = next(loader)
            seconds.append(time.perf_counter() - began)
            if batch["epoch"] > len(openings):
                openings.append(number - 1)
            if number % every == 0 or number == arguments.settled:
                rss, threads = process.memory_info().rss, process.num_threads()
                seen.append(
                    {"batch": number, "rss": rss, "threads": threads, "descriptors": process.num_fds()}
                )
    return judged(seen, arguments.settled) | opened(seconds, openings)


def judged(seen: list[dict[str, int]], settled: int) -> dict[str, Any]:
    """growth: of memory, the largest value from the batch `settled` on over that at it, minus 1."""
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


def opened(seconds: list[float], openings: list[int]) -> dict[str, Any]:
    """What the first batches of the second epoch and of those that follow took, in medians of a batch."""
    median = statistics.median(seconds)

    def over_median(place: int) -> float:
        return statistics.fmean(seconds[place : place + FIRST]) / median

    anywhere = [over_median(place) for place in range(0, len(seconds) - FIRST, FIRST)]
    quantiles = np.quantile(anywhere, [0.5, 0.9, 0.99]).tolist()
    return {
        "clips_per_s": CLIPS * len(seconds) / sum(seconds),
        "batch_ms": {"median": 1000 * median, "p99": 1000 * float(np.quantile(seconds, 0.99))},
        "epochs": 1 + len(openings),
        "first_batches_of_an_epoch_over_median": [over_median(place) for place in openings],
        "any_batches_over_median": dict(zip(("median", "p90", "p99"), quantiles, strict=True)),
    }


if __name__ == "__main__":
    with one_line():
        sys.exit(main(sys.argv[1:]))
