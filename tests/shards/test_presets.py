"""make_shards --for: what it sets, what wins over it, and the stride that training then takes."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from independent import make_shards, render

import objectives
from objectives.command import parse
from pipelines.boxes import sample_boxes, tries
from pipelines.views import plain
from shards import Dataset
from shards.encode import Encoding
from shards.presets import PRESETS, Method, stride_of
from training.settings import Settings


def test_there_is_one_for_every_method() -> None:
    assert set(PRESETS) == set(get_args(Method)) == set(objectives.available())


@pytest.mark.parametrize("method", PRESETS)
def test_no_fixed_box_of_a_paper_is_scaled_up(method: Method) -> None:
    objective = objectives.get(method)
    spec, side = objective.view_spec(objective.Config()), PRESETS[method].short_side
    if spec.crop is None:
        assert side >= 1.5 * spec.size  # half of the smallest boxes' area, as drawn from 4:3, is kept
        return
    uniform = [[[[0.5] * 4] * tries(plain(spec))]]
    (box,) = sample_boxes(plain(spec), np.array(uniform), [side * 4 // 3], [side])[0]
    assert spec.size <= box[2] == box[3] <= side


def test_short_sides_are_multiples_of_16() -> None:
    assert all(preset.short_side % 16 == 0 for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("fps", "stride"), [(None, None), (10.0, 1), (12.5, 1), (15.0, 2), (30.0, 3), (25.0, 2), (2.0, 1)]
)
def test_the_stride_leaves_about_ten_frames_a_second(fps: float | None, stride: int | None) -> None:
    assert PRESETS["dpc"].stride(Encoding(fps=fps)) == stride
    assert PRESETS["vdim"].stride(Encoding(fps=fps)) is None


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
    assert stride_of(made) is stride_of(tmp_path) is stride_of(Path("s3://bucket/d")) is None
    assert parsed(made) == 3 and "--stride" not in capsys.readouterr().err
