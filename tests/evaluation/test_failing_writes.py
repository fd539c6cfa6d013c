"""A disk that fails at the k-th write, for every k: one line, nothing lost, and the same command goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from failing import every_failure

import evaluate
from tests.evaluation.rendered import Video, write_set
from tests.tools.test_export import tool as export


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, three videos each for training and one for tests."""
    videos = [Video(label, part, 6) for label in (0, 1) for part in ("train", "train", "train", "test")]
    return write_set(tmp_path_factory.mktemp("few") / "colours", videos)


@pytest.fixture
def evaluated(run: Path, few: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of an evaluation of the tiny run, into OUT, that keeps its features below CACHE."""

    def words(protocol: str, *flags: object) -> list[str]:
        where = ("--output", tmp_path / "out", "--cache", tmp_path / "cache")
        common = ("--checkpoint", run, "--data", few, "--device", "cpu", "--threads", 1, "--seeds", 1)
        return [protocol, *map(str, (*common, *where, "--windows", 1, *flags))]

    return words


@pytest.mark.parametrize(
    ("protocol", "flags", "least"),
    [
        ("linear", ("--no-baselines",), 30),
        ("retrieval", ("--no-baselines",), 30),
        ("finetune", ("--no-baselines", "--steps", 1, "--train-batch-size", 3, "--resume"), 60),
    ],
)
def test_an_evaluation(
    evaluated, tmp_path: Path, monkeypatch, capfd, protocol: str, flags: tuple, least: int
) -> None:
    out, cache, kept = tmp_path / "out", tmp_path / "cache", tmp_path / "kept"
    command = evaluated(protocol, *flags)
    run_it = lambda: evaluate.ended(evaluate.main, command)  # noqa: E731
    assert run_it() == 0
    names = [name for name in ("result.json", "predictions.npz", "features.npz") if (out / name).exists()]
    kept.mkdir()
    for name in names:
        shutil.copy(out / name, kept)
    expected = read_all(out, names)

    def begin() -> None:
        for folder in (out, cache):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, out)  # an earlier evaluation's

    def check(k: int, complete: bool, again: bool) -> None:
        assert read_all(out, names) == expected, k

    stride = 3 if protocol == "finetune" else 1
    count = every_failure(run_it, begin, check, 2, monkeypatch, capfd, again_every=5, stride=stride)
    print(f"{protocol}: {count} operations, every {stride}. made to fail")
    assert count > least


def read_all(folder: Path, names: list[str]) -> dict[str, object]:
    """The content of results; a part of one cannot be read."""
    found: dict[str, object] = {"scores": json.loads((folder / "result.json").read_text())["evaluated"]}
    for name in names[1:]:
        with np.load(folder / name) as arrays:
            found |= {f"{name} {one}": arrays[one].tobytes() for one in arrays.files}
    return found


@pytest.mark.parametrize("protocol", ["report", "table", "embed"])
def test_pages_tables_and_features(evaluated, tmp_path: Path, monkeypatch, capfd, protocol: str) -> None:
    made = tmp_path / "made"
    files = {
        "report": {"--html": "page.html"},
        "table": {"--markdown": "t.md", "--csv": "t.csv", "--latex": "t.tex", "--json": "t.json"},
        "embed": {"--to": "x.npy"},
    }[protocol]
    flags = [str(word) for flag, name in files.items() for word in (flag, made / name)]
    if protocol == "embed":
        command = [word for word in evaluated("embed", *flags)]
        place = command.index("--output")
        del command[place : place + 2]
    else:
        assert evaluate.ended(evaluate.main, evaluated("linear", "--no-baselines")) == 0
        command = [protocol, "--results", str(tmp_path / "out"), *flags]
    run_it = lambda: evaluate.ended(evaluate.main, command)  # noqa: E731
    assert run_it() == 0
    whole = {path.name: path.read_bytes() for path in made.iterdir()}

    def begin() -> None:
        shutil.rmtree(made, ignore_errors=True)

    def check(k: int, complete: bool, again: bool) -> None:
        there = {path.name: path.read_bytes() for path in made.iterdir()} if made.exists() else {}
        assert there == whole if complete else there.items() <= whole.items(), k

    count = every_failure(run_it, begin, check, 2, monkeypatch, capfd, again_every=3)
    print(f"{protocol}: {count} operations, each made to fail")
    assert count >= 4


@pytest.mark.parametrize("to", ["hf", "authors"])
def test_an_export(run: Path, tmp_path: Path, monkeypatch, capfd, to: str) -> None:
    out = tmp_path / "made" / "exported"

    def command() -> int:
        if out.exists():  # it came through after all
            return 0
        with export.one_line():
            export.main(export.Arguments(run, to, out))
        return 0

    def status() -> int:
        try:
            return command()
        except SystemExit as end:
            return int(end.code or 0)

    def content() -> dict[str, bytes]:
        parts = out.rglob("*") if out.is_dir() else [out]
        return {str(path.relative_to(out)): path.read_bytes() for path in parts if path.is_file()}

    assert status() == 0
    whole = content()

    def begin() -> None:
        shutil.rmtree(tmp_path / "made")

    def check(k: int, complete: bool, again: bool) -> None:
        assert content() == whole if complete else content() in ({}, whole), k  # there whole, or not at all

    count = every_failure(status, begin, check, 2, monkeypatch, capfd)
    print(f"export --to {to}: {count} operations, each made to fail")
    assert count > 5
