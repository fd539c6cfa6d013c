"""Pace prediction (Wang, Jiao & Liu 2020, arXiv:2008.05861; papers' sections and equations below are its).

    views        n clips a video, each with its own start and its own pace p: every p-th frame (section 3.1)
    encoder      C3D, R3D, R(2+1)D, S3D-G or torchvision's; p5, its last map's mean, is a clip's feature
    loss         λ_cls · cross-entropy of p, Eq. 1, + λ_ctr · contrast between clips, Eq. 2 or 3; Eq. 4

The released code (github.com/laura-wang/video-pace) has the classification alone. Its choices as options: --circular
starts clips anywhere and runs on at the video's beginning, which betrays fast clips by their jump;
--levels bgr-255 feeds unnormalised BGR; --contrast none. Its weight decay, on which the paper is silent, is the
default.

Settled here: an anchor's denominator runs over all other clips of the batch, in Eq. 2 and in Eq. 3; the mean is over
anchors; Eq. 3 sums over an anchor's positives as it is written. The non-linear layer of Table 2, which adds "~4k"
parameters to a 512-d feature, is read as a linear map to 8 dimensions and a ReLU.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import backbones
from models.stages import Stages
from objectives import nce
from objectives.base import Objective, Output, Recipe
from objectives.downstream import Downstream, FineTuning
from objectives.pace_config import PaceConfig
from objectives.pace_terms import confusion, contrast
from pipelines.views import Jitter, ViewSpec, plain
from shards import InputError


class Pace(Objective):
    """encoder: models.stages.Stages; head: the paces' logits, None with λ_cls 0; projection: the contrast's layer."""

    name = "pace"
    Config = PaceConfig
    recipe = Recipe(steps=54_000, batch_size=30)  # section 4.1: 18 epochs of 90,000 clips
    small_recipe = Recipe(steps=2500, batch_size=8)
    encoder: Stages
    head: nn.Linear | None
    projection: nn.Module | None

    def __init__(self, config: PaceConfig) -> None:
        super().__init__(config)
        self.encoder = backbones.build(config.backbone, *config.clip_shape, config.width)
        dim = self.encoder.dim
        self.head = nn.Linear(dim, len(config.paces)) if config.lambda_cls else None
        layer = (
            nn.Sequential(nn.Linear(dim, config.projection), nn.ReLU())
            if config.projection
            else nn.Identity()
        )
        self.projection = layer if config.contrast != "none" else None
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
            videos_A = torch.arange(B, device=features_AD.device).repeat_interleave(V) + nce.rank_offset(B)
            ids_A = videos_A if self.config.contrast == "context" else paces_A
            gathered = self.config.negatives == "gathered"
            ctr, metrics = contrast(
                self.projection(features_AD), ids_A, self.config.positives, gathered=gathered
            )
            loss = loss + self.config.lambda_ctr * ctr
        if self.head is not None:
            logits_AM = self.head(features_AD)
            cls = F.cross_entropy(logits_AM, paces_A)
            loss = loss + self.config.lambda_cls * cls
            metrics |= {
                "loss_cls": cls.detach(),
                **confusion(logits_AM.argmax(-1), paces_A, self.config.paces),
            }
        else:
            metrics |= {"top1": metrics["ctr_top1"], "chance": metrics["ctr_chance"]}
        return Output(loss, metrics)

    def embed(self, views: Tensor, stage: int = 5) -> Tensor:
        """views (B, V, C, T, H, W) → p5, or p4 with stage=4, (B, V, D): the features of section 4.4."""
        return self.encoder.pooled(views.flatten(0, 1), stage).unflatten(0, views.shape[:2])

    def downstream(self) -> Downstream:
        """Ten clips at pace 1, spread evenly, centre crop; fine-tuned as pretrained but for the rate (section 4.1)."""
        whole = self.view_spec(self.config)
        spec = replace(whole, offsets=whole.offsets[:1], paces=(), circular=False)
        lr = 1e-2 if self.config.backbone == "s3dg" else 3e-3
        tuning = FineTuning(
            spec, optimizer="sgd", lr=lr, weight_decay=5e-3, steps=54_000, batch_size=30, decay_at=(),
            decay_every=18_000, dropout=0.0,
        )  # fmt: skip
        return Downstream(plain(spec), tuning)

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
