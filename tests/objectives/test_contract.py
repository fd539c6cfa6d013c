"""What the contract asks of a method, and that it says so where a class does not keep it."""

import gc
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import objectives
from objectives.base import Objective, Output, ShardSettings, _check_contract, _named
from objectives.checkpoint import config_shape
from objectives.command import config_of
from pipelines.views import ViewSpec
from shards import InputError
from shards.documents import problem
from training.trainer import headline


@dataclass(frozen=True)
class Config:
    lr: float = 1.0
    warmup_steps: int = 4


class Least(Objective):
    """All that a method must have, but for a name, without which it is no method that others could find."""

    Config = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.encoder = nn.Linear(1, 1)

    @staticmethod
    def small() -> Config:
        return Config()

    @staticmethod
    def view_spec(config: Config) -> ViewSpec:
        return ViewSpec(offsets=((0, 1),) * 2, size=4, start_scope="view")

    def forward(self, batch: Mapping[str, Any]) -> Output:
        return Output(self.embed(batch["views"]).square().mean())

    def embed(self, views: Tensor) -> Tensor:
        return self.encoder(views.mean((2, 3, 4, 5))[..., None])

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.config.lr)


def test_the_least_is_enough() -> None:
    _check_contract(Least)
    objective = Least(Config())
    assert objective({"views": torch.ones(2, 2, 3, 2, 4, 4)}).metrics == {}
    assert [objective.learning_rate(step) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    assert objective.recipe.steps and objective.small_recipe.steps
    assert objective.shards == ShardSettings() and objective.plateau() == 0 and objective.begin_step(3) == 0
    down = objective.downstream()  # a window has one first frame: of clips that start apart, it is one
    assert down.spec.views == down.finetuning.spec.views == 1 and not down.spec.starts_differ
    assert objective.represent(torch.ones(2, 1, 3, 2, 4, 4)).shape == (2, 1)


@pytest.mark.parametrize("lacking", ["small", "view_spec", "forward", "embed", "optimizer"])
def test_an_objective_is_abstract(lacking: str) -> None:
    cls = type("Partial", (Least,), {lacking: getattr(Objective, lacking)})
    assert inspect.isabstract(Objective) and inspect.isabstract(cls)
    with pytest.raises(TypeError, match=lacking):
        cls(Config())
    with pytest.raises(InputError, match=f"Partial: lacks {lacking}"):
        _check_contract(cls)


@dataclass
class Loose:
    lr: float = 1.0
    warmup_steps: int = 0


@dataclass(frozen=True)
class Short:
    lr: float = 1.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Config": Loose}, "Config must be a frozen dataclass"),
        ({"Config": dict}, "Config must be a frozen dataclass"),
        ({"Config": Short}, "Config lacks the field warmup_steps"),
        ({"shards": ShardSettings(fps=10.0, stride="hop")}, "Config lacks the field hop"),
    ],
)
def test_what_a_config_lacks_is_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _check_contract(type("Partial", (Least,), changes))


def test_a_subclass_without_a_name_of_its_own_is_no_other_method() -> None:
    class Named(Least):
        name = "named"

    class Variant(Named):
        pass

    assert _named(Least) == [Named]
    del Variant, Named
    gc.collect()  # or others would find it


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"loss": torch.ones(())}, "may not be called loss"),
        ({"step": torch.ones(())}, "may not be called step"),
        ({"curve": torch.ones(3)}, r"metric curve has the shape \(3,\)"),
    ],
)
def test_a_metric_that_cannot_be_logged_is_refused(metrics: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Output(torch.ones(()), metrics)


@pytest.mark.parametrize("name", objectives.available())
def test_a_choice_that_there_is_not_is_refused_on_the_command_line_and_in_a_checkpoint(name: str) -> None:
    cls = objectives.get(name)
    for field, kind in get_type_hints(cls.Config).items():
        if get_origin(kind) is Literal:
            flag = f"--{field.replace('_', '-')}"
            with pytest.raises(InputError, match=f"{flag}|Error parsing") as caught:
                config_of(cls, cls.Config(), [flag, "nothing"], "")
            assert "\n" not in str(caught.value)
            assert f"config.{field}" in problem({field: "nothing"}, config_shape(cls.Config), "config")


def test_top1_and_chance_are_shown_where_they_exist() -> None:
    assert headline({"loss": 1.5}) == "loss 1.500"
    assert headline({"loss": 1.5, "variance": 2.0}) == "loss 1.500"
    assert headline({"loss": 1.5, "chance": 0.1}) == "loss 1.500"
    assert headline({"loss": 1.5, "top1": 0.5}) == "loss 1.500, top-1 0.500"
    assert headline({"loss": 1.5, "top1": 0.5, "chance": 0.0}) == "loss 1.500, top-1 0.500"
    assert headline({"loss": 1.5, "top1": 0.5, "chance": 0.25}) == "loss 1.500, top-1 0.500 (2.0 × chance)"


def test_the_papers_methods_are_there() -> None:
    found = objectives.available()
    assert {"dpc", "memdpc", "pace", "tcp", "vdim"} <= set(found)
    with pytest.raises(InputError, match="--for nothing: there is no such objective; choose one of dpc"):
        objectives.get("nothing", "--for")
