"""Every recipe is run by bash with an `accelerate` that only notes its arguments; train.py's parser then takes them.

So is every command of docs/papers, or its tool's parser takes it.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from accelerate.commands.launch import launch_command_parser

import evaluate
import objectives
from objectives.command import config_of, parse
from shards import InputError
from training.settings import Settings

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*/*.sh"))
PAPERS = ("dpc", "memdpc", "pace", "tcp", "vdim")  # whose recipes this project keeps; a new method needs none
SMALL = {  # steps, videos a step, and the method's flags that differ from --small: the runs that benchmarks/ reports
    "dpc": (3000, 8, {"curriculum": (2000,)}),
    "memdpc": (14_000, 8, {}),
    "tcp": (4000, 16, {}),
    "pace": (5000, 8, {}),
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
    assert settings.data == ((Path("data/some set"),) if recipe in NEEDS_DATA else None)
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


# The pages of docs/papers: a table row for every row of the papers, whose commands are code.

PAGES = sorted(ROOT.glob("docs/papers/*.md"))
ROWS = [
    (page.stem, cells[2])
    for page in PAGES
    for line in page.read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    and cells[0] not in ("row", "---")
]
COMMANDS = sorted({command for page in PAGES for command in re.findall(r"`([^`]+)`", page.read_text())})
COMMANDS = [
    command
    for command in COMMANDS
    if re.match(r"recipes/|tools/|evaluate\.py ", command) and re.search(r" --| data/", command)
]


def arguments_of(tool: str) -> type:
    spec = importlib.util.spec_from_file_location(tool, ROOT / f"tools/{tool}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[tool] = module
    spec.loader.exec_module(module)
    return module.Arguments  # type: ignore[no-any-return]


def check_evaluation(argv: list[str]) -> None:
    """evaluate.py's parser and its checks take the command, and so does the objective of random:NAME its flags."""
    settings: Any = evaluate.PROTOCOLS[argv[0]][0]
    parsed = tyro.cli(settings, args=argv[1:])
    parsed.check()
    spec = getattr(parsed, "checkpoint", "")
    if spec.startswith("random:"):
        name, *flags = shlex.split(spec.removeprefix("random:"))
        config_of(objectives.get(name), objectives.get(name).Config(), flags, "--checkpoint random:")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_papers_pages_is_one_that_its_tool_takes(command: str, launched) -> None:
    tool, *argv = shlex.split(command)
    if tool == "evaluate.py":
        check_evaluation(argv)
    elif tool == "recipes/vdim_ablation.sh":
        assert len(argv) == 2
    elif tool.startswith("recipes/"):
        launch = launched(ROOT / tool, *argv)
        settings, config = parse(launch.training_script_args, Settings, None, "train.py")
        objectives.get(settings.objective).view_spec(config)
    else:
        tyro.cli(arguments_of(Path(tool).stem), args=argv)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_papers_page_counts_its_rows(page: Path) -> None:
    commands = [
        bool(re.search(r"`(recipes|evaluate|tools)", cell)) for name, cell in ROWS if name == page.stem
    ]
    with_one, without = sum(commands), len(commands) - sum(commands)
    assert f"\n{with_one} rows with a command, {without} without.\n" in page.read_text()
    assert page.stem in PAPERS and with_one > 10


def test_the_ablations_script_is_sound() -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "recipes/vdim_ablation.sh")], capture_output=True)
    assert done.returncode == 0 and len(ROWS) > 100
