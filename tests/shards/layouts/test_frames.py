"""Folders of extracted frames, as the papers' repositories have them, become videos."""

import json
import shutil
import tempfile
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import decode, make_shards, render

from shards import Dataset
from shards.video.read import images

FPS = 12.5


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of videos, and beside it `frames` with each video's pictures, numbered without zeros."""
    folder = tmp_path_factory.mktemp("extracted")
    for name, length in {"run/v_one": 14, "run/v.two": 11, "walk/v_three": 12}.items():
        video = folder / "videos" / f"{name}.avi"
        video.parent.mkdir(parents=True, exist_ok=True)
        render(video, frames=length, size=(64, 48))
        into = folder / "frames" / name
        into.mkdir(parents=True)
        with av.open(str(video)) as file:
            for number, frame in enumerate(file.decode(video=0), 1):
                form = "png" if name == "walk/v_three" else "jpg"
                frame.to_image().save(into / f"img_{number}.{form}", quality=95)
                (into / f"flow_x_{number}.jpg").write_bytes(b"another series")
    return folder


def by_file(dataset: Dataset) -> dict[str, int]:
    return {str(dataset.column("source")[row]).partition(".avi")[0]: row for row in range(len(dataset))}


def test_they_are_the_videos_that_they_were_extracted_from(extracted: Path, tmp_path: Path) -> None:
    made = make_shards(extracted / "frames", "--frames-fps", FPS, "--out", tmp_path / "a", "--workers", 1)
    assert made.returncode == 0, made.stderr
    assert make_shards(extracted / "videos", "--out", tmp_path / "b", "--workers", 1).returncode == 0
    ours, theirs = Dataset(tmp_path / "a"), Dataset(tmp_path / "b")
    assert ours.classes == theirs.classes == ["run", "walk"] and len(ours) == 3
    rows, others = by_file(ours), by_file(theirs)
    assert rows.keys() == others.keys()
    for name, row in rows.items():
        other = others[name]
        assert ours.column("num_frames")[row] == theirs.column("num_frames")[other]
        assert ours.column("label")[row] == theirs.column("label")[other]
        assert ours.column("fps")[row] == FPS
        one, two = decode(ours.read(row)), decode(theirs.read(other))
        assert (one.width, one.height) == (two.width, two.height)
        assert one.tags == two.tags and one.levels == pytest.approx(two.levels, abs=2)


def test_damaged_pictures_and_other_series_are_named(extracted: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    shutil.copytree(extracted / "frames", frames)
    (frames / "run" / "v_one" / "img_3.jpg").write_bytes(b"<html>not found</html>")
    (frames / "run" / "v.two" / "other_1.jpg").write_bytes(
        (frames / "run" / "v.two" / "img_1.jpg").read_bytes()
    )
    (frames / "walk" / "single").mkdir()
    shutil.copy(frames / "run" / "v_one" / "img_1.jpg", frames / "walk" / "single")
    result = make_shards(frames, "--frames-fps", 25, "--out", tmp_path / "set", "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert len(Dataset(tmp_path / "set")) == 1
    found = map(json.loads, (tmp_path / "set" / "rejected.jsonl").read_text().splitlines())
    reasons = {Path(one["source"]).name: (one["reason"], one["detail"]) for one in found}
    assert reasons["v_one"] == ("damaged", "img_3.jpg: no JPEG or PNG")
    assert reasons["v.two"][0] == "unreadable" and "img_#, other_#" in reasons["v.two"][1]
    assert reasons["single"][0] == "no_frames"


def test_without_the_flag_pictures_are_no_videos(extracted: Path, tmp_path: Path) -> None:
    result = make_shards(extracted / "frames", "--out", tmp_path / "set")
    assert result.returncode != 0 and "--frames-fps 25" in result.stderr and "Traceback" not in result.stderr
    result = make_shards(extracted / "frames", "--frames-fps", 0, "--out", tmp_path / "set")
    assert result.returncode != 0 and "--frames-fps 0.0: give frames per second" in result.stderr


@settings(deadline=None)  # a busy disk takes its time
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=30))
def test_the_order_is_that_of_the_numbers(numbers: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            Path(folder, f"frame{number}.jpg").touch()
        assert [int(one.stem[5:]) for one in images(Path(folder))] == sorted(numbers)
