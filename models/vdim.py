"""The encoder and the contrastive models of Video Deep InfoMax (Hjelm & Bachman 2020, section 3.2, Table 1).

Letters: B samples, C channels, T frames, H W pixels; D features; t h w a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import scaled

# Table 1: channels, spatial kernel and stride, temporal kernel and stride, residual steps.
# Its argument lists contradict its sizes in places; the sizes and the parameter count (17.3 M) hold.
TABLE_1 = {
    3: (128, 4, 2, 1, 1, 3),
    4: (256, 4, 2, 1, 1, 3),
    5: (512, 2, 2, 2, 2, 3),
    6: (512, 3, 1, 3, 1, 3),
    7: (512, 3, 1, 3, 1, 3),
    8: (512, 3, 1, 3, 1, 0),
}


def _spatial(inputs: int, outputs: int, kernel: int, stride: int, padding: int = 0) -> nn.Conv3d:
    kernels, strides, paddings = (1, kernel, kernel), (1, stride, stride), (0, padding, padding)
    return nn.Conv3d(inputs, outputs, kernels, strides, paddings, bias=False)


def _temporal(channels: int, kernel: int, stride: int, padding: int = 0) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (kernel, 1, 1), (stride, 1, 1), (padding, 0, 0), bias=False)


class ConvBlock(nn.Module):
    """Spatial then temporal convolution, each followed by ReLU (Figure 2a)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.spatial = _spatial(inputs, outputs, kernel, stride, padding)
        self.temporal = _temporal(outputs, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.temporal(F.relu(self.spatial(x), inplace=True)), inplace=True)


class ResidualStep(nn.Module):
    """x → pooled x + temporal(ReLU(spatial x)); the shortcut has no parameters, as in AMDIM.

    It averages over the same window as the convolutions, and pads the channels with zeros where they grow.
    sizes: kernel and stride in space, kernel and stride in time.
    he_init: the branch begins at 0, its first convolution at He's weights, as in AMDIM's code.
    """

    def __init__(
        self, inputs: int, outputs: int, sizes: Sequence[int] = (1, 1, 1, 1), *, he_init: bool = False
    ) -> None:
        super().__init__()
        kernel, stride, t_kernel, t_stride = sizes
        self.spatial = _spatial(inputs, outputs, kernel, stride)
        self.temporal = _temporal(outputs, t_kernel, t_stride)
        if he_init:
            nn.init.kaiming_normal_(self.spatial.weight, nonlinearity="relu")
            nn.init.zeros_(self.temporal.weight)
        self.window, self.stride = (t_kernel, kernel, kernel), (t_stride, stride, stride)
        self.grow = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.window == (1, 1, 1) else F.avg_pool3d(x, self.window, self.stride)
        if self.grow:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, 0, 0, self.grow))
        return shortcut + self.temporal(F.relu(self.spatial(x), inplace=True))


class VDIMEncoder(nn.Module):
    """Table 1: AMDIM's residual network with the 1×1 convolutions grown into time.

    Convolutions after the first block are valid (no padding), so that features up to block 6 depend on a patch
    of the input only. There is no norm but the one on the output (section 4: "batch norm is used on the output
    of the encoder"). width multiplies every channel count. he_init: residual branches begin at 0, other convolutions with He's weights.
    """

    def __init__(self, width: float = 1.0, *, he_init: bool = False) -> None:
        super().__init__()
        first = scaled(64, width)
        self.blocks = nn.ModuleDict(
            {"1": ConvBlock(3, first, 5, 2, padding=2), "2": ConvBlock(first, first, 3, 1, padding=0)}
        )
        if he_init:
            for conv in self.blocks.modules():
                if isinstance(conv, nn.Conv3d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        inputs, self.dims = first, {}
        for index, (channels, *sizes, steps) in TABLE_1.items():
            outputs = scaled(channels, width)
            grown = ResidualStep(inputs, outputs, sizes, he_init=he_init)
            self.blocks[str(index)] = nn.Sequential(
                grown, *(ResidualStep(outputs, outputs, he_init=he_init) for _ in range(steps))
            )
            self.dims[index] = inputs = outputs  # channels of each block
        self.dim = inputs
        self.norm = nn.BatchNorm3d(inputs)

    def forward(self, x_BCTHW: Tensor, layers: tuple[int, ...] = (8,)) -> dict[int, Tensor]:
        """x: (B, 3, 32, 128, 128) normalised → the features of the named blocks, each (B, D, t, h, w).

        At full width: 5 (local 1) 512×7×7×7, 6 (local 2) 512×5×5×5, 8 (global) 512×1×1×1.
        """
        features = {}
        for index in range(1, max(layers) + 1):
            x_BCTHW = self.blocks[str(index)](x_BCTHW)
            if index in layers:
                features[index] = self.norm(x_BCTHW) if index == 8 else x_BCTHW
        return features


class ContrastiveModel(nn.Module):
    """φ_j: a location-wise residual MLP with one hidden layer (section 3.3; AMDIM's linear shortcut).

    1×1 → ReLU → 1×1, plus a linear shortcut initialised to the identity, then batch norm.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.out = nn.Conv3d(outputs, outputs, 1, bias=False)
        self.shortcut = nn.Conv3d(inputs, outputs, 1)
        self.norm = nn.BatchNorm3d(outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.shortcut.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.shortcut.weight.copy_(torch.eye(outputs, inputs)[:, :, None, None, None])

    def forward(self, x_BDthw: Tensor) -> Tensor:
        """(B, D, t, h, w) → (B, D′, t, h, w)."""
        return self.norm(self.project(x_BDthw))

    def project(self, x_BDthw: Tensor) -> Tensor:
        """The same before the batch norm."""
        return self.out(F.relu(self.hidden(x_BDthw))) + self.shortcut(x_BDthw)
