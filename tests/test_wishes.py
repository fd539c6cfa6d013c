"""docs/notes/wishes.md: every test that it names exists, every command is one that its tool takes, and it counts right."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import tyro

from objectives.command import parse
from tests.test_recipes import arguments_of, check_evaluation
from training.settings import Settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/notes/wishes.md").read_text()
WISHES = re.findall(r"^\| (\d+) \| (.+) \| (answered|partly: .+|not: .+) \| (.*?) ?\|$", PAGE, re.M)
SHOWN = [(number, shown) for number, _, _, cell in WISHES for shown in re.findall(r"`([^`]+)`", cell)]
TOOLS_WITH_OBJECTIVE = ("show_batch", "bench_loader")


def test_there_are_forty_and_the_numbers_are_right() -> None:
    assert [int(number) for number, *_ in WISHES] == list(range(1, 41))
    counts = {
        state: sum(one[2].startswith(state) for one in WISHES) for state in ("answered", "partly", "not")
    }
    assert ", ".join(f"{count} {state}" for state, count in counts.items()) in PAGE
    for number, _, state, shown in WISHES:
        assert state.startswith("not") or "`" in shown, f"wish {number} is shown by nothing"
    assert len(set(re.findall(r"https://github\.com/\S+/\d+", PAGE))) >= 15


@pytest.mark.parametrize("number, shown", SHOWN)
def test_what_shows_a_wish_is_there(number: str, shown: str) -> None:
    if "::" in shown:
        path, name = shown.split("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, shown
        return
    command, *argv = shlex.split(shown)
    if command == "make":
        assert re.search(rf"^{argv[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif command == "evaluate.py":
        check_evaluation(argv)
    elif command == "train.py":
        parse(argv, Settings, None, command)
    elif (tool := Path(command).stem) in TOOLS_WITH_OBJECTIVE:
        module = __import__(f"tools.{tool}", fromlist=["Settings"])
        parse(argv, module.Settings, None, command)
    else:
        tyro.cli(arguments_of(tool), args=argv)
