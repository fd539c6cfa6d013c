#!/usr/bin/env python3
"""What do train.py's speed options do to a step, here? Steps on one cached batch, the options taking turns.

    tools/bench_options.py --objective vdim --small --json benchmarks/DATE-MACHINE-options.json

Each round takes one step with each option; a figure is the median over rounds of a step's time divided by that of the
plain step of the same round, so that what else the machine does meanwhile weighs on all alike. Below 1 is faster.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.training import random_batch
from machine import describe
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import objectives
from objectives.base import Recipe
from objectives.command import parse
from shards import InputError, one_line
from training.feed import arrange, tensors

OPTIONS = ("plain", "no-channels-last", "bf16", "ema", "torch-compile")


@dataclass(frozen=True)
class Settings:
    """What is timed. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method whose step is timed."""
    data: Path | None = None
    """Not used: the batch is made of random numbers."""
    options: tuple[str, ...] = OPTIONS
    """Of: plain (channels last, float32), no-channels-last, bf16, ema, torch-compile."""
    batch_size: int = 4
    """Clips a step."""
    rounds: int = 20
    """Steps timed with each option, after two that are not."""
    json: Path | None = None
    """Write the result here as well."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is no GPU."""

    def __post_init__(self) -> None:
        if unknown := set(self.options) - set(OPTIONS):
            raise InputError(f"--options {' '.join(unknown)}: choose of {', '.join(OPTIONS)}")
        if self.rounds < 1 or self.batch_size < 1:
            raise InputError("--rounds and --batch-size must be at least 1")

    @classmethod
    def for_recipe(cls, _: Recipe, **fields: Any) -> "Settings":
        return cls(**fields)


def main(argv: list[str]) -> None:
    settings, config = parse(argv, Settings, __doc__, "bench_options.py")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = objectives.get(settings.objective)(config).to(device)
    spec = objective.view_spec(config)
    batch = random_batch(spec, settings.batch_size, device)
    names = ("plain", *(name for name in settings.options if name != "plain"))
    steps = {name: make_step(name, copy.deepcopy(objective), batch, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(settings.rounds + 2), unit="round"):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    result = {
        "command": "tools/bench_options.py " + " ".join(argv),
        "machine": describe("torch"),
        "step_ms": {name: 1000 * statistics.median(times) for name, times in seconds.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))
            for name, times in seconds.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n")


def make_step(
    name: str, objective: objectives.Objective, batch: dict[str, torch.Tensor], device: torch.device
) -> Callable[[], None]:
    """An optimizer step with one option switched."""
    channels_last = name != "no-channels-last"
    arrange(objective, channels_last)
    average = AveragedModel(objective, multi_avg_fn=get_ema_multi_avg_fn(0.999)) if name == "ema" else None
    if name == "torch-compile":
        objective.compile()
    optimizer, given = objective.optimizer(), tensors(batch, device, channels_last=channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            loss = objective(given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update_parameters(objective)

    return step


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
