"""The authors' checkpoints that can be read and written, each an entry of FAMILIES: how their tensors are named.

github.com/TengdaHan/DPC and github.com/TengdaHan/MemDPC; github.com/laura-wang/video-pace: pace classifiers of C3D, R3D,
R(2+1)D and S3D-G. That code fed its networks BGR from 0 to 255, unnormalised, which the imported config records; and it
wrapped clips.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.dpc import DEPTHS, WIDTHS, ResNet2d3d
from objectives.base import Objective, get
from objectives.blocks import RESNETS
from objectives.dpc import DPCConfig
from objectives.memdpc import MemDPCConfig
from objectives.pace import PaceConfig
from shards import InputError

_C3D_LAYERS = (("1",), ("2",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b"))
Words = list[str]  # of a tensor's name, between its dots


@dataclass(frozen=True)
class Family:
    """name: as the tools call it. source: whose files they are. objective: what they become.

    config(tensors): the objective's config that a file's tensors imply.
    names(key, config): the names in the file of an objective's tensor; the file holds the same tensor under each.
    remark(config): what the user should know of an imported one. no_export(config): why the layout cannot hold it.
    prefix: before every name in files written, nn.DataParallel's or none; files are read with "module." and without.
    """

    name: str
    source: str
    objective: str
    config: Callable[[Mapping[str, Tensor]], Any]
    names: Callable[[str, Any], tuple[str, ...]]
    remark: Callable[[Any], str] = lambda _: ""
    no_export: Callable[[Any], str] = lambda _: ""
    prefix: str = "module."

    def build(self, tensors: Mapping[str, Tensor], file: str, **fed: Any) -> Objective:
        """The objective with the file's tensors (names without "module.") in evaluation mode.

        fed: fields of the config that a file does not have, such as what its network is fed. Raises InputError that
        names every tensor which is missing, left over, of another size or not the same as the one it should repeat.
        Counters of batch norm's batches, which old files lack, may be missing.
        """
        config = replace(self.config(tensors), **fed)
        objective = get(self.objective)(config)
        state, wrong = objective.state_dict(), []
        left = set(tensors)
        for ours, value in state.items():
            names = self.names(ours, config)
            left -= set(names)
            missing = [name for name in names if name not in tensors]
            if missing == list(names) and ours.endswith("num_batches_tracked"):
                continue
            wrong += [f"{name} is missing" for name in missing]
            found = [name for name in names if name in tensors]
            for name in found:
                tensor = tensors[name]
                if tensor.shape != value.shape:
                    wrong.append(f"{name} has the size {tuple(tensor.shape)}, not {tuple(value.shape)}")
                elif tensor.is_floating_point() != value.is_floating_point():
                    wrong.append(f"{name} is of {tensor.dtype}, not {value.dtype}")
                elif not torch.equal(tensor, tensors[found[0]]):
                    wrong.append(f"{name} differs from {found[0]}, which it should repeat")
                else:
                    state[ours] = tensor
        wrong += [f"{key} has no place" for key in sorted(left)]
        if wrong:
            raise InputError(f"{file} is no checkpoint of {self.name} ({self.source}): {'; '.join(wrong)}")
        objective.load_state_dict(state)
        return objective.eval()

    def tensors(self, objective: Objective) -> dict[str, Tensor]:
        """The objective's tensors under the family's names, with the prefix. Raises InputError for one it cannot hold."""
        if reason := self.no_export(objective.config):
            raise InputError(f"{self.name}: {reason}")
        return {
            self.prefix + name: tensor
            for ours, value in objective.state_dict().items()
            for tensor in [value.contiguous()]  # one for all its names, as in the authors' files
            for name in self.names(ours, objective.config)
        }


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
    if config.norm != "batch":
        return (
            "the file has no running statistics of batch norm (its pretraining kept none), so the network normalises by "
            "each batch's own, in evaluation too: features depend on what else is in the batch; --statistics DATA measures "
            "them"
        )
    if getattr(config, "modality", "rgb") == "flow":
        return "the network is fed (128, v, u), normalised as for ImageNet, as its authors trained it"
    return ""


def _no_export(config: DPCConfig | MemDPCConfig) -> str:
    if config.network not in RESNETS:
        return f"it was trained with --backbone {config.network}, and the authors' networks are 2D3D-ResNets"
    if config.norm == "instance":
        return "it was trained with --norm instance, the authors' network has batch norm"
    if isinstance(config, DPCConfig) and (config.prediction, config.features) != ("sequential", "dense"):
        return "it was trained with --prediction parallel or --features pooled, which the authors' code does not have"
    return ""


def _c3d(stage: int, rest: Words) -> Words:
    place, kind = divmod(int(rest[0]), 3)  # convolution, norm, ReLU
    return [("conv", "bn")[kind] + _C3D_LAYERS[stage - 1][place], *rest[1:]]


def _residual(stage: int, rest: Words, conv: Callable[[Words], Words]) -> Words:
    """conv: the authors' name of a tensor within a convolution, from ours."""
    block = [f"conv{stage}", "block1"]
    if stage == 1:
        block, module, leaf = [], ("conv1", "bn1")[int(rest[0])], rest[1:]
    elif rest[0] == "shortcut":
        module, leaf = ("downsampleconv", "downsamplebn")[int(rest[1])], rest[2:]
    else:
        module, leaf = rest[0].replace("norm", "bn"), rest[1:]
    return [*block, module, *(conv(leaf) if "conv" in module else leaf)]


