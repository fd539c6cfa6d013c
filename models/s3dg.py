"""S3D-G: a separable 3D Inception network with self-gating (Xie et al. 2018, arXiv:1712.04851).

The layers are those of the pace paper's network: the stem is one 3×7×7 convolution, not a separable one, and a
gate follows conv2 and each branch of each Inception block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stages import Stages, scaled

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
    padding = tuple(k // 2 for k in kernel)
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
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
