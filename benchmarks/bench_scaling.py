#!/usr/bin/env python3
"""What storage and network have to give when training on so many GPUs: arithmetic on a data set and a rate.

    benchmarks/bench_scaling.py --data data/k400 --objective dpc --bench benchmarks/results/DATE-MACHINE.json    # measured clips/s
    benchmarks/bench_scaling.py --data data/k400 --objective dpc --clips-per-s 400                       # assumed clips/s

reading = clips/s × the mean bytes of a video, which is read whole for its clips. gradients = steps/s × 2 (n − 1)/n × 4
bytes a parameter: what a ring all-reduce sends out of each GPU, and over the network where there are several nodes.
docs/guides/scale.md says what to do with the figures.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from objectives.base import Recipe
from objectives.command import parse
from shards import Dataset, InputError, at_least, demo, one_line


@dataclass(frozen=True)
class Settings:
    """The machines, and the rate of one GPU. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; the rendered demo set by default."""
    split: str | None = None
    """Use only the rows of this split."""
    bench: Path | None = None
    """A file of tools/bench_loader.py --json, made on one of these GPUs: its training rate is used."""
    clips_per_s: float | None = None
    """Clips a second that one GPU trains on, where there is no such file."""
    gpus: tuple[int, ...] = (1, 8, 64)
    """Numbers of GPUs."""
    gpus_per_node: int = 8
    """GPUs of a machine."""
    batch_size: int = 0
    """Clips a GPU and step."""
    clips_per_decode: int = 1
    """As train.py's: clips of one video that is read."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "gpus_per_node", "clips_per_decode")
        if not self.gpus or min(self.gpus) < 1:
            raise InputError(f"--gpus {self.gpus}: name numbers of at least 1")
        if self.clips_per_s is not None and not 0 < self.clips_per_s < float("inf"):
            raise InputError(f"--clips-per-s {self.clips_per_s:g}: must be above 0")

    @classmethod
    def for_recipe(cls, recipe: Recipe, **fields: Any) -> "Settings":
        return cls(batch_size=recipe.batch_size, **fields)


@dataclass(frozen=True)
class Load:
    """What `gpus` GPUs ask for: rates over all, and a node's share. Bytes a second; seconds."""

    gpus: int
    clips_per_s: float
    reading: float
    reading_of_a_node: float
    gradients_of_a_node: float
    epoch: float


def load(gpus: int, per_node: int, rate: float, clip_bytes: float, step_bytes: float, clips: int) -> Load:
    """rate: clips/s of a GPU. clip_bytes: read for a clip. step_bytes: of all gradients, for each clip of a GPU's rate.
    clips: of an epoch."""
    nodes = -(-gpus // per_node)
    reading = gpus * rate * clip_bytes
    sent = 2 * (gpus - 1) / gpus * step_bytes * rate if nodes > 1 else 0.0
    return Load(gpus, gpus * rate, reading, reading / nodes, sent, clips / (gpus * rate))


def main(argv: list[str]) -> None:
    settings, config = parse(argv, Settings, __doc__, "scaling.py")
    rate, origin = rate_of(settings)
    dataset = Dataset(settings.data or demo.ensure())
    with torch.device("meta"):
        objective = objectives.get(settings.objective)(config)
    spec = objective.view_spec(config)
    rows = dataset.select(split=settings.split, min_frames=spec.span if spec.padding == "error" else 1)
    if not len(rows):
        raise InputError(f"--split {settings.split}: no video of {dataset.source} is left")
    component = "flow.mp4" if spec.modality == "flow" else "mp4"
    video_bytes = float(np.mean(dataset.column(f"{component}_size")[rows]))
    parameters = sum(p.numel() for p in objective.parameters())
    loads = [
        load(
            gpus,
            settings.gpus_per_node,
            rate,
            video_bytes / settings.clips_per_decode,
            4 * parameters / settings.batch_size,
            len(rows) * settings.clips_per_decode,
        )
        for gpus in settings.gpus
    ]
    print(
        f"{settings.objective} on {dataset.name}: {len(rows)} videos of {video_bytes / 1e3:.0f} kB on average, "
        f"{settings.clips_per_decode} clips of a video that is read, {parameters / 1e6:.1f} M parameters, "
        f"{settings.batch_size} clips a GPU and step\n{rate:.4g} clips/s a GPU ({origin})"
    )
    print(table(loads))


def rate_of(settings: Settings) -> tuple[float, str]:
    """Clips/s of a GPU, and where the figure is from."""
    if settings.bench and settings.clips_per_s is None:
        return measured(settings.bench, settings.objective)
    if settings.clips_per_s is None or settings.bench:
        raise InputError("--bench FILE or --clips-per-s NUMBER: give one of the two")
    return settings.clips_per_s, "assumed, not measured"


def measured(path: Path, objective: str) -> tuple[float, str]:
    """The training rate of an objective in a file of bench_loader, and where it was measured."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        block = result["objectives"][objective] if "objectives" in result else result
        found = block["settings"]["objective"]
        part = "together" if "together" in block else "model"
        rate, machine = float(block[part]["clips_per_s"]), result["machine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--bench {path}: holds no training rate of {objective} ({type(error).__name__}: {error}); "
            f"make it with tools/bench_loader.py --objective {objective} --json {path}"
        ) from error
    if found != objective:
        raise InputError(f"--bench {path}: is of {found}, not of {objective}")
    return rate, f"measured, {part}: {path}, {machine.get('gpu') or machine['cpu']}"


def table(loads: list[Load]) -> str:
    """The loads as lines of text."""
    head = ("GPUs", "clips/s", "reading", "reading, a node", "gradients, a node", "an epoch")
    lines = [
        (
            f"{one.gpus}",
            f"{one.clips_per_s:,.0f}",
            f"{one.reading / 1e6:,.0f} MB/s",
            f"{one.reading_of_a_node * 8 / 1e9:.2f} Gbit/s",
            f"{one.gradients_of_a_node * 8 / 1e9:.2f} Gbit/s",
            f"{one.epoch / 60:,.1f} min",
        )
        for one in loads
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [head, *lines]
    )


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
