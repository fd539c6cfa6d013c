"""Dense Predictive Coding (Han, Xie & Zisserman 2019, arXiv:1909.04656; sections and equations below are its).

    views        8 blocks of 5 frames, every third frame, one crop a clip, colour frame by frame (section 3.5)
    z_t = f(x_t)                        2D3D-ResNet, a map of 4×4 locations at 128²        Eq. 1
    c_t = g(z_1 … z_t)                  ConvGRU over ReLU(z)                               Eq. 2
    ẑ_{t+1} = φ(c_t), and ReLU(ẑ_{t+1}) is the GRU's next input                            Eq. 3, 4
    loss         every ẑ must find its z among all locations, predicted steps and videos   Eq. 5

The paper is the default; what the authors' code (github.com/TengdaHan/DPC) does otherwise are options:
--norm batch-statistics, and on Kinetics-400 --stride 5 --crop resized; --grey-from channel, --classified relu-mean. Both leave out videos
that are shorter than a clip.
Settled here: Eq. 5's sum is a mean; targets are z before the ReLU and get gradients, both as in that code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dpc import ConvGRU, init_orthogonal
from objectives import losses
from objectives.base import Downstream, FineTuning, Output, Recipe
from objectives.blocks import BlockObjective, BlocksConfig, locations, predictor
from pipelines.eval_clips import EvalLayout
from pipelines.views import eval_view
from shards import InputError


@dataclass(frozen=True)
class DPCConfig(BlocksConfig):
    """The defaults are the paper's (section 3.5)."""

    prediction: Literal["sequential", "parallel"] = "sequential"
    """Each prediction feeds the next, or a φ of its own for each step reads c_t ("remove Seq", Table 1)."""
    features: Literal["dense", "pooled"] = "dense"
    """Feature maps, or their spatial means ("remove Map", Table 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction == "parallel" and self.curriculum:
            raise InputError(
                "--prediction parallel has a φ for each of --pred-steps, so --curriculum cannot add one: "
                "use --prediction sequential"
            )


class DPC(BlockObjective):
    """encoder: f; aggregator: g; phi: φ, one, or with parallel prediction one for each step."""

    name = "dpc"
    Config = DPCConfig
    recipe = Recipe(steps=320_000, batch_size=64)  # Table 3; section 3.5: 64 on each of 4 GPUs

    def __init__(self, config: DPCConfig) -> None:
        super().__init__(config)
        dim = self.encoder.dim
        self.aggregator = ConvGRU(dim, dim)
        heads = config.pred_steps if config.prediction == "parallel" else 1
        self.phi = nn.ModuleList(predictor(dim, dim) for _ in range(heads))
        init_orthogonal(self.phi, 1.0)

    @staticmethod
    def small() -> DPCConfig:
        return DPCConfig(width=0.25, size=64, warmup_steps=10)

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, V, 3, T, H, W)."""
        z = self.pooled(self.encode(batch["views"]))
        past, future = z[:, : -self.pred_steps], z[:, -self.pred_steps :]
        loss, metrics = losses.dense_nce(
            locations(self.predict(past)),
            locations(future),
            gathered=self.config.negatives == "gathered",
        )
        return Output(loss, metrics)

    def pooled(self, z_BVDhw: Tensor) -> Tensor:
        """z itself, or with pooled features its spatial mean (B, V, D, 1, 1)."""
        return z_BVDhw if self.config.features == "dense" else z_BVDhw.mean((-2, -1), keepdim=True)

    def predict(self, past_BVDhw: Tensor) -> Tensor:
        """z of the blocks seen → ẑ (B, N, D, h, w) of the N = pred_steps blocks that follow."""
        state = self.aggregator(F.relu(past_BVDhw))[:, -1]
        if self.config.prediction == "parallel":
            return torch.stack([phi(state) for phi in self.phi], 1)
        predicted = [self.phi[0](state)]
        while len(predicted) < self.pred_steps:
            state = self.aggregator.step(F.relu(predicted[-1]), state)
            predicted.append(self.phi[0](state))
        return torch.stack(predicted, 1)

    def context(self, views_BVCTHW: Tensor) -> Tensor:
        """c_t after each block, (B, V, D, h, w): the feature for downstream tasks (section 4, action classifier)."""
        return self.aggregator(F.relu(self.pooled(self.classified(views_BVCTHW))))

    def downstream(self) -> Downstream:
        """5 blocks however many were predicted, half-overlapping windows, centre crop (section 4).

        Settled here: the number of steps, and where the rate falls.
        """
        spec = self.finetuning_spec(5)
        every = EvalLayout(hop=max(spec.span // 2, 1))
        tuning = FineTuning(spec, weight_decay=1e-3, steps=30_000, decay_at=(18_000, 24_000), dropout=0.5)
        return Downstream(eval_view(spec), tuning, every, every)

    def represent(self, views: Tensor) -> Tensor:
        """c_t after the last block, averaged over space, (B, D)."""
        return self.context(views)[:, -1].mean((-2, -1))

    def surprise(self, views: Tensor) -> Tensor:
        """[z, ẑ] of the last block, side by side, averaged over space: (B, 2D) (MemDPC, appendix B)."""
        z_BVDhw = self.pooled(self.encode(views))
        predicted = self.predict(z_BVDhw[:, :-1])[:, 0]
        return torch.cat([z_BVDhw[:, -1], predicted], 1).mean((-2, -1))
