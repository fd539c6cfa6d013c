"""A method is one file: docs/guides/extend.md's SimCLR, and a VICReg without top-1, in a copy of the checkout.

No other file of the copy is touched. What is run there are the commands and tests that a user has.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shards import demo

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "benchmarks",
    "shards",
    "pipelines",
    "models",
    "objectives",
    "training",
    "evaluation",
    "tools",
    "tests",
)
FILES = ("train.py", "evaluate.py", "pyproject.toml")


def simclr() -> str:
    """The code block of docs/guides/extend.md."""
    page = (ROOT / "docs" / "guides" / "extend.md").read_text()
    (block,) = re.findall(r"```python\n(# objectives/simclr\.py\n.*?)```", page, re.DOTALL)
    return block


def checkout(folder: Path, **methods: str) -> Path:
    """A copy of this checkout's packages, and beside its methods these, in place of any that are called so already."""
    left_out = shutil.ignore_patterns(".*")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    for name, source in methods.items():
        (folder / "objectives" / f"{name}.py").write_text(source)
    return folder


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": str(folder), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=900,
    )


def train(folder: Path, data: Path, name: str, *flags: object) -> tuple[str, list[dict]]:
    """What train.py said, and its lines of metrics."""
    common = ("--small", "--device", "cpu", "--data", data, "--batch-size", 4, "--log-every", 1)
    done = command(folder, "train.py", "--objective", name, *common, "--output", folder / "run", *flags)
    assert done.returncode == 0, done.stderr
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return done.stdout + done.stderr, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.render(tmp_path_factory.mktemp("data") / "set", clips_per_class=(2, 1), frames=40, workers=2)


def test_the_worked_simclr_trains(data: Path, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", simclr=simclr())
    said, lines = train(folder, data, "simclr", "--steps", 3)
    assert [line["step"] for line in lines] == [1, 2, 3] and all(0 <= line["top1"] <= 1 for line in lines)
    assert all(line["chance"] == pytest.approx(1 / 7) for line in lines)  # one of the seven other clips
    assert (
        re.search(r"loss \d\.\d+, top-1 \d\.\d+ \(\d\.\d × chance\)", said) and "encoder.safetensors" in said
    )


def test_every_test_of_a_method_knows_the_worked_simclr(tmp_path: Path) -> None:
    """What promises are tested for all methods hold for one that is only a file; a few, for time, are run here."""
    folder = checkout(tmp_path / "checkout", simclr=simclr())
    few = "test_it_embeds or test_its_recipes or test_its_gpu or test_no_fixed or fine_tuning_sees"
    files = (
        "tests/training/test_every_objective.py",
        "tests/shards/build/test_made_for.py",
        "tests/evaluation/test_finetune.py",
    )
    done = command(
        folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"simclr and ({few})", *files
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout, done.stdout


def test_the_page_passes_the_linter(tmp_path: Path) -> None:
    (tmp_path / "simclr.py").write_text(simclr())
    for check in (("check",), ("format", "--check", "--diff")):
        flags = ("--config", ROOT / "pyproject.toml", tmp_path / "simclr.py")
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *map(str, flags)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_method_without_top1_trains_validates_resumes_and_is_recorded(data: Path, tmp_path: Path) -> None:
    source = Path(__file__).with_name("vicreg.py").read_text()
    folder = checkout(tmp_path / "checkout", vicreg=source)
    flags = ("--split", "train", "--val-split", "test", "--val-every", 1)
    train(folder, data, "vicreg", "--steps", 1, *flags)
    said, lines = train(folder, data, "vicreg", "--steps", 2, *flags, "--resume")
    wanted = {"loss", "invariance", "variance", "covariance", "val_loss", "val_variance"}
    assert [line["step"] for line in lines] == [1, 2] and all(wanted <= line.keys() for line in lines)
    assert not any(re.search("top1|chance", name) for line in lines for name in line)
    last = lines[-1]
    total = 25 * last["invariance"] + 25 * last["variance"] + last["covariance"]
    assert last["loss"] == pytest.approx(total, rel=1e-5)
    assert f"loss {last['loss']:.3f}\n" in said and "top-1" not in said
    for tool in (
        ("benchmarks/record_run.py", "run", "--command", "train.py", "--out", "kept/vicreg"),
        ("tools/show_batch.py", "--objective", "vicreg", "--small", "--data", data, "--device", "cpu"),
    ):
        done = command(folder, *tool)
        assert done.returncode == 0, done.stderr
    assert (folder / "kept" / "vicreg.png").stat().st_size > 0


def test_two_methods_of_one_name_and_one_that_lacks_something_are_named(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", simclr=simclr(), again=simclr())
    done = command(folder, "train.py", "--objective", "simclr")
    assert done.returncode == 2 and done.stderr.startswith("error: objectives."), done.stderr
    assert "are both called simclr" in done.stderr and len(done.stderr.splitlines()) == 1
    (folder / "objectives" / "again.py").write_text(
        simclr().replace('"simclr"', '"again"').replace("def embed(", "def embedded(")
    )
    done = command(folder, "train.py", "--objective", "again")
    assert done.returncode == 2 and "objectives.again.SimCLR: lacks embed" in done.stderr, done.stderr
