"""Files of others: a trained objective written for torchvision, timm, ONNX, torch.export or Hugging Face; authors' checkpoints.

Each export writes `out` and returns a line that says what it is. Each raises InputError where the format cannot hold the
objective, before anything is written. The authors' files are pickled (.pth.tar), but nothing in them is run;
objectives/families.py says how their tensors are named.
"""

import importlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import models
from models.tcp import StackedResNet18
from objectives import checkpoint
from objectives.base import Objective
from objectives.checkpoint import metadata
from objectives.families import FAMILIES
from pipelines.views import clip_layout, normalisation
from shards import InputError
from shards.atomic import atomic_write
from shards.documents import one_line_of

TORCHVISION = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
AGREEMENT = 1e-4  # largest difference of a feature, on one clip, from ours


def torchvision(objective: Objective, out: Path, step: int | None) -> str:
    """A state dict that torchvision's own network loads strictly, in safetensors."""
    ours = objective.encoder.state_dict()
    for name in TORCHVISION:
        with torch.device("meta"):
            known = models.BACKBONES[name]
            same = models.build(name, known.frames, known.size).state_dict()
            whole = getattr(importlib.import_module("torchvision.models.video"), name)().state_dict()
        if [(key, one.shape) for key, one in ours.items()] != [(key, one.shape) for key, one in same.items()]:
            continue
        body = [key for key in whole if not key.startswith(("fc.", "classifier."))]
        tensors = dict(zip(body, ours.values(), strict=True))  # both list their modules in one order
        tensors |= {key: torch.zeros(value.shape) for key, value in whole.items() if key not in tensors}
        facts = {"torchvision": name, "head": "zeros, of 400 classes: to be trained"}
        _save(out, tensors, metadata(objective, step) | facts)
        return f"torchvision.models.video.{name}().load_state_dict(safetensors.torch.load_file({str(out)!r}))"
    raise InputError(
        f"--to torchvision: the encoder of this {objective.name} is none of torchvision's {', '.join(TORCHVISION)} "
        f"but {_described(objective)}; --to onnx, torch-export and hf take any"
    )


def timm(objective: Objective, out: Path, step: int | None) -> str:
    """A state dict that timm's own network loads strictly, in safetensors."""
    encoder = objective.encoder
    if not isinstance(encoder, StackedResNet18) or encoder.dim != 512:
        raise InputError(
            f"--to timm: the encoder of this {objective.name} is not timm's resnet18 at width 1, which TCP has, "
            f"but {_described(objective)}; --to onnx, torch-export and hf take any"
        )
    channels = encoder.conv1.in_channels
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    _save(out, tensors, metadata(objective, step) | {"timm": "resnet18", "in_chans": str(channels)})
    return (
        f"timm.create_model('resnet18', in_chans={channels}, num_classes=0).load_state_dict("
        f"safetensors.torch.load_file({str(out)!r})); a segment's frames are stacked in the channels, C·T"
    )


class Features(nn.Module):
    """What is exported: windows of the downstream spec (B, V, C, T, H, W) → a feature each, (B, D)."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, views: Tensor) -> Tensor:
        return self.objective.represent(views)


def torch_export(objective: Objective, out: Path, step: int | None) -> str:
    """A .pt2 file for torch.export.load, of any batch size, checked by loading it."""
    program, views = _program(objective)
    with atomic_write(out) as aside:
        with aside.open("wb") as file:
            torch.export.save(program, file, extra_files=metadata(objective, step))
        with aside.open("rb") as file:
            loaded = torch.export.load(file).module()
        difference = _agreement("torch-export", objective, lambda x: loaded(x).numpy(), views)
    return f"torch.export.load({str(out)!r}).module()(views); features agree within {difference:.1e}"


def onnx(objective: Objective, out: Path, step: int | None) -> str:
    """An ONNX file, of any batch size, checked by running it under onnxruntime."""
    try:
        runtime = importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise InputError(
            f"--to onnx: {error.name} is not installed; pip install onnx onnxscript onnxruntime"
        ) from None
    program, views = _program(objective)
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["feature"])
    exported.model.metadata_props.update(metadata(objective, step))
    with atomic_write(out) as aside:
        exported.save(aside, external_data=False)
        session = runtime.InferenceSession(aside.read_bytes(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        difference = _agreement(
            "onnx", objective, lambda x: np.asarray(session.run(None, {name: x.numpy()})[0]), views
        )
    return f"onnxruntime.InferenceSession({str(out)!r}); features agree within {difference:.1e}"


def huggingface(
    objective: Objective, out: Path, step: int | None, *, licence: str, trained: str, results: str
) -> str:
    """A folder for the Hugging Face hub, which is a checkpoint of ours too: config.json, model.safetensors, README.md.

    licence: of the weights, as the hub names it. trained, results: Markdown.
    """
    with checkpoint.written(out, objective, {}, step) as folder:
        (folder / "README.md").write_text(_card(objective, licence, trained, results), encoding="utf-8")
    return f"slipstream.HubModel.from_pretrained({str(out)!r}); upload it with: hf upload NAME {out}"


def authors(objective: Objective, out: Path, step: int | None) -> str:
    """A file with the names of a paper's authors, for their code to load (see objectives.families)."""
    reasons = []
    for kind in FAMILIES.values():
        if kind.objective != objective.name:
            continue
        try:
            tensors = kind.tensors(objective)
        except InputError as reason:
            reasons.append(str(reason))
            continue
        with atomic_write(out) as aside:
            write_file(aside, tensors)
        return f"{len(tensors)} tensors as {kind.source} names them"
    why = "; ".join(reasons) or "no layout of theirs is known"
    raise InputError(
        f"--to authors: the authors' code of {objective.name} cannot hold this checkpoint: {why}"
    )


