"""What the model is fed, as a picture to look at."""

from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

from pipelines import colour
from pipelines.plan import ViewPlan


def save_views(
    batch: dict[str, Any], plan: ViewPlan, path: Path, *, samples: int = 4, frames: int = 8
) -> None:
    """Save a batch's first samples as a PNG: one row a view, frames from left to right, videos below each other.

    batch["views"]: (B, V, C, T, H, W) as the loader gives them. RGB is shown without its normalisation;
    standardised Lab as false colours, ±2 deviations from black to white.
    """
    views_BVCTHW = batch["views"][:samples].detach().float().cpu()
    T = views_BVCTHW.shape[3]
    chosen = torch.linspace(0, T - 1, min(frames, T)).round().long()
    rows = views_BVCTHW[:, :, :, chosen].permute(0, 1, 3, 2, 4, 5).flatten(0, 2)
    if plan.lab_drop:
        pixels = rows / 4 + 0.5
    else:
        mean, std = (
            torch.tensor(v).float()[:, None, None] for v in (colour.IMAGENET_MEAN, colour.IMAGENET_STD)
        )
        pixels = rows * std + mean
    save_image(pixels.clamp(0, 1), path, nrow=len(chosen), padding=2)
