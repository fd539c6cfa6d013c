"""Whatever goes wrong, a run ends, says why, and keeps what it had."""

import os
import shutil
import signal
import socket
import subprocess

import pytest

from shards import Dataset
from tests.training import harness
from tests.training.harness import TOY, Ended, losses, steps, train, wait_for
from training.processes import Stopped, StopSignals

FLAGS = (*TOY, "--batch-size", 4)


def one_line(done: Ended, *parts: str) -> None:
    """The run failed with a single line of its own (the progress bar aside)."""
    assert done.status == 2 and "Traceback" not in done.said, done.said
    said = [line for line in done.said.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and all(part in said[0] for part in parts), done.said


@pytest.mark.parametrize(
    "flags, says, good",
    [
        (("--nan-at", 6, "--checkpoint-every", 5, "--log-every", 4), ("the loss is nan at step 8",), 5),
        (("--nan-at", 6, "--checkpoint-every", 5, "--log-every", 50), ("not a finite number at step 10",), 5),
        (
            ("--break-at", 9, "--checkpoint-every", 5, "--log-every", 50),
            ("not a finite number at step 10",),
            5,
        ),
        (("--nan-at", 2, "--checkpoint-every", 5), ("the loss is nan at step 3", "no checkpoint"), None),
    ],
)
def test_a_loss_that_is_not_a_number_is_never_saved(data, tmp_path, flags, says, good) -> None:
    done = train(*FLAGS, "--data", data, "--output", tmp_path / "run", "--steps", 20, *flags)
    one_line(done, *says, "--lr", "--clip-norm", f"step-{good:08d}" if good else "")
    assert steps(tmp_path / "run") == ([good] if good else [])


def test_a_bad_loss_in_one_process_ends_both(data, tmp_path) -> None:
    flags = (*FLAGS, "--data", data, "--output", tmp_path / "run", "--steps", 20)
    processes = harness.start_together(2, *flags, last=("--nan-at", 2))
    first, second = (process.end() for process in processes)
    one_line(first, "the loss is nan at step 3")
    assert second.status == 2 and "Traceback" not in second.said, second.said


@pytest.mark.parametrize("world", [1, 2])
def test_no_room_for_a_checkpoint_leaves_the_one_before(data, tmp_path, world) -> None:
    """3,000 bytes hold the weights, and not the optimizer's state."""
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--checkpoint-every", 2, "--log-every", 50)
    start = (
        [harness.start_together(2, *flags, "--steps", 2)]
        if world == 2
        else [[harness.start(*flags, "--steps", 2)]]
    )
    assert all(process.end().status == 0 for process in start[0])
    before = {path.name: path.read_bytes() for path in (run / "checkpoints/step-00000002").iterdir()}
    flags = (*flags, "--steps", 20, "--resume")
    if world == 1:
        one_line(train(*flags, file_limit=3000), "step-00000004", "File too large", "step-00000002 is whole")
    else:
        first, second = (p.end() for p in harness.start_together(2, *flags, file_limit=3000))
        one_line(first, "step-00000004", "File too large", "step-00000002 is whole")
        assert second.status == 2
    assert {path.name: path.read_bytes() for path in (run / "checkpoints/step-00000002").iterdir()} == before
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]


def test_no_room_for_a_line_of_metrics(data, tmp_path) -> None:
    flags = (*FLAGS, "--data", data, "--output", tmp_path / "run")
    assert train(*flags, "--steps", 40).status == 0  # its metrics are larger than its other files of text
    size = (tmp_path / "run/metrics.jsonl").stat().st_size
    done = train(*flags, "--steps", 60, "--resume", "--checkpoint-every", 100, file_limit=size + 100)
    one_line(done, "--output", "metrics cannot be written (File too large)", "--resume")


