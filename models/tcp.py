"""The networks of TCP (Lorre et al. 2020): an encoder of segments, and context networks over them.

The encoder is ResNet18 over a segment's frames, stacked in the channels (section 4.2.3). Contexts are temporally masked
convolutions and recurrent siblings (section 3.1, Table 3). All map h (B, D, T, h, w) to contexts of the same size, of
which c_t depends on h_1 … h_t only. Letters: B videos, D features, T segments, h w the feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import run_checkpointed, scaled


class StackedResNet18(nn.Module):
    """torchvision's ResNet18 (its layer names too) without its head and with a first convolution of `inputs` channels.

    inputs: C·T, channels times frames of a segment. width multiplies every channel count.
    checkpointed: compute the activations of the four stages again in the backward pass instead of keeping them.
    """

    def __init__(self, inputs: int, width: float = 1.0, *, checkpointed: bool = False) -> None:
        super().__init__()
        first, *others = (scaled(channels, width) for channels in (64, 64, 128, 256, 512))
        self.conv1 = nn.Conv2d(inputs, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], first
        for stage, outputs in enumerate(others):
            stages.append(_stage(channels, outputs, stride=1 if stage == 0 else 2))
            channels = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dim = channels  # D
        self.checkpointed = checkpointed
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x: (B, C·T, H, W) → h (B, D, ⌈H/32⌉, ⌈W/32⌉): 512×7×7 at 224² and full width."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_checkpointed(stage, x) if self.checkpointed and self.training else stage(x)
        return x


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # here, since it takes two seconds

    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))


class MaskedConv3d(nn.Conv3d):
    """A convolution whose last tap in time is the present one; space is padded to keep its size.

    It is what a kernel of 2·taps − 1 keeps once its future is masked, without the weights that the mask would hold
    at 0. taps: segments that it sees, the present one included. side: of the kernel in space, odd.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, side: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, (taps, side, side), padding=(0, side // 2, side // 2), bias=bias)
        self.past = taps - 1

    def forward(self, x_BDThw: Tensor) -> Tensor:
        return super().forward(F.pad(x_BDThw, (0, 0, 0, 0, self.past, 0)))


def masked_conv3d(dim: int, taps: int = 3, layers: int = 3) -> nn.Sequential:
    """The paper's model: `layers` masked taps×3×3 convolutions, batch norm and ReLU between them."""
    return _between([MaskedConv3d(dim, dim, taps, 3, bias=i == layers - 1) for i in range(layers)], dim)


def masked_conv2plus1d(dim: int, taps: int = 3, layers: int = 3) -> nn.Sequential:
    """Its sibling Conv(2+1)D: each convolution is 1×3×3, batch norm, ReLU, then a masked taps×1×1.

    The channels in between give it as many weights as the convolution that it replaces (Tran et al. 2018, section 3.5).
    """
    middle = taps * 9 * dim // (9 + taps)

    def factorised(bias: bool) -> nn.Sequential:
        return nn.Sequential(
            MaskedConv3d(dim, middle, 1, 3, bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            MaskedConv3d(middle, dim, taps, 1, bias=bias),
        )

    return _between([factorised(bias=i == layers - 1) for i in range(layers)], dim)


def _between(convolutions: list[nn.Module], dim: int) -> nn.Sequential:
    """Batch norm and ReLU between the convolutions; the norms make biases before them needless."""
    chain = [convolutions[0]]
    for convolution in convolutions[1:]:
        chain += [nn.BatchNorm3d(dim), nn.ReLU(inplace=True), convolution]
    return nn.Sequential(*chain)


class ConvLSTM(nn.Module):
    """One convolutional LSTM layer without peepholes (Shi et al. 2015, arXiv:1506.04214, Eq. 3)."""

    def __init__(self, dim: int, side: int = 3) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * dim, 4 * dim, side, padding=side // 2)

    def forward(self, h_BDThw: Tensor) -> Tensor:
        """(B, D, T, h, w) → contexts of the same size."""
        state = cell = torch.zeros_like(h_BDThw[:, :, 0])
        states = []
        for x_BDhw in h_BDThw.unbind(2):
            entry, forget, out, candidate = self.gates(torch.cat([x_BDhw, state], 1)).chunk(4, 1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
            state = out.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, 2)


class PooledLSTM(nn.Module):
    """An LSTM over the spatial means of the segments: "LSTM" in Table 3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, h_BDThw: Tensor) -> Tensor:
        """(B, D, T, h, w) → contexts (B, D, T, 1, 1)."""
        states_BTD, _ = self.lstm(h_BDThw.mean((-2, -1)).transpose(1, 2))
        return states_BTD.transpose(1, 2)[..., None, None]
