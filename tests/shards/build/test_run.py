"""The job: the same bytes whatever the workers and however often it was killed; nothing is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from independent import ENVIRONMENT, TOOL, files, make_shards, on_progress, render, said

from shards import Dataset, InputError
from shards.atomic import WriterLock
from shards.build.finish import Summary
from shards.build.pool import Limits
from shards.build.process_video import Processing
from shards.build.run import build as build_job
from shards.build.run import prepare
from shards.video.encode import Encoding


def build(
    folder: Path,
    out: Path,
    encoding: Encoding,
    *,
    workers: int = 1,
    **options,
) -> Summary:
    job = prepare(folder, out, Processing(encoding), **options)
    return build_job(job, Limits(workers))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "clips"
    for n in range(10):
        render(folder / "ab"[n % 2] / f"{n}.avi", frames=40, size=(160, 120), seed=n)
    (folder / "a" / "broken.avi").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def uncut(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uncut") / "set"
    build(many, out, Encoding(), per_shard=2, workers=2)
    return out


def test_workers_do_not_change_a_byte(many: Path, uncut: Path, tmp_path: Path) -> None:
    build(many, tmp_path / "set", Encoding(), per_shard=2, workers=1)
    assert files(tmp_path / "set") == files(uncut)


def test_every_codec_is_deterministic(many: Path, tmp_path: Path) -> None:
    for codec in ("hevc", "vp9", "mjpeg"):
        for run, workers in (("first", 1), ("second", 2)):
            encoding = Encoding(codec=codec, short_side=64)
            build(many, tmp_path / codec / run / "set", encoding, per_shard=6, workers=workers)
        assert files(tmp_path / codec / "first") == files(tmp_path / codec / "second")


def test_the_seed_changes_the_order_only(many: Path, uncut: Path, tmp_path: Path) -> None:
    build(many, tmp_path / "set", Encoding(), per_shard=2, workers=2, seed=1)
    here, there = (pq.read_table(folder / "samples.parquet") for folder in (tmp_path / "set", uncut))
    columns = ["key", "sha256", "label", "num_frames"]
    assert here["key"].to_pylist() != there["key"].to_pylist()
    assert here.select(columns).sort_by("key") == there.select(columns).sort_by("key")


def test_goes_on_after_sigkill_where_it_was_and_ends_the_same(
    many: Path, uncut: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    command = [sys.executable, str(TOOL), str(many), "--out", str(out), "--per-shard", "2", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        while not list(out.glob(".unfinished/set-*.json")):
            assert process.stderr is not None and process.stderr.read(1), "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (out / "dataset.json").exists()
    (done,) = list(out.glob(".unfinished/set-*.json"))[:1]
    tar = out / f"{done.stem}.tar"
    inode = tar.stat().st_ino if tar.exists() else None
    (out / ".set-000004.tar.partial").write_bytes(b"what a crash left")
    assert make_shards(many, "--out", out, "--per-shard", 2, "--workers", 2).returncode == 0
    assert files(out) == files(uncut)
    assert inode is None or tar.stat().st_ino == inode  # not written again


def test_a_shard_whose_tar_was_lost_or_cut_is_made_again(many: Path, uncut: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    stopped = build_until(many, out, videos=7)
    assert stopped and (out / "set-000001.tar").exists()
    (out / "set-000000.tar").unlink()
    (out / "set-000001.tar").write_bytes(b"short")
    build(many, out, Encoding(), per_shard=2, workers=2)
    assert files(out) == files(uncut)


def build_until(folder: Path, out: Path, videos: int) -> bool:
    """Interrupt the job, as Ctrl-C does, once so many videos are done."""

    def stop(done: int, total: int) -> None:
        if done >= videos:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        on_progress(patch, stop)
        try:
            build(folder, out, Encoding(), per_shard=2, workers=2)
        except KeyboardInterrupt:
            return True
    return False


def test_a_complete_data_set_is_left_alone(many: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in uncut.iterdir()}
    seen: list[tuple[int, int]] = []
    on_progress(monkeypatch, lambda *one: seen.append(one))
    assert build(many, uncut, Encoding(), per_shard=2, workers=1).already
    assert {path: path.stat().st_mtime_ns for path in uncut.iterdir()} == before and not seen


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoding": Encoding(gop=8)}, "--gop 16, not 8"),
        ({"per_shard": 3}, "--per-shard 2, not 3"),
        ({"seed": 1}, "--seed 0, not 1"),
        ({"encoding": Encoding(crf=30)}, "--crf 23, not 30"),
    ],
)
def test_other_settings_need_another_folder(many: Path, uncut: Path, changed: dict, message: str) -> None:
    settings = {"encoding": Encoding(), "per_shard": 2} | changed
    with pytest.raises(InputError, match=f"{message}; give {message.split(',')[0]} or another --out"):
        build(many, uncut, **settings)


def test_a_cut_off_job_takes_no_other_settings_or_videos(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert build_until(many, out, videos=3)
    with pytest.raises(InputError, match="--short-side 256, not 64"):
        build(many, out, Encoding(short_side=64), per_shard=2)
    with pytest.raises(InputError, match="of other videos"):
        build(many / "a", out, Encoding(), per_shard=2)


def test_a_folder_has_one_writer(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert build_until(many, out, videos=3)
    with closing(WriterLock(out / ".unfinished", "this test", [4])):  # one shard's
        result = make_shards(many, "--out", out, "--per-shard", 2)
        assert result.returncode == 2 and (f"--out {out}: process {os.getpid()} on " in said(result)[0])
        # parts that leave this shard alone may work beside it
        assert make_shards(many, "--out", out, "--per-shard", 2, "--part", "2/3").returncode == 2
        assert make_shards(many, "--out", out, "--per-shard", 2, "--part", "1/3").returncode == 0


def test_progress_counts_every_video_once(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    on_progress(monkeypatch, lambda *one: seen.append(one))
    build(many, tmp_path / "set", Encoding(), workers=2)
    assert seen == [(n, 11) for n in range(12)]


def test_rows_rejects_and_description_agree(many: Path, uncut: Path) -> None:
    dataset = Dataset(uncut)
    rejected = [json.loads(line) for line in (uncut / "rejected.jsonl").read_text().splitlines()]
    assert [(one["source"], one["reason"]) for one in rejected] == [("a/broken.avi", "unreadable")]
    assert dataset.info["rejected"] == {"unreadable": 1} and dataset.info["rows"] == len(dataset) == 10
    assert dataset.info["settings"]["gop"] == 16 and dataset.info["settings"]["crf"] == 23
    assert not list(uncut.glob(".*"))
    assert {row.as_posix() for row in map(Path, dataset.column("source"))} | {"a/broken.avi"} == {
        path.relative_to(many).as_posix() for path in many.rglob("*") if path.is_file()
    }
