"""Temporal Contrastive Pretraining (Lorre et al. 2020, doi 10.1109/WACV45572.2020.9093278; sections below are its).

    views        T segments of F frames, half overlapping, each cropped on its own (sections 3.1, 4.2.2)
    encoder      h_t, ResNet18 over a segment's frames stacked in the channels; z_t is its spatial mean
                 (or a 3D network, whose map is averaged over a segment's time)
    context      c_t of h_1 … h_t: three temporally masked 3D convolutions, or a sibling (Table 3)
    loss         ẑ_{t,t+k} = W_k·mean(c_t) must find z_{t+k} among all segments of all videos, Eq. 1 and 2

Settled here, where the paper is silent: kernels of the context network are 3×3×3, the present their last tap; the
learning rate falls tenfold at each milestone; colour drop is Doersch et al. 2015's. Eq. 2 sums over videos, t and k,
which diverges within steps at the paper's learning rate and a small batch: the mean after a warm-up is the default,
the sum an option. RGB is the default input because every data set has it; flow is the paper's best.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from models.networks import Stages
from models.tcp import ConvLSTM, PooledLSTM, StackedResNet18, masked_conv2plus1d, masked_conv3d
from objectives import losses
from objectives.base import Downstream, FineTuning, Objective, Output, Recipe, check_backbone
from pipelines.eval_clips import EvalLayout
from pipelines.views import ViewSpec, eval_view
from shards import InputError, above, at_least

CONTEXTS: dict[str, Callable[[int, int], nn.Module]] = {  # of features and kernel taps
    "conv3d": masked_conv3d,
    "conv2plus1d": masked_conv2plus1d,
    "convlstm": lambda dim, _: ConvLSTM(dim),
    "lstm": lambda dim, _: PooledLSTM(dim),
}
CHANNELS = {"rgb": 3, "difference": 1, "flow": 2}  # that the encoder sees of a frame


@dataclass(frozen=True)
class TCPConfig:
    """The defaults are the paper's (section 4.2), but for the loss's mean, its warm-up and the modality."""

    modality: Literal["rgb", "difference", "flow"] = "rgb"
    """Frames, differences of consecutive grey frames, or optical flow (the data set must hold it)."""
    segments: int = 10
    """T, segments a video."""
    frames: int = 10
    """F, frames a segment; the next segment begins F/2 frames later."""
    size: int = 224
    """Side of a frame in pixels, even."""
    crop: Literal["segment", "clip", "none"] = "segment"
    """Place the crop once a segment or once a clip, or scale the whole frame ("w/o transformation")."""
    colour_drop: bool = True
    """Replace two of a segment's colours by noise (RGB only)."""
    padding: Literal["repeat_last", "wrap", "error"] = "repeat_last"
    """A video shorter than the clip repeats its last frame, starts over, or is left out."""
    backbone: str = "resnet18"
    """The paper's 2D resnet18, a segment's frames stacked in its channels. Or a 3D network, whose last map is averaged
    over time: r3d, r2plus1d, s3dg, resnet2d3d_18, _34, _50; c3d from 8 frames on; torchvision's r3d_18, r2plus1d_18,
    mc3_18, s3d at width 1 for RGB."""
    width: float = 1.0
    """Multiplies every channel count."""
    context: Literal["conv3d", "conv2plus1d", "convlstm", "lstm"] = "conv3d"
    """What makes c_t of h_1 … h_t."""
    kernel_taps: int = 3
    """Segments that a convolution of the context sees, the present one included; the paper's figure has them."""
    predict_steps: int = 9
    """Farthest segment that is predicted, counted from the present one; SEGMENTS − 1 predicts all that remain."""
    difficult_negatives: bool = True
    """Contrast with the other segments of the same video as well as with other videos."""
    negatives: Literal["local", "gathered"] = "local"
    """Contrast with the videos of this process, or of all of them (with gradient)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Of the loss over videos, t and k; the paper sums."""
    gradient_checkpointing: bool = False
    """Compute the encoder's activations again in the backward pass: less memory, a third more time."""
    lr: float = 1e-2
    """SGD's learning rate."""
    warmup_steps: int = 500
    """Optimizer steps of linear warm-up; the paper names none."""
    milestones: tuple[int, ...] = (20_000, 40_000, 60_000)
    """Optimizer steps at which the learning rate falls (on UCF101)."""
    milestone_factor: float = 0.1
    """What the learning rate is multiplied by when it falls; the paper names none."""

    def __post_init__(self) -> None:
        if self.segments < 2 or self.frames < 2:
            raise InputError(
                f"--segments {self.segments} and --frames {self.frames} must be at least 2: one segment predicts another"
            )
        if not 1 <= self.predict_steps < self.segments:
            raise InputError(
                f"--predict-steps {self.predict_steps} must be from 1 to {self.segments - 1}, one less than --segments"
            )
        above(self, 0, "width", "lr", "milestone_factor")
        at_least(self, 1, "kernel_taps")
        at_least(self, 0, "warmup_steps")
        if self.size < 32 or self.size % 2:
            raise InputError(f"--size {self.size} must be even and at least 32")
        if self.milestone_factor > 1:
            raise InputError(f"--milestone-factor {self.milestone_factor} must be at most 1")
        channels = CHANNELS[self.modality]
        check_backbone(
            "--backbone", self.backbone, self.frames, self.size, self.width, channels, own=("resnet18",)
        )


