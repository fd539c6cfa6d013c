"""Checkpoint directories: an objective, its config and weights, in safetensors and JSON. Nothing is ever unpickled.

RUN/checkpoints/step-00000200/
  config.json            objective, its config, and what of the run's settings must not change
  model.safetensors      weights and buffers of the whole objective
  ema.safetensors        the same averaged over steps (--ema)
  files.json             every other file's size: what makes a copied or damaged checkpoint known
and what training needs to go on from there: see training/state.py.
"""

import json
import logging
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

log = logging.getLogger(__name__)
WEIGHTS, AVERAGE, FILES = "model.safetensors", "ema.safetensors", "files.json"


def begin(checkpoint: Path) -> Path:
    """An empty directory beside `checkpoint` to write into; `commit` makes it the checkpoint."""
    aside = checkpoint.with_name(f".{checkpoint.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def commit(aside: Path, checkpoint: Path) -> None:
    """Flush what was written and give it its name: a checkpoint is whole or not there."""
    sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
    (aside / FILES).write_text(json.dumps(sizes, indent=1) + "\n")
    for path in [*aside.iterdir(), aside]:
        _flush(path)
    if checkpoint.exists():
        remove(checkpoint)
    aside.rename(checkpoint)
    _flush(checkpoint.parent)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted has lost its name first."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None; those with missing or cut files are stepped over."""
    for checkpoint in sorted(run.glob("checkpoints/step-*"), reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        log.warning("%s is not whole and is stepped over", checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / FILES).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def save_config(directory: Path, objective: Objective, settings: dict[str, Any]) -> None:
    content = {"objective": objective.name, "config": asdict(objective.config), "settings": settings}
    (directory / "config.json").write_text(json.dumps(content, indent=1) + "\n")


def save_weights(path: Path, module: torch.nn.Module) -> None:
    """Weights and buffers, in the default memory format (safetensors knows no other)."""
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)


def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Load a file of save_weights strictly; raises InputError that names what does not fit."""
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = textwrap.shorten(str(error), 400, placeholder=" …")  # several lines made one
        raise InputError(f"{path} does not hold this objective's weights: {reason}") from error


def load(directory: str | Path) -> Objective:
    """Rebuild an objective, with its weights, from a checkpoint directory, or from a run's newest checkpoint.

    Where the run kept an average of the weights (--ema), it has that. Returns it in evaluation mode on the CPU. Raises InputError if the directory is not one or does not fit.
    """
    directory = Path(directory)
    checkpoint = directory if (directory / WEIGHTS).exists() else newest(directory)
    if checkpoint is None:
        raise InputError(f"{directory}: neither a checkpoint (no {WEIGHTS}) nor a run that has one")
    try:
        saved = json.loads((checkpoint / "config.json").read_text())
        cls = get(saved["objective"])
        config = cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{checkpoint}/config.json does not describe an objective: {error}") from error
    objective = cls(config)
    average = checkpoint / AVERAGE
    load_weights(average if average.exists() else checkpoint / WEIGHTS, objective)
    return objective.eval()
