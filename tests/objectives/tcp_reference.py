"""TCP's loss again, slowly, from the paper; and the tiny model that its tests share."""

import math

import torch
from torch import Tensor, nn

from objectives.tcp import TCP, TCPConfig

SMALL = {"width": 1 / 32, "size": 32, "segments": 4, "frames": 2, "predict_steps": 3}


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def equation_1(
    z: list, predicted: list, gaps: int, *, difficult: bool = True, own: int = 0
) -> list[tuple[int, float, bool]]:
    """(k, L_N, whether the positive scores highest) of every prediction, in no particular order.

    z[video][t]: segments. predicted[video][t][k]: t counted from 0, k from 1 (index 0 unused); video i of the
    predictions is number own + i of z.
    """
    terms = []
    for i, of_video in enumerate(predicted):
        segments = len(z[own + i])
        for t in range(segments - 1):
            for k in range(1, min(gaps, segments - 1 - t) + 1):
                guess = of_video[t][k]
                positive = dot(guess, z[own + i][t + k])
                negatives = [
                    dot(guess, z[video][s])
                    for video in range(len(z))
                    for s in range(segments)
                    if (video, s) != (own + i, t + k) and (difficult or video != own + i)
                ]
                top = max([positive, *negatives])
                total = sum(math.exp(score - top) for score in [positive, *negatives])
                terms.append((k, math.log(total) + top - positive, positive > max(negatives)))
    return terms


def shake(module: nn.Module) -> None:
    """Move every parameter off its initial value, so that no branch is silent."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def tiny(**options: object) -> TCP:
    torch.manual_seed(0)
    objective = TCP(TCPConfig(**SMALL | options))  # type: ignore[arg-type]
    shake(objective)
    return objective


def random_views(B: int, objective: TCP, seed: int = 0) -> Tensor:
    config = objective.config
    channels = 1 if config.modality == "difference" else 3
    shape = (B, config.segments, channels, config.frames, config.size, config.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given_features(
    B: int, V: int, K: int, D: int, scale: float = 1.0, seed: int = 7
) -> tuple[Tensor, Tensor]:
    """z (B, V, D) and a prediction for every t and k, (B, V, K, D)."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(B, V, D, generator=generator)
    return z, torch.randn(B, V, K, D, generator=generator)


def as_lists(predicted_BVKD: Tensor) -> list:
    """With an unused entry for k = 0."""
    return [[[None, *of_t] for of_t in of_video] for of_video in predicted_BVKD.tolist()]
