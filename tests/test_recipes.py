"""Every recipe is run by bash with an `accelerate` that only notes its arguments; train.py's parser then takes them."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

import objectives
from objectives.command import parse
from shards import InputError
from training.settings import Settings

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*/*.sh"))
PAPERS = ("dpc", "memdpc", "pace", "tcp", "vdim")  # whose recipes this project keeps; a new method needs none
SMALL = {  # steps, videos a step, and the method's flags that differ from --small: the runs that benchmarks/ reports
    "dpc": (3000, 8, {"curriculum": (2000,)}),
    "memdpc": (14_000, 8, {}),
    "tcp": (4000, 16, {}),
    "pace": (2500, 8, {}),
    "vdim": (3000, 16, {"colour": "jitter", "downsample": 1}),
}
NEEDS_DATA = [recipe for recipe in RECIPES if recipe.stem != "small"]


@pytest.fixture
def launched(tmp_path: Path):
    """A function: recipe and its arguments → what it gave to `accelerate launch`, as accelerate reads it."""
    noting = tmp_path / "accelerate"
    noting.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    noting.chmod(0o755)

    def run(recipe: Path, *arguments: str):
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(recipe), *arguments],
            cwd=tmp_path,  # from anywhere
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        command, *rest = done.stdout.splitlines()
        assert command == "launch"
        return launch_command_parser().parse_args(rest)

    return run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_train_takes_the_flags_of_a_recipe(recipe: Path, launched) -> None:
    arguments = ["data/some set", "--seed", "7"] if recipe in NEEDS_DATA else ["--seed", "7"]
    launch = launched(recipe, *arguments)
    assert Path(launch.training_script).resolve() == ROOT / "train.py"
    settings, config = parse(launch.training_script_args, Settings, None, "train.py")
    assert settings.objective == recipe.parent.name
    assert settings.seed == 7  # the user's own flags follow
    assert settings.data == (Path("data/some set") if recipe in NEEDS_DATA else None)
    assert launch.num_processes >= 1
    method = objectives.get(settings.objective)
    assert method.view_spec(config).views >= 1
    if recipe in NEEDS_DATA:
        assert settings.split and not settings.small
        assert "--steps" in launch.training_script_args and "--batch-size" in launch.training_script_args
    elif settings.objective in SMALL:
        steps, clips, options = SMALL[settings.objective]
        assert (settings.steps, settings.batch_size) == (steps, clips)
        assert launch.cpu and (settings.small, config) == (True, replace(method.small(), **options))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_flag_given_by_the_user_overrides_the_recipes(recipe: Path, launched) -> None:
    data = ["data/set"] if recipe in NEEDS_DATA else []
    launch = launched(recipe, *data, "--steps", "3", "--batch-size", "2")
    settings, _ = parse(launch.training_script_args, Settings, None, "train.py")
    assert (settings.steps, settings.batch_size) == (3, 2)


@pytest.mark.parametrize("recipe", NEEDS_DATA, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_without_data_a_recipe_says_how_it_is_used(recipe: Path) -> None:
    done = subprocess.run(["bash", str(recipe)], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"usage: {recipe} DATA" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_every_paper_has_its_recipes_and_the_readme_names_them_all() -> None:
    named = (ROOT / "recipes" / "README.md").read_text()
    assert set(PAPERS) == set(SMALL)
    for method in PAPERS:
        assert {"paper.sh", "small.sh"} <= {path.name for path in (ROOT / "recipes" / method).iterdir()}
    for recipe in RECIPES:
        assert f"{recipe.parent.name}/{recipe.name}" in named


def test_a_wrong_flag_does_not_pass() -> None:
    """What the tests above rely on."""
    with pytest.raises((SystemExit, InputError)):
        parse(["--objective", "tcp", "--no-such-flag"], Settings, None, "train.py")
    with pytest.raises((SystemExit, InputError)):
        parse(["--objective", "tcp", "--segments", "1"], Settings, None, "train.py")
