"""An objective whose steps take milliseconds, and that can be told to go wrong. Imported by forked runs only."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from objectives import losses
from objectives.base import Objective, Output, Recipe
from pipelines.views import Jitter, ViewSpec


@dataclass(frozen=True)
class ToyConfig:
    lr: float = 1e-2
    warmup_steps: int = 5
    nan_at: int = -1
    """Number of the forward call whose loss is not a number."""
    break_at: int = -1
    """Number of the forward call after which the weights are not."""
    crash_at: int = -1
    """Number of the forward call that raises."""
    hang_at: int = -1
    """Number of the forward call that never ends."""
    plain: bool = False
    """A loss that is a mean over samples: no negatives, no batch norm, no dropout."""
    record: str = ""
    """A folder: each process notes there which rows it was given."""


class Toy(Objective):
    """Batch norm, dropout, a warm-up and Adam: everything that a checkpoint has to keep."""

    name = "toy"
    Config = ToyConfig
    recipe = small_recipe = Recipe(steps=10, batch_size=4)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        layers = (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.encoder = nn.Sequential(*layers, nn.Dropout(0.2))
        if config.plain:
            self.encoder = nn.Sequential(layers[0], *layers[2:])
        self.head = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def small() -> ToyConfig:
        return ToyConfig()

    @staticmethod
    def view_spec(config: ToyConfig) -> ViewSpec:
        return ViewSpec(offsets=((0, 1, 2), (3, 4, 5)), size=16, jitter=Jitter(), box_scope="view")

    def forward(self, batch: Mapping[str, Any]) -> Output:
        if self.config.record:
            with Path(self.config.record, os.environ.get("RANK", "0")).open("a") as file:
                file.write(json.dumps(batch["row"].tolist()) + "\n")
        z_BVD = self.head(self.embed(batch["views"]))
        if self.config.plain:
            loss = z_BVD.square().mean()
            return Output(loss, {"top1": loss.detach(), "chance": torch.ones(())})
        if int(self.calls) == self.config.crash_at:
            raise RuntimeError("told to crash")
        if int(self.calls) == self.config.hang_at:
            time.sleep(10**6)
        scores = losses.scores(z_BVD[:, :1], z_BVD[:, 1:], scale=False)
        loss = losses.info_nce(scores)
        loss = loss * torch.where(self.calls == self.config.nan_at, torch.nan, 1.0)
        if int(self.calls) == self.config.break_at:
            self.head.weight.register_hook(lambda gradient: gradient * torch.inf)
        self.calls += 1
        metrics = {"top1": losses.top1(scores), "chance": torch.tensor(1 / len(z_BVD))}
        return Output(loss, metrics | {"pixels": batch["views"].mean()})

    def embed(self, views: Tensor) -> Tensor:
        return self.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)
