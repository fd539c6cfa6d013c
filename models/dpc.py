"""The networks of DPC and MemDPC (Han et al. 2019, arXiv:1909.04656; 2020, arXiv:2008.01065).

The encoder is a 2D3D-ResNet (2019, section 3.4; 2020, Table 5), whose modules have the names of the authors' code.
Predictions are made by a convolutional GRU (2019, section 3.4) and from a memory (2020, section 3.1).

Letters: B blocks of video or videos, C channels, T frames, H W pixels; N steps; D features; t h w a feature map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import run_checkpointed, scaled

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


class Block(nn.Module):
    """A residual block of two 3×3(×3) convolutions, or as a bottleneck of 1×1, 3×3(×3) and 1×1, with four times as
    many outputs. The shortcut is added before the last ReLU, which a `final` block lacks."""

    final = False

    def __init__(
        self, inputs: int, width: int, stride: int, norm: Norm, *, bottleneck: bool, in_time: bool
    ) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.count = len(shapes)
        for number, shape in enumerate(shapes, start=1):
            self.add_module(f"conv{number}", conv(*shape, in_time=in_time))
            self.add_module(f"bn{number}", make_norm(norm, shape[1]))
        self.downsample = _shortcut(inputs, outputs, stride, norm, in_time)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in range(1, self.count + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < self.count:
                out = F.relu(out, inplace=True)
        out = out + self.downsample(x)
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
        bottleneck = depth >= 50
        inputs, channels = channels, scaled(64, width)
        self.conv1 = nn.Conv3d(inputs, channels, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = make_norm(norm, channels)
        stages, dims = [], [channels]
        for stage, (full, count) in enumerate(zip(WIDTHS, DEPTHS[depth], strict=True)):
            inner, blocks = scaled(full, width), []
            for index in range(count):
                stride, in_time = 2 if stage > 0 and index == 0 else 1, stage > 1
                blocks.append(Block(channels, inner, stride, norm, bottleneck=bottleneck, in_time=in_time))
                channels = inner * (4 if bottleneck else 1)
            blocks[-1].final = stage == 3
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


def init_orthogonal(module: nn.Module, gain: float) -> None:
    """Orthogonal weights and zero biases, as in the authors' code (gain 1 in DPC, 0.1 in MemDPC)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.orthogonal_(parameter, gain)


class ConvGRU(nn.Module):
    """One layer whose weights all locations share; a state depends on the states and inputs before it only.

    h' = (1 − u)·h + u·candidate; dropout on h' after each step, and the dropped state recurs (the paper: "when
    computing hidden state in each time step").
    """

    def __init__(self, inputs: int, hidden: int, *, dropout: float = 0.1, gain: float = 1.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.reset_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.update_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.out_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)
        init_orthogonal(self, gain)

    def step(self, x_BDhw: Tensor, state_BDhw: Tensor) -> Tensor:
        """One input and the state before it → the state after it."""
        both = torch.cat([x_BDhw, state_BDhw], 1)
        update, reset = self.update_gate(both).sigmoid(), self.reset_gate(both).sigmoid()
        candidate = self.out_gate(torch.cat([x_BDhw, reset * state_BDhw], 1)).tanh()
        return self.dropout((1 - update) * state_BDhw + update * candidate)

    def forward(self, x_BNDhw: Tensor) -> Tensor:
        """Inputs (B, N, D, h, w) → the state after each, (B, N, hidden, h, w), from a state of zeros."""
        B, _N, _D, h, w = x_BNDhw.shape
        state = x_BNDhw.new_zeros(B, self.hidden, h, w)
        states = []
        for x_BDhw in x_BNDhw.unbind(1):
            state = self.step(x_BDhw, state)
            states.append(state)
        return torch.stack(states, 1)


class CompressiveMemory(nn.Module):
    """Of MemDPC (section 3.1, Eq. 3 and 4). slots: (k, D), drawn from N(0, 1) and learned; a prediction is a convex combination of them."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(size, dim))

    def forward(self, logits_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """φ(c) (B, k, h, w) → ẑ = pM (B, D, h, w), and the log-probabilities log p (B, k, h, w) over the slots."""
        log_p_BKhw = logits_BKhw.log_softmax(1)
        z_BDhw = torch.einsum("bkhw,kd->bdhw", log_p_BKhw.exp(), self.slots)
        return z_BDhw, log_p_BKhw
