"""tools/make_shards.py as a user meets it: its help, its summary, and one line for every mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from independent import ENVIRONMENT, TOOL, make_shards, render, said


def test_it_is_executable_and_its_help_names_every_flag() -> None:
    assert os.access(TOOL, os.X_OK)
    result = make_shards("--help")
    flags = [
        "--out",
        "--codec",
        "--short-side",
        "--multiple",
        "--fps",
        "--gop",
        "--crf",
        "--per-shard",
        "--workers",
        "--seed",
        *(
            "--layout",
            "--annotations",
            "--preset",
            "--tune",
            "--copy",
            "--keep-damaged",
            "--keep-stills",
            "--flow",
            "--flow-limit",
        ),
        *("--timeout", "--memory", "--part", "--ray", "--dry-run"),
    ]
    assert result.returncode == 0 and all(flag in result.stdout for flag in flags)


def test_the_summary_counts_rejects_by_reason_and_says_where_they_are(
    class_folders: Path, made: Path
) -> None:
    result = make_shards(class_folders, "--out", made, "--per-shard", 4)
    assert result.returncode == 0 and "complete already: 13 videos" in result.stdout
    assert "1 unreadable: the file cannot be opened" in result.stdout and "rejected.jsonl" in result.stdout


def test_out_is_data_and_the_name_of_the_source_by_default(tmp_path: Path) -> None:
    render(tmp_path / "my clips" / "1.avi", frames=3)
    command = [sys.executable, str(TOOL), "my clips"]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data" / "my clips" / "my_clips-000000.tar").is_file()


def test_links_to_nothing_end_as_named_rejects(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "1.avi", frames=3)
    (tmp_path / "videos" / "gone.avi").symlink_to("nowhere.avi")
    (tmp_path / "videos" / "notes.nfo").write_text("not a video, though FFmpeg draws it\n" * 20)
    settings = ("--out", tmp_path / "out", "--codec", "mjpeg", "--workers", 1)
    dry = make_shards(tmp_path / "videos", *settings, "--dry-run")
    assert "unreadable 1: gone.avi" in dry.stdout
    result = make_shards(tmp_path / "videos", *settings)
    assert result.returncode == 0, result.stderr
    lines = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    rejected = {one["source"]: (one["reason"], one["detail"]) for one in lines}
    assert rejected["gone.avi"] == ("unreadable", "a link to nowhere.avi: No such file or directory")
    assert rejected["notes.nfo"][0] == "still_picture" and len(rejected) == 2
    assert make_shards(tmp_path / "videos", *settings).returncode == 0  # complete already


def _mistakes(folder: Path) -> dict[str, tuple[list[object], str]]:
    render(folder / "videos" / "1.avi", frames=3)
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("no video")
    (folder / "empty").mkdir()
    (folder / "pages").mkdir()
    (folder / "pages" / "a.mp4").write_text("<html>")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.tex").write_text("do not touch")
    videos = folder / "videos"
    return {
        "missing": ([folder / "nowhere"], "nowhere: no such folder"),
        "empty": ([folder / "empty"], "empty: no files"),
        "texts": ([folder / "texts"], "1 files, none of which can be a video"),
        "unusable": ([folder / "pages"], "none of 1 files became a sample (the first: a.mp4, unreadable"),
        "taken": ([videos, "--out", folder / "taken"], "holds thesis.tex and no data set"),
        "inside": ([videos, "--out", videos / "out"], "lies inside"),
        "gop": ([videos, "--gop", 0], "--gop 0: give 1 to 1000 frames"),
        "crf": ([videos, "--codec", "mjpeg", "--crf", 40], "--crf 40: mjpeg takes 2 to 31"),
        "per-shard": ([videos, "--per-shard", 0], "--per-shard 0: give 1 or more"),
        "preset": ([videos, "--preset", "best"], "--preset best: not one of ultrafast"),
        "part": ([videos, "--part", "3/2"], "--part 3/2: give I/N with I from 1 to N"),
        "timeout": ([videos, "--timeout", "-1"], "--timeout -1.0: give seconds, more than 0"),
        "annotations": ([videos, "--annotations", "no.csv"], "--annotations no.csv: no such file or folder"),
        "layout": ([videos, "--layout", "ucf101"], "--layout ucf101: no trainlist01.txt"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("missing", "empty", "texts", "unusable", "taken", "inside", "gop", "crf", "per-shard"),
        *("preset", "part", "timeout", "annotations", "layout"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    arguments, message = _mistakes(tmp_path)[name]
    out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    result = make_shards(*arguments, *out)
    lines = said(result)
    assert result.returncode == 2 and not result.stdout
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_ctrl_c_ends_in_one_line_and_no_traceback(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "0.avi", frames=40, size=(160, 120))
    for n in range(1, 200):  # seconds of work: the interrupt below must not come too late
        shutil.copy(tmp_path / "videos" / "0.avi", tmp_path / "videos" / f"{n}.avi")
    command = [sys.executable, str(TOOL), str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    options = {"stderr": subprocess.PIPE, "env": ENVIRONMENT, "start_new_session": True, "text": True}
    # a test run started in the background may have been told to ignore Ctrl-C, and would pass that on
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([*command, "--per-shard", "1", "--workers", "1"], **options) as process:
        seen = ""
        while not re.search(r" [1-9]\d*/200", seen):
            seen += process.stderr.read(1) or pytest.fail(f"it ended early: {seen}")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        seen += process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in seen
    assert "the same command goes on from there" in seen.splitlines()[-1]