class TCP(Objective):
    """Temporal Contrastive Pretraining. encoder: models.tcp or models.networks; context: one of models; predict: all W_k."""

    name = "tcp"
    Config = TCPConfig
    recipe = Recipe(steps=150_000, batch_size=25)
    small_recipe = Recipe(steps=500, batch_size=16)
    encoder: StackedResNet18 | Stages
    present: Tensor  # (P,) t of each prediction, counted from 0
    gap: Tensor  # (P,) its k; predictions are in the order of their k

    def __init__(self, config: TCPConfig) -> None:
        super().__init__(config)
        channels, recomputed = CHANNELS[config.modality], config.gradient_checkpointing
        if config.backbone == "resnet18":
            self.encoder = StackedResNet18(config.frames * channels, config.width, checkpointed=recomputed)
        else:
            self.encoder = models.build(
                config.backbone, config.frames, config.size, config.width, channels, checkpointed=recomputed
            )
        dim = self.encoder.dim
        self.context = CONTEXTS[config.context](dim, config.kernel_taps)
        self.predict = nn.Linear(dim, config.predict_steps * dim, bias=False)
        pairs_P2 = [(t, k) for k in range(1, config.predict_steps + 1) for t in range(config.segments - k)]
        present, gap = torch.tensor(pairs_P2).T
        self.register_buffer("present", present, persistent=False)
        self.register_buffer("gap", gap, persistent=False)
        flat = isinstance(self.encoder, StackedResNet18)
        self.encoder.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)

    @staticmethod
    def small() -> TCPConfig:
        """Image difference, which every data set has, and which is learned sooner than RGB with dropped colours."""
        return TCPConfig(modality="difference", size=64, width=0.25, lr=0.03, warmup_steps=100)

    @staticmethod
    def view_spec(config: TCPConfig) -> ViewSpec:
        """V segments of T frames; no flip (section 4.2.2)."""
        hop = config.frames // 2
        return ViewSpec(
            offsets=tuple(tuple(range(t * hop, t * hop + config.frames)) for t in range(config.segments)),
            size=config.size,
            modality=config.modality,
            crop=None if config.crop == "none" else 0.875,  # 224 of 256
            area=(1.0, 1.0),
            ratio=(1e-3, 1e3),  # without a crop the box is the whole frame, whatever its shape
            flip=0.0,
            channel_drop=config.colour_drop and config.modality == "rgb",
            box_scope="clip" if config.crop == "clip" else "view",
            colour_scope="view",
            padding=config.padding,
        )

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, V, C, T, H, W); C is 3, for flow u, v and a channel that is left, for difference 1."""
        views: Tensor = batch["views"]
        B, V = views.shape[:2]
        h_BDVhw = self.encode(views).unflatten(0, (B, V)).transpose(1, 2)
        z_BVD = h_BDVhw.mean((-2, -1)).transpose(1, 2)
        c_BVD = self.context(h_BDVhw).mean((-2, -1)).transpose(1, 2)
        predicted_BVKD = self.predict(c_BVD).unflatten(-1, (self.config.predict_steps, -1))
        return self.contrast(z_BVD, predicted_BVKD)

    def encode(self, views_BVCTHW: Tensor) -> Tensor:
        """Segments → h (B·V, D, h, w); of flow u and v are read, without their spatial means."""
        x = views_BVCTHW
        if self.config.modality == "flow":
            x = x[:, :, :2] - x[:, :, :2].mean((-2, -1), keepdim=True)
        if isinstance(self.encoder, Stages):
            return self.encoder(x.flatten(0, 1)).mean(2)
        x_BVHWF = x.permute(0, 1, 4, 5, 2, 3).flatten(4)
        return self.encoder(x_BVHWF.flatten(0, 1).permute(0, 3, 1, 2))  # channels last, as the encoder is

    def contrast(self, z_BVD: Tensor, predicted_BVKD: Tensor) -> Output:
        """Eq. 1 and 2 over every t and k; z: the segments, predicted: ẑ_{t,t+k} at (t, k − 1), used where t + k exists."""
        config, offset = self.config, 0
        predicted_BPD = predicted_BVKD[:, self.present, self.gap - 1]
        if config.negatives == "gathered":
            z_BVD, offset = losses.gather(z_BVD), losses.rank_offset(z_BVD.shape[0])
        logits_BPN, answer_BP = candidates(
            predicted_BPD, z_BVD, self.present + self.gap, offset, difficult=config.difficult_negatives
        )
        loss = F.cross_entropy(logits_BPN.flatten(0, 1), answer_BP.flatten(), reduction=config.reduction)
        right_BP = (logits_BPN.detach().argmax(-1) == answer_BP).float()
        others = 0 if config.difficult_negatives else config.segments - 1
        chance = torch.full((), 1 / (logits_BPN.shape[-1] - others), device=loss.device)
        by_gap = right_BP.split([config.segments - k for k in range(1, config.predict_steps + 1)], 1)
        metrics = {f"top1_{k}": right.mean() for k, right in enumerate(by_gap, 1)}  # Figure 3
        return Output(loss, {"top1": right_BP.mean(), "chance": chance} | metrics)

    def embed(self, views: Tensor) -> Tensor:
        """views (B, V, C, T, H, W) → z, (B, V, D): what downstream averages over segments (section 3.2)."""
        return self.encode(views).mean((-2, -1)).unflatten(0, views.shape[:2])

    def downstream(self) -> Downstream:
        """The mean of z over 8 segments in training and 15 in tests; decay towards the pretrained weights (section 4.2.4).

        A training clip's segments share one crop and one flip (section 4.2.2). Settled here: they are placed at random, in
        tests evenly; the decay is 1e-3; the rate from scratch falls twice by √.1, where the paper halves it first.
        """
        segment = replace(
            self.view_spec(self.config),
            offsets=self.view_spec(self.config).offsets[:1],
            padding="repeat_last",
            channel_drop=False,
            flip=0.5,
            box_scope="clip",
        )
        tuning = FineTuning(
            replace(segment, offsets=segment.offsets * 8, start_scope="view"), optimizer="sgd", lr=1e-2,
            weight_decay=0.0, pull=1e-3, steps=30_000, batch_size=16, decay_at=(15_000,), decay_by=0.5, dropout=0.9,
        )  # fmt: skip
        scratch = replace(
            tuning, spec=segment, weight_decay=1e-4, pull=0.0, steps=50_000, batch_size=64,
            decay_at=(15_000, 30_000), decay_by=0.1**0.5,
        )  # fmt: skip
        return Downstream(
            eval_view(segment),
            replace(tuning, scratch=scratch),
            EvalLayout(count=8),
            EvalLayout(count=15),
            average="features",
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD, momentum 0.9, weight decay 1e-4 (section 4.2.4)."""
        return torch.optim.SGD(self.parameters(), lr=self.config.lr, momentum=0.9, weight_decay=1e-4)

    def learning_rate(self, step: int) -> float:
        """Warm-up, and a fall at every milestone."""
        falls = sum(step >= milestone for milestone in self.config.milestones)
        return super().learning_rate(step) * self.config.milestone_factor**falls


