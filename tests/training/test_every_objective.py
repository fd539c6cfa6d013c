"""What every objective inherits, at its CPU-sized settings: a new file in objectives/ is tested here as it is."""

import base64
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from nvidia.dali import Pipeline
from PIL import Image

import objectives
from models import BACKBONES
from objectives import checkpoint
from objectives.pace import Pace, PaceConfig
from pipelines.transforms.dali import define
from tests.browser import chromium
from tests.training import harness
from tests.training.harness import losses, train
from tools import show_batch

OBJECTIVES = objectives.available()
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
BATCH = ("--small", "--batch-size", 2, "--log-every", 1, "--prefetch", 1)


def flags(name: str, data: Path, out: Path, *more: object) -> tuple[object, ...]:
    warm = ("--warmup-steps", 0)  # or the first steps would hardly change a weight
    return (*BATCH, *warm, "--objective", name, "--data", data, "--output", out, *more)


@every_objective
def test_a_resumed_run_is_the_same_bit_for_bit(name, data, tmp_path) -> None:
    whole = train(*flags(name, data, tmp_path / "whole", "--steps", 2))
    assert whole.status == 0, whole.said
    for more in (("--steps", 1), ("--steps", 2, "--resume")):
        done = train(*flags(name, data, tmp_path / "run", *more))
        assert done.status == 0, done.said
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(set(losses(tmp_path / "run").values())) == 2
    last = "checkpoints/step-00000002/model.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


@every_objective
def test_two_processes_train_and_every_parameter_gets_a_gradient(name, data, tmp_path) -> None:
    """DDP raises in the second step where a parameter had none in the first."""
    for done in harness.train_together(2, *flags(name, data, tmp_path / "run", "--steps", 2)):
        assert done.status == 0, done.said
    assert list(losses(tmp_path / "run")) == [1, 2]


@every_objective
@pytest.mark.parametrize("source", ["pixels", "frames"])
def test_its_gpu_graphs_are_defined(name, source) -> None:
    """Without a GPU a graph can be defined, which checks every operator's arguments, and not be built."""
    cls = OBJECTIVES[name]
    for config in (cls.Config(), cls.small()):
        with Pipeline(4, 2, 0):
            assert define(cls.view_spec(config), source).device == "gpu"


@every_objective
@torch.no_grad()
def test_it_embeds_and_comes_back_from_a_checkpoint(name, tmp_path) -> None:
    torch.manual_seed(1)
    cls = OBJECTIVES[name]
    objective, spec = cls(cls.small()).eval(), cls.view_spec(cls.small())
    views = torch.randn(2, spec.views, spec.channels, spec.frames, spec.size, spec.size)
    features = objective.embed(views)
    assert features.shape[:2] == (2, spec.views) and features.ndim == 3 and features.isfinite().all()
    checkpoint.save_config(tmp_path, objective, {})
    checkpoint.save_weights(tmp_path / checkpoint.WEIGHTS, objective)
    loaded = objectives.load(tmp_path)
    assert type(loaded) is cls and loaded.config == cls.small()
    assert torch.equal(loaded.embed(views), features)


@every_objective
def test_its_recipes_and_schedule_are_whole(name) -> None:
    cls = OBJECTIVES[name]
    for config, recipe in ((cls.Config(), cls.recipe), (cls.small(), cls.small_recipe)):
        assert recipe.steps >= 1 and recipe.batch_size >= 1 and config.lr > 0 and config.warmup_steps >= 0
    schedule = cls(cls.small()).learning_rate
    factors = [schedule(step) for step in (0, cls.small().warmup_steps, cls.small_recipe.steps - 1)]
    assert all(0 < factor <= 1 for factor in factors) and max(factors) == pytest.approx(1, abs=0.05)


@every_objective
def test_its_batch_can_be_looked_at(name, data, tmp_path, capsys) -> None:
    small = ["--small", "--objective", name, "--data", str(data), "--device", "cpu"]
    show_batch.main([*small, "--batch-size", "2", "--out", str(tmp_path / "batch")])
    said, spec = capsys.readouterr().out, OBJECTIVES[name].view_spec(OBJECTIVES[name].small())
    assert said.count("frames ") == said.count("box ") == 2 * spec.views, said
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.size[1] >= 2 * spec.views * spec.size
    page = (tmp_path / "batch.html").read_text()
    clips = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(clips) == 2 * spec.views and "http" not in page
    assert all(f"<dt>{field.name}</dt>" in page for field in fields(spec) if field.name != "offsets")
    for number, clip in enumerate(clips):
        (tmp_path / f"{number}.webp").write_bytes(base64.b64decode(clip))
        with Image.open(tmp_path / f"{number}.webp") as opened:
            bar = max(2, round(show_batch.BAR * spec.size))
            assert opened.size == (spec.size, spec.size + bar)
            assert 1 <= getattr(opened, "n_frames", 1) <= spec.frames
    look_at(tmp_path / "batch.html", len(clips))


# Pace with each of its networks, as small as they come


def networks(backbone: str) -> tuple[object, ...]:
    width = 1 if BACKBONES[backbone].fixed else 1 / 16
    least = ("--clips", 1, "--frames", 8, "--size", 32, "--width", width)
    return ("--objective", "pace", "--small", "--backbone", backbone, *least)


# large, and of resnet2d3d_18's class; tests/objectives/test_pace.py trains it too
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "resnet2d3d_34"])
def test_pace_trains_in_two_processes_and_resumes_with_each_backbone(backbone, data, tmp_path) -> None:
    """DDP raises in the second step where a parameter had no gradient in the first."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    often = ("--steps", 2, "--checkpoint-every", 1, "--keep", 2)
    common = (*BATCH, *networks(backbone), "--warmup-steps", 0, "--data", data, *often)
    for done in harness.train_together(2, *common, "--output", whole):
        assert done.status == 0, done.said
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    for done in harness.train_together(2, *common, "--output", run, "--resume"):
        assert done.status == 0, done.said
    last = "checkpoints/step-00000002/model.safetensors"
    assert losses(run) == losses(whole) and len(set(losses(run).values())) == 2
    assert (run / last).read_bytes() == (whole / last).read_bytes()


@every_backbone
@pytest.mark.parametrize("source", ["pixels", "frames"])
def test_paces_gpu_graphs_are_defined_for_each_backbone(backbone, source) -> None:
    with Pipeline(4, 2, 0):
        assert define(Pace.view_spec(PaceConfig(backbone=backbone)), source).device == "gpu"


@every_backbone
def test_paces_batch_can_be_looked_at_for_each_backbone(backbone, data, tmp_path) -> None:
    flags = [*map(str, networks(backbone)), "--data", str(data), "--device", "cpu", "--batch-size", "1"]
    show_batch.main([*flags, "--out", str(tmp_path / "batch")])
    assert (tmp_path / "batch.html").read_text().count("data:image/webp") == 1
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.size[1] >= 32


def look_at(page: Path, clips: int) -> None:
    """Open the page in Chromium: every clip is decoded and nothing is complained about."""
    asking = page.with_name("asking.html")
    script = "console.log('widths ' + [...document.images].map(image => image.naturalWidth).join())"
    asking.write_text(page.read_text() + f"<script>addEventListener('load', () => {{ {script} }})</script>")
    done = chromium(asking, "--dump-dom")
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.returncode == 0 and len(said) == 1, done.stderr
    widths = re.search(r"widths ([\d,]+)", said[0])
    assert widths and len(widths[1].split(",")) == clips and "0" not in widths[1].split(","), said
