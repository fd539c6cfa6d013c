#!/usr/bin/env python3
"""Does the loader keep up with the model, what holds it back, and what do people use instead?

    tools/bench_loader.py                                the demo set, CPU-sized model on a machine without GPU
    tools/bench_loader.py --data data/k400 --objective dpc --against dataloader --json FILE --chart FILE.png
    tools/bench_loader.py --data rendered --objective all --no-model --batch-size 8 --against dataloader
    tools/bench_loader.py --data data/k400 --objective dpc --sweep threads=1,2,4 prefetch=1,2 device=cpu,hybrid
    tools/bench_loader.py --data data/k400 --objective dpc --autotune        train.py then uses what it found

loader: batches taken as fast as they come; decode and augmentation: its parts alone; libavcodec: the ceiling of any
CPU decoder on these frames. model: training steps on one cached batch (no loader can make training faster).
training: steps on fresh batches, and the share of the time they wait. All take turns in one run on one machine:
compare them with each other. docs/notes/loader-benchmark.md says what each means and what is not fair to whom.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from benchmarks import render
from benchmarks.loader.chart import draw_chart
from benchmarks.loader.measure import measure
from benchmarks.loader.report import table
from benchmarks.machine import describe
from objectives.base import Recipe
from objectives.command import parse
from shards import Dataset, InputError, at_least, demo, one_line

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "spdl-io",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "av",
    "numpy",
)


@dataclass(frozen=True)
class Settings:
    """What is timed. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method whose views and model are timed; several with commas, or all."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; `rendered`: 48 videos of 10 s, 336×256, rendered on first use; the
    demo set by default."""
    split: str | None = None
    """Use only the rows of this split."""
    json: Path | None = None
    """Write the figures here."""
    chart: Path | None = None
    """Draw them here (.png, .svg, .pdf)."""
    batch_size: int = 0
    """Clips a batch."""
    batches: int = 3
    """Batches timed in each round of each part, after those that are not."""
    rounds: int = 3
    """Rounds; the parts take turns in each, and figures are medians over them."""
    device: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    """Where videos are decoded and augmented."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the model's arithmetic (autocast)."""
    threads: int = os.cpu_count() or 2
    """Decoding threads; SPDL's too."""
    decode_with: Literal["threads", "processes"] = "threads"
    """Where the CPU decodes: train.py's own choice depends on the cores."""
    nvdec_threads: int = 8
    """Threads that feed NVDEC, with --device gpu."""
    prefetch: int = 2
    """Batches made ahead."""
    model: bool = True
    """Time the model too, alone and on the loader's batches; --no-model is for the loader alone."""
    against: tuple[Literal["dataloader", "dali-readers", "spdl"], ...] = ()
    """Peers on the same data: PyTorch's DataLoader with torchcodec and torchvision v2; DALI's own readers and random
    operators (needs NVDEC, or VP9 or MJPEG videos); SPDL, which decodes and crops our samples."""
    workers: tuple[int, ...] = ()
    """Numbers of DataLoader workers to choose the best of; 0, 1, 2, 4 … up to the cores by default."""
    sweep: tuple[str, ...] = ()
    """The loader alone for each combination: threads=1,2,4 prefetch=1,2,4 batch_size=8,16 device=cpu,hybrid,gpu
    nvdec_threads=4,8,14 pipelines=1,2."""
    autotune: bool = False
    """Find the device, threads and prefetch that suit this machine, and note them for train.py."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "batches", "rounds", "threads", "nvdec_threads")
        at_least(self, 0, "prefetch")
        if self.workers and min(self.workers) < 0:
            raise InputError(f"--workers {min(self.workers)}: must be at least 0")

    @classmethod
    def for_recipe(cls, recipe: Recipe, **fields: Any) -> "Settings":
        return cls(batch_size=recipe.batch_size, **fields)


def main(argv: list[str]) -> None:
    asked = [parse(flags, Settings, __doc__, "bench_loader.py") for flags in one_each(argv)]
    machine = describe(*PACKAGES) | {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None
    }
    first = asked[0][0]
    for path in filter(None, (first.json, first.chart)):
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    dataset = open_data(first.data)
    blocks = {}
    for settings, config in asked:
        blocks[settings.objective] = measure(settings, config, dataset)
        print(table(settings.objective, blocks[settings.objective]), flush=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "tools/bench_loader.py " + " ".join(argv),
        "machine": machine,
    }
    if first.chart:
        draw_chart(result | {"objectives": blocks}, first.chart)
    if first.json:
        alone = len(blocks) == 1
        result |= blocks[first.objective] if alone else {"objectives": blocks}
        first.json.write_text(json.dumps(result, indent=1) + "\n")


def one_each(argv: list[str]) -> list[list[str]]:
    """The command line of each of the objectives that argv names: one, several with commas, or all."""
    for place, word in enumerate(argv):
        flag, equals, names = word.partition("=")
        if flag != "--objective" or not (equals or argv[place + 1 :]):
            continue
        after = place + 1 if equals else place + 2
        names = names or argv[place + 1]
        chosen = list(objectives.available()) if names == "all" else names.split(",")
        return [[*argv[:place], "--objective", name, *argv[after:]] for name in chosen]
    return [argv]


def open_data(path: Path | None) -> Dataset:
    if path is None:
        return Dataset(demo.ensure())
    rendered = str(path) == "rendered" and not path.exists()
    return Dataset(render.ensure() if rendered else path)


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
