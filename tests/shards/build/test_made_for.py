"""make_shards --for: what it sets, what wins over it, and the stride that training then takes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from independent import make_shards, render

import objectives
from objectives.base import ShardSettings
from objectives.command import parse, suited
from objectives.dpc import DPC, DPCConfig
from objectives.vdim import VDIM
from pipelines.sampling import box_tries, sample_boxes
from pipelines.views import eval_view
from shards import Dataset
from training.settings import Settings


@pytest.mark.parametrize("method", objectives.available())
def test_no_fixed_box_of_a_paper_is_scaled_up(method: str) -> None:
    """If this fails for a new method, give it `shards` with a larger short side."""
    objective = objectives.get(method)
    spec, side = objective.view_spec(objective.Config()), objective.shards.short_side
    if spec.crop is None:
        assert side >= 1.5 * spec.size  # half of the smallest boxes' area, as drawn from 4:3, is kept
        return
    uniform = [[[[0.5] * 4] * box_tries(eval_view(spec))]]
    (box,) = sample_boxes(eval_view(spec), np.array(uniform), [side * 4 // 3], [side])[0]
    assert spec.size <= box[2] == box[3] <= side


def test_each_paper_has_its_own() -> None:
    found = {name: objectives.get(name).shards for name in ("dpc", "memdpc", "tcp", "pace", "vdim")}
    assert {name: (one.short_side, one.gop, one.fps) for name, one in found.items()} == {
        "dpc": (160, 10, 10),
        "memdpc": (160, 10, 10),
        "tcp": (256, 16, None),
        "pace": (128, 16, None),
        "vdim": (192, 16, None),
    }


def test_short_sides_are_multiples_of_16() -> None:
    assert all(method.shards.short_side % 16 == 0 for method in objectives.available().values())


@pytest.mark.parametrize(
    ("fps", "stride"), [(None, None), (10.0, 1), (12.5, 1), (15.0, 2), (30.0, 3), (25.0, 2), (2.0, 1)]
)
def test_the_stride_leaves_about_ten_frames_a_second(fps: float | None, stride: int | None) -> None:
    assert DPC.shards.stride_at(fps) == stride
    assert VDIM.shards.stride_at(fps) is None


def parsed(data: Path, *flags: str, objective: str = "dpc") -> int | None:
    argv = ["--objective", objective, "--data", str(data), *flags]
    return getattr(parse(argv, Settings, None, "train.py")[1], "stride", None)


def test_a_data_set_for_dpc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render(tmp_path / "videos" / "1.avi", frames=60, size=(320, 240), rate=30)
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "d", "--for", "dpc", "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert "for dpc: short side 160, a key frame every 10, 10 frames/s; train.py then takes --stride 1" in (
        result.stdout
    )
    dataset = Dataset(tmp_path / "d")
    settings = dataset.info["settings"]
    assert {name: settings[name] for name in ("for", "stride", "fps", "gop", "short_side")} == {
        "for": "dpc",
        "stride": 1,
        "fps": 10,
        "gop": 10,
        "short_side": 160,
    }
    facts = {name: dataset.column(name)[0] for name in ("num_frames", "fps", "width", "height")}
    assert facts == {"num_frames": 20, "fps": 10, "width": 208, "height": 160}
    assert parsed(tmp_path / "d") == 1 and parsed(tmp_path / "d", "--small", objective="memdpc") == 1
    assert capsys.readouterr().err.count("--stride 1, as ") == 2
    assert parsed(tmp_path / "d", "--stride", "2") == 2
    assert parsed(tmp_path / "d", objective="vdim") is None
    assert "--stride" not in capsys.readouterr().err


def test_explicit_flags_win(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "1.avi", frames=30, size=(320, 240), rate=30)
    flags = ["--for", "memdpc", "--fps", 30, "--gop", 7, "--short-side", 200, "--workers", 1]
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "d", *flags)
    assert result.returncode == 0 and "--stride 3" in result.stdout
    settings = Dataset(tmp_path / "d").info["settings"]
    assert (settings["fps"], settings["gop"], settings["short_side"], settings["stride"]) == (30, 7, 200, 3)
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "d", *flags, "--for", "dpc")
    assert result.returncode == 2 and "--for memdpc, not dpc" in result.stderr


def test_other_data_sets_say_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = DPCConfig(stride=7)
    for other in (made, tmp_path, Path("s3://bucket/d")):
        assert suited(DPC, config, other) == config
    assert parsed(made) == 3 and "--stride" not in capsys.readouterr().err


def test_a_field_that_is_only_called_stride_keeps_its_value(tmp_path: Path) -> None:
    """The stride of a convolution is no business of the data set's; the field that is, is named by the method."""

    @dataclass(frozen=True)
    class Config:
        stride: int = 4
        every: int = 3

    class Named(VDIM):
        shards = ShardSettings(fps=10.0, stride="every")

    said = {"name": "d", "classes": [], "tars": {}, "settings": {"for": "dpc", "stride": 2, "fps": 20.0}}
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    assert suited(VDIM, Config(), tmp_path) == Config()
    assert suited(Named, Config(), tmp_path) == Config(every=2)


def test_a_method_that_there_is_not_is_said_in_a_line(tmp_path: Path) -> None:
    result = make_shards(tmp_path, "--out", tmp_path / "d", "--for", "nothing")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: --for nothing: there is no such objective; choose one of dpc")
