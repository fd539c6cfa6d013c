"""The 2D3D-ResNet of DPC and MemDPC (Han et al. 2019, section 3.4; 2020, Table 5).

Letters: B blocks of video, C channels, T frames, H W pixels; D features; t h w a feature map.
Modules have the names of the authors' code.
"""

from math import ceil
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.stages import run_checkpointed, scaled

Norm = Literal["batch", "batch-statistics", "instance"]
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 256)  # the last is not 512


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """batch-statistics: batch norm that keeps no running statistics, in evaluation neither."""
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.BatchNorm3d(channels, track_running_stats=kind == "batch")


def conv(inputs: int, outputs: int, side: int, stride: int, *, in_time: bool) -> nn.Conv3d:
    """A k×k convolution without bias, k×k×k where it sees time, which it then strides over as well."""
    kernel, strides = (side if in_time else 1, side, side), (stride if in_time else 1, stride, stride)
    padding = (kernel[0] // 2, side // 2, side // 2)
    return nn.Conv3d(inputs, outputs, kernel, strides, padding, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3(×3) convolutions and a shortcut; without the last ReLU where `final` is set."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, norm: Norm, *, in_time: bool, final: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride, in_time=in_time)
        self.bn1 = make_norm(norm, width)
        self.conv2 = conv(width, width, 3, 1, in_time=in_time)
        self.bn2 = make_norm(norm, width)
        self.downsample = _shortcut(inputs, width, stride, norm, in_time)
        self.final = final

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return out if self.final else F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3(×3) and 1×1 convolutions and a shortcut; without the last ReLU where `final` is set."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, norm: Norm, *, in_time: bool, final: bool
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1, 1, in_time=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = conv(width, width, 3, stride, in_time=in_time)
        self.bn2 = make_norm(norm, width)
        self.conv3 = conv(width, outputs, 1, 1, in_time=False)
        self.bn3 = make_norm(norm, outputs)
        self.downsample = _shortcut(inputs, outputs, stride, norm, in_time)
        self.final = final

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return out if self.final else F.relu(out, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int, norm: Norm, in_time: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride, in_time=in_time), make_norm(norm, outputs))


class ResNet2d3d(nn.Module):
    """Blocks of video → feature maps: res2 and res3 see space only, res4 and res5 time as well.

    depth: 18, 34 or 50. width multiplies every channel count. dim: D, 256 (1,024 at depth 50) at width 1.
    checkpointed: activations are computed again in the backward pass. Weights are drawn as in the authors' code
    (He et al. 2015, fan-out).
    """

    def __init__(
        self,
        depth: int = 18,
        width: float = 1.0,
        norm: Norm = "batch",
        *,
        channels: int = 3,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        block = Bottleneck if depth >= 50 else BasicBlock
        inputs, channels = channels, scaled(64, width)
        self.conv1 = nn.Conv3d(inputs, channels, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = make_norm(norm, channels)
        stages, dims = [], [channels]
        for stage, (full, count) in enumerate(zip(WIDTHS, DEPTHS[depth], strict=True)):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                final = stage == 3 and index == count - 1
                blocks.append(
                    block(channels, scaled(full, width), stride, norm, in_time=stage > 1, final=final)
                )
                channels = scaled(full, width) * block.expansion
            stages.append(nn.Sequential(*blocks))
            dims.append(channels)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dims, self.dim, self.checkpointed = tuple(dims), channels, checkpointed
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) normalised → z (B, D, h, w), before a ReLU: the mean over the ⌈T/4⌉ steps that remain.

        h = ⌈H/32⌉: 5×128×128 gives 256×4×4, 5×224×224 gives 256×7×7.
        """
        return self.map(x_BCTHW).mean(2)

    def map(self, x_BCTHW: Tensor) -> Tensor:
        """The last stage's map (B, D, ⌈T/4⌉, h, w), before a ReLU."""
        x = F.relu(self.bn1(self.conv1(x_BCTHW)), inplace=True)
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_checkpointed(stage, x) if self.checkpointed and self.training else stage(x)
        return x

    @staticmethod
    def map_side(size: int) -> int:
        """h = w of the feature map of a square input."""
        return ceil(size / 32)
