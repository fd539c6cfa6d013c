"""What the pace prediction of Wang, Jiao & Liu 2020 can be told: paces as people write them, the paper's numbers."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import tyro

from models import backbones
from objectives.choices import check_backbone, check_choices
from shards import InputError, at_least

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
    """A video shorter than a clip starts over, repeats its last frame, or is left out."""
    jitter: Literal["frame", "clip", "none"] = "frame"
    """Colour jitter params for each frame, for each clip, or none (Table 1). Frame by frame it also hides the faint
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
                f"--paces {self.named}: name two or more different paces above 0, such as 1 2 3 4"
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
        if self.width <= 0 or self.lr <= 0:
            raise InputError(f"--width {self.width:g} and --lr {self.lr:g} must be above 0")
        if min(self.lambda_cls, self.lambda_ctr) < 0 or not (self.lambda_cls or self.contrast != "none"):
            raise InputError(
                f"--lambda-cls {self.lambda_cls:g} with --contrast {self.contrast}: nothing is left to train on, or a "
                "weight is below 0"
            )
        if self.contrast != "none" and self.lambda_ctr == 0:
            raise InputError(f"--lambda-ctr 0 with --contrast {self.contrast}: use --contrast none")
        check_choices(self)
        check_backbone("--backbone", self.backbone, *self.clip_shape, self.width)

    @property
    def clip_shape(self) -> tuple[int, int]:
        """Frames of a clip and its side in pixels."""
        known = backbones.BACKBONES.get(self.backbone, backbones.BACKBONES["r2plus1d"])
        return self.frames or known.frames, self.size or known.size

    @property
    def named(self) -> str:
        return " ".join(map(pace_name, self.paces))
