"""What a file of weights says of itself, so that whoever finds it knows what it is and how to show it a video."""

import json
import subprocess
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from objectives.base import Objective
from pipelines import colour
from pipelines.views import ViewSpec


def metadata(objective: Objective, step: int | None = None) -> dict[str, str]:
    """For safetensors: method, config (JSON), step, code, input (its values), clip (its layout)."""
    spec = objective.downstream().spec
    return {
        "format": "pt",
        "method": objective.name,
        "config": json.dumps(asdict(objective.config)),
        "step": "" if step is None else str(step),
        "code": code_version(),
        "input": normalisation(spec),
        "clip": clip_layout(spec),
    }


def normalisation(spec: ViewSpec) -> str:
    """The values that a network is fed, in words."""
    if spec.modality == "difference":
        return f"luma of frame t+1 minus luma of frame t, 0–1, divided by {colour.GREY_STD:.4g}"
    imagenet = f"minus {_triple(colour.IMAGENET_MEAN)}, divided by {_triple(colour.IMAGENET_STD)}"
    if spec.levels == "bgr-imagenet":  # of flow
        return f"optical flow as a picture (128, v, u) of 8 bits, divided by 255, {imagenet}"
    if spec.modality == "flow":
        return "optical flow (u, v, 0) in −1…1"
    if spec.lab:
        return f"CIE Lab, minus {_triple(colour.LAB_MEAN)}, divided by {_triple(colour.LAB_STD)}"
    if spec.levels == "bgr-255":
        return "BGR, 0–255"
    return f"RGB, 0–1, {imagenet}"


def clip_layout(spec: ViewSpec) -> str:
    """The tensor that a network is fed, in words."""
    offsets = "; ".join(" ".join(map(str, view)) for view in spec.offsets)
    shape = f"V {spec.views}, C {spec.channels}, T {spec.frames}, H {spec.size}, W {spec.size}"
    return f"views (B, V, C, T, H, W) float32, {shape}; frames of each view, counted from the clip's first: {offsets}"


def code_version() -> str:
    """Slipstream's version, and in a git checkout its commit."""
    try:
        found = f"slipstream {version('slipstream')}"
    except PackageNotFoundError:
        found = "slipstream"
    return f"{found}, commit {commit()}" if commit() else found


@lru_cache
def commit() -> str | None:
    """The checkout's commit, "-dirty" behind it where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[__name__.count(".")]
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty", "--abbrev=40"]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or somebody else's checkout
        return None


def _triple(values: object) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"  # type: ignore[attr-defined]
