"""What a run needs to continue, in addition to the objective's own checkpoint files (objectives/checkpoint.py).

  optimizer.safetensors  the optimizer's tensors, "<parameter number>.<name>"
  state.json             step, loader position, the optimizer's scalars, the loss scaler
  rows.txt               keys of the run's videos, in the run's order

The schedule and all random numbers are functions of the step (Objective.learning_rate, seed_step, the spec),
so the step is their whole state, in any number of processes.
"""

import copy
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from objectives import Objective, checkpoint
from shards import InputError
from shards.documents import AnyOf, Is, number, one_line_of, problem, read_bytes, read_json, whole

OPTIMIZER, STATE, ROWS = "optimizer.safetensors", "state.json", "rows.txt"
NOT_WHOLE = "remove this checkpoint, and --resume goes on with the one before"
_SCALER = {
    "scale": number(0),
    "growth_factor": number(1),
    "backoff_factor": number(0, 1),
    "growth_interval": whole(1),
    "_growth_tracker": whole(0),
}
_STATE = {
    "step": whole(0, 2**40),
    "loader": {"samples": whole(0, 2**50)},
    "optimizer": {"param_groups": [{"params": [whole(0)]}], "scalars": dict},
    "scaler?": AnyOf(Is("empty", lambda value: value == {}), _SCALER),
}


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one process: what is drawn in it (dropout, …) depends on nothing before."""
    (word,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(word))


@dataclass(frozen=True)
class State:
    """The parts of a run that training changes. average: of the weights, with --ema. scaler: with fp16."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None

    def save(self, path: Path, settings: dict[str, Any], progress: dict[str, Any], keys: list[str]) -> None:
        """Write a checkpoint directory, whole or not at all.

        settings: what must not change on resuming. progress: step and the loader's state. keys: of the run's
        videos. Raises InputError where the disk is full or cannot be written to; what was there is untouched.
        """
        step = progress["step"]
        try:
            with checkpoint.written(path, self.objective, settings, step) as folder:
                if self.average:
                    facts = checkpoint.metadata(self.objective, step)
                    checkpoint.save_weights(folder / checkpoint.AVERAGE, self.average, facts)
                rest = {
                    "optimizer": save_optimizer(folder / OPTIMIZER, self.optimizer),
                    "scaler": self.scaler.state_dict() if self.scaler else None,
                }
                (folder / STATE).write_text(json.dumps(progress | rest))
                (folder / ROWS).write_text("\n".join(keys) + "\n")
        except (OSError, SafetensorError) as error:
            before = last_whole(path.parents[1])
            raise InputError(
                f"{path}: cannot be written ({error}); "
                + (f"{before.name} is whole: make room and go on with --resume" if before else "make room")
            ) from error

    def load(self, path: Path, shape: dict[str, Any]) -> dict[str, Any]:
        """Put back what `save` wrote; returns its progress. Raises InputError where it does not fit.

        shape: of what the caller put into the progress, in addition to step and loader (see shards.documents).
        """
        checkpoint.load_weights(path / checkpoint.WEIGHTS, self.objective)
        state = dict(read_json(path / STATE, _STATE | shape, NOT_WHOLE))
        load_optimizer(path / OPTIMIZER, self.optimizer, state["optimizer"])
        if self.average:
            checkpoint.load_weights(path / checkpoint.AVERAGE, self.average)
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return state


def last_whole(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None: as `newest`, without a word about broken ones."""
    found = sorted(run.glob("checkpoints/step-*"), reverse=True)
    return next((one for one in found if not checkpoint.what_is_broken(one)), None)


def prune(run: Path, keep: int) -> None:
    """Delete a run's checkpoints that are older than its newest `keep` whole ones."""
    for one in sorted(run.glob("checkpoints/step-*"), reverse=True):
        if keep == 0:
            checkpoint.remove(one)
        elif not checkpoint.what_is_broken(one):
            keep -= 1


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, *, first: bool) -> None:
    """Move an exponential average of the weights on by one step; first: it begins there. Buffers are the model's own.

    As torch's AveragedModel, which waits for the GPU in every step to see how many there were.
    """
    averaged: list[Tensor] = list(average.parameters())
    current: list[Tensor] = list(model.parameters())
    if first:
        torch._foreach_copy_(averaged, current)
    else:
        torch._foreach_lerp_(averaged, current, 1 - decay)
    for mine, others in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(others)


