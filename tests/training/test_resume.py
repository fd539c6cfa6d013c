"""A run that was stopped and resumed ends with the bytes of one that was not."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training import harness
from tests.training.harness import TOY, lines, losses, steps, train, wait_for

STEPS = 30
FLAGS = (*TOY, "--batch-size", 4, "--steps", STEPS, "--checkpoint-every", 1, "--ema", 0.9)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = train(*FLAGS, "--data", data, "--output", out)
    assert done.status == 0, done.said
    return out


def assert_same_end(run: Path, whole: Path) -> None:
    assert losses(run) == losses(whole) and list(losses(run)) == list(range(1, STEPS + 1))
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model", "ema", "optimizer"):
        mine, expected = (load_file(folder / last / f"{name}.safetensors") for folder in (run, whole))
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in mine), name
    assert (run / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(data, whole, tmp_path, signum) -> None:
    flags = (*FLAGS, "--data", data, "--output", tmp_path / "run", "--checkpoint-every", 1000)
    started = harness.start(*flags)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists() and losses(tmp_path / "run"), started)
    started.signal(signum)
    done = started.end()
    (step,) = steps(tmp_path / "run")
    assert done.status == 128 + signum and step < STEPS
    said = done.said.strip().splitlines()[-1]
    assert said == f"stopped by {signum.name}: step {step} is saved; go on with --resume", done.said
    assert "Traceback" not in done.said
    resumed = train(*flags, "--resume")
    assert resumed.status == 0 and f"step {step}" in resumed.said, resumed.said
    assert_same_end(tmp_path / "run", whole)


def test_killed_ten_times_at_random_moments(data, whole, tmp_path) -> None:
    """A checkpoint after every step: a good part of the moments are amid saving."""
    run, moments = tmp_path / "run", random.Random(0)
    flags = (*FLAGS, "--data", data, "--output", run, "--resume", "--keep", 2)
    killed, amid_saving = 0, 0
    while killed < 10:
        started = harness.start(*flags)
        before = max(steps(run), default=0) if run.exists() else 0
        wait_for(lambda before=before: run.exists() and max(steps(run), default=0) > before, started)
        time.sleep(moments.uniform(0, 0.06))
        started.signal(signal.SIGKILL)
        assert started.end().status == -signal.SIGKILL
        killed += 1
        amid_saving += any((run / "checkpoints").glob(".step-*"))
        assert steps(run)
    done = train(*flags)
    assert done.status == 0, done.said
    assert_same_end(run, whole)
    assert not list((run / "checkpoints").glob(".step-*")) and len(steps(run)) == 2
    print(f"{amid_saving} of {killed} kills were amid saving")


def test_killed_amid_saving_the_last_whole_one_is_taken(data, whole, tmp_path) -> None:
    """What each moment of saving leaves on the disk, made by hand."""
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run)
    assert train(*flags, "--steps", 5).status == 0
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000005", folder / ".step-00000006.part")
    (folder / ".step-00000006.part/model.safetensors").unlink()
    shutil.copytree(folder / "step-00000003", folder / ".step-00000002.gone")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.0}\n{"step": 7, "lo')
    assert train(*flags, "--resume").status == 0
    assert_same_end(run, whole)


def test_a_run_with_nothing_left_to_do_ends_well(whole, data) -> None:
    done = train(*FLAGS, "--data", data, "--output", whole, "--resume")
    assert done.status == 0 and "encoder.safetensors" in done.said, done.said


@pytest.mark.parametrize("worlds", [(1, 2), (2, 4), (4, 1)])
def test_another_number_of_processes_sees_the_same(data, tmp_path, worlds) -> None:
    """The mean of all pixels that each step was fed tells; tests/pipelines compares every spec."""
    flags = (*TOY, "--data", data, "--output", tmp_path / "run")
    for world, length in zip(worlds, (2, 4), strict=True):
        more = ("--batch-size", 8 // world, "--steps", length, "--resume")
        for done in harness.train_together(world, *flags, *more) if world > 1 else [train(*flags, *more)]:
            assert done.status == 0, done.said
    assert train(*flags, "--output", tmp_path / "whole", "--batch-size", 8, "--steps", 4).status == 0
    found, expected = ([line["pixels"] for line in lines(tmp_path / run)] for run in ("run", "whole"))
    assert found == pytest.approx(expected, rel=1e-5) and len(set(expected)) == 4


def test_what_differs_is_named(whole, data, other_data, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    flags = (*FLAGS, "--output", tmp_path / "run", "--resume")
    for changed, says in [
        (("--data", data, "--lr", 0.5), ("lr 0.01 → 0.5",)),
        (("--data", data, "--seed", 7), ("seed 0 → 7",)),
        (("--data", data, "--batch-size", 2), ("global_batch 4 → 2", "--batch-size 4")),
        (("--data", data, "--ema", 0.5), ("ema 0.9 → 0.5",)),
        (("--data", data, "--objective", "vdim"), ("a run of --objective toy, not vdim",)),
        (("--data", other_data), ("data demo ", " → demo ")),
    ]:
        done = train(*flags, *changed)
        assert done.status == 2 and all(part in done.said for part in says), done.said
        assert "Traceback" not in done.said and len(done.said.strip().splitlines()) == 1
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert steps(tmp_path / "run") == steps(whole)
