"""What a run needs to go on, beside the objective's own checkpoint files (objectives/checkpoint.py).

  optimizer.safetensors  the optimizer's tensors, "<parameter number>.<name>"
  state.json             step, loader position, the optimizer's scalars, the loss scaler
  rows.txt               keys of the run's videos, in the run's order

The schedule and all random numbers are functions of the step (Objective.learning_rate, seed_step, the spec),
so the step is their whole state, in any number of processes.
"""

import json
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from objectives import Objective, checkpoint
from shards import InputError

OPTIMIZER, STATE, ROWS = "optimizer.safetensors", "state.json", "rows.txt"


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one process: what is drawn in it (dropout, …) depends on nothing before."""
    (word,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(word))


@dataclass(frozen=True)
class State:
    """The parts of a run that training changes. average: of the weights, with --ema. scaler: with fp16."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = None

    def save(self, path: Path, settings: dict[str, Any], progress: dict[str, Any], keys: list[str]) -> None:
        """Write a checkpoint directory, whole or not at all.

        settings: what must not change on resuming. progress: step and the loader's state. keys: of the run's
        videos. Raises InputError where the disk is full or cannot be written to; what was there is untouched.
        """
        try:
            aside = checkpoint.begin(path)
            try:
                checkpoint.save_config(aside, self.objective, settings)
                checkpoint.save_weights(aside / checkpoint.WEIGHTS, self.objective)
                if self.average:
                    checkpoint.save_weights(aside / checkpoint.AVERAGE, self.average.module)
                rest = {
                    "optimizer": save_optimizer(aside / OPTIMIZER, self.optimizer),
                    "scaler": self.scaler.state_dict() if self.scaler else None,
                }
                (aside / STATE).write_text(json.dumps(progress | rest))
                (aside / ROWS).write_text("\n".join(keys) + "\n")
                checkpoint.commit(aside, path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            before = checkpoint.newest(path.parents[1])
            raise InputError(
                f"{path}: cannot be written ({error}); "
                + (f"{before.name} is whole: make room and go on with --resume" if before else "make room")
            ) from error

    def load(self, path: Path) -> dict[str, Any]:
        """Put back what `save` wrote; returns its progress. Raises InputError where it does not fit."""
        checkpoint.load_weights(path / checkpoint.WEIGHTS, self.objective)
        state = json.loads((path / STATE).read_text())
        load_optimizer(path / OPTIMIZER, self.optimizer, state["optimizer"])
        if self.average:
            checkpoint.load_weights(path / checkpoint.AVERAGE, self.average.module)
            self.average.n_averaged.fill_(state["step"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return state


def save_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Write the optimizer's tensors; returns what is not a tensor, for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            place = tensors if isinstance(value, torch.Tensor) else scalars
            place[f"{number}.{name}"] = value.contiguous() if isinstance(value, torch.Tensor) else value
    save_file(tensors, path)
    return {"param_groups": state["param_groups"], "scalars": scalars}


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put back what save_optimizer wrote and returned; raises InputError where it does not fit."""
    try:
        state: dict[int, dict[str, Any]] = {}
        for key, value in (load_file(path) | saved["scalars"]).items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    except (ValueError, KeyError, RuntimeError, SafetensorError, OSError) as error:
        reason = textwrap.shorten(str(error), 400, placeholder=" …")
        raise InputError(f"{path} does not hold this run's optimizer state: {reason}") from error
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # in the parameter's memory order, or each step would be slower than before
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
