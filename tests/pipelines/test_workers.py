"""Decoding in processes: the same views as in threads, and no process is lost or left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backends import BackendSettings
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.sampling import sample_params
from pipelines.views import Jitter, ViewSpec
from pipelines.workers import _KNOWN, Maker, Region, Worker
from shards import Dataset
from shards.video.mp4 import DecodeError
from tests.pipelines.damage import damage

SPEC = ViewSpec(offsets=((0, 2, 4), (6, 8, 10)), size=32, jitter=Jitter(), colour_scope="frame")


def batches(dataset: Dataset, count: int, **settings: object) -> list[dict]:
    backend = BackendSettings(**settings)  # type: ignore[arg-type]
    with Loader(dataset, TrainSampler(dataset, dataset.select(), SPEC, 4), backend) as loader:
        return [next(loader) for _ in range(count)]


def children() -> set[int]:
    said = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout
    return {int(word) for word in said.split()}


@pytest.mark.parametrize("name", ["cpu", "hybrid"])
def test_processes_make_what_threads_make(dataset: Dataset, name: str) -> None:
    before = children()
    found = batches(dataset, 6, name=name, processes=2, on_cpu_dali=name == "hybrid")
    expected = batches(dataset, 6, name=name, on_cpu_dali=name == "hybrid")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["key"] == theirs["key"] and torch.equal(mine["views"], theirs["views"])
    assert children() <= before


def test_a_damaged_video_is_replaced_alike(demo_folder: Path, tmp_path: Path) -> None:
    found = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        subprocess.run(["cp", "-r", demo_folder, folder], check=True)
        damage("zeroed", Dataset(folder), 3)
        found.append(batches(Dataset(folder), 6, processes=processes))
    for mine, theirs in zip(*found, strict=True):
        assert mine["key"] == theirs["key"] and torch.equal(mine["views"], theirs["views"])


@pytest.fixture
def clip(dataset: Dataset):
    """A worker, a video, its parameters, a region to write to, and what should stand there."""
    facts = [dataset.column(name)[:1] for name in ("num_frames", "width", "height")]
    params = sample_params(SPEC, np.zeros(1, np.int64), *facts, seed=0, epoch=0).sample(0)
    shape = (1, 6, 32 * 32, 3)
    video, expected = dataset.read(0), np.zeros(shape, np.float32)
    Maker(SPEC, pixels=False)(video, params, expected)
    worker = Worker(SPEC, pixels=False)
    yield worker, video, params, Region((4, *shape[1:]), np.float32), expected
    worker.end()


def test_parts_of_many_regions_are_written_where_they_lie(clip) -> None:
    worker, video, params, _, expected = clip
    regions = [Region((2, *expected.shape[1:]), np.float32) for _ in range(_KNOWN + 3)]
    worker.make(video, params, regions[0], regions[0].array[1:])
    process = worker.process
    for region in [*regions, regions[0]]:
        region.array[:] = -9
        worker.make(video, params, region, region.array[1:])
        assert (region.array[0] == -9).all() and (region.array[1:] == expected).all()
    assert worker.process == process


def test_what_one_process_dies_of_the_next_one_makes(clip) -> None:
    worker, video, params, region, expected = clip
    worker.make(video, params, region, region.array[:1])
    os.kill(worker.process, signal.SIGKILL)
    region.array[:] = 0
    worker.make(video, params, region, region.array[2:3])
    assert (region.array[2:3] == expected).all()


@pytest.mark.parametrize(
    "number, error",
    [(signal.SIGSEGV, DecodeError), (signal.SIGKILL, MemoryError), (signal.SIGTERM, RuntimeError)],
    ids=["crash", "memory", "told to end"],
)
def test_what_kills_two_processes_is_told(clip, monkeypatch, number: signal.Signals, error: type) -> None:
    """A decoder that crashes is the video's fault; a process that is killed is not."""
    worker, video, params, region, _ = clip
    start = worker._start

    def start_and_die() -> None:
        start()
        os.kill(worker.process, number)

    monkeypatch.setattr(worker, "_start", start_and_die)
    with pytest.raises(error, match="twice"):
        worker.make(video, params, region, region.array[:1])


def test_a_process_that_cannot_start_is_no_videos_fault(clip, monkeypatch) -> None:
    worker, video, params, region, _ = clip
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="exit status 1"):
        worker.make(video, params, region, region.array[:1])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="No such file"):
        worker.make(video, params, region, region.array[:1])


def test_a_bad_video_leaves_the_process_as_it_is(clip) -> None:
    worker, video, params, region, expected = clip
    with pytest.raises(DecodeError):
        worker.make(video[: len(video) // 2], params, region, region.array[:1])
    process = worker.process
    worker.make(video, params, region, region.array[:1])
    assert worker.process == process and (region.array[:1] == expected).all()


PARENT = """
import numpy as np, os, sys
from pipelines.backends import BackendSettings
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset
from tests.pipelines.test_workers import SPEC
dataset = Dataset(sys.argv[1])
loader = Loader(dataset, TrainSampler(dataset, dataset.select(), SPEC, 4), BackendSettings(processes=2))
next(loader)
print(*loader.backend.processes(), flush=True)
sys.stdin.read()
"""


def test_no_process_outlives_the_one_that_started_it(demo_folder: Path) -> None:
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(demo_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGINT)  # as Ctrl-C reaches all of them: it is the parent's to handle
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
