"""The model alone, and the model on the loader's batches."""

import time
from collections.abc import Callable
from typing import Any

import torch

import objectives
from models.stages import to_channels_last
from pipelines.loader import to_device
from pipelines.views import ViewSpec
from training.meter import Meter

from .parts import WARM, Way
from .rounds import Figures, Part, rate, synchronise
from .source import Source
from .utilisation import Watch

Step = Callable[[dict[str, Any]], None]


def random_batch(spec: ViewSpec, clips: int, device: torch.device) -> dict[str, Any]:
    """A batch as a loader's, of random numbers."""
    shape = (clips, spec.views, spec.frames, spec.size, spec.size, spec.channels)
    batch = {"views": torch.randn(shape, device=device).permute(0, 1, 5, 2, 3, 4)}
    batch["label"] = torch.zeros(clips, dtype=torch.int64)
    if spec.paces:
        batch["pace"] = torch.randint(len(spec.paces), shape[:2])
    return batch


def training_step(
    objective: objectives.Objective, precision: str, device: torch.device, *, channels_last: bool = True
) -> Step:
    """An optimizer step on a batch of the loader."""
    to_channels_last(objective, channels_last)
    optimizer = objective.optimizer()

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(to_device(batch, device, channels_last=channels_last)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def model_alone(step: Step, batch: dict[str, Any], source: Source, way: Way, batches: int) -> Part:
    """Steps on one cached batch: no loader can make training faster than this."""

    def part(_: int) -> Figures:
        step(batch)
        return rate(lambda: step(batch), batches, source.batch_size, way.device)

    return part


def together(step: Step, source: Source, way: Way, batches: int) -> Part:
    """Steps on fresh batches; wait_share (0–1) is the part of the time spent waiting for them."""

    def part(first: int) -> Figures:
        with way.loader(source, first) as loader:
            for _ in range(WARM):
                step(next(loader))
            synchronise(way.device)
            with Watch() as watch:
                meter, began = Meter(way.device), time.perf_counter()
                while meter.steps < batches or time.perf_counter() - began < watch.least:
                    with meter.waiting():
                        batch = next(loader)
                    step(batch)
                    meter.step()
                synchronise(way.device)
                speed = meter.speed(source.batch_size)
            return speed | watch.figures()

    return part
