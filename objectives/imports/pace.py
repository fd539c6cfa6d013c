"""Checkpoints of github.com/laura-wang/video-pace: pace classifiers of C3D, R3D, R(2+1)D and S3D-G.

The code fed its networks BGR from 0 to 255, unnormalised, which the imported config records; and it wrapped clips.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from objectives.imports import Family
from objectives.pace import PaceConfig

C3D_LAYERS = (("1",), ("2",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b"))
Words = list[str]  # of a tensor's name, between its dots


def _c3d(stage: int, rest: Words) -> Words:
    place, kind = divmod(int(rest[0]), 3)  # convolution, norm, ReLU
    return [("conv", "bn")[kind] + C3D_LAYERS[stage - 1][place], *rest[1:]]


def _residual(stage: int, rest: Words, conv: Callable[[Words], Words]) -> Words:
    """conv: the authors' name of a tensor within a convolution, from ours."""
    if stage == 1:
        block, module, leaf = [], ("conv1", "bn1")[int(rest[0])], rest[1:]
    elif rest[0] == "shortcut":
        module, leaf = ("downsampleconv", "downsamplebn")[int(rest[1])], rest[2:]
        block = [f"conv{stage}", "block1"]
    else:
        block, module, leaf = [f"conv{stage}", "block1"], rest[0].replace("norm", "bn"), rest[1:]
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
    layers = (("",), ("_a", "_b"), ("_a", "_b"), ("", "_b"))[
        branch
    ]  # the last one's first layer is its pooling
    return [block, f"conv_b{branch}{layers[layer]}", *_unit(rest[4:])]


def _unit(rest: Words) -> Words:
    """Of a convolution and its norm, or of a separable one's two pairs: conv1, bn1, conv2, bn2."""
    pair, kind, leaf = rest if len(rest) == 3 else ("0", *rest)
    return [f"{('conv', 'bn')[int(kind)]}{int(pair) + 1}", leaf]


def _family(name: str, backbone: str, stages: Callable[[int, Words], Words], head: str) -> Family:
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

    return Family(
        name,
        "github.com/laura-wang/video-pace",
        "pace",
        config,
        names,
        remark=lambda _: "the network is fed BGR from 0 to 255, as its authors trained it",
        no_export=lambda config: _no_export(config, backbone),
    )


def _no_export(config: Any, backbone: str) -> str:
    if (config.backbone, config.width) != (backbone, 1.0):
        return f"it was trained with --backbone {config.backbone} --width {config.width:g}, not with {backbone} at width 1"
    if config.contrast != "none" or not config.lambda_cls:
        return "it was trained with a contrastive term, whose layer the authors' code does not have"
    return ""


FAMILIES = (
    _family("pace-c3d", "c3d", _c3d, "linear"),
    _family("pace-r3d", "r3d", _r3d, "linear"),
    _family("pace-r21d", "r2plus1d", _r21d, "linear"),
    _family("pace-s3dg", "s3dg", _s3dg, "fc"),
)
