#!/usr/bin/env python3
"""Make one data set of the parts that `make_shards.py --part I/N` made.

    tools/merge_shards.py data/k400                               # the parts wrote into one folder, on a shared disk
    tools/merge_shards.py data/k400 node1/k400 node2/k400         # each wrote into its own: their shards are moved

The result is byte for byte what one process would have made. Stopped at any time, the same command goes on.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards import one_line
from shards.build.finish import merge


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: tyro.conf.Positional[Path]
    """Folder of the whole data set: new, or one that parts wrote into."""
    parts: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of further parts, of the same last name as OUT; their shards are moved into OUT."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    with one_line("the same command goes on from there", arguments.out):
        summary = merge(arguments.out, arguments.parts)
        state = "was complete already" if summary.already else "is complete"
        print(f"{arguments.out} {state}: {summary.rows} videos, {summary.bytes / 1e6:.1f} MB in tars")


if __name__ == "__main__":
    main()
