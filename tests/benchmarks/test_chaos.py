"""benchmarks/chaos.py finds what it looks for: a difference, a process left behind, a command that does not end."""

import random
import sys
from pathlib import Path

import pytest

from benchmarks import chaos
from benchmarks.chaos import Task, Verdict, disturb, finish


def task(script: str) -> Task:
    def results(out: Path) -> dict[str, str]:
        return {"file": (out / "file").read_text()}

    return Task(lambda out: [[sys.executable, "-c", script, str(out / "file")]], results)


HONEST = "import pathlib, sys, time; time.sleep(.3); p = pathlib.Path(sys.argv[1]); p.parent.mkdir(exist_ok=True); p.write_text('x')"


def test_a_command_that_starts_again_ends_alike(tmp_path: Path) -> None:
    verdict = Verdict(seconds=0.5)
    disturb(task(HONEST), tmp_path / "out", verdict, random.Random(0))
    finish(task(HONEST), tmp_path / "out", verdict, {"file": "x"})
    assert (verdict.trials, verdict.identical, verdict.failures) == (1, 1, [])
    assert verdict.disturbed.total() > 0


def test_a_difference_is_found(tmp_path: Path) -> None:
    verdict = Verdict(seconds=0.5)
    finish(task(HONEST), tmp_path / "out", verdict, {"file": "y"})
    assert verdict.identical == 0 and verdict.failures == ["differs in ['file']"]
    finish(task("raise SystemExit(3)"), tmp_path / "out", verdict, {"file": "x"})
    assert verdict.failures[1].startswith("started again, it failed: status 3")


def test_hangs_and_orphans_are_found_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chaos, "ENDS_WITHIN", 1)
    monkeypatch.setattr(chaos, "OUTLIVES", 0.5)
    monkeypatch.setattr(chaos, "SIGNALS", (chaos.signal.SIGTERM,))
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); time.sleep(99)"
    )
    process, verdict = chaos.Started([sys.executable, "-c", script], {}), Verdict(seconds=0.1)
    while len(chaos._session(process.pid)) < 2:
        assert process.poll() is None
    rng = random.Random(1)
    monkeypatch.setattr(rng, "choice", lambda options: options[0])  # SIGTERM, to the command alone
    chaos._strike(process, ["python", "script"], verdict, rng)
    assert [failure.rpartition(": ")[2][:11] for failure in verdict.failures] == [
        "it did not ",
        "left behind",
    ]
    assert chaos._session(process.pid) == []
