"""Pace's formulas again, slowly, from the paper; its authors' networks as functions of their files' tensors; a tiny model."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.pace import Pace, PaceConfig

T, SIZE = 8, 32


def tiny(**options: Any) -> Pace:
    torch.manual_seed(0)
    return Pace(PaceConfig(**{"width": 1 / 16, "frames": T, "size": SIZE, **options}))


def batch(
    B: int, V: int, paces: int = 4, seed: int = 0, frames: int = T, size: int = SIZE
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(B, V, 3, frames, size, size, generator=generator)
    return {"views": views, "pace": torch.randint(paces, (B, V), generator=generator)}


def eq_1(logits: list[list[float]], labels: list[int]) -> float:
    """The mean over clips of −log softmax at the pace."""
    return sum(math.log(sum(map(math.exp, h))) - h[y] for h, y in zip(logits, labels, strict=True)) / len(
        labels
    )


def eq_2_or_3(z: list[list[float]], positives: list[list[int]], reduction: str = "sum") -> float:
    """Eq. 2 and 3: for each clip i and each of its positives j, −log of exp(z_i·z_j) over the sum over all clips but i."""
    total = 0.0
    for i, of_i in enumerate(positives):
        sims = [sum(a * b for a, b in zip(z[i], other, strict=True)) for other in z]
        highest = max(sims)
        everything = highest + math.log(sum(math.exp(s - highest) for k, s in enumerate(sims) if k != i))
        terms = [everything - sims[j] for j in of_i]
        total += sum(terms) / (len(terms) if reduction == "mean" and terms else 1)
    return total / len(z)


# The released networks (github.com/laura-wang/video-pace), in evaluation mode, from a file's tensors by its names.


def _bn(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    numbers = [w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *numbers)


def c3d(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    for layer, pool in (
        ("1", (1, 2, 2)),
        ("2", 2),
        ("3a", 0),
        ("3b", 2),
        ("4a", 0),
        ("4b", 2),
        ("5a", 0),
        ("5b", 0),
    ):
        x = F.conv3d(x, w[f"conv{layer}.weight"], w[f"conv{layer}.bias"], padding=1)
        x = F.relu(_bn(x, w, f"bn{layer}"))
        x = F.max_pool3d(x, pool) if pool else x
    return x.mean((2, 3, 4)) @ w["linear.weight"].T + w["linear.bias"]


def residual(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """R3D and R(2+1)D, told apart by their tensors."""

    def conv(x: Tensor, name: str, stride: tuple[int, int, int]) -> Tensor:
        if f"{name}.temporal_spatial_conv.weight" in w:
            kernel = w[f"{name}.temporal_spatial_conv.weight"]
            return F.conv3d(x, kernel, stride=stride, padding=tuple(k // 2 for k in kernel.shape[2:]))
        spatial, temporal = w[f"{name}.spatial_conv.weight"], w[f"{name}.temporal_conv.weight"]
        x = F.conv3d(
            x, spatial, stride=(1, *stride[1:]), padding=(0, spatial.shape[3] // 2, spatial.shape[4] // 2)
        )
        x = F.relu(_bn(x, w, f"{name}.bn"))
        return F.conv3d(x, temporal, stride=(stride[0], 1, 1), padding=(temporal.shape[2] // 2, 0, 0))

    x = F.relu(_bn(conv(x, "conv1", (1, 2, 2)), w, "bn1"))
    for stage in (2, 3, 4, 5):
        block, stride = f"conv{stage}.block1", (1, 1, 1) if stage == 2 else (2, 2, 2)
        y = F.relu(_bn(conv(x, f"{block}.conv1", stride), w, f"{block}.bn1"))
        y = _bn(conv(y, f"{block}.conv2", (1, 1, 1)), w, f"{block}.bn2")
        if stage > 2:
            x = _bn(conv(x, f"{block}.downsampleconv", stride), w, f"{block}.downsamplebn")
        x = F.relu(x + y)
    return x.mean((2, 3, 4)) @ w["linear.weight"].T + w["linear.bias"]


def s3dg(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        for number in (1, 2) if f"{name}.conv2.weight" in w else (1,):
            kernel = w[f"{name}.conv{number}.weight"]
            padding = tuple(k // 2 for k in kernel.shape[2:])
            x = F.relu(_bn(F.conv3d(x, kernel, stride=stride, padding=padding), w, f"{name}.bn{number}"))
        return x

    def gate(x: Tensor, name: str) -> Tensor:
        score = x.mean((2, 3, 4)) @ w[f"{name}.fc.weight"].T + w[f"{name}.fc.bias"]
        return x * score.sigmoid()[:, :, None, None, None]

    def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        over = [n for k, s in zip(reversed(kernel), reversed(stride), strict=True) for n in (0, k - s)]
        return F.max_pool3d(F.pad(x, over), kernel, stride, ceil_mode=True)

    def mixed(x: Tensor, name: str) -> Tensor:
        branches = [
            unit(x, f"{name}.conv_b0"),
            unit(unit(x, f"{name}.conv_b1_a"), f"{name}.conv_b1_b"),
            unit(unit(x, f"{name}.conv_b2_a"), f"{name}.conv_b2_b"),
            unit(F.max_pool3d(x, 3, 1, 1), f"{name}.conv_b3_b"),
        ]
        return torch.cat([gate(b, f"{name}.gating_b{i}") for i, b in enumerate(branches)], 1)

    x = pool(unit(x, "conv1", 2), (1, 3, 3), (1, 2, 2))
    x = gate(unit(unit(x, "conv_2b"), "conv_2c"), "gating")
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for names, after in (("3b 3c", (3, 3, 3)), ("4b 4c 4d 4e 4f", (2, 2, 2)), ("5b 5c", None)):
        for name in names.split():
            x = mixed(x, f"mixed_{name}")
        x = pool(x, after, (2, 2, 2)) if after else x
    return x.mean((2, 3, 4)) @ w["fc.weight"].T + w["fc.bias"]
