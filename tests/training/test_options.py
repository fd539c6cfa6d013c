"""Options of the loop, each against what it must amount to."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import objectives
from objectives import checkpoint
from tests.training.harness import TOY, losses, train

FLAGS = (*TOY, "--batch-size", 4, "--steps", 4)


def test_ema_is_the_average_it_says(data, tmp_path) -> None:
    flags = (*FLAGS, "--data", data, "--output", tmp_path / "run", "--ema", 0.75)
    assert train(*flags, "--checkpoint-every", 1, "--keep", 9).status == 0
    folders = sorted(tmp_path.glob("run/checkpoints/step-*"))
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    averages = [load_file(folder / "ema.safetensors") for folder in folders]
    for name in ("encoder.0.weight", "head.bias"):
        expected = weights[0][name].double()
        for mine, average in zip(weights, averages, strict=True):
            expected = 0.75 * expected + 0.25 * mine[name].double()
            torch.testing.assert_close(average[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(averages[-1]["head.bias"], weights[-1]["head.bias"])
    running = "encoder.1.running_mean"
    assert torch.equal(averages[-1][running], weights[-1][running])  # of the statistics there is no average
    encoder = load_file(tmp_path / "run/encoder.safetensors")
    assert all(torch.equal(value, averages[-1][f"encoder.{name}"]) for name, value in encoder.items())


def test_vdim_in_bf16_clipped_and_accumulated_comes_back_as_the_average(data, tmp_path) -> None:
    """A real method with everything on; what `objectives.load` gives is the average."""
    tiny = ("--objective", "vdim", "--width", 0.03, "--no-temporal-difference", "--colour", "lab")
    more = ("--mixed-precision", "bf16", "--accumulate", 2, "--clip-norm", 1, "--ema", 0.5)
    flags = (*tiny, *more, "--batch-size", 2, "--steps", 2, "--data", data, "--output", tmp_path / "run")
    done = train(*flags)
    assert done.status == 0, done.said
    last = tmp_path / "run/checkpoints/step-00000002"
    assert (
        json.loads((last / "state.json").read_text())["loader"]["samples"] == 8
    )  # 2 steps of 2 batches of 2
    average = load_file(last / checkpoint.AVERAGE)
    assert all(torch.equal(v, average[k]) for k, v in objectives.load(tmp_path / "run").state_dict().items())


@pytest.mark.parametrize("flag", ["--no-channels-last", "--torch-compile"])
def test_speed_options_change_nothing_else(data, tmp_path, flag) -> None:
    if flag == "--torch-compile" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    for name, more in (("a", ()), ("b", (flag,))):
        done = train(*FLAGS, "--plain", "--data", data, "--output", tmp_path / name, *more)
        assert done.status == 0, done.said
    a, b = (losses(tmp_path / name) for name in "ab")
    assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-4)
