"""Checkpoint directories: an objective, its config and weights, in safetensors and JSON. Nothing is ever unpickled.

A checkpoint may come from anybody: what is read of it passes shards.documents or `read_tensors` first.

RUN/checkpoints/step-00000200/
  config.json            objective, its config, and what of the run's settings must not change
  model.safetensors      weights and buffers of the whole objective
  ema.safetensors        the same averaged over steps (--ema)
  files.json             every other file's size and sha256: what makes a copied or damaged checkpoint known
and what training needs to continue from there: see training/state.py.
"""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from objectives.base import Objective, get
from pipelines.views import clip_layout, normalisation
from shards import InputError
from shards.atomic import atomic_write, flush
from shards.documents import (
    SHA256,
    TEXT,
    AllOf,
    Each,
    Is,
    number,
    one_line_of,
    one_of,
    problem,
    read_json,
    whole,
)
from shards.schema import is_plain
from shards.storage import open_regular, stamp

log = logging.getLogger(__name__)
WEIGHTS, AVERAGE, FILES = "model.safetensors", "ema.safetensors", "files.json"
CONFIG = "config.json"
_OURS = "this objective's weights"
_CONTENT = {
    "objective": TEXT,
    "config": dict,
    "settings": {"global_batch?": whole(1), "fps?": number(0), "short_side?": number(0)},
}
_FILE = {"bytes": whole(0), "sha256": SHA256}
_FILES = AllOf(Is("a list of files", bool), Each(Is("a plain file name", is_plain), _FILE))
_LONGEST = 2**22  # of a config's whole numbers: a typing error must not make a network or a plan without end


