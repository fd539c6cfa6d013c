"""A command runs the code of the checkout that it lies in, whichever checkout is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "evaluation", "models", "objectives", "pipelines", "shards", "training")
COMMANDS = sorted(
    str(file.relative_to(ROOT))
    for file in [*ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")]
    if '__name__ == "__main__"' in file.read_text()
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose packages end whoever imports them, saying that they are the copy."""
    root = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("raise SystemExit('the copy')\n")
    for command in COMMANDS:
        (root / command).parent.mkdir(exist_ok=True)
        lines = (ROOT / command).read_text().splitlines()
        # what comes from elsewhere takes seconds to import, and is the same in every checkout
        foreign = ("import torch", "import matplotlib", "import sklearn", "from torch", "from sklearn")
        (root / command).write_text("\n".join(line for line in lines if not line.startswith(foreign)))
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_its_own_checkout(copy: Path, tmp_path: Path, command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, copy / command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.strip()) == (1, "the copy")


def test_commands_run_as_their_pages_type_them() -> None:
    assert [command for command in COMMANDS if not os.access(ROOT / command, os.X_OK)] == []


def test_all_commands_are_looked_at() -> None:
    assert {"train.py", "evaluate.py", "tools/make_shards.py", "benchmarks/gpu_day.py"} <= set(COMMANDS)