def _r3d(stage: int, rest: Words) -> Words:
    return _residual(stage, rest, lambda leaf: ["temporal_spatial_conv", *leaf])


def _r21d(stage: int, rest: Words) -> Words:
    theirs = {"spatial": "spatial_conv", "norm": "bn", "temporal": "temporal_conv"}
    return _residual(stage, rest, lambda leaf: [theirs[leaf[0]], *leaf[1:]])


def _s3dg(stage: int, rest: Words) -> Words:
    if stage == 1:
        return ["conv1", *_unit(rest[1:])]
    if stage == 2:
        gated = rest[0] == "2"
        return ["gating", *rest[1:]] if gated else [("conv_2b", "conv_2c")[int(rest[0])], *_unit(rest[1:])]
    block, branch, layer = f"mixed_{stage}{'bcdef'[int(rest[0])]}", int(rest[2]), int(rest[3])
    if rest[4] == "fc":
        return [block, f"gating_b{branch}", *rest[4:]]
    suffixes = (("",), ("_a", "_b"), ("_a", "_b"), ("", "_b"))  # the last one's first layer is its pooling
    return [block, f"conv_b{branch}{suffixes[branch][layer]}", *_unit(rest[4:])]


def _unit(rest: Words) -> Words:
    """Of a convolution and its norm, or of a separable one's two pairs: conv1, bn1, conv2, bn2."""
    pair, kind, leaf = rest if len(rest) == 3 else ("0", *rest)
    return [f"{('conv', 'bn')[int(kind)]}{int(pair) + 1}", leaf]


def _pace_family(name: str, backbone: str, stages: Callable[[int, Words], Words], head: str) -> Family:
    def config(tensors: Mapping[str, Tensor]) -> PaceConfig:
        """Paces 1 to as many as the head tells apart."""
        weight = tensors.get(f"{head}.weight")
        paces = tuple(float(p + 1) for p in range(4 if weight is None else len(weight)))
        return PaceConfig(backbone, paces=paces, clips=1, circular=True, contrast="none", levels="bgr-255")

    def names(key: str, _: PaceConfig) -> tuple[str, ...]:
        part, *rest = key.split(".")
        if part == "head":
            return (f"{head}.{rest[0]}",)
        return (".".join(stages(int(rest[1]) + 1, rest[2:])),)

    def no_export(config: PaceConfig) -> str:
        if (config.backbone, config.width) != (backbone, 1.0):
            return (
                f"it was trained with --backbone {config.backbone} --width {config.width:g}, not with {backbone} at "
                "width 1"
            )
        if config.contrast != "none" or not config.lambda_cls:
            return "it was trained with a contrastive term, whose layer the authors' code does not have"
        return ""

    fed = "the network is fed BGR from 0 to 255, as its authors trained it"
    source = "github.com/laura-wang/video-pace"
    return Family(name, source, "pace", config, names, remark=lambda _: fed, no_export=no_export)


_DPC = partial(Family, remark=_remark, no_export=_no_export)
_ALL = (
    _DPC("dpc", "github.com/TengdaHan/DPC", "dpc", lambda tensors: DPCConfig(**_blocks(tensors)), _dpc_names),
    _DPC("memdpc", "github.com/TengdaHan/MemDPC", "memdpc", _memdpc_config, _memdpc_names, prefix=""),
    _pace_family("pace-c3d", "c3d", _c3d, "linear"),
    _pace_family("pace-r3d", "r3d", _r3d, "linear"),
    _pace_family("pace-r21d", "r2plus1d", _r21d, "linear"),
    _pace_family("pace-s3dg", "s3dg", _s3dg, "fc"),
)
FAMILIES = {kind.name: kind for kind in _ALL}


def family(name: str) -> Family:
    """The family called `name`; raises InputError that lists the names there are."""
    if name not in FAMILIES:
        raise InputError(
            f"{name}: there is no such family of checkpoints; choose one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