def candidates(
    predicted_BPD: Tensor, z_AVD: Tensor, future_P: Tensor, offset: int = 0, *, difficult: bool = True
) -> tuple[Tensor, Tensor]:
    """The logits of Eq. 1 and which of them is the positive.

    predicted: P predictions of each of B videos, prediction p of segment future_P[p]. z: the segments of A videos,
    of which video b of the predictions is number offset + b. Returns logits (B, P, A·V) float32, −∞ where a segment
    is no candidate (without difficult negatives: the other segments of the same video), and the answers (B, P).
    """
    B, (A, V) = predicted_BPD.shape[0], z_AVD.shape[:2]
    if A == 1 and not difficult:
        raise InputError("--no-difficult-negatives leaves other videos only: --batch-size must be at least 2")
    logits_BPN = losses.scores(predicted_BPD, z_AVD, scale=False).flatten(2)
    own_B1 = torch.arange(B, device=z_AVD.device)[:, None] + offset
    answer_BP = own_B1 * V + future_P
    if not difficult:
        number_N = torch.arange(A * V, device=z_AVD.device)
        same_B1N = number_N // V == own_B1[..., None]
        logits_BPN = logits_BPN.masked_fill(same_B1N & (number_N != answer_BP[..., None]), -torch.inf)
    return logits_BPN, answer_BP