def _program(objective: Objective) -> tuple[torch.export.ExportedProgram, Tensor]:
    """The traced network, and two windows of noise to try it with."""
    spec = objective.downstream().spec
    shape = (2, spec.views, spec.channels, spec.frames, spec.size, spec.size)
    views = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = {"views": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        return torch.export.export(Features(objective.eval()), (views,), dynamic_shapes=sizes), views


def _agreement(
    name: str, objective: Objective, theirs: Callable[[Tensor], np.ndarray], views: Tensor
) -> float:
    """The largest difference of a feature from ours. Raises InputError above AGREEMENT."""
    with torch.no_grad():
        difference = float(np.abs(theirs(views) - objective.represent(views).numpy()).max())
    if not difference <= AGREEMENT:
        raise InputError(f"--to {name}: features differ by {difference:.1e} from ours; nothing was written")
    return difference


def _save(out: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    with atomic_write(out) as aside:
        checkpoint.save_tensors(aside, tensors, facts)


def _described(objective: Objective) -> str:
    config = objective.config
    name = getattr(config, "backbone", None) or getattr(config, "network", type(objective.encoder).__name__)
    return f"{name} of width {getattr(config, 'width', 1.0):g}"


def _card(objective: Objective, licence: str, trained: str, results: str) -> str:
    spec = objective.downstream().spec
    note = "" if licence != "other" else (
        "\nWhoever publishes these weights chooses their licence; mind that of the videos they were trained on.\n"
    )  # fmt: skip
    return f"""---
license: {licence}
library_name: slipstream
pipeline_tag: video-classification
tags: [video, self-supervised, {objective.name}]
---
# {objective.name}: a video encoder pretrained without labels

{_described(objective)}, {sum(p.numel() for p in objective.parameters()) / 1e6:.1f} M parameters, pretrained with Slipstream.

    import slipstream
    model = slipstream.HubModel.from_pretrained("this folder, or its name on the hub")
    features = model.embed_videos(["clip.mp4"])      # (1, D), one row a video

- input: {normalisation(spec)}
- clip: {clip_layout(spec)}
- config.json: all settings of the method; model.safetensors says the same in its metadata

## Training
{trained}

## Results
{results}

## Licence
{licence}
{note}"""


class _Ignored:
    """Takes the place of NumPy's scalars and dtypes, in which the authors' loops left their best accuracy."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")] + ["numpy.dtype"]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, named without nn.DataParallel's "module.", and the numbers and texts with them (epoch, …).

    Raises InputError where the file is not a checkpoint, or holds anything but tensors, numbers and texts.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict with a state_dict")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} has no tensors under state_dict")
    if odd := [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]:
        raise InputError(f"{path}: the state_dict holds what is not a tensor: {', '.join(odd)}")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    facts = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, int | float | str)}
    return dict(state), facts


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    stand_ins: Any = [(_Ignored, name) for name in _NUMPY]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {named[1]}" if named else str(error).splitlines()[0]
        raise InputError(
            f"{path} is refused: {what}. Only tensors, numbers and texts are read; anything else could run code"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a checkpoint that torch.save wrote: {one_line_of(error)}") from error


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as the authors' code does."""
    torch.save({"epoch": 0, "iteration": 0, "best_acc": 0.0, "state_dict": dict(tensors)}, path)
