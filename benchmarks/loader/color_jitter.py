"""Colour as users write it today: torchvision's ColorJitter and RandomGrayscale, then Normalize. Not our spec's colours."""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pipelines import colour
from pipelines.views import ViewSpec


def color_jitter(spec: ViewSpec) -> nn.Module | None:
    """The transform of one draw, uint8 (…, 3, S, S) → float32; None where the spec has no jitter."""
    jitter = spec.jitter
    if jitter is None or spec.modality != "rgb":
        return None
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    mean, std = colour.IMAGENET_MEAN.tolist(), colour.IMAGENET_STD.tolist()
    if spec.levels == "bgr-255":
        mean, std = [0.0] * 3, [1 / 255] * 3
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*strengths)], p=jitter.probability),
            v2.RandomGrayscale(jitter.grey),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def jittered(transform: nn.Module, x_FPSS: Tensor, spec: ViewSpec) -> Tensor:
    """Frames (F, 3, S, S) uint8 → float32; those that share a draw go through the transform together."""
    of_frame = spec.scope(spec.colour_scope).ravel()
    out = torch.empty_like(x_FPSS, dtype=torch.float32)
    for draw in np.unique(of_frame):
        frames = torch.from_numpy(np.flatnonzero(of_frame == draw))
        out[frames] = transform(x_FPSS[frames])
    return out
