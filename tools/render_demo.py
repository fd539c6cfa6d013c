#!/usr/bin/env python3
"""More of the demo set: videos by the same program, for tests that 240 are too few for.

    tools/render_demo.py data/demo-2400                           2,400 videos that no run on the demo set has seen
    evaluate.py linear --checkpoint runs/dpc --data data/demo-2400 --folds 5

An interval of accuracy narrows with the root of the number of videos: of 240 it is some 10 points wide, of 2,400 some 3.
"""

import os
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from shards import InputError, demo


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: tyro.conf.Positional[Path]
    """Folder to write; new or empty."""
    clips_per_class: tuple[int, int] = (320, 80)
    """Videos of each of the six motions in the train and in the test split."""
    frames: int = 144
    """Of a video, at 30 a second."""
    seed: int = 1
    """The demo set itself has 0."""
    workers: int = os.cpu_count() or 2
    """Processes that render."""


def main(arguments: Arguments) -> None:
    out, counts = arguments.out, arguments.clips_per_class
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: name a new or empty folder; one that was begun has to be emptied")
    if min(counts) < 0 or max(counts) == 0:
        raise InputError(f"--clips-per-class {counts[0]} {counts[1]}: give two counts from 0, not both 0")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed}: give 0 or more")
    for flag in ("frames", "workers"):
        if getattr(arguments, flag) < 1:
            raise InputError(f"--{flag} {getattr(arguments, flag)}: give at least 1")

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with closing(tqdm(unit="video", dynamic_ncols=True)) as bar:
        demo.render(
            out,
            name=out.resolve().name,
            clips_per_class=counts,
            frames=arguments.frames,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=show,
        )
    print(f"{out}: {bar.n} videos, seed {arguments.seed}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
