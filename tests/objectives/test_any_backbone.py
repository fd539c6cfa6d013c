"""Any objective can name any backbone that fits its input, and says why where one does not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import objectives
from models import BACKBONES
from objectives import checkpoint
from objectives.base import Objective
from objectives.command import parse
from objectives.dpc import DPC, DPCConfig
from objectives.families import family
from objectives.memdpc import MemDPC, MemDPCConfig
from objectives.pace import PaceConfig
from objectives.tcp import TCP, TCPConfig
from objectives.vdim import VDIMConfig
from shards import InputError
from training.run import refuse_changes
from training.settings import Settings

T = 8


def width(backbone: str) -> float:
    return 1.0 if BACKBONES[backbone].fixed else 1 / 16


def views(V: int, size: int, channels: int = 3) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(1, V, channels, T, size, size)


def every_parameter_learns(objective: Objective, x: Tensor) -> None:
    output = objective({"views": x})
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_dpc_with_every_backbone(backbone: str) -> None:
    side = 50 if backbone == "s3d" else 34  # torchvision's s3d rounds down
    size = dict(frames=T, size=side, blocks=3, pred_steps=1)
    objective = DPC(DPCConfig(network=backbone, width=width(backbone), **size))
    x = views(3, side)
    every_parameter_learns(objective, x)
    with torch.no_grad():
        z = objective.eval().encode(x)
        maps = objective.encoder(x.flatten(0, 1))
    assert maps.ndim == 5 and torch.allclose(z.flatten(0, 1), maps.mean(2))
    assert z.shape[:3] == (1, 3, objective.encoder.dim) and min(z.shape[3:]) > 1  # more than one location


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tcp_with_every_backbone(backbone: str) -> None:
    size = dict(frames=T, size=32, segments=3, predict_steps=2, context="lstm")
    objective = TCP(TCPConfig(backbone=backbone, width=width(backbone), **size))
    x = views(3, 32)
    every_parameter_learns(objective, x)
    with torch.no_grad():
        expected = objective.eval().encoder(x.flatten(0, 1)).mean((2, 3, 4))
        assert torch.allclose(objective.embed(x).flatten(0, 1), expected, atol=1e-6)


@pytest.mark.parametrize(("modality", "channels"), [("difference", 1), ("flow", 3)])
def test_tcp_feeds_a_3d_network_what_it_stacks_for_the_2d_one(modality: Any, channels: int) -> None:
    size = dict(frames=T, size=32, segments=3, predict_steps=2, width=1 / 16)
    objective = TCP(TCPConfig(backbone="r3d", modality=modality, **size))
    x = views(3, 32, channels)
    every_parameter_learns(objective, x)
    if modality == "flow":  # a camera that pans changes the mean only, which is left out
        with torch.no_grad():
            objective.eval()
            assert torch.allclose(objective.embed(x), objective.embed(x + 0.5), atol=1e-5)


def test_memdpc_predicts_both_ways_with_another_backbone_and_recomputes() -> None:
    size = dict(frames=T, size=48, blocks=3, pred_steps=1, memory_size=16, width=1 / 16)
    torch.manual_seed(1)
    plain = MemDPC(MemDPCConfig(network="r2plus1d", **size))
    torch.manual_seed(1)
    saving = MemDPC(MemDPCConfig(network="r2plus1d", gradient_checkpointing=True, **size))
    for objective in (plain, saving):
        every_parameter_learns(objective, views(3, 48))
    gradients = [[p.grad for p in objective.parameters()] for objective in (plain, saving)]
    for a, b in zip(*gradients, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, atol=1e-6)


def test_the_encoders_of_two_objectives_have_the_same_names_and_weights_fit() -> None:
    dpc = DPC(DPCConfig(network="r3d", width=1 / 16, size=48))
    pace = objectives.get("pace")(PaceConfig(backbone="r3d", width=1 / 16, size=48))
    dpc.encoder.load_state_dict(pace.encoder.state_dict())


@pytest.mark.parametrize("flag", ["--network", "--backbone"])
def test_the_flag_builds_it_and_a_checkpoint_brings_it_back(flag: str, tmp_path: Path) -> None:
    argv = ["--objective", "dpc", "--small", flag, "r2plus1d", "--width", "0.0625", "--size", "36"]
    _, config = parse(argv, Settings, None, "train.py")
    objective = DPC(config).eval()
    checkpoint.save_config(tmp_path, objective, {})
    checkpoint.save_weights(tmp_path / checkpoint.WEIGHTS, objective)
    again = objectives.load(tmp_path)
    assert again.config == config and config.network == "r2plus1d"
    with pytest.raises(InputError, match="trained with --backbone r2plus1d"):
        family("dpc").tensors(again)


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (
            DPCConfig,
            {"network": "c3d"},
            "--backbone c3d: clips of 5 frames of 128² do not fit it: it takes 8",
        ),
        (DPCConfig, {"network": "i3d"}, "no such backbone; choose one of c3d, r3d"),
        (DPCConfig, {"network": "r3d", "norm": "instance"}, "--norm instance: r3d has batch norm only"),
        (
            MemDPCConfig,
            {"network": "s3d", "width": 0.5},
            "--backbone s3d: torchvision's networks come at width 1",
        ),
        (MemDPCConfig, {"network": "s3d", "size": 48, "frames": 8}, "--size 48 must be even and larger"),
        (MemDPCConfig, {"network": "c3d", "size": 30, "frames": 8}, "--size 30 must be even and larger"),
        (TCPConfig, {"backbone": "c3d", "frames": 6}, "--backbone c3d: clips of 6 frames of 224²"),
        (
            TCPConfig,
            {"backbone": "mc3_18", "modality": "flow"},
            "for 3 channels, not 1 for 2; take one of c3d",
        ),
        (TCPConfig, {"backbone": "vdim"}, "no such backbone; choose one of c3d, r3d"),
        (PaceConfig, {"backbone": "resnet18"}, "--backbone resnet18: there is no such backbone"),
        (PaceConfig, {"backbone": "s3d", "frames": 4}, "--backbone s3d: clips of 4 frames of 224²"),
        (VDIMConfig, {"backbone": "r3d"}, "--backbone r3d: VDIM contrasts features of patches"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(config: type, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        config(**options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_run_from_before_the_flag_is_resumed_and_one_with_another_network_is_not(tmp_path: Path) -> None:
    config = asdict(TCPConfig())
    before = {name: value for name, value in config.items() if name != "backbone"}
    saved = {"objective": "tcp", "config": before, "settings": {"seed": 0, "global_batch": 8}}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    now = {"objective": "tcp", "seed": 0, "global_batch": 8}
    refuse_changes(tmp_path, now | config)
    with pytest.raises(InputError, match="backbone resnet18 → r3d"):
        refuse_changes(tmp_path, now | config | {"backbone": "r3d"})


def test_the_papers_encoders_stay_the_defaults() -> None:
    assert DPCConfig().network == MemDPCConfig().network == TCPConfig().backbone == "resnet18"
    assert (PaceConfig().backbone, VDIMConfig().backbone) == ("r2plus1d", "vdim")
