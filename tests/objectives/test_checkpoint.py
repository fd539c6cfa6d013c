"""Checkpoints come back as they were, and what is not one is refused in a line."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from vdim_reference import random_views, tiny

import objectives
from objectives import checkpoint
from objectives.vdim import VDIM
from shards import InputError
from training.state import last_whole, prune


@pytest.fixture(scope="module")
def trained() -> VDIM:
    """Weights off their initial values, running statistics that are not 0 and 1."""
    objective = tiny(antecedents=(6, 8), warmup_steps=3)
    with torch.no_grad():
        objective({"views": random_views(2, 3)})
    return objective.eval()


def write(run: Path, objective: VDIM, step: int) -> Path:
    directory = run / "checkpoints" / f"step-{step:08d}"
    with checkpoint.written(directory, objective, {"steps": step}):
        pass
    return directory


@pytest.fixture
def saved(trained: VDIM, tmp_path: Path) -> Path:
    return write(tmp_path / "run", trained, 200)


@torch.no_grad()
def test_a_loaded_objective_embeds_as_the_saved_one(trained: VDIM, saved: Path) -> None:
    views = random_views(1, 2, seed=3)
    expected = trained.embed(views)
    for place in (saved, str(saved), saved.parents[1]):
        loaded = objectives.load(place)
        assert type(loaded) is VDIM and loaded.config == trained.config and not loaded.training
        assert torch.equal(loaded.embed(views), expected)


@torch.no_grad()
def test_a_run_loads_its_newest_checkpoint(trained: VDIM, saved: Path) -> None:
    run = saved.parents[1]
    later = tiny(shaken=False)
    write(run, later, 1000)
    write(run, trained, 300)
    assert checkpoint.newest(run) == run / "checkpoints/step-00001000"
    assert objectives.load(run).config == later.config


def test_every_tensor_comes_back_bit_for_bit(trained: VDIM, saved: Path) -> None:
    loaded = objectives.load(saved).state_dict()
    assert list(loaded) == list(trained.state_dict())
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype, name


def refused(place: Path, *named: str) -> None:
    with pytest.raises(InputError) as caught:
        objectives.load(place)
    message = str(caught.value)
    assert "\n" not in message and str(place) in message, message
    assert all(name in message for name in named), message


def test_a_missing_tensor_is_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["encoder.blocks.1.spatial.weight"]
    save_file(tensors, saved / "model.safetensors")
    refused(saved, "encoder.blocks.1.spatial.weight")


def test_an_extra_tensor_is_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors | {"not.of.ours": torch.zeros(1)}, saved / "model.safetensors")
    refused(saved, "not.of.ours")


def test_a_tensor_of_another_size_is_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors | {"encoder.norm.weight": torch.zeros(3)}, saved / "model.safetensors")
    refused(saved, "encoder.norm.weight")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(saved, "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"objective": "vdim", ',
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"objective": "vdim"}',
        b'{"objective": "vdim", "config": null}',
        b'{"objective": "vdim", "config": {"no_such_option": 1}}',
        b'{"objective": "vdim", "config": {"width": "wide"}}',
        b'{"objective": "vdim", "config": {"width": -1}}',
        b'{"objective": "nope", "config": {}}',
    ],
    ids=repr,
)
def test_a_broken_config_is_refused(saved: Path, content: bytes) -> None:
    (saved / "config.json").write_bytes(content)
    refused(saved, "config.json")


def test_a_missing_config_is_refused(saved: Path) -> None:
    (saved / "config.json").unlink()
    refused(saved, "config.json")


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path)
    refused(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    refused(tmp_path)


def test_half_a_checkpoint_is_never_found(trained: VDIM, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert checkpoint.newest(run) is None
    directory = run / "checkpoints" / "step-00000400"
    with checkpoint.written(directory, trained, {}) as aside:
        assert aside.name.endswith(".part") and checkpoint.newest(run) is None
        refused(run)
        older = write(run, trained, 200)
        assert checkpoint.newest(run) == older
    assert checkpoint.newest(run) == directory
    assert not list((run / "checkpoints").glob("*.part")) and not aside.exists()


def test_beginning_again_forgets_what_an_interrupted_run_left(trained: VDIM, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints" / "step-00000001"
    left = directory.with_name(f".{directory.name}.part")
    left.mkdir(parents=True)
    (left / "left over").write_text("")
    for name in ("new", "newer"):
        with checkpoint.written(directory, trained, {}) as aside:
            (aside / name).write_text("2")
        assert {path.name for path in directory.iterdir()} == {
            name,
            "config.json",
            "model.safetensors",
            "files.json",
        }


@pytest.mark.parametrize("harm", ["cut", "gone", "unlisted", "changed"])
def test_a_damaged_checkpoint_is_skipped(trained: VDIM, tmp_path: Path, harm: str) -> None:
    older, newer = (write(tmp_path / "run", trained, step) for step in (200, 300))
    if harm == "cut":
        os.truncate(newer / "model.safetensors", 1000)
    elif harm == "changed":
        content = (newer / "model.safetensors").read_bytes()
        (newer / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (newer / ("model.safetensors" if harm == "gone" else "files.json")).unlink()
    assert checkpoint.newest(tmp_path / "run") == older
    (older / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"none of its checkpoints is whole .*config.json has 2 bytes"):
        checkpoint.newest(tmp_path / "run")
    assert last_whole(tmp_path / "run") is None


def test_whole_checkpoints_are_kept_and_broken_ones_do_not_count(trained: VDIM, tmp_path: Path) -> None:
    """Of eight, numbers 3, 5 and 8 are broken: the newest three whole ones are 7, 6 and 4."""
    made = [write(tmp_path / "run", trained, step) for step in range(1, 9)]
    for number in (3, 5, 8):
        os.truncate(made[number - 1] / "model.safetensors", 1000)
    prune(tmp_path / "run", 3)
    left = sorted(int(path.name[-2:]) for path in (tmp_path / "run/checkpoints").iterdir())
    assert left == [4, 5, 6, 7, 8]
    prune(tmp_path / "run", 9)
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 5


@torch.no_grad()
def test_averaged_weights_are_preferred(trained: VDIM, tmp_path: Path) -> None:
    directory = write(tmp_path / "run", trained, 200)
    average = tiny(antecedents=(6, 8), warmup_steps=3, shaken=False)
    checkpoint.save_weights(directory / "ema.safetensors", average)
    for name, value in objectives.load(directory).state_dict().items():
        assert torch.equal(value, average.state_dict()[name]), name


def test_nothing_in_a_checkpoint_is_a_pickle(saved: Path) -> None:
    files = list(saved.iterdir())
    assert {"config.json", "model.safetensors", "files.json"} == {path.name for path in files}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                list(opened.keys())
        else:
            json.loads(path.read_text())


def test_config_json_describes_the_run(trained: VDIM, saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    assert content["objective"] == "vdim" and content["settings"] == {"steps": 200}
    assert content["config"]["antecedents"] == [6, 8]


def test_weights_of_equal_content_are_equal_files(tmp_path: Path) -> None:
    facts = {name: f"{name} λ" for name in "abcdefgh"}
    module = torch.nn.Linear(3, 2)
    for name in "xyz":
        checkpoint.save_weights(tmp_path / name, module, facts)
    x, y, z = ((tmp_path / name).read_bytes() for name in "xyz")
    assert x == y == z
    with safe_open(tmp_path / "x", "pt") as tensors:
        assert tensors.metadata() == facts
    again = torch.nn.Linear(3, 2)
    checkpoint.load_weights(tmp_path / "x", again)
    assert torch.equal(again.weight, module.weight) and torch.equal(again.bias, module.bias)
