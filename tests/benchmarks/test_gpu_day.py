"""benchmarks/gpu_day.py: every stage runs on a CPU; and a call that is cut off is continued by the next."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import objectives
from benchmarks import gpu_day
from benchmarks.loader.gpu_stages import STAGES, Stage
from shards import InputError

ROOT = Path(__file__).parents[2]


def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    out, site = tmp_path / "day.json", tmp_path / "site"
    site.mkdir()  # Python runs a sitecustomize module in every process: this one makes the demo set small
    (site / "sitecustomize.py").write_text(
        "import shards.demo; shards.demo.render.__kwdefaults__['clips_per_class'] = (4, 1)"
    )
    # a stage of another method is that of DPC, with views and a model that tools/bench_loader.py's tests time
    others = tuple(f" {name}" for name in objectives.available() if name != "dpc")
    chosen = [stage.name for stage in STAGES if not stage.name.endswith(others)]
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/gpu_day.py",
            "--dry-run",
            "--out",
            out,
            "--budget",
            "1500",
            "--stages",
            *chosen,
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{site}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "SLIPSTREAM_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=1600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["stages"]) == chosen
    for name, stage in result["stages"].items():
        assert stage["state"] == "done", (name, stage)
        failed = {key: found["error"] for key, found in stage["found"].items() if "error" in found}
        assert stage["found"] and (not failed or name == "peers"), (name, failed)  # SPDL is an extra
    assert result["stages"]["run dpc"]["found"]["train.py"]["steps"] == 3
    assert "all stages are done" in done.stdout and sorted(tmp_path.iterdir()) == [
        tmp_path / "cache",
        out,
        site,
    ]


Measure = Callable[[], dict[str, float]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """A call with one stage, which measures what it is given; returns the stage's entry."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))

    def run(limit: float = 60, budget: float = 100, **measured: Measure) -> dict:
        monkeypatch.setattr(gpu_day, "STAGES", [Stage("only", lambda *_: iter(measured.items()), limit)])
        gpu_day.main(gpu_day.Arguments(tmp_path / "day.json", budget, dry_run=True))
        return json.loads((tmp_path / "day.json").read_text())["stages"]["only"]

    return run


def forever() -> dict[str, float]:
    threading.Event().wait()
    return {}


def raises() -> dict[str, float]:
    raise RuntimeError("no such decoder")


def dies() -> dict[str, float]:
    os._exit(3)


def test_an_error_is_noted_and_the_rest_goes_on(call: Callable[..., dict]) -> None:
    entry = call(a=lambda: {"x": 1.0}, b=raises, c=lambda: {"x": 2.0})
    assert entry["state"] == "done"
    assert entry["found"] == {
        "a": {"x": 1.0},
        "b": {"error": "RuntimeError: no such decoder"},
        "c": {"x": 2.0},
    }


def test_a_dead_process_is_noted_and_the_rest_goes_on(call: Callable[..., dict]) -> None:
    entry = call(a=lambda: {"x": 1.0}, b=dies, c=lambda: {"x": 2.0})
    assert entry["state"] == "done"
    assert entry["found"] == {
        "a": {"x": 1.0},
        "b": {"error": "its process ended with 3"},
        "c": {"x": 2.0},
    }


def test_what_was_measured_before_a_stage_was_cut_off_is_kept(call: Callable[..., dict]) -> None:
    entry = call(limit=8, a=lambda: {"x": 1.0}, b=forever)
    assert (entry["state"], entry["found"]) == ("cut off", {"a": {"x": 1.0}})
    entry = call(a=raises, b=lambda: {"x": 2.0})  # a is not measured again
    assert (entry["state"], entry["found"]) == ("done", {"a": {"x": 1.0}, "b": {"x": 2.0}})
    assert call(a=raises, b=raises, c=raises) == entry  # nor is a stage that is done


def test_what_takes_a_whole_stages_time_alone_is_not_begun_again(call: Callable[..., dict]) -> None:
    entry = call(limit=2, a=forever)
    assert entry["found"] == {"a": {"error": "took more than 2 s"}}
    assert call(a=forever, b=lambda: {"x": 2.0})["state"] == "done"


def test_a_call_that_was_killed_is_continued(call: Callable[..., dict], tmp_path: Path) -> None:
    call(a=lambda: {"x": 1.0})
    result = json.loads((tmp_path / "day.json").read_text())
    result["stages"]["only"] |= {"state": "waits", "found": {"a": {"x": 1.0}, "b": "under way"}}
    (tmp_path / "day.json").write_text(json.dumps(result))
    entry = call(a=raises, b=lambda: {"x": 2.0})
    assert entry["found"] == {"a": {"x": 1.0}, "b": {"x": 2.0}}


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "day.json").write_text("[]")
    with pytest.raises(InputError, match=r"--out .*day.json: is not what this command writes"):
        gpu_day.main(gpu_day.Arguments(tmp_path / "day.json"))