def save_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Write the optimizer's tensors; returns what is not a tensor, for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            place = tensors if isinstance(value, torch.Tensor) else scalars
            place[f"{index}.{name}"] = value.contiguous() if isinstance(value, torch.Tensor) else value
    save_file(tensors, path)
    return {"param_groups": state["param_groups"], "scalars": scalars}


def read_rows(checkpoint: Path) -> list[str]:
    """The keys of rows.txt. Raises InputError where it holds none, or something else."""
    path = checkpoint / ROWS
    try:
        keys = read_bytes(path, NOT_WHOLE, 2**32).decode("utf-8").split()
    except UnicodeDecodeError:
        keys = []
    if not keys:
        raise InputError(f"{path}: holds no keys of videos; {NOT_WHOLE}")
    return keys


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put back what save_optimizer wrote and returned; raises InputError where it does not fit."""
    what = "this run's optimizer state"
    state: dict[str, dict[str, Any]] = {}
    for key, value in (checkpoint.read_tensors(path, what) | saved["scalars"]).items():
        number, _, name = key.partition(".")
        state.setdefault(number, {})[name] = value
    try:
        if not _alike(saved["param_groups"], optimizer.state_dict()["param_groups"]):
            raise ValueError(f"{STATE} has other groups of parameters, or other options of them")
        _check_entries(state, optimizer)
        numbered = {int(number): entries for number, entries in state.items()}
        optimizer.load_state_dict({"state": numbered, "param_groups": saved["param_groups"]})
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} does not hold {what}: {one_line_of(error)}") from error
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # in the parameter's memory order, or each step would be slower than before
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_entries(state: dict[str, dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless each parameter that was stepped has what a step of this optimizer leaves, and no more."""
    groups = [(group["params"], _after_a_step(optimizer, group)) for group in optimizer.param_groups]
    parameters = [(one, left) for params, left in groups for one in params]
    known = {str(number): place for number, place in enumerate(parameters)}
    for index, entries in state.items():
        if index not in known:
            raise ValueError(f"{index!a:.100} is the number of no parameter")
        parameter, left = known[index]
        found = {name: _kind(value) for name, value in entries.items()}
        expected = {name: _kind(value, parameter.shape) for name, value in left.items()}
        if found != expected:
            raise ValueError(f"parameter {index} has {found!a:.200}, not {expected}")


def _kind(value: Any, size: torch.Size | None = None) -> Any:
    """Type of an entry of a parameter's state, and of a tensor its size; size: of the parameter in place of one number."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return str(value.dtype), tuple(size if size is not None and value.dim() else value.shape)


def _after_a_step(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """What a step of an optimizer like this leaves for a parameter, seen on one with a single number."""
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    like = copy.copy(optimizer)
    like.state, like.param_groups = defaultdict(dict), [{**group, "params": [one]}]
    type(optimizer).step(like)
    return dict(like.state[one])


def _alike(saved: list[dict[str, Any]], groups: list[dict[str, Any]]) -> bool:
    """Whether JSON has an optimizer's groups of parameters, with options of the same kinds; numbers are to be finite."""
    (found, layout), (ours, expected) = tree_flatten(saved), tree_flatten(json.loads(json.dumps(groups)))
    if layout != expected or [one["params"] for one in saved] != [one["params"] for one in groups]:
        return False
    return not any(
        problem(value, number(0)) if type(own) in (int, float) else type(value) is not type(own)
        for value, own in zip(found, ours, strict=True)
    )
