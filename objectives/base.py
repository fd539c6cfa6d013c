"""The contract of an objective, and how objectives are found: docs/guides/extend.md has a worked example.

An objective is one file of this package with one subclass of Objective. Nothing else has to be registered.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import models
from pipelines.eval_clips import EvalLayout, video_features
from pipelines.views import ViewSpec, eval_view, single_start
from shards import InputError
from shards.video.encode import Encoding


@dataclass(frozen=True)
class Output:
    """What forward returns.

    loss: the scalar to minimise. metrics: values to log, by names that the method chooses; a method may have none.
    A metric is a scalar, whose mean over steps and processes is logged; or (2,), a part and its whole, which are summed
    before they are divided. Two names are shown with the loss where they exist: "top1", the accuracy of the method's own
    task, 0–1, and "chance", the top1 of guessing.
    Raises ValueError for a metric of another shape, or one that is named "loss" or "step".
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if name in ("loss", "step"):
                raise ValueError(f"a metric may not be called {name}: metrics.jsonl has that already")
            if value.shape not in ((), (2,)):
                raise ValueError(f"metric {name} has the shape {tuple(value.shape)}: give a scalar, or (2,)")


@dataclass(frozen=True)
class Recipe:
    """How many optimizer steps to train, and with how many clips a process, where the user does not say."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class ShardSettings:
    """What tools/make_shards.py --for METHOD makes: shards no larger, faster or longer to seek in than a method needs.

    short_side, gop: see shards.video.encode.Encoding. fps: frames a second that are stored, None for the video's own rate.
    stride: a method that looks at `fps` frames a second names the config's field that counts stored frames from one that
    is looked at to the next; the field's default is then the one that suits the data set.
    """

    short_side: int = 256
    gop: int = 16
    fps: float | None = None
    stride: str | None = None

    def stride_at(self, fps: float | None) -> int | None:
        """From one frame that the method looks at to the next, in frames stored at `fps`; None where that is open."""
        return max(1, round(fps / self.fps)) if self.stride and self.fps and fps else None


@dataclass(frozen=True)
class FineTuning:
    """Supervised training of the whole network.

    spec: a training clip, augmented; tests see the same frames without augmentation.
    decay_at: steps at which the learning rate is multiplied by decay_by; decay_every: it is multiplied after every so
    many steps too, 0 is never.
    weight_decay: towards 0. pull: towards the pretrained weights (TCP section 4.2.4).
    hidden: width of a layer before the last; 0 is none. batch_norm: of the feature, before the head's first layer.
    freeze: train the head alone; the network stays in evaluation mode.
    scratch: the recipe for random weights; None is this one without the pull.
    """

    spec: ViewSpec
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-3
    pull: float = 0.0
    steps: int = 30_000
    batch_size: int = 32
    decay_at: tuple[int, ...] = (18_000, 24_000)
    decay_every: int = 0
    decay_by: float = 0.1
    dropout: float = 0.5
    hidden: int = 0
    batch_norm: bool = True
    freeze: bool = False
    scratch: "FineTuning | None" = None


@dataclass(frozen=True)
class Downstream:
    """spec: one window of the frozen network, V views of T frames without augmentation.

    train, test: which windows of a video take part. average: a video's prediction is the mean of its windows'
    probabilities, or one from the mean of their features. hidden, dropout: of the non-linear probe.
    """

    spec: ViewSpec
    finetuning: FineTuning
    train: EvalLayout = field(default_factory=lambda: EvalLayout(count=10))
    test: EvalLayout = field(default_factory=lambda: EvalLayout(count=10))
    average: Literal["probabilities", "features"] = "probabilities"
    hidden: int = 512
    dropout: float = 0.5


class Objective(nn.Module, ABC):
    """One self-supervised method: a view spec, a model and a loss.

    A subclass must have the class attributes name (what --objective says) and Config (a frozen dataclass whose defaults
    are the paper's, among them lr and warmup_steps), the module encoder (what a run exports), and all abstract methods.
    It may have: recipe and small_recipe (training length with Config() and with small()), shards (those that suit it).
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    recipe: ClassVar[Recipe] = Recipe(steps=100_000, batch_size=32)
    small_recipe: ClassVar[Recipe] = Recipe(steps=500, batch_size=8)
    shards: ClassVar[ShardSettings] = ShardSettings()
    encoder: nn.Module

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @staticmethod
    @abstractmethod
    def small() -> Any:
        """The Config of --small: narrow enough for two CPU cores to train it in minutes."""

    @staticmethod
    @abstractmethod
    def view_spec(config: Any) -> ViewSpec:
        """Which frames the loader takes, and how it crops and colours them."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> Output:
        """Compute the loss and its metrics. batch["views"]: (B, V, C, T, H, W) float32 as the spec says."""

    @abstractmethod
    def embed(self, views: Tensor) -> Tensor:
        """Map views (B, V, C, T, H, W) to features (B, V, D) for downstream use, each view on its own."""

    def downstream(self) -> Downstream:
        """How labelled videos are shown to this network: by default ten windows of the spec, spread evenly."""
        spec = single_start(self.view_spec(self.config))
        return Downstream(eval_view(spec), FineTuning(spec))

    def represent(self, views: Tensor) -> Tensor:
        """Map windows of downstream's spec (B, V, C, T, H, W) to a feature each, (B, D): by default their views' mean."""
        return self.embed(views).mean(1)

    def embed_videos(
        self, videos: Sequence[str | Path], *, batch_size: int = 8, threads: int | None = None
    ) -> NDArray[np.float32]:
        """Features (N, D) float32 of video files, one a video, without shards that somebody made before.

        videos: files of any format that FFmpeg reads. A feature is the mean over the clips that the method's paper
        tests (downstream), in the middle crop or crops that it names, without augmentation. Each file is first encoded
        as tools/make_shards.py encodes it, into a temporary folder, so that the features are those that evaluate.py
        finds. A method with a fixed number of frames a second (ShardSettings.stride) gets the frame rate that suits its
        stride.

        batch_size: clips a batch. threads: that encode and decode, by default as many as there are cores. The network
        works on the device that it is on, and in evaluation mode.
        Raises InputError, naming the file, for one that cannot be decoded; and for a method that looks at optical flow.
        """
        down, suits = self.downstream(), self.shards
        if down.spec.modality == "flow":
            raise InputError(
                f"{self.name} looks at optical flow, which files do not hold: make shards of them with "
                "tools/make_shards.py --flow tvl1, and use evaluate.py embed"
            )
        side = -(-self.view_spec(self.config).size // 16) * 16
        stride = getattr(self.config, suits.stride) if suits.stride else None
        fps = suits.fps * stride if suits.fps and stride else None
        encoding = Encoding(short_side=max(Encoding.short_side, side), fps=fps)
        device, training = next(self.parameters()).device, self.training
        self.eval()
        try:
            return video_features(
                self.represent, videos, down.spec, down.test, encoding, device, batch_size, threads
            )
        finally:
            self.train(training)

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The paper's optimiser over this module's parameters, at its full learning rate."""

    def begin_step(self, step: int) -> int:
        """Move a curriculum on before optimizer step `step`, counted from 0. Returns the curriculum's stage, from 0."""
        return 0

    def plateau(self) -> int:
        """Validations in a row without a new lowest loss after which the learning rate falls to a tenth; 0 is never."""
        return 0

    def learning_rate(self, step: int) -> float:
        """Factor on the learning rate in optimizer step `step`, counted from 0: a linear warm-up, then 1."""
        warmup: int = self.config.warmup_steps
        return min(1.0, (step + 1) / warmup) if warmup else 1.0


def available() -> dict[str, type[Objective]]:
    """Every objective by name: each subclass with a name in this package's files, and those imported from elsewhere.

    Raises InputError, naming the class, where one does not keep the contract.
    """
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    found: dict[str, type[Objective]] = {}
    for cls in sorted(_named(Objective), key=lambda cls: cls.name):  # type: ignore[type-abstract]
        _check_contract(cls)
        if cls.name in found:
            raise InputError(f"{_place(cls)} and {_place(found[cls.name])} are both called {cls.name}")
        found[cls.name] = cls
    return found


def _named(cls: type[Objective]) -> list[type[Objective]]:
    """The subclasses of a class, and theirs, that have a name of their own."""
    found = [sub for child in cls.__subclasses__() for sub in _named(child)]
    return [*found, cls] if "name" in vars(cls) else found


def _place(cls: type[Objective]) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def _check_contract(cls: type[Objective]) -> None:
    """Raise InputError that says what a method's class lacks."""
    missing = sorted(cls.__abstractmethods__) + ([] if hasattr(cls, "Config") else ["Config"])
    if missing:
        raise InputError(f"{_place(cls)}: lacks {', '.join(missing)} (see objectives.base.Objective)")
    config: Any = cls.Config
    if not (is_dataclass(config) and getattr(config, "__dataclass_params__").frozen):  # noqa: B009
        raise InputError(f"{_place(cls)}: Config must be a frozen dataclass")
    wanted = {"lr", "warmup_steps"} | ({cls.shards.stride} if cls.shards.stride else set())
    if lacking := sorted(wanted - {one.name for one in fields(config)}):
        raise InputError(f"{_place(cls)}: Config lacks the field {', '.join(lacking)}")


def get(name: str, flag: str = "--objective") -> type[Objective]:
    """The objective called `name`; raises InputError that names the flag and lists the names there are."""
    found = available()
    if name not in found:
        raise InputError(f"{flag} {name}: there is no such objective; choose one of {', '.join(found)}")
    return found[name]


def check_backbone(
    flag: str, name: str, frames: int, size: int, width: float, channels: int = 3, own: tuple[str, ...] = ()
) -> None:
    """Raise InputError, naming the flag, where clips (channels, frames, size, size) do not fit the named backbone.

    own: names of encoders that the objective has besides, and has checked itself.
    """
    if name in own:
        return
    try:
        models.check(name, frames, size, width, channels)
    except ValueError as error:
        also = f"; or {', '.join(own)}" if own and name not in models.BACKBONES else ""
        raise InputError(f"{flag} {name}: {error}{also}") from None
