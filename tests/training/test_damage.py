"""A tar is damaged in the middle of a run: the run goes on, says what it met, and resumes exactly."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from pipelines.sampler import ShuffledOrder
from shards import Dataset
from shards.table import quarantine_entries
from tests.pipelines.damage import IN_PLACE, damage
from tests.pipelines.reference import write_dataset
from tests.training import harness
from tests.training.harness import TOY, Ended, Started, losses, steps, train, wait_for

ROOT = Path(__file__).parents[2]
FLAGS = (*TOY, "--batch-size", 4, "--checkpoint-every", 1, "--keep", 10**6)
SETTLED = 8  # steps after which all batches that were made ahead of the damage are used up
LATER = 12  # steps that follow: three epochs


@pytest.fixture
def tars(data: Path, tmp_path: Path) -> Dataset:
    """18 videos in six tars."""
    source = Dataset(data)
    names = ("num_frames", "fps", "width", "height")
    facts = [{name: source.column(name)[row].item() for name in names} for row in range(len(source))]
    videos = [source.read(row) for row in range(len(source))]
    facts = [one | {"source": "demo"} for one in facts]
    return Dataset(write_dataset(tmp_path / "tars", videos, facts, per_shard=3))


def reasons(dataset: Dataset) -> dict[str, str]:
    return dict(quarantine_entries(dataset.path / "quarantine.jsonl"))


def last(run: Path) -> int:
    return max(losses(run), default=0) if (run / "metrics.jsonl").exists() else 0


def after(started: Started, run: Path, more: int) -> None:
    """Wait until the run has made so many more steps."""
    until = last(run) + more
    wait_for(lambda: last(run) >= until, started)


def stopped(started: Started) -> Ended:
    started.signal(signal.SIGTERM)
    done = started.end()
    assert done.status == 143 and "Traceback" not in done.said, done.said
    return done


def assert_resuming_repeats(run: Path, copy: Path, since: int, until: int, *flags: object) -> Ended:
    """A run resumed at step `since` has the losses and weights of one that went on."""
    shutil.copytree(run, copy)
    for step in steps(copy):
        if step > since:
            shutil.rmtree(copy / f"checkpoints/step-{step:08d}")
    done = train(*flags, "--output", copy, "--steps", until, "--resume")
    assert done.status == 0, done.said
    expected = {step: loss for step, loss in losses(run).items() if step <= until}
    assert losses(copy) == expected and all(math.isfinite(loss) for loss in expected.values())
    for name in ("model", "optimizer"):
        mine, theirs = (
            load_file(of / f"checkpoints/step-{until:08d}/{name}.safetensors") for of in (copy, run)
        )
        assert all((mine[key] == theirs[key]).all() for key in theirs), name
    return done


@pytest.mark.parametrize("kind", IN_PLACE)
def test_damage_costs_the_video_not_the_run(tars, tmp_path, kind) -> None:
    run, flags = tmp_path / "run", (*FLAGS, "--data", tars.path)
    started = harness.start(*flags, "--output", run, "--steps", 10**6)
    after(started, run, 3)
    bad = int(np.flatnonzero(tars.column("shard") == tars.shards[2])[1])
    damage(kind, tars, bad)
    (key,) = tars.keys([bad])
    wait_for(lambda: key in reasons(tars), started)
    after(started, run, SETTLED)
    since = last(run)
    after(started, run, LATER)
    done = stopped(started)
    assert f"{key} cannot be decoded and is replaced: " in done.said
    assert tars.shards[2] in reasons(tars)[key]
    resumed = assert_resuming_repeats(run, tmp_path / "copy", since, since + LATER, *flags)
    assert f"{len(reasons(tars))} videos are in quarantine" in resumed.said
    noted = [key for key, _ in quarantine_entries(tars.path / "quarantine.jsonl")]
    assert len(set(noted)) == len(noted)  # resuming does not note them again


def test_a_tar_that_is_gone_when_the_run_is_resumed(tars, tmp_path) -> None:
    """Removed while it is open, it can still be read; afterwards its videos are replaced."""
    run, flags = tmp_path / "run", (*FLAGS, "--data", tars.path)
    started = harness.start(*flags, "--output", run, "--steps", 10**6)
    after(started, run, 6)
    (tars.path / tars.shards[2]).unlink()
    after(started, run, LATER)
    stopped(started)
    before = last(run)
    done = train(*flags, "--output", run, "--steps", before + LATER, "--resume")
    assert done.status == 0 and f"{tars.shards[2]}: no such file" in done.said, done.said
    lost = tars.keys(np.flatnonzero(tars.column("shard") == tars.shards[2]))
    assert reasons(tars).keys() == set(lost)
    assert_resuming_repeats(run, tmp_path / "copy", before + 5, before + LATER, *flags)


def test_two_processes_meet_the_same_tar(tars, tmp_path) -> None:
    """Both note what they meet, each line whole; neither ends, and one alone goes on with the same videos."""
    run, flags = tmp_path / "run", (*TOY, "--data", tars.path, "--checkpoint-every", 1, "--keep", 10**6)
    processes = harness.start_together(2, *flags, "--output", run, "--batch-size", 4, "--steps", 10**6)
    after(processes[0], run, 3)
    lost = np.flatnonzero(np.isin(tars.column("shard"), tars.shards[1:3]))
    for row in lost:
        damage("zeroed", tars, int(row))
    wait_for(lambda: set(tars.keys(lost)) <= reasons(tars).keys(), processes[0])
    after(processes[0], run, SETTLED)
    processes[0].signal(signal.SIGTERM)
    assert [process.end().status for process in processes] == [143, 143]
    assert all(math.isfinite(loss) for loss in losses(run).values())
    lines = (tars.path / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == set(tars.keys(lost))
    done = train(*flags, "--output", run, "--batch-size", 8, "--steps", last(run) + 4, "--resume")
    assert done.status == 0, done.said


def test_the_command_a_user_types(tars, tmp_path) -> None:
    """VDIM, narrow; after two steps a tar is cut amid the video that comes in step 17."""
    run, bad = tmp_path / "run", int(ShuffledOrder(18, 2, seed=0).epoch(1)[14])
    command = [
        sys.executable,
        "train.py",
        "--objective",
        "vdim",
        "--small",
        "--data",
        tars.path,
        "--output",
        run,
    ]
    command += ["--width", 0.03, "--no-temporal-difference", "--batch-size", 2, "--log-every", 1, "--steps"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [*map(str, command), "20"], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while last(run) < 2:
                assert process.poll() is None, (tmp_path / "said").read_text()
                time.sleep(0.01)
            damage("truncated", tars, bad)
            assert process.wait(2 * harness.LIMIT) == 0, (tmp_path / "said").read_text()
        finally:
            process.kill()
    assert list(losses(run)) == list(range(1, 21))
    assert all(math.isfinite(loss) for loss in losses(run).values())
    assert "before the end of the video" in reasons(tars)[tars.keys([bad])[0]]
