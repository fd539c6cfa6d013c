"""What the model is fed, as pictures to look at."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import flow_to_image, save_image

from pipelines import colour
from pipelines.views import ViewSpec


def visible(views_BVCTHW: Tensor, spec: ViewSpec) -> Tensor:
    """Views as the loader gives them → RGB (B, V, T, H, W, 3), uint8, on the CPU.

    RGB without its normalisation; standardised Lab as false colours, and image difference as grey, ±2 deviations
    from black to white; flow in the usual colour wheel, the fastest motion of the batch in full colour.
    """
    frames_BVTCHW = views_BVCTHW.detach().float().cpu().transpose(2, 3)
    if spec.modality == "flow":
        flow = frames_BVTCHW.flatten(0, 2)[:, :2]
        return flow_to_image(flow).unflatten(0, frames_BVTCHW.shape[:3]).movedim(3, -1)
    if spec.modality == "difference":
        pixels = (frames_BVTCHW / 4 + 0.5).expand(-1, -1, -1, 3, -1, -1)
    elif spec.lab:
        pixels = frames_BVTCHW / 4 + 0.5
    elif spec.levels == "bgr-255":
        pixels = frames_BVTCHW.flip(3) / 255
    else:
        mean, std = (
            torch.tensor(v).float()[:, None, None] for v in (colour.IMAGENET_MEAN, colour.IMAGENET_STD)
        )
        pixels = frames_BVTCHW * std + mean
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(3, -1)


def save_views(
    batch: dict[str, Any], spec: ViewSpec, path: Path, *, samples: int = 4, frames: int = 8
) -> None:
    """Save a batch's first samples as a PNG: one row a view, frames from left to right, videos below each other.

    batch["views"]: (B, V, C, T, H, W) as the loader gives them; shown as `visible` does.
    """
    pixels_BVTHW3 = visible(batch["views"][:samples], spec)
    T = pixels_BVTHW3.shape[2]
    chosen = torch.linspace(0, T - 1, min(frames, T)).round().long()
    rows = pixels_BVTHW3[:, :, chosen].flatten(0, 2).movedim(-1, 1)
    save_image(rows / 255, path, format="png", nrow=len(chosen), padding=2)
