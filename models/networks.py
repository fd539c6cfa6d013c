"""Clip encoders of five stages: C3D, R3D, R(2+1)D and S3D-G, and the class that they share.

R3D and R(2+1)D (Tran et al. 2018, arXiv:1711.11248) have one residual block a stage, as in Xu et al. 2019 (VCOP) and in
the pace paper; torchvision's r3d_18 has two. S3D-G (Xie et al. 2018, arXiv:1712.04851) has the layers of the pace paper's
network: the stem is one 3×7×7 convolution, not a separable one, and a gate follows conv2 and each branch of each
Inception block.

Letters: B clips, C channels, T frames, H W pixels; D features; t h w a feature map.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
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


Triple = tuple[int, int, int]
Convolution = Callable[[int, int, Triple, Triple], nn.Module]  # inputs, outputs, kernel, stride


def same(kernel: Triple) -> Triple:
    """The padding that keeps a map's size at stride 1, for odd kernels."""
    return kernel[0] // 2, kernel[1] // 2, kernel[2] // 2


def full_conv(inputs: int, outputs: int, kernel: Triple, stride: Triple) -> nn.Module:
    return nn.Conv3d(inputs, outputs, kernel, stride, same(kernel), bias=False)


class ResidualBlock(nn.Module):
    """Conv, BN, ReLU, conv, BN; plus the input, or where the block strides its 1×1×1 convolution and BN; ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, conv: Convolution) -> None:
        super().__init__()
        kernel, strides, ones = (3, 3, 3), (stride, stride, stride), (1, 1, 1)
        self.conv1, self.norm1 = conv(inputs, outputs, kernel, strides), nn.BatchNorm3d(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, kernel, ones), nn.BatchNorm3d(outputs)
        self.shortcut = (
            nn.Sequential(conv(inputs, outputs, ones, strides), nn.BatchNorm3d(outputs))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class R3D(Stages):
    """Stem 3×7×7 with stride (1, 2, 2), then four residual blocks, the last three of stride 2 in time and space.

    (B, C, 16, 112, 112) → conv5 (B, 512, 2, 7, 7). With a 4-way linear head 14,363,844 parameters.
    width multiplies every channel count.
    """

    def __init__(self, width: float = 1.0, channels: int = 3, conv: Convolution = full_conv) -> None:
        dims = [scaled(full, width) for full in (64, 64, 128, 256, 512)]
        stem = nn.Sequential(
            conv(channels, dims[0], (3, 7, 7), (1, 2, 2)), nn.BatchNorm3d(dims[0]), nn.ReLU(inplace=True)
        )
        blocks = [ResidualBlock(dims[i], dims[i + 1], 1 if i == 0 else 2, conv) for i in range(4)]
        super().__init__([stem, *blocks], dims)


class FactoredConv(nn.Module):
    """1×k×k convolution, BN, ReLU, then t×1×1 convolution.

    The channels between the two are as many as keep the parameter count of the t×k×k convolution (section 3.5).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        t, k, _ = kernel
        between = max(1, t * k * k * inputs * outputs // (k * k * inputs + t * outputs))
        spatial, temporal = (1, k, k), (t, 1, 1)
        self.spatial = nn.Conv3d(inputs, between, spatial, (1, *stride[1:]), same(spatial), bias=False)
        self.norm = nn.BatchNorm3d(between)
        self.temporal = nn.Conv3d(between, outputs, temporal, (stride[0], 1, 1), same(temporal), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(F.relu(self.norm(self.spatial(x)), inplace=True))


class R2Plus1D(R3D):
    """R3D of factored convolutions, the shortcuts' 1×1×1 included: with a 4-way linear head 14,367,355 parameters."""

    def __init__(self, width: float = 1.0, channels: int = 3) -> None:
        super().__init__(width, channels, FactoredConv)


# convolutions of each stage, and the pooling that ends it
C3D_STAGES: tuple[tuple[tuple[int, ...], tuple[int, int, int] | None], ...] = (
    ((64,), (1, 2, 2)),
    ((128,), (2, 2, 2)),
    ((256, 256), (2, 2, 2)),
    ((512, 512), (2, 2, 2)),
    ((512, 512), None),
)


class C3D(Stages):
    """Tran et al. 2015 (arXiv:1412.0767) with batch norm, its fully connected layers replaced by an average.

    Eight 3×3×3 convolutions with bias, each with batch norm and ReLU, in five stages; max-pooling after four.

    (B, C, 16, 112, 112) → conv5 (B, 512, 2, 7, 7); time is pooled 8-fold: 8 frames and 16² pixels are the least.
    With a 4-way linear head 27,663,492 parameters. width multiplies every channel count.
    """

    def __init__(self, width: float = 1.0, channels: int = 3) -> None:
        stages, dims = [], []
        for convolutions, pool in C3D_STAGES:
            layers: list[nn.Module] = []
            for outputs in (scaled(full, width) for full in convolutions):
                layers += [
                    nn.Conv3d(channels, outputs, 3, padding=1),
                    nn.BatchNorm3d(outputs),
                    nn.ReLU(inplace=True),
                ]
                channels = outputs
            layers += [nn.MaxPool3d(pool, pool)] if pool else []
            stages.append(nn.Sequential(*layers))
            dims.append(channels)
        super().__init__(stages, dims)


# output channels of an Inception block: 1×1 | 1×1 → 3×3×3 | 1×1 → 3×3×3 | max-pool → 1×1
MIXED = {
    3: ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    4: (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    5: ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}


def unit(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Sequential:
    """Convolution, BN, ReLU."""
    conv = nn.Conv3d(inputs, outputs, kernel, stride, same(kernel), bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """A 1×3×3 then a 3×1×1 unit."""
    return nn.Sequential(unit(inputs, outputs, (1, 3, 3)), unit(outputs, outputs, (3, 1, 1)))


class SelfGating(nn.Module):
    """x · σ(W·mean(x) + b), a weight for each channel from the clip's average (section 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x_BDthw: Tensor) -> Tensor:
        return x_BDthw * torch.sigmoid(self.fc(x_BDthw.mean((2, 3, 4))))[..., None, None, None]


class MaxPool(nn.Module):
    """Max-pooling that halves even sizes: kernel beyond stride reaches over the far edge, as TensorFlow's SAME does."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.over = tuple(n for k, s in reversed(list(zip(kernel, stride, strict=True))) for n in (0, k - s))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(F.pad(x, self.over), self.kernel, self.stride, ceil_mode=True)


class Mixed(nn.Module):
    """An Inception block of four gated branches, joined along the channels; dim: their sum."""

    def __init__(self, inputs: int, a: int, b1: int, b2: int, c1: int, c2: int, d: int) -> None:
        super().__init__()
        one = (1, 1, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(*layers, SelfGating(outputs))
            for outputs, layers in (
                (a, [unit(inputs, a, one)]),
                (b2, [unit(inputs, b1, one), separable(b1, b2)]),
                (c2, [unit(inputs, c1, one), separable(c1, c2)]),
                (d, [nn.MaxPool3d(3, 1, 1), unit(inputs, d, one)]),
            )
        )
        self.dim = a + b2 + c2 + d

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class S3DG(Stages):
    """(B, C, 64, 224, 224) → conv5 (B, 1024, 8, 7, 7); 16 frames give two steps of time.

    With a 4-way linear head 9,129,172 parameters. width multiplies every channel count.
    """

    def __init__(self, width: float = 1.0, channels: int = 3) -> None:
        first, second = scaled(64, width), scaled(192, width)
        spatial = ((1, 3, 3), (1, 2, 2))
        stages = [
            nn.Sequential(unit(channels, first, (3, 7, 7), 2), MaxPool(*spatial)),
            nn.Sequential(
                unit(first, first, (1, 1, 1)), separable(first, second), SelfGating(second), MaxPool(*spatial)
            ),
        ]
        dims, inputs = [first, second], second
        for number, pool in (3, MaxPool((3, 3, 3), (2, 2, 2))), (4, MaxPool((2, 2, 2), (2, 2, 2))), (5, None):
            layers: list[nn.Module] = []
            for branches in MIXED[number]:
                block = Mixed(inputs, *(scaled(full, width) for full in branches))
                layers.append(block)
                inputs = block.dim
            stages.append(nn.Sequential(*layers, *([pool] if pool else [])))
            dims.append(inputs)
        super().__init__(stages, dims)
