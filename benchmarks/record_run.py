#!/usr/bin/env python3
"""Keep what a training run measured: its settings and curves as one JSON file, and a picture of them.

    benchmarks/record_run.py runs/vdim --command "accelerate launch train.py" --out benchmarks/results/2026-11-21-vdim-demo

writes benchmarks/results/2026-11-21-vdim-demo.json and .png. Run it on the machine that trained.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from benchmarks.machine import describe
from objectives import checkpoint
from shards import InputError, one_line
from training.log import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

PACKAGES = ("torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "accelerate", "av", "numpy")


@dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[Path]
    """The run's folder, with metrics.jsonl and config.json."""
    command: str
    """The command line that made it, as others can type it."""
    out: Path
    """Where the result goes, without .json and .png."""


def main(arguments: Arguments) -> None:
    config, lines = read(arguments.run)
    result = {"command": arguments.command, "machine": describe(*PACKAGES), **config, "metrics": lines}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    name = arguments.out.name
    arguments.out.with_name(f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(
        lines,
        f"{config['objective']} on {config['settings']['data'].split()[0]}",
        arguments.out.with_name(f"{name}.png"),
    )


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """config.json and the lines of metrics.jsonl, four digits each."""
    config, lines = checkpoint.read_config(run), read_metrics(run / "metrics.jsonl")
    if not lines:
        raise InputError(f"{run / 'metrics.jsonl'}: no line yet; let the run pass --log-every steps")
    return config, [{key: float(f"{value:.4g}") for key, value in line.items()} for line in lines]


def draw(lines: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss over the steps, and beside it top-1 and chance where the method has them."""
    shown = {name: label for name, label in (("top1", "top-1"), ("chance", "chance")) if name in lines[-1]}
    figure, axes = plt.subplots(1, 1 + bool(shown), figsize=(9, 3), layout="constrained", squeeze=False)
    axes[0, 0].plot([line["step"] for line in lines], [line["loss"] for line in lines])
    axes[0, 0].set(title=f"{title}: loss", xlabel="step")
    for name, label in shown.items():
        there = [line for line in lines if name in line]
        style = "--" if name == "chance" else "-"
        axes[0, 1].plot([line["step"] for line in there], [line[name] for line in there], style, label=label)
        axes[0, 1].set(title=", ".join(shown.values()), xlabel="step", ylim=(0, None))
        axes[0, 1].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
