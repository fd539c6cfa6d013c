"""A result that was tampered with is shown as what it says, or refused in one line: no traceback, no wait."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tamper import ODD, cases_of_json, changed, line, places, watchdog

from evaluation import combine, report, table
from evaluation.settings import Fuse, Report, Table
from shards import InputError

CLASSES = ["a", "b", "c"]


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "spread": 0.0}


def described(protocol: str) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "checkpoint": "runs/x",
        "objective": "dpc",
        "model": "x",
        "origin": "dpc from runs/x",
        "data": {"name": "set", "fingerprint": "0" * 64, "classes": CLASSES},
        "splits": {"split1": {"train": 4, "test": 4}},
        "evaluated": {"videos": 4, "of": 4, "unreadable": {}},
        "windows": {"span": 5},
        "settings": {"layer": "", "data": "nowhere"},
    }


SCORES = {
    "top1": score(0.5),
    "class_mean": 0.5,
    "by_split": {"split1": 0.5},
    "confusion": np.eye(3, dtype=int).tolist(),
}
PER = {"video": {"1": score(0.5)}, "clip": {"1": score(0.4)}}
RESULTS = {
    "linear": {
        "scores": SCORES,
        "baselines": {
            "random": {"top1": score(0.3), "delta": score(0.2)},
            "size_length": {"top1": score(0.3)},
            "most_frequent": 0.3,
        },
    },
    "retrieval": {
        "recall": PER,
        "baselines": {"chance": {"1": 0.3}, "random": PER | {"delta": score(0.1)}, "size_length": PER},
        "nearest": {"k1": ["k2", "k3", "k4"]},
    },
    "fraction": {"curves": {"model": {"0.1": {"top1": score(0.3)}, "1": {"top1": score(0.5)}}}},
    "curve": {
        "points": [{"step": 1, "downstream": score(0.3), "pretraining_top1": 0.2, "pretraining_loss": 1.0}],
        "random": score(0.2),
    },
    "oops-finetune": {
        "scores": {"clips": score(0.5)},
        "confusion": np.eye(3, dtype=int).tolist(),
        "baselines": {"random": {"scores": {"clips": score(0.3)}}},
    },
}
ARRAYS: dict[str, dict[str, Any]] = {
    "predictions.npz": {
        "key": np.array(["k1", "k2", "k3", "k4"]),
        "label": np.array([0, 1, 2, 0]),
        "split": np.array(["split1"] * 4),
        "probabilities": np.full((2, 4, 3), 1 / 3),
        "random": np.full((1, 4, 3), 1 / 3),
        "group": np.array([0, 0, 1, 2]),
    },
    "features.npz": {"x": np.random.default_rng(0).random((3, 6)), "label": np.array([0, 1, 2])},
    "memory.npz": {
        "usage": np.full(8, 1 / 8),
        "norm": np.ones(8),
        "p": np.full((3, 8), 1 / 8),
        "label": np.array([0, 1, 2]),
        "slot": np.array([3, 4]),
        "key": np.array([["k1"] * 3] * 2),
        "start": np.zeros((2, 3), int),
        "share": np.full((2, 3), 0.5),
    },
}


def write(folder: Path, protocol: str, files: Iterable[str] = ARRAYS) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(described(protocol) | RESULTS[protocol]))
    for name in files:
        np.savez(folder / name, **ARRAYS[name])
    return folder


def use(folder: Path) -> str:
    """Report, table and fusion: "", or the lines that they are refused with."""
    refused = []
    for show in (
        lambda: report.report(Report((folder,), html=folder / "page.html")),
        lambda: table.table(Table((folder,), markdown=folder / "table.md", json=folder / "table.json")),
        lambda: combine.fuse(Fuse((folder, folder), output=folder / "fused")),
    ):
        with watchdog():
            try:
                show()
            except InputError as error:
                refused.append(line(error))
    return "\n".join(refused)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write(tmp_path / "result", "linear")


@pytest.mark.parametrize("protocol", RESULTS)
def test_what_was_not_tampered_with_is_shown(tmp_path: Path, protocol: str) -> None:
    refused = use(write(tmp_path / "result", protocol))
    assert not refused or (protocol == "curve" and "holds curves over training only" in refused)
    assert (tmp_path / "result/page.html").is_file()


@pytest.mark.parametrize("protocol", RESULTS)
def test_each_value_of_a_result(tmp_path: Path, protocol: str) -> None:
    folder = write(tmp_path / "result", protocol, ["predictions.npz"] if protocol == "linear" else ())
    refused = count = 0
    for content in list(cases_of_json(described(protocol) | RESULTS[protocol]))[::3]:
        drawn = isinstance(content, dict) and content.get("data") != described(protocol)["data"]
        for name in ("features.npz", "memory.npz") if protocol == "linear" else ():
            (folder / name).unlink(missing_ok=True)
            if drawn:  # with the names of the classes
                np.savez(folder / name, **ARRAYS[name])
        (folder / "result.json").write_text(json.dumps(content))
        refused += "result.json" in use(folder)
        count += 1
    assert count > 30 and refused > count / 3


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff", b"\0" * 99],
    ids=lambda one: ascii(one[:5]),
)
def test_what_is_no_result(result: Path, content: bytes) -> None:
    (result / "result.json").write_bytes(content)
    assert use(result).count("result.json: ") == 3


def test_files_that_are_none(result: Path) -> None:
    for name in ("result.json", "predictions.npz", "features.npz"):
        kept = (result / name).read_bytes()
        (result / name).unlink()
        os.mkfifo(result / name)
        assert f"{name}: " in use(result)
        (result / name).unlink()
        (result / name).write_bytes(kept)


CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "gone": lambda value: None,
    "empty": lambda value: value[:0],
    "shorter": lambda value: value[:-1],
    "another dimension": lambda value: value[None],
    "negative": lambda value: value * 0 - 1 if value.dtype.kind in "if" else value.astype(bytes),
    "large": lambda value: value * 0 + 2**40 if value.dtype.kind in "if" else np.arange(value.size),
    "not finite": lambda value: value * np.nan if value.dtype.kind == "f" else value.astype(object),
    "text": lambda value: value.astype(str) if value.dtype.kind != "U" else value.astype(bytes),
    "complex": lambda value: value.astype(complex) if value.dtype.kind != "U" else np.zeros(4, "M8[s]"),
    "pickled": lambda value: np.array([{}] * len(value), dtype=object),
}


@pytest.mark.parametrize("file", ARRAYS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_array(tmp_path: Path, file: str, change: Callable[[np.ndarray], Any]) -> None:
    for number, name in enumerate(ARRAYS[file]):
        folder = write(tmp_path / str(number), "linear", [file])
        arrays = {other: value for other, value in ARRAYS[file].items() if other != name}
        new = change(ARRAYS[file][name])
        np.savez(folder / file, **(arrays if new is None else arrays | {name: new}))
        use(folder)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data(), file=st.sampled_from(["result.json", *ARRAYS]))
def test_any_bytes_anywhere(tmp_path: Path, data: st.DataObject, file: str) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    content = bytearray((write(folder, "linear", [file] if file in ARRAYS else ARRAYS) / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / file).write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    use(folder)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data(), protocol=st.sampled_from(list(RESULTS)))
def test_any_value_anywhere(tmp_path: Path, data: st.DataObject, protocol: str) -> None:
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, protocol, ())
    content = described(protocol) | RESULTS[protocol]
    path = data.draw(st.sampled_from([place for place in places(content) if place]))
    new = data.draw(
        st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.sampled_from(ODD)
    )
    (folder / "result.json").write_text(json.dumps(changed(content, path, new)))
    use(folder)


@pytest.mark.parametrize("protocol", ["linear", "retrieval"])
def test_a_baseline_that_is_null_is_none(tmp_path: Path, protocol: str) -> None:
    folder = write(tmp_path / "result", protocol)
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(changed(content, ("baselines", "random"), None)))
    assert not use(folder)
