"""Memory-augmented Dense Predictive Coding (Han, Xie & Zisserman 2020, arXiv:2008.01065; sections below are its).

    views, f, g  as in DPC; RGB or optical flow (section 5.2)
    p_{t+1} = softmax(φ(c_t))                     a distribution over k memories           Eq. 3
    ẑ_{t+1} = p_{t+1}·M, and ReLU(ẑ_{t+1}) is the GRU's next input                         Eq. 4
    loss         every ẑ must find its z among all locations, predicted steps and videos   Eq. 6
    both ways    one f, φ and M; a second GRU predicts the first blocks from the last (section 3.3)

The paper is the default; what the authors' code (github.com/TengdaHan/MemDPC) does otherwise are options:
--directions-loss sum, --crop resized, --grey-from channel, --milestones, --classified relu-mean, --flow-input authors. The best input is both, RGB and flow, each
with a network of its own, whose predictions are averaged downstream: train two runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.dpc import CompressiveMemory, ConvGRU, init_orthogonal
from objectives import losses
from objectives.base import Downstream, FineTuning, Output, Recipe
from objectives.blocks import BlockObjective, BlocksConfig, locations, predictor
from pipelines.eval_clips import EvalLayout
from pipelines.views import ViewSpec, eval_view
from shards import above, at_least


@dataclass(frozen=True)
class MemDPCConfig(BlocksConfig):
    """The defaults are the paper's (section 5.2, Table 1)."""

    grey: float = 0.25
    """Share of frames that lose their colour; 0.5 in DPC, 0.25 in MemDPC."""
    modality: Literal["rgb", "flow"] = "rgb"
    """Frames, or optical flow (tools/make_shards.py --flow adds it to the shards)."""
    flow_input: Literal["signed", "authors"] = "signed"
    """What the network is fed of flow: (u, v, 0) in −1…1, or (128, v, u) normalised as for ImageNet, as the released
    flow networks want it."""
    memory_size: int = 1024
    """k, the memory's slots; Table 1 also has 512 and 2,048."""
    directions: Literal["both", "forward"] = "both"
    """Predict the last blocks from the first and the first from the last, or the last only."""
    directions_loss: Literal["mean", "sum"] = "mean"
    """Of the two directions' losses; the released code adds them."""
    critic: Literal["dot", "cosine"] = "dot"
    """Similarity of prediction and target: dot product, or of L2-normalised vectors (section 3.2)."""
    temperature: float = 0.1
    """Divides the cosine critic's scores; the paper names none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "memory_size")
        above(self, 0, "temperature")


class MemDPC(BlockObjective):
    """encoder: f; aggregators: g, "forwards" and "backwards"; phi: φ; memory: M."""

    name = "memdpc"
    Config = MemDPCConfig
    recipe = Recipe(steps=150_000, batch_size=16)  # section 5.2; UCF101, 500 epochs on 2 GPUs as in the code

    def __init__(self, config: MemDPCConfig) -> None:
        super().__init__(config)
        dim = self.encoder.dim
        names = ("forwards", "backwards") if config.directions == "both" else ("forwards",)
        self.aggregators = torch.nn.ModuleDict({name: ConvGRU(dim, dim, gain=0.1) for name in names})
        self.phi = predictor(dim, config.memory_size)
        self.memory = CompressiveMemory(config.memory_size, dim)
        init_orthogonal(self.phi, 0.1)

    @staticmethod
    def small() -> MemDPCConfig:
        return MemDPCConfig(width=0.25, size=64, memory_size=128, warmup_steps=10)

    @staticmethod
    def view_spec(config: Any) -> ViewSpec:
        authors = config.modality == "flow" and config.flow_input == "authors"
        spec = replace(BlockObjective.view_spec(config), modality=config.modality)
        return replace(spec, levels="bgr-imagenet") if authors else spec

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, V, 3, T, H, W)."""
        z_BVDhw = self.encode(batch["views"])
        loss_of, metrics, log_ps = {}, {}, []
        for name in self.aggregators:
            z = z_BVDhw if name == "forwards" else z_BVDhw.flip(1)
            predicted, log_p = self.predict(z[:, : -self.pred_steps], name)
            loss_of[name], metrics[name] = losses.dense_nce(
                locations(predicted),
                locations(z[:, -self.pred_steps :]),
                gathered=self.config.negatives == "gathered",
                cosine=self.config.critic == "cosine",
                temperature=self.config.temperature if self.config.critic == "cosine" else 1.0,
            )
            log_ps.append(log_p)
        loss = torch.stack(list(loss_of.values()))
        means = {key: torch.stack([m[key] for m in metrics.values()]).mean() for key in metrics["forwards"]}
        by_direction = {f"loss_{name}": value.detach() for name, value in loss_of.items()}
        return Output(
            loss.mean() if self.config.directions_loss == "mean" else loss.sum(),
            means | by_direction | memory_usage(torch.cat(log_ps)),
        )

    def predict(self, past_BVDhw: Tensor, direction: str = "forwards") -> tuple[Tensor, Tensor]:
        """z of the blocks seen → ẑ (B, N, D, h, w) of the N = pred_steps that follow, and log p (B, N, k, h, w)."""
        aggregator: ConvGRU = self.aggregators[direction]  # type: ignore[assignment]
        state = aggregator(F.relu(past_BVDhw))[:, -1]
        predicted: list[Tensor] = []
        log_ps: list[Tensor] = []
        for step in range(self.pred_steps):
            if step:
                state = aggregator.step(F.relu(predicted[-1]), state)
            z, log_p = self.memory(self.phi(state))
            predicted.append(z)
            log_ps.append(log_p)
        return torch.stack(predicted, 1), torch.stack(log_ps, 1)

    def context(self, views_BVCTHW: Tensor) -> Tensor:
        """c_t after each block, (B, V, D, h, w), of the forward GRU: the feature for downstream tasks (section 4)."""
        return self.aggregators["forwards"](F.relu(self.classified(views_BVCTHW)))

    def downstream(self) -> Downstream:
        """8 blocks, ten crops and a moving window in tests, dropout 0.9, clip-wise jitter (section 5.3)."""
        spec = self.finetuning_spec(self.config.blocks)
        hop = max(spec.span // 2, 1)
        tuning = FineTuning(spec, dropout=0.9, decay_at=(20_000,))
        train, test = EvalLayout(hop=hop), EvalLayout(hop=hop, crops=10)
        return Downstream(eval_view(spec), tuning, train, test, dropout=0.9)

    def represent(self, views: Tensor) -> Tensor:
        """The last context of every direction, averaged over space, side by side: (B, D) or (B, 2D)."""
        z_BVDhw = F.relu(self.classified(views))
        orders = {"forwards": z_BVDhw, "backwards": z_BVDhw.flip(1)}
        contexts = [aggregator(orders[name])[:, -1] for name, aggregator in self.aggregators.items()]
        return torch.cat(contexts, 1).mean((-2, -1))

    def surprise(self, views: Tensor) -> Tensor:
        """[z, ẑ] of the last block, side by side, averaged over space: (B, 2D) (appendix B)."""
        z_BVDhw = self.encode(views)
        predicted = self.predict(z_BVDhw[:, :-1])[0][:, 0]
        return torch.cat([z_BVDhw[:, -1], predicted], 1).mean((-2, -1))

    def addresses(self, views: Tensor) -> Tensor:
        """p after the last block (Eq. 3), averaged over space: (B, k), how far each slot makes up the next prediction."""
        log_p_B1Khw = self.predict(self.encode(views))[1][:, :1]
        return log_p_B1Khw[:, 0].exp().mean((-2, -1))


@torch.no_grad()
def memory_usage(log_p_BNKhw: Tensor) -> dict[str, Tensor]:
    """How the memory is used, from log p (B, N, k, h, w).

    entropy: of p, the mean over predictions, in nats (ln k: all slots alike; 0: one slot each). usage_entropy: of the
    mean of p. dead_slots: the share of slots to which no prediction of the batch gives more than 1/k.
    """
    log_p_PK = log_p_BNKhw.float().movedim(2, -1).flatten(0, -2)
    p_PK = log_p_PK.exp()
    mean_K = p_PK.mean(0)
    return {
        "entropy": -(p_PK * log_p_PK).sum(1).mean(),
        "usage_entropy": -torch.xlogy(mean_K, mean_K).sum(),
        "dead_slots": (p_PK.amax(0) <= 1 / p_PK.shape[1]).float().mean(),
    }
