"""Checkpoints in the layout of DPC's and MemDPC's authors: in, out and in again, or refused with the reason.

The layout is written out here from the authors' modules, with random weights; nothing of ours makes it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import objectives
from models.dpc import ResNet2d3d
from objectives.dpc import DPC, DPCConfig
from objectives.families import family
from objectives.formats import write_file
from objectives.memdpc import MemDPC, MemDPCConfig
from pipelines.sampling import sample_params
from shards import InputError

ROOT = Path(__file__).parents[2]
D, K = 16, 12  # channels of the last stage at width 1/16; memories
STAGES = ((1, 4, 4), (2, 4, 8), (3, 8, 16), (4, 16, 16))  # number, channels in and out


def released(
    method: str, *, statistics: bool, prefix: str = "module.", blocks: tuple = (2, 2, 2, 2)
) -> dict[str, Tensor]:
    """A state_dict as nn.DataParallel of the authors' module gives it."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[prefix + name] = torch.randn(shape, generator=generator)

    def norm(name: str, channels: int) -> None:
        put(f"{name}.weight", channels)
        put(f"{name}.bias", channels)
        if statistics:
            put(f"{name}.running_mean", channels)
            state[f"{prefix}{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
            state[f"{prefix}{name}.num_batches_tracked"] = torch.tensor(7)

    if method == "memdpc":
        put("mb", K, D)
    put("backbone.conv1.weight", 4, 3, 1, 7, 7)
    norm("backbone.bn1", 4)
    for (stage, inputs, outputs), count in zip(STAGES, blocks, strict=True):
        kernel = (3, 3, 3) if stage > 2 else (1, 3, 3)
        for block in range(count):
            name, first = f"backbone.layer{stage}.{block}", inputs if block == 0 else outputs
            put(f"{name}.conv1.weight", outputs, first, *kernel)
            norm(f"{name}.bn1", outputs)
            put(f"{name}.conv2.weight", outputs, outputs, *kernel)
            norm(f"{name}.bn2", outputs)
            if block == 0 and stage > 1:
                put(f"{name}.downsample.0.weight", outputs, inputs, 1, 1, 1)
                norm(f"{name}.downsample.1", outputs)
    for gru in ("agg",) if method == "dpc" else ("agg_f", "agg_b"):
        for gate in ("reset_gate", "update_gate", "out_gate"):
            put(f"{gru}.ConvGRUCell_00.{gate}.weight", D, 2 * D, 1, 1)
            put(f"{gru}.ConvGRUCell_00.{gate}.bias", D)
            for part in ("weight", "bias"):
                cell = state[f"{prefix}{gru}.ConvGRUCell_00.{gate}.{part}"]
                state[f"{prefix}{gru}.cell_list.0.{gate}.{part}"] = cell
    for layer, outputs in ((0, D), (2, K if method == "memdpc" else D)):
        put(f"network_pred.{layer}.weight", outputs, D, 1, 1)
        put(f"network_pred.{layer}.bias", outputs)
    return state


def save(path: Path, state: dict[str, Tensor], *, old: bool = False, **more: object) -> Path:
    """What the authors' loops save; `old`: in the format of the torch they used."""
    content = {
        "epoch": 3,
        "net": "resnet18",
        "best_acc": np.float64(0.5),
        "iteration": 9,
        "state_dict": state,
    }
    content["optimizer"] = {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save(content | more, path, _use_new_zipfile_serialization=not old)
    return path


def tool(name: str, *argv: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def in_process(name: str) -> ModuleType:
    """The tool as a module: each start of a process costs seconds."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


importer, exporter = in_process("import_checkpoint"), in_process("export")


def run_import(method: str, file: Path, out: Path, **more: Any) -> None:
    importer.main(importer.Arguments(method, file, out, **more))


CASES = [("dpc", False, True), ("memdpc", True, False)]


@pytest.mark.parametrize(("method", "statistics", "old"), CASES)
def test_import_export_import_gives_identical_tensors(
    method: str, statistics: bool, old: bool, tmp_path: Path
) -> None:
    state = released(method, statistics=statistics, prefix="" if method == "memdpc" else "module.")
    file = save(tmp_path / "theirs.pth.tar", state, old=old)
    done = tool("import_checkpoint.py", method, file, "--out", tmp_path / "first")
    assert done.returncode == 0 and f"{len(state)} tensors, all placed" in done.stdout, done.stderr
    exporter.main(exporter.Arguments(tmp_path / "first", "authors", tmp_path / "ours.pth.tar"))
    again = torch.load(tmp_path / "ours.pth.tar", weights_only=True)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    run_import(method, tmp_path / "ours.pth.tar", tmp_path / "second")
    first, second = (objectives.load(tmp_path / name) for name in ("first", "second"))
    assert first.config == second.config and not first.training
    ours = second.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in first.state_dict().items())


def test_each_tensor_is_where_it_belongs(tmp_path: Path) -> None:
    state = released("memdpc", statistics=True, prefix="")  # saved without nn.DataParallel
    run_import("memdpc", save(tmp_path / "file.pth.tar", state), tmp_path / "out")
    objective = objectives.load(tmp_path / "out")
    config = objective.config
    assert (config.network, config.width, config.memory_size, config.norm) == ("resnet18", 1 / 16, K, "batch")
    for ours, theirs in {
        "memory.slots": "mb",
        "aggregators.forwards.reset_gate.weight": "agg_f.ConvGRUCell_00.reset_gate.weight",
        "aggregators.backwards.out_gate.bias": "agg_b.cell_list.0.out_gate.bias",
        "phi.2.bias": "network_pred.2.bias",
        "encoder.layer3.0.downsample.1.running_var": "backbone.layer3.0.downsample.1.running_var",
    }.items():
        assert torch.equal(objective.state_dict()[ours], state[theirs]), ours
    origin = json.loads((tmp_path / "out/config.json").read_text())["settings"]
    assert origin["imported"] == "memdpc" and origin["facts"] == {
        "epoch": 3,
        "net": "resnet18",
        "iteration": 9,
    }


class TheirGRU(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        cell = nn.Module()
        for gate in ("reset_gate", "update_gate", "out_gate"):
            cell.add_module(gate, nn.Conv2d(inputs + hidden, hidden, 1))
        self.ConvGRUCell_00 = cell
        self.cell_list = nn.ModuleList([cell])


class TheirMemDPC(nn.Module):
    """The authors' MemDPC_BD by its modules' names: nothing in front of them, and mb a parameter."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.backbone = ResNet2d3d(18, width)  # ours has their names within
        self.agg_f, self.agg_b = TheirGRU(D, D), TheirGRU(D, D)
        self.network_pred = nn.Sequential(nn.Conv2d(D, D, 1), nn.ReLU(), nn.Conv2d(D, K, 1))
        self.mb = nn.Parameter(torch.randn(K, D))


def test_an_exported_memdpc_loads_completely_into_the_authors_network(tmp_path: Path) -> None:
    objective = MemDPC(MemDPCConfig(width=1 / 16, size=64, memory_size=K))
    write_file(tmp_path / "ours.pth.tar", family("memdpc").tensors(objective))
    state = torch.load(tmp_path / "ours.pth.tar", weights_only=True)["state_dict"]
    theirs = TheirMemDPC(1 / 16)
    theirs.load_state_dict(state, strict=True)
    assert torch.equal(theirs.mb, objective.memory.slots)
    backwards = objective.aggregators["backwards"].out_gate.weight
    assert torch.equal(theirs.agg_b.cell_list[0].out_gate.weight, backwards)


def test_an_imported_flow_network_is_fed_as_its_authors_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(128, v, u), normalised as for ImageNet: their images are read in the order blue, green, red."""
    file = save(tmp_path / "file.pth.tar", released("memdpc", statistics=True, prefix=""))
    run_import("memdpc", file, tmp_path / "out", modality="flow")
    assert "(128, v, u)" in capsys.readouterr().out
    spec = objectives.load(tmp_path / "out").downstream().spec
    ones = np.ones(1, dtype=np.int64)
    params = sample_params(spec, 0 * ones, 200 * ones, 256 * ones, 256 * ones, seed=0, epoch=0)
    u, v = 10.0, 200.0
    fed = params.colours[0, 0, 0] @ [u, v, 1]
    expected = (np.array([127.5, v, u]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(fed, expected, rtol=1e-4)
    with pytest.raises(InputError, match="--modality flow"):
        run_import("dpc", file, tmp_path / "other", modality="flow")


def test_no_running_statistics_means_the_batchs_own_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = released("dpc", statistics=False, blocks=(3, 4, 6, 3))
    run_import("dpc", save(tmp_path / "file.pth.tar", state), tmp_path / "out")
    assert "no running statistics" in capsys.readouterr().out
    objective = objectives.load(tmp_path / "out")
    assert objective.config.norm == "batch-statistics"
    assert (objective.config.network, objective.config.size) == ("resnet34", 224)
    views = torch.randn(3, 1, 3, 5, 64, 64)
    assert objective.embed(views).isfinite().all()


class RunsCode:
    """Unpickled by an unguarded loader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


def refused(file: Path, out: Path, *named: str, method: str = "dpc") -> None:
    with pytest.raises(InputError) as caught:
        run_import(method, file, out)
    said = str(caught.value)
    assert not out.exists() and "\n" not in said, said
    assert all(name in said for name in (*named, str(file))), said


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """One renamed, one missing, one left over, one of another size, one cell unlike its double: all named."""
    state, out = released("dpc", statistics=False), tmp_path / "out"
    state["module.backbone.layer3.1.convX.weight"] = state.pop("module.backbone.layer3.1.conv1.weight")
    del state["module.network_pred.0.bias"]
    state["module.fc.weight"] = torch.zeros(3)
    state["module.backbone.bn1.weight"] = torch.zeros(5)
    state["module.agg.cell_list.0.out_gate.bias"] = torch.zeros(D)
    refused(
        save(tmp_path / "file.pth.tar", state),
        out,
        "backbone.layer3.1.conv1.weight is missing",
        "backbone.layer3.1.convX.weight has no place",
        "network_pred.0.bias is missing",
        "fc.weight has no place",
        "backbone.bn1.weight has the size (5,), not (4,)",
        "agg.cell_list.0.out_gate.bias differs from agg.ConvGRUCell_00.out_gate.bias",
    )


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_would_run_code_is_refused_and_does_not(old: bool, tmp_path: Path) -> None:
    trap = tmp_path / "made by the file"
    file = save(tmp_path / "file.pth.tar", released("dpc", statistics=False), old=old, args=RunsCode(trap))
    done = tool("import_checkpoint.py", "dpc", file, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, (
        done.stderr
    )
    assert "posix.mkdir" in done.stderr and not (tmp_path / "out").exists()
    assert not trap.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    state = released("dpc", statistics=False)
    whole = save(tmp_path / "whole.pth.tar", state)
    for name, content in {
        "empty": b"",
        "text": b"<html>404</html>",
        "cut": whole.read_bytes()[:5000],
    }.items():
        file = tmp_path / f"{name}.pth.tar"
        file.write_bytes(content)
        refused(file, tmp_path / "out")
    torch.save([1, 2], tmp_path / "list.pth.tar")
    refused(tmp_path / "list.pth.tar", tmp_path / "out", "a list")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth.tar")
    refused(tmp_path / "numbers.pth.tar", tmp_path / "out", "not a tensor")
    refused(tmp_path / "nowhere.pth.tar", tmp_path / "out", "no such file")
    refused(whole, tmp_path / "out", "mb is missing", method="memdpc")


def test_other_mistakes_are_one_line(tmp_path: Path) -> None:
    file = save(tmp_path / "file.pth.tar", released("dpc", statistics=False))
    with pytest.raises(InputError, match="dpc, memdpc"):
        run_import("cpc", file, tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        run_import("dpc", file, tmp_path)
    assert file.exists()
    run_import("dpc", file, tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"norm": "instance"}, {"prediction": "parallel"}, {"features": "pooled"}]
)
def test_what_the_layout_cannot_hold_is_not_exported(options: dict) -> None:
    objective = DPC(DPCConfig(width=0.05, **options))
    with pytest.raises(InputError, match=next(iter(options))):
        family("dpc").tensors(objective)
