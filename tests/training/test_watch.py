"""Two processes: one that dies or hangs ends the other, with its name; none outlives its launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training import harness
from tests.training.harness import LIMIT, TOY, Started, losses, members, steps, wait_for

ROOT = Path(__file__).parents[2]
FLAGS = (*TOY, "--batch-size", 4, "--steps", 10**6)


def begun(data: Path, run: Path, *flags: object, last: tuple[object, ...] = ()) -> list[Started]:
    processes = harness.start_together(2, *FLAGS, *flags, "--data", data, "--output", run, last=last)
    wait_for(lambda: (run / "metrics.jsonl").exists() and losses(run), processes[0])
    return processes


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stands_still_is_named(data, tmp_path, victim, signum) -> None:
    processes = begun(data, tmp_path / "run", "--hang-s", 5)
    processes[victim].signal(signum)
    try:
        other = processes[1 - victim].end()
    finally:
        processes[victim].signal(signal.SIGKILL)
        processes[victim].end()
    said = [line for line in other.said.splitlines() if line.startswith("error: ")]
    assert other.status == 1 and len(said) == 1 and "Traceback" not in other.said, other.said
    assert f"process {victim}" in said[0].removeprefix(f"error: process {1 - victim} lost another one"), said
    assert "--resume" in said[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_ends_both_with_its_name(data, tmp_path, victim) -> None:
    """At its third forward call; the other has got further, and waits."""
    flags = ("--hang-at", 2)
    started = harness.start_together(
        2,
        *(*FLAGS, "--data", data, "--output", tmp_path / "run", "--hang-s", 4),
        *(flags if victim == 0 else ()),
        last=("--hang-at", -1) if victim == 0 else flags,
    )
    done = [process.end() for process in started]
    said = [line for one in done for line in one.said.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].endswith(
        f"process {victim} made no progress for 4 s in forward of step 3; go on with --resume"
    ), said
    assert [one.status for one in done] == [1, 1] and list(losses(tmp_path / "run")) == [1, 2]


def test_why_one_ended_is_said_by_the_other(data, tmp_path) -> None:
    processes = begun(data, tmp_path / "run", last=("--crash-at", 4))
    first, second = (process.end() for process in processes)
    assert second.status == 1 and "told to crash" in second.said
    assert first.status == 1 and "process 1 ended: RuntimeError: told to crash" in first.said, first.said


def test_no_process_outlives_its_launcher(data, tmp_path) -> None:
    """torchrun is killed; its processes save and end."""
    run = tmp_path / "run"
    flags = [
        "--objective",
        "vdim",
        "--small",
        "--width",
        "0.03",
        "--no-temporal-difference",
        "--log-every",
        "1",
    ]
    flags += ["--device", "cpu", "--threads", "1", "--batch-size", "2", "--steps", "100000"]
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            "train.py",
            *flags,
            "--data",
            str(data),
            "--output",
            str(run),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + LIMIT
    while not (run / "metrics.jsonl").exists() or not losses(run):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    # torchrun puts each process into a session of its own
    while left := [pid for pid in members_of(str(run)) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes {left} are left behind")
        time.sleep(0.1)
    assert steps(run) and not members(launcher.pid)


def members_of(output: str) -> list[int]:
    """Processes whose command line names this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if output in words:
            found.append(int(path.parent.name))
    return found
