#!/usr/bin/env python3
"""The doctor: does a data set hold what it says? Checksums, table, indexes, and every frame of every video.

    tools/check_shards.py data/k400                   # look; nothing is written but the picture
    tools/check_shards.py data/k400 --fast            # without decoding
    tools/check_shards.py data/k400 --quarantine      # unusable videos into quarantine.jsonl: training steps over them
    tools/check_shards.py data/k400 --repair          # .idx, samples.parquet and dataset.json rebuilt from the tars

Works on folders that training refuses to open. Exit status: 0 nothing is wrong (or all of it was dealt with),
1 something is, 2 there is nothing to look at. A tar is never changed; --repair keeps the old table and description as
*.before-repair.
"""

import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards import InputError, one_line
from shards.atomic import atomic_write
from shards.check import PROBLEMS, REPAIRABLE, UNUSABLE, Report, check
from shards.check.repair import repair
from shards.table import Table, quarantine
from shards.video.pictures import sides_remark

SHOWN = 5  # problems of a kind that are named one by one, unless --all


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    folder: tyro.conf.Positional[Path]
    """A data set made by tools/make_shards.py."""
    fast: bool = False
    """Do not decode the videos: checksums, table and indexes only."""
    quarantine: bool = False
    """Note unusable videos in quarantine.jsonl (not duplicates, which are only reported)."""
    repair: bool = False
    """Rebuild the indexes, the table and dataset.json from the tars, then look again."""
    picture: Path | None = None
    """Histograms of lengths, sizes and classes (PNG); DIR/check.png when not given."""
    all: bool = False
    """Name every problem, not only the first five of a kind."""
    timeout: float = 600.0
    """Seconds one video may take to decode."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes; as many as there are cores when not given."""


def main() -> int:
    """The exit status: 0 nothing is wrong, 1 something is, 2 that could not be found out."""
    arguments = tyro.cli(Arguments, description=__doc__)
    with one_line(place=arguments.folder, system=2):
        if arguments.workers < 1:
            raise InputError(f"--workers {arguments.workers}: give 1 or more")
        if arguments.repair:
            rows, lost = repair(arguments.folder, workers=arguments.workers)
            print(f"rebuilt from the tars: {rows} rows")
            for line in lost:
                print(f"  not in the table: {line}")
        options = {name: getattr(arguments, name) for name in ("fast", "workers", "timeout")}
        report = check(arguments.folder, **options)
        _tell(arguments, report)
        noted = _quarantine(arguments, report) if arguments.quarantine else set()
        _draw(arguments, report)
    left = [one for one in report.problems if one.row is None or one.row not in noted]
    return 1 if left else 0


def _tell(arguments: Arguments, report: Report) -> None:
    rows = len(report.columns) if report.columns else 0
    print(f"{arguments.folder}: {rows} rows, {report.tars} tars, {report.skipped} rows in quarantine before")
    if report.columns:
        classes = _counts(report.columns, "label_name")
        if classes:
            least, most = min(classes.items(), key=lambda c: c[1]), max(classes.items(), key=lambda c: c[1])
            print(f"  {len(classes)} classes, from {least[1]} ({least[0]}) to {most[1]} videos ({most[0]})")
        for name in ("split", "split1", "split2", "split3"):
            if splits := _counts(report.columns, name):
                print(
                    f"  {name}: " + ", ".join(f"{split} {number}" for split, number in sorted(splits.items()))
                )
        if remark := sides_remark(report.columns.values("width"), report.columns.values("height")):
            print(f"  {remark}")
    kinds = defaultdict(list)
    for problem in report.problems:
        kinds[problem.kind].append(problem)
    for kind, found in kinds.items():
        print(f"{len(found):6d} {kind}: {PROBLEMS[kind]}")
        for problem in found if arguments.all else found[:SHOWN]:
            print(f"       {problem.where}" + (f": {problem.detail}" if problem.detail else ""))
        if len(found) > SHOWN and not arguments.all:
            print(f"       and {len(found) - SHOWN} more (--all)")
    if not report.problems:
        print("  nothing is wrong" + (" (the videos were not decoded)" if arguments.fast else ""))
    if kinds.keys() & set(UNUSABLE) and not arguments.quarantine:
        print("--quarantine makes training step over the unusable videos")
    if kinds.keys() & set(REPAIRABLE) and not arguments.repair:
        print("--repair rebuilds indexes, table and dataset.json from the tars")


def _quarantine(arguments: Arguments, report: Report) -> set[int | None]:
    found = list(report.unusable())
    for problem in found:
        quarantine(arguments.folder, problem.where, f"{problem.kind}: {problem.detail}".rstrip(": "))
    print(f"{len(found)} videos are in quarantine now")
    return {problem.row for problem in found}


def _draw(arguments: Arguments, report: Report) -> None:
    if not report.columns:
        return
    from matplotlib.figure import Figure  # here, since it takes a second

    path = arguments.picture or arguments.folder / "check.png"
    figure = Figure(figsize=(11, 7), layout="constrained")
    _histograms(report.columns, figure, arguments.folder.resolve().name)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
    print(f"histograms: {path}")


def _histograms(columns: Table, figure: Any, title: str) -> None:
    """Lengths, picture sizes and classes of a data set."""
    (frames, seconds), (sizes, labels) = figure.subplots(2, 2)
    figure.suptitle(f"{title}: {len(columns)} videos")
    lengths = columns.values("num_frames")
    frames.hist(lengths, bins=50)
    frames.set(xlabel="frames", ylabel="videos")
    rates = np.maximum(columns.values("fps") if "fps" in columns.names else np.ones(len(lengths)), 1e-3)
    seconds.hist(lengths / rates, bins=50)
    seconds.set(xlabel="seconds", ylabel="videos")
    pairs = zip(columns.values("width").tolist(), columns.values("height").tolist(), strict=True)
    common = Counter(f"{width}x{height}" for width, height in pairs).most_common(15)
    sizes.barh([name for name, _ in common][::-1], [number for _, number in common][::-1])
    sizes.set(xlabel="videos", title="width x height, the 15 most frequent")
    of_each = sorted(_counts(columns, "label_name").values(), reverse=True)
    labels.bar(range(len(of_each)), of_each)
    labels.set(xlabel="class, the largest first", ylabel="videos")


def _counts(columns: Table, name: str) -> Counter[str]:
    """Rows of each text of a column; rows without one are left out, as is a column that is not there."""
    values = columns.values(name).tolist() if name in columns.names else []
    return Counter(value for value in values if value is not None)


if __name__ == "__main__":
    sys.exit(main())
