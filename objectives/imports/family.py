"""How a family's files become an objective and back: strictly, no tensor left over on either side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from objectives.base import Objective, get
from shards import InputError


def nothing(_: Any) -> str:
    """No remark, no reason."""
    return ""


@dataclass(frozen=True)
class Family:
    """name: as the tools call it. source: whose files they are. objective: what they become.

    config(tensors): the objective's config that a file's tensors imply.
    names(key, config): the names in the file of an objective's tensor; the file holds the same tensor under each.
    skipped(key): whether a tensor of the file has no place in the objective by intent.
    remark(config): what the user should know of an imported one. no_export(config): why the layout cannot hold it.
    prefix: before every name in files written, nn.DataParallel's or none; files are read with "module." and without.
    wrapped: the tensors are the entry "state_dict" of a dict, beside the number of the epoch; in files read either.
    """

    name: str
    source: str
    objective: str
    config: Callable[[Mapping[str, Tensor]], Any]
    names: Callable[[str, Any], tuple[str, ...]]
    skipped: Callable[[str], bool] = lambda _: False
    remark: Callable[[Any], str] = nothing
    no_export: Callable[[Any], str] = nothing
    prefix: str = "module."
    wrapped: bool = True

    def build(self, tensors: Mapping[str, Tensor], file: str, **fed: Any) -> Objective:
        """The objective with the file's tensors (names without "module.") in evaluation mode.

        fed: fields of the config that a file does not tell, such as what its network is fed. Raises InputError that names every tensor which is missing, left over, of another size or not the same as
        the one it should repeat. Counters of batch norm's batches, which old files lack, may be missing.
        """
        config = replace(self.config(tensors), **fed)
        objective = get(self.objective)(config)
        state, wrong = objective.state_dict(), []
        left = {key for key in tensors if not self.skipped(key)}
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
