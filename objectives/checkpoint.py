"""Checkpoint directories: everything a run needs to go on, in safetensors and JSON. Nothing is ever unpickled.

RUN/checkpoints/step-00000200/
  config.json            objective, its config, the run's settings
  model.safetensors      weights and buffers of the whole objective
  optimizer.safetensors  the optimizer's tensors, "<parameter number>.<name>"
  state.json             step, loader position, the optimizer's scalars
  rng-00000.safetensors  torch's random state of each process
  rows.txt               keys of the run's videos, in the run's order
"""

import json
import os
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from objectives.base import Objective, get
from shards import InputError


def begin(checkpoint: Path) -> Path:
    """An empty directory beside `checkpoint` to write into; `commit` makes it the checkpoint."""
    aside = checkpoint.with_name(f".{checkpoint.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def commit(aside: Path, checkpoint: Path) -> None:
    """Flush what was written and give it its name: a checkpoint is whole or not there."""
    for path in [*aside.iterdir(), aside]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(checkpoint, ignore_errors=True)
    aside.rename(checkpoint)


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max(run.glob("checkpoints/step-*"), default=None)


def save_config(directory: Path, objective: Objective, settings: dict[str, Any]) -> None:
    content = {"objective": objective.name, "config": asdict(objective.config), "settings": settings}
    (directory / "config.json").write_text(json.dumps(content, indent=1) + "\n")


def save_weights(path: Path, module: torch.nn.Module) -> None:
    """Weights and buffers, in the default memory format (safetensors knows no other)."""
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)


def save_optimizer(directory: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Write the optimizer's tensors; returns what is not a tensor, for state.json."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            place = tensors if isinstance(value, torch.Tensor) else scalars
            place[f"{number}.{name}"] = value.contiguous() if isinstance(value, torch.Tensor) else value
    save_file(tensors, directory / "optimizer.safetensors")
    return {"param_groups": state["param_groups"], "scalars": scalars}


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put back what save_optimizer wrote and returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (load_file(directory / "optimizer.safetensors") | saved["scalars"]).items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def save_rng(directory: Path, rank: int) -> None:
    """This process's random state, on the CPU and on its GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, directory / f"rng-{rank:05d}.safetensors")


def load_rng(directory: Path, rank: int) -> None:
    """Put back this process's random state; a process that did not exist then keeps its own."""
    path = directory / f"rng-{rank:05d}.safetensors"
    if path.exists():
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def load_weights(directory: Path, objective: Objective) -> None:
    """Load model.safetensors strictly; raises InputError that names what does not fit."""
    path = directory / "model.safetensors"
    try:
        objective.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = textwrap.shorten(str(error), 400, placeholder=" …")  # several lines made one
        raise InputError(f"{path} does not hold this objective's weights: {reason}") from error


def load(directory: str | Path) -> Objective:
    """Rebuild an objective, with its weights, from a checkpoint directory, or from a run's newest checkpoint.

    Returns it in evaluation mode on the CPU. Raises InputError if the directory is not one or does not fit.
    """
    directory = Path(directory)
    checkpoint = directory if (directory / "model.safetensors").exists() else newest(directory)
    if checkpoint is None:
        raise InputError(f"{directory}: neither a checkpoint (no model.safetensors) nor a run that has one")
    try:
        saved = json.loads((checkpoint / "config.json").read_text())
        cls = get(saved["objective"])
        config = cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{checkpoint}/config.json does not describe an objective: {error}") from error
    objective = cls(config)
    load_weights(checkpoint, objective)
    return objective.eval()
