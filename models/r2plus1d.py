"""R(2+1)D: R3D with every convolution split into a spatial and a temporal one (Tran et al. 2018, section 3.5)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.r3d import R3D, Triple, same


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
