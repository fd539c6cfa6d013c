"""What the video backbones have in common: five stages, whose maps and pooled features anyone may ask for.

Letters: B clips, C channels, T frames, H W pixels; D features; t h w a feature map.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Stages(nn.Module):
    """A network of five stages, numbered 1 to 5 as in "conv5"; where a stage is followed by a pooling, it ends with it.

    dims: channels of each stage's map. dim: those of the last. checkpointed: compute the stages' activations again in
    the backward pass instead of keeping them.
    """

    checkpointed = False

    def __init__(self, stages: Iterable[nn.Module], dims: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.dims, self.dim = tuple(dims), dims[-1]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) → the last stage's map (B, D, t, h, w), conv5."""
        return self.maps(x_BCTHW, (len(self.stages),))[len(self.stages)]

    def maps(self, x_BCTHW: Tensor, stages: tuple[int, ...]) -> dict[int, Tensor]:
        """The maps (B, D, t, h, w) of the named stages, 1 to 5."""
        found = {}
        for number, stage in enumerate(self.stages[: max(stages)], start=1):
            x_BCTHW = (
                run_checkpointed(stage, x_BCTHW) if self.checkpointed and self.training else stage(x_BCTHW)
            )
            if number in stages:
                found[number] = x_BCTHW
        return found

    def pooled(self, x_BCTHW: Tensor, stage: int = 5) -> Tensor:
        """Features (B, D): the map of a stage averaged over time and space. 5 is the papers' p5, 4 their p4."""
        return self.maps(x_BCTHW, (stage,))[stage].mean((2, 3, 4))


def scaled(channels: int, width: float) -> int:
    """A channel count at a width: at least 1."""
    return max(1, round(channels * width))


def run_checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) with activation checkpointing; batch norms take the batch into their statistics once all the same."""
    return checkpoint(
        module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module))
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """The module's batch norms leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)  # type: ignore[union-attr]


def to_channels_last(module: nn.Module, channels_last: bool = True) -> None:
    """Lay out the weights of 2D and 3D convolutions in place, channels last or first."""
    orders = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    for parameter in module.parameters():
        order = orders.get(parameter.ndim, torch.contiguous_format)
        parameter.data = parameter.data.contiguous(memory_format=order)
