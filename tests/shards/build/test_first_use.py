"""--data with a folder of videos: a data set is made of it once, and again when a file changes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from independent import render

from shards import Dataset, InputError
from shards.build import scan
from shards.build.scan import data_folder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of one video each, and an empty cache."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("jump", "wave")):
        render(tmp_path / "my clips" / name / "1.avi", frames=20, seed=number)
    return tmp_path / "my clips"


def test_it_is_made_once_and_again_when_a_file_changes(clips: Path) -> None:
    first = data_folder(clips)
    assert Dataset(first).classes == ["jump", "wave"] and len(Dataset(first)) == 2
    made = (first / "dataset.json").stat()
    again = data_folder(clips)
    assert again == first and (again / "dataset.json").stat() == made
    render(clips / "wave" / "2.avi", frames=20, seed=5)
    assert data_folder(clips) != first and len(Dataset(data_folder(clips))) == 3
    os.utime(clips / "wave" / "2.avi", (0, 0))
    assert len(list((clips.parent / "cache" / "videos").glob("*/my_clips"))) == 2
    touched = data_folder(clips)
    assert touched not in (first, again) and Dataset(touched).name == Dataset(first).name == "my_clips"


def test_what_is_stopped_goes_on(clips: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from shards.build.scan import data_folder as f; f(Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    making = subprocess.Popen([sys.executable, "-c", code, clips], env=environment, start_new_session=True)
    while not list(tmp_path.glob("cache/videos/*/my_clips")):
        time.sleep(0.01)
    os.killpg(making.pid, signal.SIGKILL)
    making.wait()
    assert len(Dataset(data_folder(clips))) == 2


def test_what_is_no_folder_of_videos_is_left_alone(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = data_folder(clips)
    for data in (made, tmp_path / "empty", tmp_path / "nowhere", Path("s3://bucket/k400")):
        assert data_folder(data) == data
    (made / "samples.parquet").unlink()  # a data set that is not whole is none to be made anew
    assert data_folder(made) == made


def test_links_to_folders_are_followed_and_what_is_hidden_counts_for_nothing(
    clips: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("jump", "wave"):
        (linked / name).symlink_to(clips / name)
    first = data_folder(linked)
    assert Dataset(first).classes == ["jump", "wave"]
    (linked / ".DS_Store").write_text("x")
    (linked / ".git").mkdir()
    (linked / ".git" / "HEAD").write_text("x")
    assert data_folder(linked) == first
    render(clips / "wave" / "2.avi", frames=20, seed=5)
    assert data_folder(linked) != first
    unfinished = tmp_path / "half"  # as make_shards leaves it
    (unfinished / ".unfinished").mkdir(parents=True)
    for name in ("half-000000.tar", ".unfinished/000000", ".half-000001.tar.partial"):
        (unfinished / name).write_text("x")
    assert data_folder(unfinished) == unfinished
    with pytest.raises(InputError, match=r"half: no samples\.parquet, so not a finished data set"):
        Dataset(unfinished)
    with pytest.raises(InputError, match=r"1\.avi: a file, not a folder"):
        Dataset(data_folder(clips / "wave" / "1.avi"))


def test_a_maker_that_was_killed_is_named(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = clips.parent / "killed.py"
    killed.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(scan, "MAKE_SHARDS", killed)
    with pytest.raises(InputError, match="my clips: SIGKILL ended make_shards; the same command goes on"):
        data_folder(clips)


def test_no_video_among_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "1.mp4").write_bytes(b"<html>404</html>")
    with pytest.raises(SystemExit) as ended:
        data_folder(tmp_path / "clips")
    assert ended.value.code == 2 and "1.mp4, unreadable" in capfd.readouterr().err


@pytest.mark.parametrize("given", [True, False])
def test_a_cache_that_cannot_be_written_to(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"file.*SLIPSTREAM_CACHE"):
        data_folder(clips if given else None)


def test_training_takes_a_folder_of_videos(clips: Path, tmp_path: Path) -> None:
    flags = [
        "--objective",
        "tcp",
        "--small",
        "--steps",
        1,
        "--batch-size",
        2,
        "--width",
        0.05,
        "--tracker",
        "none",
    ]
    done = subprocess.run(
        [sys.executable, "train.py", *map(str, flags), "--data", clips, "--output", tmp_path / "run"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "my clips holds videos" in done.stderr and "2 videos, 1 steps" in done.stdout + done.stderr
