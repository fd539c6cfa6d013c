"""What the disk does not give says nothing about a video; and a long video needs no more memory than a short one."""

import tracemalloc
from pathlib import Path

import pytest
from independent import files, on_progress, render

from shards import Dataset
from shards.build import process_video as worker
from shards.build.job import part_of
from shards.build.pool import Limits, Reject
from shards.build.process_video import Processing, Task, process_video
from shards.build.run import build, make_shard, prepare
from shards.video.encode import Encoding
from shards.video.transcode import Clip

SMALL = Processing(Encoding(short_side=32, preset="ultrafast"))
EIO = Path("/proc/self/mem")  # a file whose first byte no read gets: "Input/output error"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(8):
        render(tmp_path / "clips" / "ab"[n % 2] / f"{n}.avi", frames=8, size=(64, 48), seed=n)
    return tmp_path / "clips"


def test_a_disk_that_fails_is_asked_again_and_then_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PAUSES", (0.0, 0.0))
    for path, said in (
        (EIO, "Input/output error, 3 times tried"),
        (folder / "gone.avi", "No such file or directory, 3 times tried"),
    ):
        for copy in (False, True):
            task = Task(path, Processing(SMALL.encoding, copy=copy), tmp_path / "scratch")
            assert process_video(task) == Reject("io_error", said)
    away = folder / "a" / "0.avi"
    hidden = away.rename(tmp_path / "0.avi")
    monkeypatch.setattr("time.sleep", lambda _: hidden.exists() and hidden.rename(away))
    assert isinstance(process_video(Task(away, SMALL, tmp_path / "scratch")), Clip)


def test_a_folder_that_vanishes_ends_the_run_and_costs_no_video(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(prepare(folder, tmp_path / "whole" / "set", SMALL, per_shard=2), Limits(1))
    job = prepare(folder, tmp_path / "cut" / "set", SMALL, per_shard=2)
    away = tmp_path / "away"

    def vanish(done: int, total: int) -> None:
        if done == 2 and not away.exists():
            folder.rename(away)

    build(job, Limits(2), part=part_of("2/4"))
    on_progress(monkeypatch, vanish)
    # three at a time, so that three fail together
    with pytest.raises(OSError, match=r"does not give 3 videos in a row \(No such file"):
        build(job, Limits(3))
    monkeypatch.undo()
    away.rename(folder)
    again = prepare(folder, tmp_path / "cut" / "set", SMALL, per_shard=2)
    summary = build(again, Limits(2))
    assert summary is not None and not summary.rejected
    assert files(tmp_path / "cut" / "set") == files(tmp_path / "whole" / "set")


def test_a_video_that_the_disk_did_not_give_is_tried_again_by_the_next_call(
    tmp_path: Path, folder: Path
) -> None:
    build(prepare(folder, tmp_path / "whole" / "set", SMALL, per_shard=2), Limits(1))
    out = tmp_path / "later" / "set"
    job = prepare(folder, out, SMALL, per_shard=2)
    hidden = (folder / "a" / "4.avi").rename(tmp_path / "4.avi")
    first = build(job, Limits(2))
    assert first is not None and first.rejected == {"io_error": 1} and len(Dataset(out)) == 7
    still = build(job, Limits(2))
    assert still is not None and still.already and still.rejected == {"io_error": 1}
    hidden.rename(folder / "a" / "4.avi")
    second = build(prepare(folder, out, SMALL, per_shard=2), Limits(2))
    assert second is not None and not second.already and not second.rejected
    assert files(out) == files(tmp_path / "whole" / "set")


def test_neither_worker_nor_parent_holds_a_video_in_memory(tmp_path: Path) -> None:
    """What is measured: all that Python allocates; the clip has 4 MB and more."""
    path = render(tmp_path / "in" / "long.avi", frames=80, size=(640, 480), codec="ffv1")
    job = prepare(path.parent, tmp_path / "set", Processing(Encoding(codec="mjpeg", crf=2, short_side=480)))
    tracemalloc.start()
    try:
        clip = process_video(Task(path, job.processing, tmp_path / "scratch"))
        worker_peak = tracemalloc.get_traced_memory()[1]
        assert isinstance(clip, Clip)
        size = clip.data.stat().st_size
        tracemalloc.reset_peak()
        job.notes.folder.mkdir(parents=True)
        make_shard(job, 0, iter([clip]))
        parent_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 4e6
    assert worker_peak < size / 3 and parent_peak < size / 3, (size, worker_peak, parent_peak)
    assert not clip.data.exists() and (tmp_path / "set" / "set-000000.tar").stat().st_size > size
