"""What tools/export.py writes, read by the libraries it is for."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import objectives
from objectives import Objective, checkpoint
from objectives.checkpoint import metadata
from pipelines.views import normalisation
from shards import InputError

ROOT = Path(__file__).parents[2]


def _tool() -> ModuleType:
    """The command as a module: each start of a process costs seconds."""
    spec = importlib.util.spec_from_file_location("export", ROOT / "tools/export.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["export"] = module
    spec.loader.exec_module(module)
    return module


tool = _tool()


def trained(folder: Path, method: str, **config: object) -> Objective:
    """A checkpoint of an objective whose weights and running statistics are not those that it begins with."""
    torch.manual_seed(0)
    cls = objectives.get(method)
    objective = cls(cls.Config(**config))
    for module in objective.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with checkpoint.written(folder, objective, {"data": "toy 0123", "seed": 3}, 40):
        pass
    return objective.eval()


def clip(objective: Objective, batch: int = 1) -> Tensor:
    spec = objective.downstream().spec
    return torch.randn(batch, spec.views, spec.channels, spec.frames, spec.size, spec.size)


def export(run: Path, to: str, **options: object) -> Path:
    out = run.with_name(f"{run.name}-out")
    tool.main(tool.Arguments(run, to, out, **options))
    return out


SMALL = {
    "dpc": {"width": 0.05, "size": 64},
    "memdpc": {"width": 0.05, "size": 64, "memory_size": 8},
    "pace": {"backbone": "r3d", "width": 0.05, "size": 32},
    "tcp": {"width": 0.05, "size": 32},
}


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18", "s3d"])
def test_torchvisions_own_network_loads_it_strictly_and_gives_our_features(name: str, tmp_path: Path) -> None:
    from torchvision.models import video

    objective = trained(tmp_path / "run", "pace", backbone=name, size=32, frames=16)
    out = export(tmp_path / "run", "torchvision")
    theirs = getattr(video, name)()
    theirs.load_state_dict(load_file(out), strict=True)
    theirs.eval()
    views = clip(objective)
    with torch.no_grad():
        ours = objective.represent(views)
        if name == "s3d":
            found = theirs.features(views[:, 0]).mean((2, 3, 4))
        else:
            theirs.fc = nn.Identity()
            found = theirs(views[:, 0])
    assert ours.std() > 1e-3
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=0)


def test_timms_own_network_loads_it_strictly_and_gives_our_features(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    objective = trained(tmp_path / "run", "tcp", size=64)
    tensors = load_file(export(tmp_path / "run", "timm"))
    theirs = timm.create_model("resnet18", in_chans=tensors["conv1.weight"].shape[1], num_classes=0).eval()
    theirs.load_state_dict(tensors, strict=True)
    views = clip(objective)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.forward_features(views[:, 0].flatten(1, 2)),
            objective.encoder(views[:, 0].flatten(1, 2)),
            atol=1e-4,
            rtol=0,
        )


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("method", ["dpc", "tcp"])
def test_exported_programs_give_our_features_for_any_batch(method: str, to: str, tmp_path: Path) -> None:
    objective = trained(tmp_path / "run", method, **SMALL[method])
    out = export(tmp_path / "run", to)
    views = clip(objective, batch=3)
    if to == "onnx":
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["feature"], {"views": views.numpy()})[0])
        facts = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"method": "", "step": ""}
        with out.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
        found, facts = program.module()(views), extra
    with torch.no_grad():
        ours = objective.represent(views)
    assert ours.std() > 1e-3 and found.shape == (3, ours.shape[1])
    torch.testing.assert_close(found.detach(), ours, atol=1e-4, rtol=0)
    assert (facts["method"], facts["step"]) == (method, "40")


@pytest.mark.parametrize("method", list(SMALL))
def test_the_hubs_folder_loads_offline_and_says_what_it_is(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slipstream

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    objective = trained(tmp_path / "run", method, **SMALL[method])
    out = export(tmp_path / "run", "hf", licence="cc-by-nc-4.0")
    loaded = slipstream.HubModel.from_pretrained(out)
    again = objectives.load(out)  # it is a checkpoint of ours as well
    for name, value in objective.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and torch.equal(again.state_dict()[name], value)
    assert loaded.config == objective.config and not loaded.training
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert "steps: 40" in card and "data: toy 0123" in card and "seed: 3" in card
    with safe_open(out / "model.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["method"] == method and json.loads(facts["config"])["width"] == 0.05
    assert f"T {objective.downstream().spec.frames}," in facts["clip"] and facts["code"].startswith(
        "slipstream"
    )


def test_the_metadata_names_the_values_that_the_network_is_fed(tmp_path: Path) -> None:
    said = {}
    for name, config in {"rgb": {}, "bgr": {"levels": "bgr-255"}}.items():
        said[name] = metadata(trained(tmp_path / name, "pace", **SMALL["pace"], **config))["input"]
    flow = objectives.get("memdpc").Config(**SMALL["memdpc"], modality="flow")
    levels = replace(objectives.get("memdpc").view_spec(flow), levels="bgr-imagenet")
    assert "(128, v, u)" in normalisation(levels) and "0.485" in normalisation(levels)
    assert said == {
        "rgb": "RGB, 0–1, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)",
        "bgr": "BGR, 0–255",
    }


@pytest.mark.parametrize(
    ("method", "config", "to", "said"),
    [
        ("pace", SMALL["pace"], "torchvision", "r3d of width 0.05"),
        ("dpc", SMALL["dpc"], "timm", "resnet18 of width 0.05"),
        ("tcp", SMALL["tcp"], "timm", "resnet18 of width 0.05"),
        ("pace", SMALL["pace"], "authors", "contrastive term|at width 1"),
        ("tcp", SMALL["tcp"], "authors", "no layout of theirs is known"),
    ],
)
def test_what_a_format_cannot_hold_is_one_line(
    method: str, config: dict, to: str, said: str, tmp_path: Path
) -> None:
    trained(tmp_path / "run", method, **config)
    with pytest.raises(InputError, match=said) as caught:
        export(tmp_path / "run", to)
    assert "\n" not in str(caught.value) and not (tmp_path / "run-out").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    trained(tmp_path / "run", "dpc", **SMALL["dpc"])
    (tmp_path / "run-out").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export(tmp_path / "run", "authors")
    assert (tmp_path / "run-out").read_text() == "mine"
