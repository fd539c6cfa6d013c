"""The wheel, installed outside a checkout, without DALI, beside somebody else's `evaluate`."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from shards import demo

ROOT = Path(__file__).parents[1]
NOT_BUILT = ("tests", "docs", "results", "*.egg-info", "__pycache__", "data", "runs", "dist")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves its folders where it runs."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_BUILT, ".*"))
    shutil.rmtree(source / "build", ignore_errors=True)
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "-w", out]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, source], check=True)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, our packages without the checkout's own, no DALI, and an `evaluate`."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-deps"]
    subprocess.run([*command, "--no-index", "--disable-pip-version-check", wheel], check=True)
    # a path in a .pth file is searched, but the .pth files in it (an editable install's) are not read
    (site / "packages.pth").write_text(
        f"import sys; sys.modules['nvidia.dali'] = None\n{sysconfig.get_path('purelib')}\n"
    )
    (site / "evaluate").mkdir()
    (site / "evaluate/__init__.py").write_text("WHOSE = 'Hugging Face'\n")
    return folder


def run(installed: Path, cwd: Path, *argv: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "SLIPSTREAM_CACHE": str(cwd / "cache"),
    }
    command = [str(installed / "bin" / str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_it_holds_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"slipstream"}
    inside = {name.removeprefix("slipstream/") for name in names}
    packages = ("shards", "pipelines", "models", "objectives", "training", "evaluation", "tools")
    built = [str(path.relative_to(ROOT)) for folder in packages for path in (ROOT / folder).rglob("*.py")]
    assert inside >= {*built, "train.py", "evaluate.py", "__main__.py", "api.py"} and len(built) > 80


def test_make_train_and_evaluate_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    rendered = demo.render(tmp_path / "demo", clips_per_class=(2, 1), frames=20)
    from shards import Dataset

    dataset = Dataset(rendered)
    for row, (split, label) in enumerate(zip(dataset.column("split"), dataset.column("label"), strict=True)):
        file = tmp_path / "clips" / split / dataset.classes[label] / f"{row}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dataset.read(row))
    said = run(installed, tmp_path, "slipstream", "make-shards", "clips", "--workers", 2)
    assert f"{len(dataset)} videos" in said and (tmp_path / "data/clips/samples.parquet").is_file()
    train = [
        "train",
        "--objective",
        "pace",
        "--small",
        "--steps",
        3,
        "--data",
        "clips",  # which makes the shards itself, in the cache
        "--split",
        "train",
    ]
    run(
        installed, tmp_path, "slipstream", *train, "--batch-size", 2, "--width", 0.05, "--output", "runs/pace"
    )
    assert (tmp_path / "runs/pace/encoder.safetensors").is_file()
    said = run(
        installed, tmp_path, "slipstream", "evaluate", "linear", "--checkpoint", "runs/pace", "--data", "data/clips",
        "--windows", 1, "--no-baselines",
    )  # fmt: skip
    assert "test videos evaluated" in said
    code = f"""
import evaluate, slipstream, sys
assert evaluate.WHOSE == 'Hugging Face' and {str(installed)!r} in slipstream.__file__
model = slipstream.load('runs/pace')
print(model.embed_videos([{str(file)!r}]).shape)
assert 'evaluate' in sys.modules and not {{'shards', 'models', 'training', 'train'}} & sys.modules.keys()
"""
    assert run(installed, tmp_path, "python", "-c", code).strip() == f"(1, {26})"


def test_its_messages_name_its_own_commands(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, "slipstream", "make-shards", "--help")
    assert "slipstream make-shards ~/ucf101" in said and "tools/" not in said and ".py" not in said
