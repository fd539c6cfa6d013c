"""C3D, and R3D and R(2+1)D: residual networks of 3×3×3 convolutions (Tran et al. 2018, arXiv:1711.11248).

The residual ones have one block a stage, as in Xu et al. 2019 (VCOP) and in the pace paper; torchvision's r3d_18 has two.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from models.stages import Stages, scaled

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
