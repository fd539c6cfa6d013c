#!/usr/bin/env python3
"""More of the demo set: videos by the same program, for tests that 480 are too few for.

    tools/render_demo.py data/demo-2400                           2,400 videos that no run on the demo set has seen
    evaluate.py linear --checkpoint runs/dpc --data data/demo-2400 --folds 5

An interval of accuracy narrows with the root of the number of videos: of 480 it is some 8 points wide, of 2,400 some 3.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards import Dataset, InputError, demo, one_line
from shards.errors import at_least, new_or_empty


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: tyro.conf.Positional[Path]
    """Folder to write; new or empty."""
    clips_per_class: tuple[int, int] = (320, 80)
    """Videos of each of the six classes in the train and in the test split."""
    frames: int = 144
    """Of a video, at 30 a second."""
    seed: int = 1
    """The demo set itself has 0."""
    workers: int = os.cpu_count() or 2
    """Processes that render."""


def main(arguments: Arguments) -> None:
    out, counts = arguments.out, arguments.clips_per_class
    new_or_empty(out, str(out))
    if min(counts) < 0 or max(counts) == 0:
        raise InputError(f"--clips-per-class {counts[0]} {counts[1]}: give two counts from 0, not both 0")
    at_least(arguments, 0, "seed")
    at_least(arguments, 1, "frames", "workers")
    demo.render(
        out,
        name=out.resolve().name,
        clips_per_class=counts,
        frames=arguments.frames,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    print(f"{out}: {len(Dataset(out))} videos, seed {arguments.seed}")


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
