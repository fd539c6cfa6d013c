"""What the video backbones have in common: five stages, whose maps and pooled features anyone may ask for.

Letters: B clips, C channels, T frames, H W pixels; D features; t h w a feature map.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from models.recompute import recompute


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
            x_BCTHW = recompute(stage, x_BCTHW) if self.checkpointed and self.training else stage(x_BCTHW)
            if number in stages:
                found[number] = x_BCTHW
        return found

    def pooled(self, x_BCTHW: Tensor, stage: int = 5) -> Tensor:
        """Features (B, D): the map of a stage averaged over time and space. 5 is the papers' p5, 4 their p4."""
        return self.maps(x_BCTHW, (stage,))[stage].mean((2, 3, 4))


def scaled(channels: int, width: float) -> int:
    """A channel count at a width: at least 1."""
    return max(1, round(channels * width))
