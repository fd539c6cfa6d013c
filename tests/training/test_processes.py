"""Several processes are one with a larger batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import harness
from tests.training.harness import TOY, lines, steps, train

ROOT = Path(__file__).parents[2]
TURNS = """
import os, sys, time
from datetime import timedelta
from accelerate import PartialState
from shards import InputError
from training.run import in_turn
state = PartialState(cpu=True, timeout=timedelta(seconds=4))
opened = []

def slow():
    if state.is_main_process:
        time.sleep(6)
    opened.append(time.time())
    return opened

in_turn(slow)
in_turn(lambda: opened)
print(opened[0], flush=True)
for ends in (InputError("no such folder"), SystemExit(2)):
    def failing():
        raise ends
    try:
        in_turn(failing)
    except (InputError, SystemExit) as error:
        print(error, flush=True)
try:
    in_turn(lambda: opened)  # both are here
    in_turn(lambda: os._exit(3))  # of process 0, and with it the store goes
except InputError as error:
    print(error, flush=True)
"""


def seen(folder: Path, rank: int) -> list[list[int]]:
    """Rows of the data set that a process was given, step by step."""
    return [json.loads(line) for line in (folder / str(rank)).read_text().splitlines()]


@pytest.mark.parametrize("world", [2, 4])
def test_disjoint_samples_that_together_are_those_of_one_process(data, tmp_path, world) -> None:
    flags = (*TOY, "--data", data, "--steps", 5, "--accumulate", 2)
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    out = ("--output", tmp_path / "run-1", "--record", tmp_path / "alone")
    assert train(*flags, *out, "--batch-size", 8).status == 0
    out = ("--output", tmp_path / "run", "--record", tmp_path / "together")
    first, *others = harness.train_together(world, *flags, *out, "--batch-size", 8 // world)
    assert first.status == 0, first.said
    ranks = [seen(tmp_path / "together", rank) for rank in range(world)]
    expected = seen(tmp_path / "alone", 0)
    assert len(expected) == 10  # 5 steps of 2 batches
    for parts, whole in zip(zip(*ranks, strict=True), expected, strict=True):
        together = [row for part in parts for row in part]
        assert together == whole and len(set(together)) == 8
    assert first.said.count("5/5") >= 1 and "clips/s" in first.said  # one progress bar
    for other in others:
        assert other.status == 0 and other.said == "", other.said  # and one that speaks
    means = [[line["pixels"] for line in lines(tmp_path / run)] for run in ("run", "run-1")]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_accumulated_batches_are_one_larger_batch_of_gradients(data, tmp_path) -> None:
    """Without anything that mixes or drops samples: two batches of two accumulated in two processes, or in one of four."""
    flags = (*TOY, "--data", data, "--steps", 3, "--plain", "--ema", 0.5)
    for done in harness.train_together(
        2, *flags, "--output", tmp_path / "a", "--batch-size", 2, "--accumulate", 2
    ):
        assert done.status == 0, done.said
    done = train(*flags, "--output", tmp_path / "b", "--batch-size", 4, "--accumulate", 2)
    assert done.status == 0, done.said
    a, b = ([line["loss"] for line in lines(tmp_path / run)] for run in ("a", "b"))
    assert a == pytest.approx(b, rel=1e-4) and len(set(b)) == 3


@pytest.mark.parametrize(
    "launcher",
    [
        ("-m", "accelerate.commands.accelerate_cli", "launch", "train.py"),
        ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "train.py"),
    ],
    ids=["accelerate", "torchrun"],
)
def test_the_launchers_start_it(data, tmp_path, launcher) -> None:
    flags = ["--data", data, "--output", tmp_path / "run", "--small", "--steps", "1", "--batch-size", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path / "run") == [1] and done.stdout.count("encoder.safetensors") == 1


def test_a_data_set_that_takes_longer_than_a_collective_operation_may_is_waited_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TURNS],
            cwd=ROOT, env=os.environ | shared | rank, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ranks
    ]  # fmt: skip
    (first, why), (second, _) = (one.communicate(timeout=120) for one in running)
    assert float(first.split()[0]) <= float(second.split()[0]), why
    assert first.splitlines()[1:] == ["no such folder", "2"] and running[0].returncode == 3
    said = "process 0 cannot open the data set: its own message says why"
    gone = "another process ended before the data set was open: its own message says why"
    assert second.splitlines()[1:] == ["no such folder", said, gone] and running[1].returncode == 0
