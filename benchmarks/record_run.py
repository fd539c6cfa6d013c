#!/usr/bin/env python3
"""Keep what a training run measured: its settings and curves as one JSON file, and a picture of them.

    benchmarks/record_run.py runs/vdim --command "accelerate launch train.py" --out benchmarks/results/2026-11-21-vdim-demo

writes benchmarks/results/2026-11-21-vdim-demo.json and .png. The machine is the one that run.json names.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from objectives import checkpoint
from shards import InputError, one_line
from shards.documents import read_json, write_json
from training.log import read_metrics


@dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[Path]
    """The run's folder, with metrics.jsonl and config.json."""
    command: str
    """The command line that made it, as others can type it."""
    out: Path
    """Where the result goes, without .json and .png."""


def main(arguments: Arguments) -> None:
    config, lines = checkpoint.read_config(arguments.run), read_metrics(arguments.run / "metrics.jsonl")
    if not lines:
        raise InputError(
            f"{arguments.run / 'metrics.jsonl'}: no line yet; let the run pass --log-every steps"
        )
    lines = [{key: float(f"{value:.4g}") for key, value in line.items()} for line in lines]
    started = read_json(arguments.run / "run.json", {"starts": [dict]}, "name a run of train.py")["starts"][
        -1
    ]
    machine = {name: started[name] for name in ("hardware", "versions", "commit") if name in started}
    result = {"command": arguments.command, "machine": machine, **config, "metrics": lines}
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_name(f"{out.name}.json"), result)
    names = [one.rpartition(" ")[0] for one in config["settings"]["data"].split(" / ")]
    title = f"{config['objective']} on {' and '.join(names)}"
    draw(lines, title, out.with_name(f"{out.name}.png"))


def draw(lines: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss over the steps, and beside it top-1 and chance where the method has them."""
    shown = {name: label for name, label in (("top1", "top-1"), ("chance", "chance")) if name in lines[-1]}
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 1 + bool(shown), squeeze=False)
    axes[0, 0].plot([line["step"] for line in lines], [line["loss"] for line in lines])
    axes[0, 0].set(title=f"{title}: loss", xlabel="step")
    for name, label in shown.items():
        there = [line for line in lines if name in line]
        style = "--" if name == "chance" else "-"
        axes[0, 1].plot([line["step"] for line in there], [line[name] for line in there], style, label=label)
        axes[0, 1].set(title=", ".join(shown.values()), xlabel="step", ylim=(0, None))
        axes[0, 1].legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
