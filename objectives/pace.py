"""Pace prediction (Wang, Jiao & Liu 2020, arXiv:2008.05861; papers' sections and equations below are its).

    views        n clips a video, each with its own start and its own pace p: every p-th frame (section 3.1)
    encoder      C3D, R3D, R(2+1)D, S3D-G or torchvision's; p5, its last map's mean, is a clip's feature
    loss         λ_cls · cross-entropy of p, Eq. 1, + λ_ctr · contrast between clips, Eq. 2 or 3; Eq. 4

The released code (github.com/laura-wang/video-pace) has the classification alone. Its choices as options: --circular
starts clips anywhere and runs on at the video's beginning, which betrays fast clips by their jump; --loop restart runs
on at its first frame; --squeeze scales frames to one shape; --levels bgr-255 feeds unnormalised BGR; --contrast none.
Its weight decay, on which the paper is silent, is the default.

Settled here: an anchor's denominator runs over all other clips of the batch, in Eq. 2 and in Eq. 3; the mean is over
anchors; Eq. 3 sums over an anchor's positives as it is written. The non-linear layer of Table 2, which adds "~4k"
parameters to a 512-d feature, is read as a linear map to 8 dimensions and a ReLU.

Letters: B videos, V clips of a video; A = B·V anchors, all clips of this process; D features; M paces.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import models
from models.networks import Stages
from objectives import losses
from objectives.base import (
    Downstream,
    FineTuning,
    Objective,
    Output,
    Recipe,
    ShardSettings,
    check_backbone,
)
from pipelines.views import Jitter, ViewSpec, eval_view, single_start
from shards import InputError, above, at_least

PaceOption = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PACE",
        instance_from_str=lambda words: float(Fraction(words[0])),  # "1/3" as well as "2" and "0.5"
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [pace_name(value)],
    ),
]


def pace_name(pace: float) -> str:
    """ "2", "1/3": a pace as people write it."""
    return str(Fraction(pace).limit_denominator(1000))


@dataclass(frozen=True)
class PaceConfig:
    """The defaults are the paper's best R(2+)1D: paces 1 to 4, jitter, same context with the extra layer (Table 2)."""

    backbone: str = "r2plus1d"
    """c3d, r3d, r2plus1d, s3dg; torchvision's r3d_18, r2plus1d_18, mc3_18, s3d; or DPC's resnet2d3d_18, _34, _50."""
    width: float = 1.0
    """Multiplies every channel count of the backbone (not of torchvision's)."""
    frames: int = 0
    """Frames a clip; 0 takes the backbone's: 16, and 64 for S3D-G."""
    size: int = 0
    """Side of a clip in pixels; 0 takes the backbone's: 112, and 224 for S3D-G."""
    paces: tuple[PaceOption, ...] = (1.0, 2.0, 3.0, 4.0)
    """The paces to tell apart: every p-th frame; below 1, frames are repeated. 1/3 1/2 1 2 3 is the paper's other set."""
    clips: int = 2
    """Clips a video, each with its own pace and start."""
    circular: bool = False
    """Start anywhere and run on at the video's beginning, as the released code does; else only clips that are longer
    than their video run over its end."""
    padding: Literal["wrap", "repeat_last", "error"] = "wrap"
    """A video shorter than a clip starts anywhere and loops (section 3.1), repeats its last frame, or is left out."""
    loop: Literal["phase", "restart"] = "phase"
    """A clip that runs over its video's end goes on at the frame that its pace leads to, or at the first frame (the
    released code)."""
    squeeze: bool = False
    """Scale frames to 171×128 (S3D-G: 256×256) whatever their shape, as the released code does."""
    jitter: Literal["frame", "clip", "none"] = "frame"
    """Random colour jitter for each frame, for each clip, or none (Table 1). Frame by frame it also hides the faint
    pulse of key frames, which otherwise tells the pace of a still video."""
    jitter_strength: float = 0.8
    """Brightness, contrast and saturation change by up to this share, hue by a quarter of it (of the circle)."""
    levels: Literal["imagenet", "bgr-255"] = "imagenet"
    """What the network is fed: normalised RGB, or BGR from 0 to 255 as the released checkpoints want it."""
    contrast: Literal["context", "pace", "none"] = "context"
    """Positives: the clips of the same video (Eq. 2), those of the same pace (Eq. 3), or no contrastive term."""
    projection: int = 8
    """Width of the non-linear layer between p5 and the contrast; 0 contrasts p5 itself."""
    positives: Literal["sum", "mean"] = "sum"
    """Over an anchor's positives: the sum (Eq. 3), or the mean, whose weight does not grow with the batch."""
    negatives: Literal["local", "gathered"] = "local"
    """Contrast with the clips of this process, or of all of them (with gradient)."""
    lambda_cls: float = 1.0
    """λ_cls, weight of the pace's cross-entropy; 0 trains by contrast alone, without a pace head."""
    lambda_ctr: float = 0.1
    """λ_ctr, weight of the contrastive term."""
    lr: float = 1e-3
    """SGD's learning rate."""
    momentum: float = 0.9
    """SGD's momentum (released code)."""
    weight_decay: float = 5e-3
    """SGD's weight decay (released code)."""
    drop_every: int = 18_000
    """Steps after which the learning rate falls to a tenth, again and again; 6 epochs of 90,000 clips at batch 30.
    0 keeps it."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up; the paper names none."""

    def __post_init__(self) -> None:
        if len(self.paces) < 2 or len(set(self.paces)) < len(self.paces) or min(self.paces) <= 0:
            raise InputError(
                f"--paces {' '.join(map(pace_name, self.paces))}: name two or more different paces above 0, such as 1 2 3 4"
            )
        if self.clips < 1 or (self.contrast == "context" and self.clips < 2):
            raise InputError(
                f"--clips {self.clips}: must be at least 1, and 2 with --contrast context, whose positives are "
                "clips of the same video"
            )
        at_least(
            self, 0, "frames", "size", "projection", "drop_every", "warmup_steps", "momentum", "weight_decay"
        )
        if self.size % 2:
            raise InputError(f"--size {self.size}: must be even")
        above(self, 0, "width", "lr")
        if min(self.lambda_cls, self.lambda_ctr) < 0 or not (self.lambda_cls or self.contrast != "none"):
            raise InputError(
                f"--lambda-cls {self.lambda_cls:g} with --contrast {self.contrast}: nothing is left to train on, or a "
                "weight is below 0"
            )
        if self.contrast != "none" and self.lambda_ctr == 0:
            raise InputError(f"--lambda-ctr 0 with --contrast {self.contrast}: use --contrast none")
        check_backbone("--backbone", self.backbone, *self.clip_shape, self.width)

    @property
    def clip_shape(self) -> tuple[int, int]:
        """Frames of a clip and its side in pixels."""
        known = models.BACKBONES.get(self.backbone, models.BACKBONES["r2plus1d"])
        return self.frames or known.frames, self.size or known.size


