"""VDIM's formulas again, slowly, from the paper; and the tiny model that the tests of objectives share."""

import math

import torch
from torch import Tensor, nn

from objectives.vdim import VDIM, VDIMConfig

WIDTH = 1 / 64  # 8 features


def eq_3(scores: list, offset: int = 0, *, own: bool = False) -> float:
    """−Eq. 3 averaged over x, i and i′; scores[a][i][b][i′] nested lists, a's own video is offset + a.

    own: the denominator has all i′ of its own video too, as Eq. 3 is written; else the positive alone (Figure 1).
    """
    terms = []
    for a, of_video in enumerate(scores):
        for of_location in of_video:
            others = [s for b, of_other in enumerate(of_location) for s in of_other if own or b != offset + a]
            for positive in of_location[offset + a]:
                everything = others if own else [positive, *others]
                highest = max(everything)
                terms.append(highest + math.log(sum(math.exp(s - highest) for s in everything)) - positive)
    return sum(terms) / len(terms)


def share_right(scores: list, offset: int = 0) -> float:
    """Share of antecedent locations whose highest score is in their own video."""
    right = []
    for a, of_video in enumerate(scores):
        for of_location in of_video:
            best = max(range(len(of_location)), key=lambda b: max(of_location[b]))
            right.append(best == offset + a)
    return sum(right) / len(right)


def shake(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter off its initial value, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
            parameter.add_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


def tiny(*, shaken: bool = True, **options: object) -> VDIM:
    torch.manual_seed(0)
    objective = VDIM(VDIMConfig(**{"width": WIDTH, **options}))  # type: ignore[arg-type]
    if shaken:
        shake(objective)
    return objective


def random_views(B: int, V: int, seed: int = 0) -> Tensor:
    return torch.randn(B, V, 3, 32, 128, 128, generator=torch.Generator().manual_seed(seed))
