"""A batch on the device, and memory orders."""

from typing import Any

import torch
from torch import Tensor, nn

_ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_device(
    batch: dict[str, Any], device: torch.device, *, channels_last: bool = True
) -> dict[str, Tensor]:
    """The tensors of a loader's batch on `device`: what Objective.forward is given.

    Views come from the loader in channels-last strides; with channels_last off they are copied out of them.
    """
    given = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
    return given if channels_last else given | {"views": given["views"].contiguous()}


def to_channels_last(module: nn.Module, channels_last: bool) -> None:
    """Lay out the weights of 2D and 3D convolutions in place, channels last or first."""
    for parameter in module.parameters():
        order = (
            _ORDERS.get(parameter.ndim, torch.contiguous_format) if channels_last else torch.contiguous_format
        )
        parameter.data = parameter.data.contiguous(memory_format=order)