class Pace(Objective):
    """encoder: models.networks.Stages; head: the paces' logits, None with λ_cls 0; projection: the contrast's layer."""

    name = "pace"
    Config = PaceConfig
    recipe = Recipe(steps=54_000, batch_size=30)  # section 4.1: 18 epochs of 90,000 clips
    small_recipe = Recipe(steps=2500, batch_size=8)
    shards = ShardSettings(short_side=128)  # 112 of 128 pixels
    encoder: Stages
    head: nn.Linear | None
    projection: nn.Module | None

    def __init__(self, config: PaceConfig) -> None:
        super().__init__(config)
        self.encoder = models.build(config.backbone, *config.clip_shape, config.width)
        dim = self.encoder.dim
        self.head = nn.Linear(dim, len(config.paces)) if config.lambda_cls else None
        self.projection = None
        if config.contrast != "none":
            layers = [nn.Linear(dim, config.projection), nn.ReLU()] if config.projection else []
            self.projection = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last_3d)  # as the loader's batches are

    @staticmethod
    def small() -> PaceConfig:
        """Motion is a small part of the signal: a high rate shortens the plateau of several hundred steps."""
        return PaceConfig(
            width=0.125,
            size=40,
            clips=4,
            jitter_strength=0.1,
            lr=0.15,
            weight_decay=5e-4,
            contrast="none",
            drop_every=2000,
            warmup_steps=30,
        )

    @staticmethod
    def view_spec(config: PaceConfig) -> ViewSpec:
        """V clips of T frames; a crop of 112 of 128 (224 of 256) pixels and a flip a clip (section 4.1)."""
        frames, size = config.clip_shape
        x = config.jitter_strength
        return ViewSpec(
            offsets=(tuple(range(frames)),) * config.clips,
            size=size,
            crop=0.875,
            flip=0.5,
            jitter=None if config.jitter == "none" else Jitter(x, x, x, x / 4, probability=0.8, grey=0.0),
            box_scope="view",
            colour_scope="view" if config.jitter == "clip" else "frame",
            paces=config.paces,
            circular=config.circular,
            padding=config.padding,
            loop=config.loop,
            squeeze=(1.0 if config.backbone == "s3dg" else 171 / 128) if config.squeeze else None,
            levels=config.levels,
        )

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, V, 3, T, H, W); pace (B, V) int64, indices into the config's paces."""
        views_BVCTHW, paces_A = batch["views"], batch["pace"].flatten()  # A anchors: B·V clips
        B, V = views_BVCTHW.shape[:2]
        features_AD = self.encoder.pooled(views_BVCTHW.flatten(0, 1))
        loss = torch.zeros((), device=features_AD.device)
        metrics: dict[str, Tensor] = {}
        if self.projection is not None:
            videos_A = torch.arange(B, device=features_AD.device).repeat_interleave(V) + losses.rank_offset(B)
            ids_A = videos_A if self.config.contrast == "context" else paces_A
            gathered = self.config.negatives == "gathered"
            ctr, found = losses.pair_nce(
                self.projection(features_AD), ids_A, reduction=self.config.positives, gathered=gathered
            )
            metrics = {"loss_ctr": ctr.detach(), "ctr_top1": found["top1"], "ctr_chance": found["chance"]}
            loss = loss + self.config.lambda_ctr * ctr
        if self.head is not None:
            logits_AM = self.head(features_AD)
            cls = F.cross_entropy(logits_AM, paces_A)
            loss = loss + self.config.lambda_cls * cls
            metrics |= {"loss_cls": cls.detach()} | confusion(
                logits_AM.argmax(-1), paces_A, self.config.paces
            )
        else:
            metrics |= {"top1": metrics["ctr_top1"], "chance": metrics["ctr_chance"]}
        return Output(loss, metrics)

    def embed(self, views: Tensor, stage: int = 5) -> Tensor:
        """views (B, V, C, T, H, W) → p5, or p4 with stage=4, (B, V, D): the features of section 4.4."""
        return self.encoder.pooled(views.flatten(0, 1), stage).unflatten(0, views.shape[:2])

    def downstream(self) -> Downstream:
        """Ten clips at pace 1, spread evenly, centre crop; fine-tuned as pretrained but for the rate (section 4.1)."""
        spec = single_start(self.view_spec(self.config))
        lr = 1e-2 if self.config.backbone == "s3dg" else 3e-3
        tuning = FineTuning(
            spec, optimizer="sgd", lr=lr, weight_decay=5e-3, steps=54_000, batch_size=30, decay_at=(),
            decay_every=18_000, dropout=0.0, batch_norm=False,
        )  # fmt: skip
        return Downstream(eval_view(spec), tuning)

    def logits(self, views: Tensor) -> Tensor:
        """views (B, V, C, T, H, W), as the config's levels say → the paces' logits (B, V, M).

        Raises InputError for a model that was trained without a pace head.
        """
        if self.head is None:
            raise InputError("this model has no pace head: it was trained with --lambda-cls 0")
        return self.head(self.embed(views))

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD, 1e-3 (section 4.1); momentum and weight decay of the released code."""
        config = self.config
        return torch.optim.SGD(
            self.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def learning_rate(self, step: int) -> float:
        """A tenth after every `drop_every` steps (section 4.1: every 6 epochs)."""
        drops = step // self.config.drop_every if self.config.drop_every else 0
        return super().learning_rate(step) * 0.1**drops


@torch.no_grad()
def confusion(guesses_A: Tensor, paces_A: Tensor, paces: Sequence[float]) -> dict[str, Tensor]:
    """top1; for each pace its accuracy, and confusion_TRUE_GUESSED, the share of its clips taken for another.

    guesses, paces_A: (A,) int64, indices into `paces`. Accuracy and confusion are (2,): clips, and all of that pace.
    """
    M = len(paces)
    # a sum of products, where bincount would wait for the GPU
    true_AM, guessed_AM = (F.one_hot(labels, M) for labels in (paces_A, guesses_A))
    counts_MM = (true_AM[:, :, None] & guessed_AM[:, None, :]).sum(0)
    wholes_M = counts_MM.sum(1)
    right = counts_MM.diagonal().sum() / len(paces_A)
    names = [pace_name(pace) for pace in paces]
    metrics = {f"accuracy_{names[i]}": torch.stack([counts_MM[i, i], wholes_M[i]]) for i in range(M)}
    metrics |= {
        f"confusion_{names[i]}_{names[j]}": torch.stack([counts_MM[i, j], wholes_M[i]])
        for i in range(M)
        for j in range(M)
        if i != j
    }
    return {"top1": right, "chance": torch.full_like(right, 1 / M), **metrics}
