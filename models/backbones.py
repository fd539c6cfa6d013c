"""Video encoders by name, and whether one fits an input."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from models.c3d import C3D
from models.r2plus1d import R2Plus1D
from models.r3d import R3D
from models.s3dg import S3DG
from models.stages import Stages


@dataclass(frozen=True)
class Backbone:
    """make(width, channels) → the network. frames, size: the clips its paper feeds it. dim: channels of its p5."""

    make: Callable[[float, int], Stages]
    frames: int = 16
    size: int = 112
    dim: int = 512


def _torchvision_resnet(name: str) -> Callable[[float, int], Stages]:
    def make(width: float, channels: int) -> Stages:
        from torchvision.models import video

        _only_as_published(width, channels)
        net = getattr(video, name)()
        return Stages([net.stem, net.layer1, net.layer2, net.layer3, net.layer4], (64, 64, 128, 256, 512))

    return make


def _torchvision_s3d(width: float, channels: int) -> Stages:
    from torchvision.models import video

    _only_as_published(width, channels)
    layers = list(video.s3d().features)
    ends = (0, 2, 5, 8, 14, 16)  # a stage ends with its pooling
    stages = [nn.Sequential(*layers[a:b]) for a, b in pairwise(ends)]
    return Stages(stages, (64, 192, 480, 832, 1024))


def _only_as_published(width: float, channels: int) -> None:
    if width != 1 or channels != 3:
        raise ValueError(
            f"torchvision's networks come at width 1 for 3 channels, not at width {width:g} for {channels}: "
            "take c3d, r3d, r2plus1d or s3dg"
        )


BACKBONES = {
    "c3d": Backbone(C3D),
    "r3d": Backbone(R3D),
    "r2plus1d": Backbone(R2Plus1D),
    "s3dg": Backbone(S3DG, frames=64, size=224, dim=1024),
    "r3d_18": Backbone(_torchvision_resnet("r3d_18")),
    "r2plus1d_18": Backbone(_torchvision_resnet("r2plus1d_18")),
    "mc3_18": Backbone(_torchvision_resnet("mc3_18")),
    "s3d": Backbone(_torchvision_s3d, frames=64, size=224, dim=1024),
}


def build(name: str, width: float = 1.0, channels: int = 3) -> Stages:
    """The named network with fresh weights. Raises ValueError where it is not known or cannot be had so."""
    if name not in BACKBONES:
        raise ValueError(f"there is no such backbone; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name].make(width, channels)


def map_shape(name: str, frames: int, size: int, width: float = 1.0, channels: int = 3) -> tuple[int, ...]:
    """(D, t, h, w) of the named network's conv5 on clips (channels, frames, size, size), found without computing it.

    Raises ValueError where the network does not fit such clips.
    """
    with torch.device("meta"):
        network = build(name, width, channels)
        try:
            return tuple(network(torch.empty(2, channels, frames, size, size)).shape[1:])
        except RuntimeError as error:
            known = BACKBONES[name]
            raise ValueError(
                f"it does not fit clips of {frames} frames of {size}² (it is made for {known.frames} of {known.size}²)"
            ) from error
