"""Files in the layout of the pace authors' code become objectives that compute what that code computes."""

import subprocess
import sys
from pathlib import Path

import pace_reference
import pytest
import torch
from torch import Tensor, nn

import objectives
from objectives.families import family
from objectives.pace import Pace
from shards import InputError

ROOT = Path(__file__).parents[2]
NETWORKS = {
    "pace-c3d": (pace_reference.c3d, "c3d", (8, 16)),
    "pace-r3d": (pace_reference.residual, "r3d", (4, 16)),
    "pace-r21d": (pace_reference.residual, "r2plus1d", (4, 16)),
    "pace-s3dg": (pace_reference.s3dg, "s3dg", (8, 32)),
}


def released(name: str, classes: int) -> dict[str, Tensor]:
    """A file's tensors with random content; every one of them counts for the output."""
    torch.manual_seed(1)
    kind = family(name)
    head = "fc" if name == "pace-s3dg" else "linear"
    objective = Pace(kind.config({f"{head}.weight": torch.empty(classes, 1)}))
    for norm in (m for m in objective.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    return {key.removeprefix("module."): value for key, value in kind.tensors(objective).items()}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_an_imported_network_computes_what_the_released_one_does(name: str) -> None:
    reference, backbone, (frames, size) = NETWORKS[name]
    tensors = released(name, classes=5)
    objective = family(name).build(tensors, "file")
    assert isinstance(objective, Pace)
    config = objective.config
    assert (config.backbone, config.paces, config.circular) == (backbone, (1, 2, 3, 4, 5), True)
    assert Pace.view_spec(config).levels == "bgr-255"
    x = torch.rand(2, 1, 3, frames, size, size) * 255
    expected = reference(x[:, 0], tensors)
    assert torch.allclose(
        objective.logits(x)[:, 0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
    assert expected.std() > 0


def test_the_command_imports_a_file_as_saved_from_several_gpus(tmp_path: Path) -> None:
    tensors = {f"module.{key}": value for key, value in released("pace-r21d", classes=4).items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.001}]}
    torch.save({"epoch": 17, "state_dict": tensors, "opt_dict": optimizer}, tmp_path / "epoch-18.pth.tar")
    command = [sys.executable, "tools/import_checkpoint.py", "pace-r21d", tmp_path / "epoch-18.pth.tar"]
    done = subprocess.run([*command, "--out", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bgr-255" in done.stdout
    objective = objectives.load(tmp_path / "run")
    assert isinstance(objective, Pace) and objective.config.levels == "bgr-255"
    weight = objective.state_dict()["encoder.stages.4.shortcut.0.temporal.weight"]
    assert torch.equal(weight, tensors["module.conv5.block1.downsampleconv.temporal_conv.weight"])


def test_a_file_of_another_network_is_refused_by_name() -> None:
    with pytest.raises(
        InputError, match=r"no checkpoint of pace-r3d .*conv1.temporal_spatial_conv.weight is missing"
    ):
        family("pace-r3d").build(released("pace-r21d", classes=4), "r21d.pth.tar")
