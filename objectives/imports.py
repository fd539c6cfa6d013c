"""Checkpoints of other people's code: how their files are read and written; objectives/families.py lists which there are.

A file becomes an objective and back strictly, no tensor left over on either side. Files are pickled (.pth.tar), but nothing in them is run.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives.base import Objective, get
from shards import InputError
from shards.documents import one_line_of


@dataclass(frozen=True)
class Family:
    """name: as the tools call it. source: whose files they are. objective: what they become.

    config(tensors): the objective's config that a file's tensors imply.
    names(key, config): the names in the file of an objective's tensor; the file holds the same tensor under each.
    remark(config): what the user should know of an imported one. no_export(config): why the layout cannot hold it.
    prefix: before every name in files written, nn.DataParallel's or none; files are read with "module." and without.
    wrapped: the tensors are the entry "state_dict" of a dict, with the number of the epoch; files are read with it and without.
    """

    name: str
    source: str
    objective: str
    config: Callable[[Mapping[str, Tensor]], Any]
    names: Callable[[str, Any], tuple[str, ...]]
    remark: Callable[[Any], str] = lambda _: ""
    no_export: Callable[[Any], str] = lambda _: ""
    prefix: str = "module."
    wrapped: bool = True

    def build(self, tensors: Mapping[str, Tensor], file: str, **fed: Any) -> Objective:
        """The objective with the file's tensors (names without "module.") in evaluation mode.

        fed: fields of the config that a file does not have, such as what its network is fed. Raises InputError that
        names every tensor which is missing, left over, of another size or not the same as the one it should repeat.
        Counters of batch norm's batches, which old files lack, may be missing.
        """
        config = replace(self.config(tensors), **fed)
        objective = get(self.objective)(config)
        state, wrong = objective.state_dict(), []
        left = set(tensors)
        for ours, value in state.items():
            names = self.names(ours, config)
            left -= set(names)
            missing = [name for name in names if name not in tensors]
            if missing == list(names) and ours.endswith("num_batches_tracked"):
                continue
            wrong += [f"{name} is missing" for name in missing]
            found = {name: tensors[name] for name in names if name in tensors}
            for name, tensor in found.items():
                first = next(iter(found.values()))
                if tensor.shape != value.shape:
                    wrong.append(f"{name} has the size {tuple(tensor.shape)}, not {tuple(value.shape)}")
                elif tensor.is_floating_point() != value.is_floating_point():
                    wrong.append(f"{name} is of {tensor.dtype}, not {value.dtype}")
                elif not torch.equal(tensor, first):
                    wrong.append(f"{name} differs from {next(iter(found))}, which it should repeat")
                else:
                    state[ours] = tensor
        wrong += [f"{key} has no place" for key in sorted(left)]
        if wrong:
            raise InputError(f"{file} is no checkpoint of {self.name} ({self.source}): {'; '.join(wrong)}")
        objective.load_state_dict(state)
        return objective.eval()

    def tensors(self, objective: Objective) -> dict[str, Tensor]:
        """The objective's tensors under the family's names, with the prefix. Raises InputError for one it cannot hold."""
        if objective.name != self.objective:
            raise InputError(f"{self.name} is a layout of {self.objective}, not of {objective.name}")
        if reason := self.no_export(objective.config):
            raise InputError(f"the layout of {self.name} cannot hold this checkpoint: {reason}")
        return {
            self.prefix + name: tensor
            for ours, value in objective.state_dict().items()
            for tensor in [value.contiguous()]  # one for all its names, as in the authors' files
            for name in self.names(ours, objective.config)
        }


class _Ignored:
    """Takes the place of NumPy's scalars and dtypes, in which the authors' loops left their best accuracy."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")] + ["numpy.dtype"]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, named without nn.DataParallel's "module.", and the numbers and texts with them (epoch, …).

    Raises InputError where the file is not a checkpoint, or holds anything but tensors, numbers and texts.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict with a state_dict")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} has no tensors under state_dict")
    if odd := [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]:
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
        raise InputError(f"{path} is not a checkpoint that torch.save wrote: {one_line_of(error)}") from error


def write_file(path: Path, tensors: Mapping[str, Tensor], *, wrapped: bool) -> None:
    """Write tensors as the authors' code does: {"epoch", "iteration", "best_acc", "state_dict"}, or bare."""
    content = {"epoch": 0, "iteration": 0, "best_acc": 0.0, "state_dict": dict(tensors)}
    torch.save(content if wrapped else dict(tensors), path)
