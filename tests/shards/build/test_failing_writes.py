"""A disk that fails at the k-th write, for every k: one line, nothing lost, and the same command goes on."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from failing import every_failure
from independent import ROOT, files, render

from shards.build import run


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro reads the annotations of its classes there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the processes is done here, on the same disk."""

    def in_order(function: Callable[[Any], Any], tasks: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
        return (function(task) for task in tasks)

    monkeypatch.setattr(run, "in_order", in_order)


def status_of(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    try:
        return module.main() or 0
    except SystemExit as end:
        return int(end.code or 0)


def test_make_shards(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    in_this_process: None,
) -> None:
    for n in range(2):
        render(tmp_path / "clips" / "ab"[n % 2] / f"{n}.avi", frames=6, size=(32, 32), seed=n)
    (tmp_path / "clips" / "a" / "broken.avi").write_bytes(b"nothing")
    module, out = tool("make_shards"), tmp_path / "out" / "set"

    def command() -> int:
        flags = ("--out", out, "--per-shard", 2, "--workers", 1)
        return status_of(module, monkeypatch, tmp_path / "clips", *flags)

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)

    begin()
    assert command() == 0
    expected = files(out)

    def check(k: int, complete: bool, again: bool) -> None:
        there = files(out) if out.exists() else {}
        # notes that could not be removed are removed by the next call
        there = {name: data for name, data in there.items() if again or not name.startswith(".unfinished")}
        assert there == expected if complete else there.items() <= expected.items(), (
            k
        )  # what has its name is whole

    count = every_failure(command, begin, check, 1, monkeypatch, capfd)
    print(f"make_shards: {count} operations, each made to fail")
    assert count > 30


def test_check_shards_repair(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, out, draw = tool("check_shards"), tmp_path / "small", [True]
    drawn = module._draw
    monkeypatch.setattr(module, "_draw", lambda *told: drawn(*told) if draw[0] else None)

    def command() -> int:
        status = status_of(module, monkeypatch, out, "--repair", "--fast", "--workers", 1)
        draw[0] = False  # half a second each: only where it may be what fails
        return status

    def begin() -> None:
        draw[0] = True
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
        first = sorted(out.glob("*.idx"))[0]
        first.unlink()
        table = bytearray((out / "samples.parquet").read_bytes())
        table[len(table) // 2] ^= 1
        (out / "samples.parquet").write_bytes(table)

    begin()
    before = files(out)
    assert command() == 0
    expected = files(out)
    assert {"samples.parquet.before-repair", "dataset.json.before-repair", "check.png"} <= expected.keys()
    capfd.readouterr()

    def check(k: int, complete: bool, again: bool) -> None:
        there = files(out)
        for name in expected.keys() - {"check.png"}:
            kept = (before.get(name), expected[name])
            assert there.get(name) == expected[name] if complete else there.get(name) in kept, (k, name)
        assert there.keys() <= expected.keys(), k

    count = every_failure(command, begin, check, 2, monkeypatch, capfd)
    print(f"check_shards --repair: {count} operations, each made to fail")
    assert count > 20
