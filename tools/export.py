#!/usr/bin/env python3
"""Write a trained network in a format that others read.

    tools/export.py runs/pace --to torchvision         → runs/pace-torchvision.safetensors
    tools/export.py runs/tcp --to timm                 → runs/tcp-timm.safetensors
    tools/export.py runs/dpc --to onnx                 → runs/dpc.onnx
    tools/export.py runs/dpc --to torch-export         → runs/dpc.pt2
    tools/export.py runs/dpc --to hf --results runs/evaluation     → runs/dpc-hf/, for the Hugging Face hub
    tools/export.py runs/dpc --to authors              → runs/dpc.pth.tar, for the code of the paper's authors

onnx and torch-export hold what evaluate.py takes as a feature: views (B, V, C, T, H, W) → (B, D), for any B, and are
checked on a clip before they are kept. The metadata of every file says method, config, step, code, and how a clip
has to be laid out and normalised.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from evaluation.results import load as load_result
from evaluation.results import results_below
from evaluation.table import markdown, row
from objectives import checkpoint, formats
from shards import InputError, one_line
from training.log import read_metrics

FORMATS: dict[str, tuple[Callable[..., str], str]] = {  # what writes it, and what its name ends with
    "torchvision": (formats.torchvision, "-torchvision.safetensors"),
    "timm": (formats.timm, "-timm.safetensors"),
    "onnx": (formats.onnx, ".onnx"),
    "torch-export": (formats.torch_export, ".pt2"),
    "hf": (formats.huggingface, "-hf"),
    "authors": (formats.authors, ".pth.tar"),
}


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    run: tyro.conf.Positional[Path]
    """A run, whose newest checkpoint is taken, or a checkpoint directory."""
    to: Literal["torchvision", "timm", "onnx", "torch-export", "hf", "authors"]
    """The format."""
    out: Path | None = None
    """What to write, not there yet; beside RUN, named after it and the format, by default."""
    licence: str = "other"
    """hf: the licence of the weights, as the hub names it, such as apache-2.0 or cc-by-nc-4.0."""
    results: tuple[Path, ...] = ()
    """hf: folders of results of evaluate.py, for the card."""


def main(arguments: Arguments) -> None:
    run = arguments.run
    objective = objectives.load(run)
    write, suffix = FORMATS[arguments.to]
    out = arguments.out or run.with_name(run.name + suffix)
    if out.exists():
        raise InputError(f"--out {out} is there already: name another")
    step = checkpoint.step_of(run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        card = {
            "licence": arguments.licence,
            "trained": _trained(run, step),
            "results": _results(arguments.results),
        }
        said = write(objective, out, step, **(card if arguments.to == "hf" else {}))
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}; choose another place") from error
    print(f"{out}: {said}")


def _trained(run: Path, step: int | None) -> str:
    """Data, steps and settings of a run, as Markdown."""
    settings = checkpoint.read_config(checkpoint.resolve(run))["settings"]
    lines = [f"- steps: {step}"] if step is not None else []
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in settings.items()]
    if (metrics := run / "metrics.jsonl").is_file() and (last := read_metrics(metrics)[-1:]):
        names = [name for name in ("loss", "top1", "chance") if name in last[0]]
        lines.append("- last logged: " + ", ".join(f"{name} {last[0][name]:.4g}" for name in names))
    return "\n".join(lines)


def _results(folders: tuple[Path, ...]) -> str:
    rows = [one for folder in results_below(folders) if (one := row(load_result(folder)))] if folders else []
    return markdown(rows) if rows else "None were given (`tools/export.py --results`)."


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