def test_a_full_disk(data, tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        flags = (*FLAGS, "--data", data, "--output", disk / "run", "--checkpoint-every", 1)
        assert train(*flags, "--steps", 2).status == 0
        with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        one_line(train(*flags, "--steps", 20, "--resume"), "No space left")
        assert steps(disk / "run") == [1, 2]
        (disk / "filler").unlink()
        assert train(*flags, "--steps", 4, "--resume").status == 0
        assert list(losses(disk / "run")) == [1, 2, 3, 4]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("world", [1, 2])
def test_a_crash_ends_the_run_with_its_traceback(data, tmp_path, world) -> None:
    """With two processes, that of the last one alone."""
    flags = (*FLAGS, "--data", data, "--output", tmp_path / "run", "--steps", 10**6)
    *others, crashed = (p.end() for p in harness.start_together(world, *flags, last=("--crash-at", 3)))
    assert crashed.status == 1 and "Traceback" in crashed.said and "told to crash" in crashed.said, (
        crashed.said
    )
    for other in others:
        lost_another(other)


@pytest.mark.parametrize("world", [1, 2])
def test_when_no_video_is_left_the_run_ends_with_one_line(data, tmp_path, world) -> None:
    """The only tar is cut while it is read: with two processes, that of the last one alone."""
    shutil.copytree(data, tmp_path / "data")
    run = tmp_path / "run"
    flags = (*FLAGS, "--output", run, "--steps", 10**6)
    own = ("--data", tmp_path / "data")
    processes = harness.start_together(world, *flags, others=("--data", data), last=own)
    wait_for(lambda: (run / "metrics.jsonl").exists() and losses(run), processes[-1])
    os.truncate(tmp_path / "data" / Dataset(data).column("shard")[0], 600)
    *others, last = (process.end() for process in processes)
    one_line(last, "videos in a row cannot be decoded", "ends", "before the end of the video", "--resume")
    for other in others:
        lost_another(other)


def lost_another(done: Ended) -> None:
    assert done.status == 1 and "lost another one" in done.said and "Traceback" not in done.said, done.said


def test_a_signal_to_one_process_stops_both_at_the_same_step(data, tmp_path) -> None:
    run = tmp_path / "run"
    processes = harness.start_together(2, *FLAGS, "--data", data, "--output", run, "--steps", 10**6)
    wait_for(lambda: (run / "metrics.jsonl").exists() and losses(run), processes[0])
    processes[1].signal(signal.SIGTERM)
    first, second = (process.end() for process in processes)
    assert (first.status, second.status) == (143, 143), first.said + second.said
    (step,) = steps(run)
    assert f"step {step} is saved" in first.said and "Traceback" not in first.said + second.said
    assert "saved" not in second.said  # one process speaks


def test_the_second_writer_of_a_run_says_who_the_first_is_and_leaves_it_alone(data, tmp_path) -> None:
    run, flags = tmp_path / "run", (*FLAGS, "--data", data)
    first = harness.start(*flags, "--output", run, "--steps", 10**6)
    wait_for(lambda: (run / "metrics.jsonl").exists() and losses(run), first)
    with (run / "metrics.jsonl").open() as metrics:
        second = train(*flags, "--output", run, "--resume", "--steps", 10**6)
        one_line(second, f"--output {run}", f"process {first.process.pid} on {socket.gethostname()}, since")
        before = losses(run)
        wait_for(lambda: len(losses(run)) > len(before), first)
        assert os.fstat(metrics.fileno()).st_ino == (run / "metrics.jsonl").stat().st_ino
    assert list(losses(run)) == list(range(1, len(losses(run)) + 1))
    first.signal(signal.SIGKILL)
    first.end()
    done = train(*flags, "--output", run, "--resume", "--steps", 2)  # a dead one holds nothing
    assert done.status == 0 and steps(run) == [2], done.said


def test_a_run_whose_checkpoints_are_all_broken_is_not_begun_again(data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--checkpoint-every", 1)
    assert train(*flags, "--steps", 2).status == 0
    for step in (1, 2):
        path = run / f"checkpoints/step-{step:08d}/model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    one_line(
        train(*flags, "--steps", 3, "--resume"),
        f"{run}: none of its checkpoints is whole",
        "model.safetensors was changed",
    )
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_before_the_loop_a_signal_ends_the_run_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM") as caught, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.status == 143 and signal.getsignal(signal.SIGTERM) is before


def test_only_a_second_ctrl_c_does_not_wait() -> None:
    with StopSignals() as stop:
        stop.begin()
        assert stop.agreed() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() == signal.SIGINT
        with pytest.raises(Stopped, match="twice"):
            os.kill(os.getpid(), signal.SIGINT)
