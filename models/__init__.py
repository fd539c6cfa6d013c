"""Networks: plain torch modules that know nothing of data, losses or training. Here: video encoders by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from torch import nn

from models.dpc import ResNet2d3d
from models.networks import C3D, R3D, S3DG, R2Plus1D, Stages


@dataclass(frozen=True)
class Backbone:
    """make(width, channels) → the network. frames, size: the clips it is made for; the least it takes. fixed: it comes at
    width 1 for 3 channels only."""

    make: Callable[[float, int], Stages]
    frames: int = 16
    size: int = 112
    least_frames: int = 1
    least_size: int = 1
    fixed: bool = False


def _torchvision_resnet(name: str, _width: float, _channels: int) -> Stages:
    from torchvision.models import video  # here, since it takes two seconds

    net = getattr(video, name)()
    return Stages([net.stem, net.layer1, net.layer2, net.layer3, net.layer4], (64, 64, 128, 256, 512))


def _torchvision_s3d(_width: float, _channels: int) -> Stages:
    from torchvision.models import video

    layers = list(video.s3d().features)
    ends = (0, 2, 5, 8, 14, 16)  # a stage ends with its pooling
    stages = [nn.Sequential(*layers[a:b]) for a, b in pairwise(ends)]
    return Stages(stages, (64, 192, 480, 832, 1024))


def _resnet2d3d(depth: int, width: float, channels: int) -> Stages:
    """DPC's encoder, whose last stage ends without a ReLU, with its time left: DPC averages it."""
    net = ResNet2d3d(depth, width, channels=channels)
    stem = nn.Sequential(
        net.conv1, net.bn1, nn.ReLU(inplace=True), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
    )
    return Stages([stem, net.layer1, net.layer2, net.layer3, net.layer4], net.dims)


BACKBONES = {
    "c3d": Backbone(C3D, least_frames=8, least_size=16),
    "r3d": Backbone(R3D),
    "r2plus1d": Backbone(R2Plus1D),
    "s3dg": Backbone(S3DG, frames=64, size=224),
    "r3d_18": Backbone(partial(_torchvision_resnet, "r3d_18"), fixed=True),
    "r2plus1d_18": Backbone(partial(_torchvision_resnet, "r2plus1d_18"), fixed=True),
    "mc3_18": Backbone(partial(_torchvision_resnet, "mc3_18"), fixed=True),
    "s3d": Backbone(_torchvision_s3d, frames=64, size=224, least_frames=5, least_size=17, fixed=True),
    "resnet2d3d_18": Backbone(partial(_resnet2d3d, 18)),
    "resnet2d3d_34": Backbone(partial(_resnet2d3d, 34)),
    "resnet2d3d_50": Backbone(partial(_resnet2d3d, 50)),
}


def check(name: str, frames: int, size: int, width: float = 1.0, channels: int = 3) -> None:
    """Raise ValueError, saying why, if there is no such backbone or clips (channels, frames, size, size) do not fit it."""
    if name not in BACKBONES:
        raise ValueError(f"there is no such backbone; choose one of {', '.join(BACKBONES)}")
    known = BACKBONES[name]
    if frames < known.least_frames or size < known.least_size:
        raise ValueError(
            f"clips of {frames} frames of {size}² do not fit it: it takes {known.least_frames} frames of "
            f"{known.least_size}² or more, and is made for {known.frames} of {known.size}²"
        )
    if known.fixed and (width, channels) != (1, 3):
        raise ValueError(
            f"torchvision's networks come at width 1 for 3 channels, not {width:g} for {channels}; "
            f"take one of {', '.join(name for name, other in BACKBONES.items() if not other.fixed)}"
        )


def build(
    name: str, frames: int, size: int, width: float = 1.0, channels: int = 3, *, checkpointed: bool = False
) -> Stages:
    """The named network with fresh weights, for clips (channels, frames, size, size).

    checkpointed: compute the stages' activations again in the backward pass instead of keeping them.
    Raises ValueError as `check` does.
    """
    check(name, frames, size, width, channels)
    network = BACKBONES[name].make(width, channels)
    network.checkpointed = checkpointed
    return network


@cache
def map_shape(name: str, frames: int, size: int) -> tuple[int, int, int]:
    """(t, h, w) of the last stage's map for clips of `frames` frames of size², found without computing it."""
    with torch.device("meta"):
        network = build(name, frames, size).eval()
        t, h, w = network(torch.empty(1, 3, frames, size, size)).shape[2:]
    return t, h, w
