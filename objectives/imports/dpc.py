"""Checkpoints of github.com/TengdaHan/DPC and github.com/TengdaHan/MemDPC."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.dpc import DEPTHS, WIDTHS, ResNet2d3d
from objectives.blocks import RESNETS
from objectives.dpc import DPCConfig
from objectives.imports import Family
from objectives.memdpc import MemDPCConfig


def _blocks(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Network, width, norm and size: a file tells all but the size, which is the papers' for the network."""
    found = {key.removeprefix("backbone.") for key in tensors if key.startswith("backbone.")}
    with torch.device("meta"):
        keys = {depth: set(ResNet2d3d(depth, norm="batch-statistics").state_dict()) for depth in DEPTHS}
    depth = min(DEPTHS, key=lambda depth: len(keys[depth] - found) + len(found - keys[depth]))
    last = tensors.get("backbone.layer4.0.bn1.weight")
    return {
        "network": f"resnet{depth}",
        "width": 1.0 if last is None else len(last) / WIDTHS[-1],
        "norm": "batch" if any(key.endswith("running_mean") for key in found) else "batch-statistics",
        "size": 224 if depth == 34 else 128,
    }


def _memdpc_config(tensors: Mapping[str, Tensor]) -> MemDPCConfig:
    slots = len(tensors["mb"]) if "mb" in tensors else MemDPCConfig.memory_size
    both = not any(key.startswith("agg.") for key in tensors)
    return MemDPCConfig(
        **_blocks(tensors), memory_size=slots, directions="both" if both else "forward", directions_loss="sum"
    )


def _gru(theirs: str, rest: str) -> tuple[str, str]:
    """A GRU's cells have two names in the authors' module."""
    return f"{theirs}.ConvGRUCell_00.{rest}", f"{theirs}.cell_list.0.{rest}"


def _dpc_names(key: str, _: DPCConfig) -> tuple[str, ...]:
    part, rest = key.split(".", 1)
    if part == "aggregator":
        return _gru("agg", rest)
    return (f"backbone.{rest}" if part == "encoder" else f"network_pred.{rest.removeprefix('0.')}",)


def _memdpc_names(key: str, config: MemDPCConfig) -> tuple[str, ...]:
    part, rest = key.split(".", 1)
    if part == "aggregators":
        direction, rest = rest.split(".", 1)
        theirs = {"forwards": "agg_f", "backwards": "agg_b"}[direction]
        return _gru(theirs if config.directions == "both" else "agg", rest)
    return ({"encoder": f"backbone.{rest}", "phi": f"network_pred.{rest}", "memory": "mb"}[part],)


def _remark(config: DPCConfig | MemDPCConfig) -> str:
    flow = getattr(config, "modality", "rgb") == "flow"
    fed = (
        "the network is fed (128, v, u), normalised as for ImageNet, as its authors trained it"
        if flow
        else ""
    )
    if config.norm == "batch":
        return fed
    return (
        "the file has no running statistics of batch norm (its pretraining kept none), so the network normalises by "
        "each batch's own, in evaluation too: features depend on what else is in the batch; --statistics DATA measures them"
    )


def _no_export(config: DPCConfig | MemDPCConfig) -> str:
    if config.network not in RESNETS:
        return f"it was trained with --backbone {config.network}, and the authors' networks are 2D3D-ResNets"
    if config.norm == "instance":
        return "it was trained with --norm instance, the authors' network has batch norm"
    if isinstance(config, DPCConfig) and (config.prediction, config.features) != ("sequential", "dense"):
        return "it was trained with --prediction parallel or --features pooled, which the authors' code does not have"
    return ""


FAMILIES = (
    Family(
        "dpc",
        "github.com/TengdaHan/DPC",
        "dpc",
        lambda tensors: DPCConfig(**_blocks(tensors)),
        _dpc_names,
        remark=_remark,
        no_export=_no_export,
    ),
    Family(
        "memdpc",
        "github.com/TengdaHan/MemDPC",
        "memdpc",
        _memdpc_config,
        _memdpc_names,
        remark=_remark,
        no_export=_no_export,
        prefix="",
    ),
)