@contextmanager
def written(
    checkpoint: Path, objective: Objective, settings: dict[str, Any], step: int | None = None
) -> Iterator[Path]:
    """Write a checkpoint, whole or not at all: gives its folder, with config and weights, for what else belongs there.

    settings: what must not change on resuming. step: that it is of.
    """
    partial = checkpoint.with_name(f".{checkpoint.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_config(partial, objective, settings)
        save_weights(partial / WEIGHTS, objective, metadata(objective, step))
        yield partial
        list_files(partial)
        for path in [*partial.iterdir(), partial]:
            flush(path)
        if checkpoint.exists():
            remove(checkpoint)
        partial.rename(checkpoint)
        flush(checkpoint.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def list_files(directory: Path) -> None:
    """Write files.json: the size and sha256 of every other file."""
    paths = sorted(path for path in directory.iterdir() if path.name != FILES)
    files = {path.name: stamp(path) for path in paths}
    (directory / FILES).write_text(json.dumps(files, indent=1) + "\n")


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; one that is half deleted has lost its name first."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where it has none at all.

    Checkpoints with a file that is missing or changed are skipped, with a warning. Raises InputError where all are broken.
    """
    found = ""
    for checkpoint in sorted(run.glob("checkpoints/step-*"), reverse=True):
        if not (found := what_is_broken(checkpoint)):
            return checkpoint
        log.warning("%s is not whole and is skipped: %s", checkpoint, found)
    if found:
        raise InputError(f"{run}: none of its checkpoints is whole ({found}): restore one from a copy")
    return None


def what_is_broken(checkpoint: Path) -> str:
    """The first file of a checkpoint that is not as it was written, in one line; "" where it is whole."""
    try:
        files = read_json(checkpoint / FILES, _FILES, "it lists the files of a checkpoint")
        for name, was in files.items():
            size = (checkpoint / name).stat().st_size
            if size != was["bytes"]:
                return f"{checkpoint / name} has {size} bytes, not {was['bytes']}"
            if stamp(checkpoint / name) != was:
                return f"{checkpoint / name} was changed: its sha256 is another"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except InputError as error:
        return str(error)
    return ""


def save_config(
    directory: Path, objective: Objective, settings: dict[str, Any], flags: dict[str, Any] | None = None
) -> None:
    """Write config.json. settings: what must not change on resuming. flags: all those of a run, kept in its own folder."""
    content = {"objective": objective.name, "config": asdict(objective.config), "settings": settings}
    with atomic_write(directory / CONFIG) as temporary:
        temporary.write_text(json.dumps(content | ({"flags": flags} if flags else {}), indent=1) + "\n")


def read_config(directory: Path) -> dict[str, Any]:
    """What `save_config` wrote. Raises InputError where it is something else."""
    return dict(read_json(directory / CONFIG, _CONTENT, "give a checkpoint or a run of train.py"))


def save_weights(path: Path, module: torch.nn.Module, facts: dict[str, str] | None = None) -> None:
    """Weights and buffers. facts: the file's metadata."""
    save_tensors(path, module.state_dict(), facts or {})


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """A safetensors file, in the default memory format (safetensors knows no other). facts: its metadata.

    The same content gives the same bytes: safetensors writes metadata in an order of its own every time.
    """
    content = save({name: value.contiguous() for name, value in tensors.items()}, facts or None)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if facts:
        header["__metadata__"] = dict(sorted(facts.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Load a file of save_weights strictly; raises InputError that names what does not fit."""
    module.load_state_dict(_fitting(path, module))


def _fitting(path: Path, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A file's tensors, which have the names, types and sizes of the module's."""
    tensors, ours = read_tensors(path, _OURS), module.state_dict()
    if odd := min(ours.keys() ^ tensors.keys(), default=""):
        raise InputError(f"{path} does not hold {_OURS}: {odd!a:.100} is missing, or not one of them")
    for name, value in tensors.items():
        found, expected = ((one.dtype, tuple(one.shape)) for one in (value, ours[name]))
        if found != expected:
            raise InputError(f"{path} does not hold {_OURS}: {name} is {found}, not {expected}")
    return tensors


def read_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises InputError where it is none, or a number in it is not finite.

    what: is expected there, for the message. Training never saves what is not finite.
    """
    try:
        os.close(open_regular(path))
        tensors: dict[str, torch.Tensor] = load_file(path)
    except Exception as error:  # safetensors and torch have one for each way in which a header is wrong
        raise _is_not(path, what, error) from error
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{path} does not hold {what}: {name!a:.100} has numbers that are not finite")
    return tensors


def _is_not(path: Path, what: str, error: Exception) -> InputError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return InputError(f"{path} does not hold {what}: {one_line_of(said)}")


def resolve(directory: Path) -> Path:
    """The checkpoint that a checkpoint directory is, or a run's newest. Raises InputError where there is none."""
    found = directory if (directory / WEIGHTS).exists() else newest(directory)
    if found is None:
        raise InputError(f"{directory}: neither a checkpoint (no {WEIGHTS}) nor a run that has one")
    return found


def step_of(directory: Path) -> int | None:
    """The step that a checkpoint was written at, as its weights say; None where they do not."""
    path = resolve(directory) / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            step = (file.metadata() or {}).get("step", "")
    except (OSError, SafetensorError) as error:
        raise _is_not(path, _OURS, error) from error
    return int(step) if step.isdecimal() else None


def load(directory: str | Path) -> Objective:
    """Rebuild an objective, with its weights, from a checkpoint directory, or from a run's newest checkpoint.

    Where the run kept an average of the weights (--ema), it has that. Returns it in evaluation mode on the CPU. Raises InputError if the directory is not one or does not fit.
    """
    checkpoint = resolve(Path(directory))
    average = checkpoint / AVERAGE
    path = average if average.exists() else checkpoint / WEIGHTS
    saved = read_config(checkpoint)
    cls = class_of(checkpoint, saved)
    with _named(checkpoint / CONFIG):
        if found := problem(saved["config"], config_shape(cls.Config), "config"):
            raise InputError(found)
        config = cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()})
        with torch.device("meta"):  # takes no memory, however wide the config says that the network is
            sizes = cls(config)
    tensors = _fitting(path, sizes)
    objective = cls(config)
    objective.load_state_dict(tensors)
    return objective.eval()


def class_of(directory: Path, saved: dict[str, Any]) -> type[Objective]:
    """The class that DIRECTORY/config.json names. saved: its content. Raises InputError that names the file."""
    with _named(directory / CONFIG):
        return get(saved["objective"])


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise InputError that names the file for what its content cannot be."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise InputError(f"{path} does not describe an objective: {one_line_of(error)}") from error


def config_shape(config: type) -> Any:
    """What JSON of a Config holds: its fields, each of its type, and nothing else; what is absent has its default."""
    fields = {name: _field(hint) for name, hint in get_type_hints(config).items()}
    return AllOf({f"{name}?": shape for name, shape in fields.items()}, Each(one_of(*fields), _ANYTHING))


_ANYTHING = Is("", lambda value: value is not None)
_SHAPES: dict[Any, Any] = {str: TEXT, bool: bool, int: whole(-_LONGEST, _LONGEST), float: number()}


def _field(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return one_of(*get_args(hint))
    if get_origin(hint) is tuple:
        return [_SHAPES[get_args(hint)[0]]]
    return _SHAPES[hint]


def metadata(objective: Objective, step: int | None = None) -> dict[str, str]:
    """For safetensors: method, config (JSON), step, code, input (its values), clip (its layout)."""
    spec = objective.downstream().spec
    return {
        "format": "pt",
        "method": objective.name,
        "config": json.dumps(asdict(objective.config)),
        "step": "" if step is None else str(step),
        "code": code_version(),
        "input": normalisation(spec),
        "clip": clip_layout(spec),
    }


def code_version() -> str:
    """Slipstream's version, and in a git checkout its commit."""
    try:
        found = f"slipstream {version('slipstream')}"
    except PackageNotFoundError:
        found = "slipstream"
    return f"{found}, commit {git_commit()}" if git_commit() else found


@lru_cache
def git_commit() -> str | None:
    """The checkout's commit, "-dirty" behind it where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[__name__.count(".")]
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty", "--abbrev=40"]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or somebody else's checkout
        return None
