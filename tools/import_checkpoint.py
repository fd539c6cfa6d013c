#!/usr/bin/env python3
"""Turn a checkpoint that a paper's authors released into one that objectives.load and evaluate.py take.

    tools/import_checkpoint.py dpc k400_128_r18_dpc-rnn.pth.tar --out runs/dpc-released
    tools/import_checkpoint.py memdpc k400_224_r34_memdpc.pth.tar --out runs/memdpc-released
    tools/import_checkpoint.py memdpc flow.pth.tar --modality flow --out runs/memdpc-flow
    tools/import_checkpoint.py dpc k400_128_r18_dpc-rnn.pth.tar --statistics data/k400 --split train --out runs/dpc-released

Nothing in the file is run: whatever is not a tensor, a number or a text is refused. Every tensor must have its
place and every place its tensor; the tensors that do not fit are named. What the file implies (network, width,
memory size, no running statistics of batch norm, …) is recorded in DIR/config.json.
"""

import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from objectives import checkpoint
from objectives.blocks import with_running_statistics
from objectives.families import FAMILIES, family
from objectives.formats import read_file
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset, InputError, one_line

BATCH = 16  # clips, of --statistics


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    family: tyro.conf.Positional[str]
    """Whose file it is: see Families above."""
    file: tyro.conf.Positional[Path]
    """The file, .pth.tar."""
    out: Path
    """Folder to write; must not be there yet."""
    modality: Literal["rgb", "flow"] = "rgb"
    """What the network was trained on, which a file does not tell (MemDPC)."""
    statistics: Path | None = None
    """Videos for the running statistics of batch norm that the files of DPC lack; without them a feature depends on what
    else is in its batch."""
    split: str = "train"
    """Of --statistics: which videos."""
    clips: int = 4096
    """Of --statistics: how many clips are looked at, at most one a video."""


def measured(objective: Any, arguments: Arguments, videos: Path) -> Any:
    """The objective with running statistics of batch norm, from the middle of shuffled training videos."""
    if getattr(objective.config, "norm", "") != "batch-statistics":
        raise InputError("--statistics: this file has running statistics, or no batch norm; leave it out")
    dataset, spec = Dataset(videos), objective.downstream().spec
    rows = dataset.select(split=arguments.split)
    batches = min(arguments.clips, len(rows)) // BATCH
    if not batches:
        raise InputError(f"--statistics {videos}: fewer than {BATCH} videos in {arguments.split}")
    with Loader(dataset, TrainSampler(dataset, rows, spec, BATCH)) as loader:
        return with_running_statistics(objective, (next(loader)["views"] for _ in range(batches)))


def main(arguments: Arguments) -> None:
    kind = family(arguments.family)
    if arguments.out.exists():
        raise InputError(f"--out {arguments.out} is there already: name another folder")
    tensors, facts = read_file(arguments.file)
    fed: dict[str, Any] = {}
    if arguments.modality == "flow":
        if kind.name != "memdpc":
            raise InputError(f"--modality flow: networks of {kind.name} see RGB only; leave it out")
        fed = {"modality": "flow", "flow_input": "authors"}
    objective = kind.build(tensors, str(arguments.file), **fed)
    if arguments.statistics:
        objective = measured(objective, arguments, arguments.statistics)
    with arguments.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"imported": kind.name, "file": arguments.file.name, "sha256": digest, "facts": facts}
    try:
        with checkpoint.written(arguments.out, objective, origin):
            pass
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
        listed = "\n".join(f"    {name:12} {kind.source}" for name, kind in FAMILIES.items())
        main(tyro.cli(Arguments, description=f"{__doc__}\n\nFamilies:\n{listed}"))
