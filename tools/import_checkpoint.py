#!/usr/bin/env python3
"""Turn a checkpoint that a paper's authors released into one that objectives.load and evaluate.py take.

    tools/import_checkpoint.py dpc k400_128_r18_dpc-rnn.pth.tar --out runs/dpc-released
    tools/import_checkpoint.py memdpc k400_224_r34_memdpc.pth.tar --out runs/memdpc-released

Nothing in the file is run: whatever is not a tensor, a number or a text is refused. Every tensor must have its
place and every place its tensor; the tensors that do not fit are named. What the file implies (network, width,
memory size, no running statistics of batch norm, …) is recorded in DIR/config.json.
"""

import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from objectives import checkpoint
from objectives.imports import family, listed
from objectives.imports.files import read
from objectives.origin import metadata
from shards import InputError, one_line


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    family: tyro.conf.Positional[str]
    """Whose file it is: see the list below."""
    file: tyro.conf.Positional[Path]
    """The file, .pth.tar."""
    out: Path
    """Folder to write; must not be there yet."""


def main(arguments: Arguments) -> None:
    kind = family(arguments.family)
    if arguments.out.exists():
        raise InputError(f"--out {arguments.out} is there already: name another folder")
    tensors, facts = read(arguments.file, kind.prefix)
    objective = kind.build(tensors, str(arguments.file))
    with arguments.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"imported": kind.name, "file": arguments.file.name, "sha256": digest, "facts": facts}
    try:
        aside = checkpoint.begin(arguments.out)
        checkpoint.save_config(aside, objective, origin)
        checkpoint.save_weights(aside / checkpoint.WEIGHTS, objective, metadata(objective))
        checkpoint.commit(aside, arguments.out)
    except OSError as error:
        raise InputError(f"--out {arguments.out}: {error.strerror}; choose another folder") from error
    paper = asdict(type(objective.config)())
    implied = ", ".join(f"{k} {v}" for k, v in asdict(objective.config).items() if v != paper[k])
    print(
        f"{arguments.out}: {kind.objective}, {len(tensors)} tensors, all placed ({implied or 'the defaults'})"
    )
    if remark := kind.remark(objective.config):
        print(f"note: {remark}")


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=f"{__doc__}\n\nFamilies:\n{listed()}"))
