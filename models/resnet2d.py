"""ResNet18 over a segment whose frames are stacked in the channels (TCP, Lorre et al. 2020, section 4.2.3)."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from models.stages import run_checkpointed


class StackedResNet18(nn.Module):
    """torchvision's ResNet18 (its layer names too) without its head and with a first convolution of `inputs` channels.

    inputs: C·T, channels times frames of a segment. width multiplies every channel count.
    checkpointed: compute the activations of the four stages again in the backward pass instead of keeping them.
    """

    def __init__(self, inputs: int, width: float = 1.0, *, checkpointed: bool = False) -> None:
        super().__init__()
        first, *others = (max(1, round(width * channels)) for channels in (64, 64, 128, 256, 512))
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
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))
