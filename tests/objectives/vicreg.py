"""VICReg over two clips of a video (Bardes, Ponce & LeCun 2022, arXiv:2105.04906): a method without top-1 and chance.

test_new_method.py puts this file into a copy of the checkout as objectives/vicreg.py and trains it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import models
from models.networks import Stages
from objectives import losses
from objectives.base import Objective, Output
from pipelines.views import Jitter, ViewSpec


@dataclass(frozen=True)
class VICRegConfig:
    frames: int = 16
    """T, frames a clip."""
    size: int = 112
    """Side of a clip in pixels."""
    width: float = 1.0
    """Multiplies every channel count of the encoder."""
    dim: int = 2048
    """Width of the expander."""
    lr: float = 0.02
    """SGD's learning rate."""
    warmup_steps: int = 1000
    """Optimizer steps of linear warm-up."""


class VICReg(Objective):
    """encoder: R3D; expander: three layers, of which the loss sees the last."""

    name = "vicreg"
    Config = VICRegConfig
    encoder: Stages

    def __init__(self, config: VICRegConfig) -> None:
        super().__init__(config)
        self.encoder = models.build("r3d", config.frames, config.size, config.width)
        widths = (self.encoder.dim, config.dim, config.dim)
        layers: list[nn.Module] = []
        for D, E in pairwise(widths):
            layers += [nn.Linear(D, E), nn.BatchNorm1d(E), nn.ReLU()]
        self.expander = nn.Sequential(*layers, nn.Linear(config.dim, config.dim))

    @staticmethod
    def small() -> VICRegConfig:
        return VICRegConfig(frames=8, size=32, width=1 / 16, dim=32, warmup_steps=10)

    @staticmethod
    def view_spec(config: VICRegConfig) -> ViewSpec:
        return ViewSpec(
            offsets=(tuple(range(config.frames)),) * 2,
            size=config.size,
            jitter=Jitter(),
            box_scope="view",
            colour_scope="view",
            start_scope="view",
        )

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, 2, 3, T, H, W). The three terms of Eq. 6; B ≥ 2 over all processes."""
        features_BVD = self.embed(batch["views"])
        z_BVE = losses.gather(self.expander(features_BVD.flatten(0, 1)).unflatten(0, features_BVD.shape[:2]))
        a_BE, b_BE = z_BVE.float().unbind(1)
        terms = {"invariance": (a_BE - b_BE).square().mean()}
        terms["variance"] = (spread(a_BE) + spread(b_BE)) / 2
        terms["covariance"] = covariance(a_BE) + covariance(b_BE)
        loss = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
        return Output(loss, {name: term.detach() for name, term in terms.items()})

    def embed(self, views: Tensor) -> Tensor:
        return self.encoder.pooled(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.config.lr, momentum=0.9, weight_decay=1e-6)


def spread(z_BE: Tensor) -> Tensor:
    """Eq. 1: how far the deviation of each dimension over the batch is below 1."""
    return (1 - (z_BE.var(0) + 1e-4).sqrt()).clamp(min=0).mean()


def covariance(z_BE: Tensor) -> Tensor:
    """Eq. 3 and 4: the sum of the squared covariances of different dimensions, divided by their number."""
    return (z_BE.T.cov() - torch.diag(z_BE.var(0))).square().sum() / z_BE.shape[1]
