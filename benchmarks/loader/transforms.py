"""The DataLoader peer's transforms: ViewParams applied with torchcodec and torchvision v2, as a user would write it.

Letters: N distinct frames, V views, T frames a view, F = V·T, P planes that are decoded, C channels, S side of a view.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipelines import colour
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.transforms import numpy as arithmetic
from pipelines.views import ViewSpec

_SRGB = torch.arange(256) / 255
_LINEAR = torch.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92)
_XYZ = torch.tensor(colour.XYZ_OVER_WHITE, dtype=torch.float32)
_PLANES: dict[str, Callable[[Tensor], Tensor]] = {
    "rgb": lambda frames: frames,
    "difference": F.rgb_to_grayscale,
    "flow": lambda frames: frames[:, 0].unflatten(1, (2, -1)),  # u above v in a grey picture
}


def clip(
    video: bytes, params: ViewParams, spec: ViewSpec, device: str = "cpu", jitter: nn.Module | None = None
) -> Tensor:
    """One sample's views (V, C, T, S, S) float32, as a backend makes them, on torchcodec's `device`.

    jitter: makes other colours, in place of those of `params`.
    """
    from torchcodec.decoders import VideoDecoder

    numbers, places = np.unique(params.frames, return_inverse=True)
    decoder = VideoDecoder(video, seek_mode="approximate", num_ffmpeg_threads=1, device=device)
    frames_NPHW = _PLANES[spec.modality](decoder.get_frames_at(numbers.tolist()).data)
    x_VTPSS = crop_and_resize(frames_NPHW, places.reshape(params.frames.shape), params, spec.size)
    if spec.modality == "difference":
        x_VTPSS = x_VTPSS.float().diff(dim=1)
    x_FPSS = x_VTPSS.flatten(0, 1)
    if jitter is not None:
        coloured = jittered(jitter, x_FPSS, spec)
    else:
        coloured = recolour(cube_root_xyz(x_FPSS) if spec.lab else x_FPSS.float(), params)
    if spec.channel_drop:
        coloured = fill_dropped(coloured, params, spec)
    return coloured.unflatten(0, (spec.views, spec.frames)).transpose(1, 2)


def crop_and_resize(frames_NPHW: Tensor, places_VT: np.ndarray, params: ViewParams, size: int) -> Tensor:
    """Crop, scale, mirror and turn: (V, T, P, S, S) uint8; views that look alike are made together."""
    looks: dict[tuple, list[int]] = defaultdict(list)
    for view, box in enumerate(params.boxes.tolist()):
        looks[(*box, bool(params.flips[view]), float(params.angles[view]))].append(view)
    out = frames_NPHW.new_empty((*places_VT.shape, frames_NPHW.shape[1], size, size))
    for (left, top, width, height, flip, angle), views in looks.items():
        wanted, again = np.unique(places_VT[views], return_inverse=True)
        chosen = F.crop(frames_NPHW, top, left, height, width)[torch.from_numpy(wanted)]
        scaled = F.resize(chosen, [size, size], InterpolationMode.BILINEAR, antialias=True)
        scaled = F.horizontal_flip(scaled) if flip else scaled
        turned = F.rotate(scaled, angle, InterpolationMode.BILINEAR, fill=0) if angle else scaled
        out[views] = turned[torch.from_numpy(again.reshape(len(views), -1))]
    return out


def recolour(x_FPSS: Tensor, params: ViewParams) -> Tensor:
    """The affine map of each frame: (F, C, S, S)."""
    maps = torch.from_numpy(params.colours).flatten(0, 1).to(x_FPSS.device)
    mixed = torch.baddbmm(maps[..., -1:], maps[..., :-1], x_FPSS.flatten(2))
    return mixed.unflatten(2, x_FPSS.shape[2:])


def cube_root_xyz(rgb_F3SS: Tensor) -> Tensor:
    """sRGB uint8 → (f(X), f(Y), f(Z)) of CIE Lab, float32."""
    linear = _LINEAR.to(rgb_F3SS.device)[rgb_F3SS.int()]
    xyz = torch.einsum("cp,fphw->fchw", _XYZ.to(linear), linear)
    return torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * ((29 / 6) ** 2 / 3) + 4 / 29
    )


def fill_dropped(x_F3SS: Tensor, params: ViewParams, spec: ViewSpec) -> Tensor:
    """Noise of 1/100 of the kept channel's deviation in the channels that are dropped (TCP)."""
    assert params.noise is not None
    dropped_F3 = torch.from_numpy((params.colours == 0).all(-1).reshape(-1, 3)).to(x_F3SS.device)
    parts = {"frame": len(x_F3SS), "view": spec.views, "clip": 1}[spec.colour_scope]
    by_part = x_F3SS.unflatten(0, (parts, -1))
    kept = (
        by_part.square().mean((1, 3, 4)) - by_part.mean((1, 3, 4)).square()
    )  # the dropped ones' variance is 0
    deviation = kept.sum(1).clamp(min=0).sqrt().repeat_interleave(len(x_F3SS) // parts)
    noise = noise_bank(spec.size).to(x_F3SS.device)[torch.from_numpy(params.noise).flatten()]
    strength_F3 = dropped_F3 * deviation[:, None] * (0.01 / arithmetic.NOISE_SCALE)
    return x_F3SS + noise * strength_F3[..., None, None]


def color_jitter(spec: ViewSpec) -> nn.Module | None:
    """Colour as users write it: torchvision's ColorJitter, RandomGrayscale and Normalize, not our spec's colours.

    uint8 (…, 3, S, S) → float32; None where the spec has no jitter.
    """
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
    """Frames (F, 3, S, S) uint8 → float32; those that share their colours go through the transform together."""
    scope_F = spec.scope(spec.colour_scope).ravel()
    out = torch.empty_like(x_FPSS, dtype=torch.float32)
    for one in np.unique(scope_F):
        frames = torch.from_numpy(np.flatnonzero(scope_F == one))
        out[frames] = transform(x_FPSS[frames])
    return out


@cache
def noise_bank(size: int) -> Tensor:
    """(NOISE_FRAMES, 3, S, S) int8."""
    return torch.from_numpy(arithmetic.noise_bank(NOISE_FRAMES, size)).permute(0, 3, 1, 2)


def levels(spec: ViewSpec) -> Tensor:
    """(C, 1, 1, 1): how many 8-bit levels a difference of 1 in the model's input is; L of Lab counts 0–100 as 0–255."""
    if spec.modality == "flow":
        of_channel = np.full(3, 127.5)
    elif spec.modality == "difference":
        of_channel = np.array([255 * colour.GREY_STD])
    elif spec.lab:
        of_channel = colour.LAB_STD * [2.55, 1, 1]
    else:
        of_channel = 255 * colour.IMAGENET_STD if spec.levels == "imagenet" else np.ones(3)
    return torch.tensor(of_channel, dtype=torch.float32)[:, None, None, None]


def mean_difference(ours: Tensor, theirs: Tensor, spec: ViewSpec) -> float:
    """Mean absolute difference of two batches (B, V, C, T, S, S), in 8-bit levels."""
    return float(((ours.cpu() - theirs.cpu()).abs() * levels(spec)).mean())
