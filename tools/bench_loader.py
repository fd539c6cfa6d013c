#!/usr/bin/env python3
"""Does the loader keep up with the model? Times the loader alone, the model alone, and both together.

    tools/bench_loader.py --data data/k400 --objective vdim --json benchmarks/DATE-MACHINE.json
    tools/bench_loader.py                                the demo set, CPU-sized model on a machine without GPU

loader: batches taken as fast as they come. model: training steps on one cached batch (the headspace: no loader
can make training faster than this). together: training steps on fresh batches; wait_share is the part of the
time that the loop spends waiting for them. All three in one run, on one machine: compare them with each other.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from machine import describe
from tqdm import tqdm

import objectives
from objectives.base import Recipe
from objectives.command import parse
from pipelines.graph import choose_placement
from pipelines.loader import Loader
from pipelines.meter import Meter
from shards import Dataset, InputError, at_least, demo
from training.feed import tensors


@dataclass(frozen=True)
class Settings:
    """What is timed. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method whose views and model are timed."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; the rendered demo set by default."""
    split: str | None = None
    """Use only the rows of this split."""
    json: Path | None = None
    """Write the result here as well."""
    batch_size: int = 0
    """Clips a batch."""
    batches: int = 10
    """Batches timed in each of the three parts, after two that are not."""
    device: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    """Where videos are decoded and augmented."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the model's arithmetic (autocast)."""
    threads: int = os.cpu_count() or 2
    """Decoding threads."""
    prefetch: int = 2
    """Batches made ahead."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "batches", "threads")

    @classmethod
    def for_recipe(cls, recipe: Recipe, **fields: Any) -> "Settings":
        return cls(batch_size=recipe.batch_size, **fields)


def main(argv: list[str]) -> None:
    settings, config = parse(argv, Settings, __doc__, "bench_loader.py")
    placement = choose_placement(settings.device)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = Dataset(settings.data or demo.ensure())
    objective = objectives.get(settings.objective)(config).to(device)
    plan = objective.view_plan(config)
    rows = dataset.select(split=settings.split, min_frames=plan.span if plan.short == "reject" else 1)
    step = training_step(objective, settings.precision, device)
    with Loader(
        dataset,
        rows,
        plan,
        batch_size=settings.batch_size,
        seed=settings.seed,
        placement=placement,
        threads=settings.threads,
        prefetch=settings.prefetch,
        device=device,
    ) as loader:
        draws: list[Any] = []
        cached = next(loader)

        def load() -> None:
            draws.extend(next(loader)["draw"])

        parts = {
            "loader": rate("loader alone", load, settings, device),
            "model": rate("model alone", lambda: step(cached), settings, device),
            "together": together(loader, step, settings, device),
        }
    frames_used = plan.views * plan.frames
    parts["loader"]["frames_per_s"] = parts["loader"]["clips_per_s"] * frames_used
    parts["loader"] |= decoded_per_used(draws, int(dataset.info["settings"]["gop"]))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "tools/bench_loader.py " + " ".join(argv),
        "machine": describe("torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "numpy")
        | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "data": {"name": dataset.name, "videos": len(rows), "settings": dataset.info["settings"]},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "config": asdict(config),
        "placement": placement,
        "views": {"views": plan.views, "frames": plan.frames, "size": plan.size},
        **parts,
        "memory": {
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_cuda_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n")


def training_step(
    objective: objectives.Objective, precision: str, device: torch.device
) -> Callable[[dict], None]:
    optimizer = objective.optimizer()

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(tensors(batch, device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rate(name: str, do: Callable[[], None], settings: Settings, device: torch.device) -> dict[str, float]:
    """Clips a second of `do`, which handles one batch, after two calls that are not counted."""
    for _ in range(2):
        do()
    synchronise(device)
    began = time.perf_counter()
    for _ in tqdm(range(settings.batches), desc=name, unit="batch", leave=False):
        do()
    synchronise(device)
    return {"clips_per_s": settings.batches * settings.batch_size / (time.perf_counter() - began)}


def together(loader: Loader, step: Callable[[dict], None], settings: Settings, device: torch.device) -> dict:
    for _ in range(2):
        step(next(loader))
    synchronise(device)
    meter = Meter()
    for _ in tqdm(range(settings.batches), desc="together", unit="batch", leave=False):
        with meter.waiting():
            batch = next(loader)
        step(batch)
        synchronise(device)  # or waiting for the GPU would hide waiting for data
        meter.step()
    return meter.speed(settings.batch_size)


def decoded_per_used(draws: list[Any], gop: int) -> dict[str, float]:
    """Frames that must be decoded, from the key frame before the first needed one, a distinct frame needed."""
    decoded = used = 0
    for draw in draws:
        numbers = np.unique(draw.frames)
        decoded += int(numbers[-1] - numbers[0] // gop * gop + 1)
        used += len(numbers)
    return {"frames_decoded_per_frame_used": decoded / used}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
