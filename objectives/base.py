"""The contract of an objective, and where they are found.

An objective is one file of this package with one subclass of Objective: a frozen Config, a view spec, a loss.
"""

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from objectives.downstream import Downstream, FineTuning
from pipelines.views import ViewSpec, plain
from shards import InputError


@dataclass(frozen=True)
class Output:
    """loss: scalar to minimise. metrics: scalars to log, or (2,), a part and its whole, both summed before they are
    divided; "top1" is the method's headline, "chance" its floor."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How long and with how many clips a process to train where the user does not say."""

    steps: int
    batch_size: int


@dataclass(frozen=True)
class Plateau:
    """Multiply the learning rate by `factor`, at most `times` times in a stage, where the validation loss has not
    fallen below its lowest for `patience` validations in a row."""

    patience: int
    factor: float = 0.1
    times: int = 1


class Objective(nn.Module):
    """One self-supervised method.

    Config: frozen dataclass whose defaults are the paper's; small: the same for a CPU.
    recipe, small_recipe: the training length that goes with each. All configs have lr and warmup_steps.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    recipe: ClassVar[Recipe]
    small_recipe: ClassVar[Recipe]
    encoder: nn.Module

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @staticmethod
    @abstractmethod
    def small() -> Any:
        """A Config narrowed so that two CPU cores train it in minutes."""

    @staticmethod
    @abstractmethod
    def view_spec(config: Any) -> ViewSpec:
        """What the loader has to draw."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> Output:
        """batch["views"]: (B, V, C, T, H, W) float32 as the spec says. Returns the loss and its metrics."""

    @abstractmethod
    def embed(self, views: Tensor) -> Tensor:
        """views (B, V, C, T, H, W) → features (B, V, D) for downstream use, each view on its own."""

    def downstream(self) -> Downstream:
        """How labelled videos are shown to this network; here ten windows of the spec, spread evenly."""
        spec = replace(self.view_spec(self.config), paces=(), circular=False)
        return Downstream(plain(spec), FineTuning(spec))

    def represent(self, views: Tensor) -> Tensor:
        """Windows of downstream's spec (B, V, C, T, H, W) → a feature each, (B, D); here the mean of their views'."""
        return self.embed(views).mean(1)

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """The paper's optimiser over this module's parameters, at its full learning rate."""

    def begin_step(self, step: int) -> int:
        """Called before optimizer step `step`, counted from 0: where a curriculum moves on. Returns its stage, from 0."""
        return 0

    def plateau(self) -> Plateau | None:
        """How validation lowers the learning rate; None where the paper has no such rule."""
        return None

    def learning_rate(self, step: int) -> float:
        """Factor on the learning rate in optimizer step `step`, counted from 0: a linear warm-up, then 1."""
        warmup: int = self.config.warmup_steps
        return min(1.0, (step + 1) / warmup) if warmup else 1.0


def available() -> dict[str, type[Objective]]:
    """Every objective by name: each subclass with a name found in this package's files."""
    package = importlib.import_module("objectives")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"objectives.{module.name}")
    return {cls.name: cls for cls in sorted(_named(Objective), key=lambda cls: cls.name)}  # type: ignore[type-abstract]


def _named(cls: type[Objective]) -> list[type[Objective]]:
    """The subclasses of a class, and theirs, that are methods themselves."""
    found = [sub for child in cls.__subclasses__() for sub in _named(child)]
    return [*found, cls] if hasattr(cls, "name") else found


def get(name: str) -> type[Objective]:
    """The objective called `name`; raises InputError that lists the names there are."""
    found = available()
    if name not in found:
        raise InputError(f"--objective {name}: there is no such objective; choose one of {', '.join(found)}")
    return found[name]
