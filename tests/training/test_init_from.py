"""--init-from: the whole network of the same method, the encoder of another; and what data do not suit an objective."""

import logging
from pathlib import Path

import pytest
import torch

import objectives
from objectives import Objective
from shards import Dataset, InputError
from tests.evaluation.conftest import save
from tests.evaluation.rendered import Video, write_set
from training.run import data_remarks, init_from

SMALL = {"width": 0.05, "size": 34}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A DPC network."""
    return save("dpc", objectives.get("dpc").Config(**SMALL), tmp_path / "earlier")


def fresh(method: str, **config: object) -> tuple[Objective, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    objective = objectives.get(method)(objectives.get(method).Config(**config))
    return objective, {name: value.clone() for name, value in objective.state_dict().items()}


def test_another_methods_encoder_is_taken_and_nothing_else(
    earlier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective, before = fresh("memdpc", **SMALL, memory_size=4)
    with caplog.at_level(logging.WARNING):
        init_from(objective, earlier)
    theirs = objectives.load(earlier).encoder.state_dict()
    after = objective.state_dict()
    assert all(torch.equal(after[f"encoder.{name}"], value) for name, value in theirs.items())
    assert not torch.equal(after["encoder.conv1.weight"], before["encoder.conv1.weight"])
    rest = [name for name in after if not name.startswith("encoder.")]
    assert rest and all(torch.equal(after[name], before[name]) for name in rest)
    assert "encoder of dpc; the rest of memdpc has fresh weights" in caplog.text


def test_a_shared_backbone_passes_between_all_methods(tmp_path: Path) -> None:
    pace = objectives.get("pace").Config(backbone="r3d", width=0.05, size=34)
    save("pace", pace, tmp_path / "pace")
    objective, _ = fresh("dpc", network="r3d", **SMALL)
    init_from(objective, tmp_path / "pace")
    theirs = objectives.load(tmp_path / "pace").encoder.state_dict()
    assert all(torch.equal(objective.encoder.state_dict()[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("method", "config", "said"),
    [
        ("tcp", {"width": 0.05, "size": 64}, "the dpc there has another encoder"),
        ("memdpc", {"width": 0.1, "size": 34}, "the dpc there has another encoder"),
        ("dpc", {"width": 0.1, "size": 34}, "the dpc there has another network"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    method: str, config: dict, said: str, earlier: Path
) -> None:
    objective, before = fresh(method, **config)
    with pytest.raises(InputError, match=said) as caught:
        init_from(objective, earlier)
    assert "\n" not in str(caught.value) and str(earlier) in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize(
    ("stride", "size", "trained", "says"),
    [
        (
            3,
            36,
            {},
            "10 frames a second and not about 30, so that a clip lasts 3 times",
        ),  # DPC's rate is 10 a second
        (1, 36, {}, ""),
        (1, 36, {"fps": 12.5, "short_side": 36.0}, ""),  # as near as 25 and 30
        (1, 36, {"fps": 30.0}, "--fps 30, or train with --stride 1"),
        (3, 36, {"fps": 30.0}, "--fps 30, or train with --stride 1"),
        (1, 64, {}, "36 pixels on the short side and not 64, so that views of 64² are more blurred"),
        (1, 64, {"short_side": 36.0}, ""),
        (1, 32, {"short_side": 256.0}, ""),  # all are scaled down
        (1, 34, {"short_side": 24.0}, "and not 24, so that views of 34² are sharper"),
    ],
)
def test_data_that_an_objective_is_not_used_to_is_named(
    tmp_path: Path, stride: int, size: int, trained: dict[str, float], says: str
) -> None:
    """The data set has 10 frames a second of 48×36."""
    dataset = Dataset(write_set(tmp_path / "set", [Video(0, "train")]))
    dpc = objectives.get("dpc")
    found = data_remarks(dpc(dpc.Config(width=0.05, stride=stride)), size, dataset, trained)
    assert len(found) == bool(says) and all(says in line and str(dataset.path) in line for line in found), (
        found
    )
