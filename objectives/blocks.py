"""What DPC and MemDPC share: consecutive blocks of video, their encoder, curriculum and optimiser.

Letters: B videos, V blocks, C channels, T frames, H W pixels; D features; h w the feature map; N predicted blocks.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import models
from models.dpc import DEPTHS, ResNet2d3d
from models.networks import Stages
from objectives.base import Objective, ShardSettings, check_backbone
from pipelines.views import Jitter, ViewSpec
from shards import InputError, above, at_least

RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}  # the papers' own encoders


@dataclass(frozen=True)
class BlocksConfig:
    """The defaults are the papers' (DPC section 3.5; MemDPC section 5.2)."""

    network: Annotated[str, tyro.conf.arg(aliases=["--backbone"])] = "resnet18"
    """The 2D3D-ResNet: resnet18, resnet34, resnet50. Or another video encoder, whose last map is averaged over time:
    r3d, r2plus1d, s3dg; c3d from 8 frames on; torchvision's r3d_18, r2plus1d_18, mc3_18, s3d at width 1."""
    width: float = 1.0
    """Multiplies every channel count of the encoder."""
    norm: Literal["batch", "batch-statistics", "instance"] = "batch"
    """Batch norm, batch norm without running statistics (DPC's released pretraining), or instance norm."""
    size: int = 128
    """Side of a frame in pixels; the papers also train at 224."""
    blocks: int = 8
    """V, blocks a clip."""
    frames: int = 5
    """T, frames a block."""
    stride: int = 3
    """Every STRIDE-th frame is taken; DPC's released code takes every fifth on Kinetics-400."""
    pred_steps: int = 3
    """Blocks at the clip's end that are predicted from those before: 3 of 8 is 5pred3."""
    curriculum: tuple[int, ...] = ()
    """Optimizer steps at which to predict one block further: `--curriculum 160000` goes from 5pred3 to 4pred4."""
    crop: Literal["fixed", "resized"] = "fixed"
    """A square of 7/8 of the shorter side (224 of 256), or a random-resized one of half the area or more (the
    released code: DPC's on Kinetics-400, MemDPC's always)."""
    grey: float = 0.5
    """Share of frames that lose their colour; 0.5 in DPC, 0.25 in MemDPC."""
    grey_from: Literal["luma", "channel"] = "luma"
    """Grey is the luminance, or one of the colour channels at random (the released code)."""
    padding: Literal["repeat_last", "wrap", "error"] = "error"
    """A training video shorter than the clip is left out (as in the released code), repeats its last frame, or loops.
    Repeated blocks make negatives that equal their positive."""
    classified: Literal["mean-relu", "relu-mean"] = "mean-relu"
    """What the context reads downstream of an encoder's map: the ReLU of its mean over time, as in pretraining, or the
    mean of its ReLU (the released classifiers)."""
    negatives: Literal["local", "gathered"] = "local"
    """Contrast with the videos of this process, or of all of them (with gradient)."""
    gradient_checkpointing: bool = False
    """Compute the encoder's activations again in the backward pass: less memory, a third more time."""
    lr: float = 1e-3
    """Adam's learning rate."""
    weight_decay: float = 1e-5
    """Adam's weight decay."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up, in each stage of the curriculum; the papers name none."""
    patience: int = 10
    """After so many validations (--val-split) without a lower loss the learning rate falls to a tenth, once in a stage
    of the curriculum; the papers do not say how many. 0 is off."""
    milestones: tuple[int, ...] = ()
    """Optimizer steps at which the learning rate falls to a tenth, independent of validation (MemDPC's released code)."""

    def __post_init__(self) -> None:
        above(self, 0, "width", "lr")
        at_least(self, 1, "stride", "frames")
        at_least(self, 0, "weight_decay", "warmup_steps", "patience")
        own = self.network in RESNETS
        check_backbone("--backbone", self.network, self.frames, self.size, self.width, own=tuple(RESNETS))
        side = -(-self.size // 32) if own else max(models.map_shape(self.network, self.frames, self.size)[1:])
        if self.size % 2 or side == 1:
            raise InputError(
                f"--size {self.size} must be even and larger, or the feature map is a single point"
            )
        if self.norm != "batch" and not own:
            raise InputError(
                f"--norm {self.norm}: {self.network} has batch norm only; the choice is {', '.join(RESNETS)}'s"
            )
        farthest = self.pred_steps + len(self.curriculum)
        if not 1 <= self.pred_steps <= farthest < self.blocks:
            raise InputError(
                f"--pred-steps {self.pred_steps} and {len(self.curriculum)} steps of --curriculum must leave at least one "
                f"of --blocks {self.blocks} to predict from, and predict at least one"
            )
        if any(b <= a for a, b in itertools.pairwise((0, *self.curriculum))):
            raise InputError(f"--curriculum {self.curriculum}: name optimizer steps above 0 that rise")
        if not 0 <= self.grey <= 1:
            raise InputError(f"--grey {self.grey} must be from 0 to 1")


class BlockObjective(Objective):
    """An objective that encodes blocks, z_t = f(x_t), and predicts the last `pred_steps` of them.

    encoder: models.dpc.ResNet2d3d or models.networks.Stages. pred_steps: blocks predicted in the present stage of the curriculum.
    """

    # 7/8 of 160 is 140, enough for views of 128 pixels; a third of a video's 30 frames a second
    shards = ShardSettings(short_side=160, gop=10, fps=10, stride="stride")
    config: Any
    encoder: ResNet2d3d | Stages

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__(config)
        recomputed = config.gradient_checkpointing
        if config.network in RESNETS:
            depth = RESNETS[config.network]
            self.encoder = ResNet2d3d(depth, config.width, config.norm, checkpointed=recomputed)
        else:
            self.encoder = models.build(
                config.network, config.frames, config.size, config.width, checkpointed=recomputed
            )
        self.pred_steps = config.pred_steps
        self.encoder.to(memory_format=torch.channels_last_3d)  # as the loader's batches are

    @staticmethod
    def view_spec(config: Any) -> ViewSpec:
        """V blocks of T consecutive frames, one box and flip a clip, colour frame by frame."""
        V, T = config.blocks, config.frames
        return ViewSpec(
            offsets=tuple(tuple(config.stride * (v * T + t) for t in range(T)) for v in range(V)),
            size=config.size,
            crop=0.875 if config.crop == "fixed" else None,
            eval_crop=0.875,
            area=(0.5, 1.0),
            ratio=(3 / 4, 4 / 3),
            flip=0.5,
            jitter=Jitter(0.5, 0.5, 0.5, 0.25, probability=1.0, grey=config.grey, grey_from=config.grey_from),
            box_scope="clip",
            colour_scope="frame",
            padding=config.padding,
        )

    def encode(self, views_BVCTHW: Tensor) -> Tensor:
        """Blocks → z (B, V, D, h, w), of 2D3D-ResNets before the ReLU: what predictions are compared with."""
        z = self.encoder(views_BVCTHW.flatten(0, 1))
        z_NDhw = z.mean(2) if isinstance(self.encoder, Stages) else z
        return z_NDhw.unflatten(0, views_BVCTHW.shape[:2])

    def classified(self, views_BVCTHW: Tensor) -> Tensor:
        """Blocks → that whose ReLU aggregators read downstream (B, V, D, h, w): z, or as config.classified says."""
        if self.config.classified == "mean-relu":
            return self.encode(views_BVCTHW)
        encoder, x_NCTHW = self.encoder, views_BVCTHW.flatten(0, 1)
        map_NDthw = encoder(x_NCTHW) if isinstance(encoder, Stages) else encoder.map(x_NCTHW)
        return F.relu(map_NDthw).mean(2).unflatten(0, views_BVCTHW.shape[:2])

    def finetuning_spec(self, blocks: int) -> ViewSpec:
        """A training clip of `blocks` blocks: one crop, flip and jitter (p .3, as in the released code), no grey."""
        spec = self.view_spec(self.config)
        return replace(
            spec,
            offsets=spec.offsets[:blocks],
            colour_scope="clip",
            jitter=Jitter(0.5, 0.5, 0.5, 0.25, probability=0.3, grey=0.0),
            padding="repeat_last",
        )

    def embed(self, views: Tensor) -> Tensor:
        """views (B, V, 3, T, H, W) → z averaged over space, (B, V, D): a block's own feature (DPC section 5.1)."""
        return self.encode(views).mean((-2, -1))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, 1e-3 with weight decay 1e-5."""
        return torch.optim.Adam(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def plateau(self) -> int:
        """To 1e-4 once the validation loss no longer falls."""
        return int(self.config.patience)

    def begin_step(self, step: int) -> int:
        """Predict as many blocks as the curriculum says at this step."""
        stage = sum(step >= start for start in self.config.curriculum)
        self.pred_steps = self.config.pred_steps + stage
        return stage

    def learning_rate(self, step: int) -> float:
        """The warm-up starts again in each stage of the curriculum; a tenth after every milestone."""
        start = max((start for start in self.config.curriculum if start <= step), default=0)
        return super().learning_rate(step - start) * 0.1 ** sum(step >= at for at in self.config.milestones)


@torch.no_grad()
def with_running_statistics(objective: Any, batches: Iterable[Tensor]) -> Any:
    """A BlockObjective with batch norm that has running statistics, the mean over batches of views (B, V, 3, T, H, W)."""
    measured = type(objective)(replace(objective.config, norm="batch")).to(
        next(objective.parameters()).device
    )
    measured.load_state_dict(measured.state_dict() | objective.state_dict())
    norms = [module for module in measured.encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None  # of all batches alike
    measured.encoder.train()
    for views in batches:
        measured.encode(views)
    for norm in norms:
        norm.momentum = 0.1
    return measured.eval()


def locations(z_BNDhw: Tensor) -> Tensor:
    """(B, N, D, h, w) → (B, N, L, D), L = h·w."""
    return z_BNDhw.flatten(3).transpose(2, 3)


def predictor(dim: int, outputs: int) -> nn.Sequential:
    """φ: a perceptron of two layers at every location (DPC section 3.4)."""
    return nn.Sequential(nn.Conv2d(dim, dim, 1), nn.ReLU(inplace=True), nn.Conv2d(dim, outputs, 1))
