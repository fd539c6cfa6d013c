"""Reading and writing .pth.tar files: pickled, but nothing in them is ever run."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards import InputError


class _Ignored:
    """Takes the place of NumPy's scalars and dtypes, in which the authors' loops left their best accuracy."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")] + ["numpy.dtype"]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, named without nn.DataParallel's "module.", and the numbers and texts beside them (epoch, …).

    Raises InputError where the file is not a checkpoint, or holds anything but tensors, numbers and texts.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict with a state_dict")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} has no tensors under state_dict")
    odd = [
        str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if odd:
        raise InputError(f"{path}: the state_dict holds what is not a tensor: {', '.join(odd)}")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    facts = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, int | float | str)}
    return dict(state), facts


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    stand_ins: Any = [(_Ignored, name) for name in _NUMPY]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {named[1]}" if named else str(error).splitlines()[0]
        raise InputError(
            f"{path} is refused: {what}. Only tensors, numbers and texts are read; anything else could run code"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a checkpoint that torch.save wrote: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write(path: Path, tensors: Mapping[str, Tensor], *, wrapped: bool) -> None:
    """Write tensors as the authors' code does: {"epoch", "iteration", "best_acc", "state_dict"}, or bare."""
    torch.save(
        {"epoch": 0, "iteration": 0, "best_acc": 0.0, "state_dict": dict(tensors)}
        if wrapped
        else dict(tensors),
        path,
    )
