#!/usr/bin/env python3
"""Write a checkpoint in the layout of a paper's authors, for their code to load.

    tools/export_checkpoint.py dpc runs/dpc --out dpc.pth.tar

The authors' --pretrain takes it. What it leaves out: the optimizer, the step, and Slipstream's config.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from objectives.imports import family, listed
from objectives.imports.files import write
from shards import InputError, one_line
from shards.atomic import atomic_write


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    family: tyro.conf.Positional[str]
    """Whose layout: see the list below."""
    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint directory, or a run, whose newest checkpoint is taken."""
    out: Path
    """File to write, .pth.tar; must not be there yet."""


def main(arguments: Arguments) -> None:
    kind = family(arguments.family)
    if arguments.out.exists():
        raise InputError(f"--out {arguments.out} is there already: name another file")
    tensors = kind.tensors(objectives.load(arguments.checkpoint))
    try:
        with atomic_write(arguments.out) as aside:
            write(aside, tensors, wrapped=kind.wrapped)
    except OSError as error:
        raise InputError(f"--out {arguments.out}: {error.strerror}; choose another file") from error
    print(f"{arguments.out}: {len(tensors)} tensors as {kind.source} names them")


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=f"{__doc__}\n\nFamilies:\n{listed()}"))
