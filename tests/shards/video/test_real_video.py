"""The tool on real video: all of UT-Interaction, and the torture set of what the web really holds."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from independent import (
    ENVIRONMENT,
    SHARED,
    check_dali_reads,
    check_webdataset_reads,
    decode,
    make_shards,
    said,
)

from shards import Dataset
from shards.video.read import REASONS

UT = SHARED / "ut-interaction"
TORTURE = SHARED / "torture"
# listed as bad in shared/data/README.md, and those that its 90 % rule rejects
BAD = [
    "garbage.mp4",
    "header_only_1k.mp4",
    "html_404.avi",
    "text_renamed.mp4",
    "truncated_50pct.mp4",
    "truncated_last_100B.mp4",
    "zero_bytes.mp4",
    "bitflips_3000.avi",
    "audio_only.mp4",
    "truncated_50pct.avi",
    "truncated_10pct.avi",
    "bitflips_2000_mid.mp4",
    "zeroed_hole.mp4",
    "still_image.jpg.mp4",  # a JPEG: no video, unless --keep-stills
]


@pytest.fixture(scope="module")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not UT.is_dir():
        pytest.skip(f"{UT} is not there")
    out = tmp_path_factory.mktemp("ut") / "ut"
    result = make_shards(UT, "--out", out, "--short-side", 64, "--per-shard", 50, "--workers", 2)
    assert result.returncode == 0, result.stderr
    return Dataset(out)


def test_all_interactions_become_rows_with_their_labels(interactions: Dataset) -> None:
    assert len(interactions) == 120 and not interactions.info["rejected"]
    assert interactions.classes == ["handshake", "hug", "kick", "point", "punch", "push"]
    assert np.bincount(interactions.column("label")).tolist() == [20] * 6
    assert set(interactions.column("source")) == {p.relative_to(UT).as_posix() for p in UT.glob("*/*.avi")}


def test_the_table_agrees_with_an_independent_decode_of_every_video(interactions: Dataset) -> None:
    for row in range(len(interactions)):
        data = interactions.read(row)
        seen = decode(data)
        table = {name: interactions.column(name)[row] for name in ("num_frames", "width", "height", "fps")}
        assert (seen.frames, seen.width, seen.height) == (
            table["num_frames"],
            table["width"],
            table["height"],
        )
        assert table["fps"] == float(seen.rate) and len(data) == interactions.column("mp4_size")[row]
        numbers = [round(time * Fraction(table["fps"])) for time in seen.times]
        assert numbers == list(range(seen.frames)) and seen.keys == list(range(0, seen.frames, 16))
        source = decode((UT / interactions.column("source")[row]).read_bytes())
        assert seen.frames == source.frames and seen.rate == source.rate
        assert min(seen.width, seen.height) == 64 and seen.width % 16 == 0


def test_webdataset_and_dali_open_the_tars(interactions: Dataset) -> None:
    check_webdataset_reads(interactions)
    check_dali_reads(interactions)


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not TORTURE.is_dir():
        pytest.skip(f"{TORTURE} is not there")
    out = tmp_path_factory.mktemp("torture") / "set"
    settings = ("--short-side", 64, "--codec", "mjpeg", "--per-shard", 20, "--workers", 2)
    result = make_shards(TORTURE, "--out", out, *settings)
    assert result.returncode == 0, result.stderr
    assert not said(result)
    return Dataset(out)


def test_every_torture_file_ends_as_a_row_or_as_a_named_reject(torture: Dataset) -> None:
    lines = (torture.path / "rejected.jsonl").read_text().splitlines()
    rejected = {one["source"]: one for one in map(json.loads, lines)}
    rows = set(torture.column("source"))
    files = {p.relative_to(TORTURE).as_posix() for p in TORTURE.rglob("*") if p.is_file()}
    assert rows | set(rejected) == files and not rows & set(rejected)
    assert set(rejected) == {f"derived/{name}" for name in BAD} | {"torchvision/README"}
    assert all(one["reason"] in REASONS and one["detail"] for one in rejected.values())
    assert rejected["derived/audio_only.mp4"]["reason"] == "no_video"
    assert rejected["derived/truncated_50pct.avi"]["detail"] == "121 frames decode of 240 announced"
    assert rejected["derived/zeroed_hole.mp4"]["detail"].startswith(
        "109 frames decode of 332 announced, then"
    )


def test_every_torture_row_decodes_as_its_table_row_says(torture: Dataset) -> None:
    for row in range(len(torture)):
        seen = decode(torture.read(row))
        table = [torture.column(name)[row] for name in ("num_frames", "width", "height")]
        assert [seen.frames, seen.width, seen.height] == table
        assert seen.times == [n / seen.rate for n in range(seen.frames)]
    frames = dict(zip(torture.column("source"), torture.column("num_frames"), strict=True))
    turn = next(source for source in frames if "hmdb51_Turnk" in source)
    assert (
        frames[turn] == 83 and frames["derived/one_frame.mp4"] == 1 and frames["derived/two_frames.avi"] == 2
    )
    assert frames["derived/two_video_streams.mkv"] == 60
    row = list(frames).index("derived/two_video_streams.mkv")
    assert (torture.column("width")[row], torture.column("height")[row]) != (64, 48)
    assert torture.column("decoded_fraction")[list(frames).index(turn)] == pytest.approx(83 / 84)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_bytes_do_not_depend_on_what_was_in_memory(codec: str) -> None:
    clip = TORTURE / "torchvision" / "TrumanShow_wave_f_nm_np1_fr_med_26.avi"
    if not clip.is_file():
        pytest.skip(f"{clip} is not there")
    code = (
        "import hashlib, sys; from pathlib import Path; from shards.video.transcode import Encoding, transcode\n"
        "for side in (86, 240):\n"
        "    clip = transcode(Path(sys.argv[1]), Encoding(codec=sys.argv[2], short_side=side))\n"
        "    print(hashlib.sha256(clip.data).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(clip), codec]
    seen = set()
    for filling in ("1", "85", "200"):  # glibc fills what it hands out with this byte's complement
        environment = {**ENVIRONMENT, "MALLOC_PERTURB_": filling}
        seen.add(subprocess.check_output(command, env=environment, text=True))
    assert len(seen) == 1


def test_torture_names_are_what_users_have(tmp_path: Path) -> None:
    if not TORTURE.is_dir():
        pytest.skip(f"{TORTURE} is not there")
    source = TORTURE / "derived" / "one_frame.mp4"
    names = [
        "a b.mp4",
        'it\'s "x", y.mp4',
        "日本 é.mp4",
        os.fsdecode(b"latin\xe9.mp4"),
        "%03d.mp4",
        "http:x.mp4",
    ]
    for name in names:
        (tmp_path / "in" / "a class, of course").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "a class, of course" / name).write_bytes(source.read_bytes())
    result = make_shards(tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(tmp_path / "out")
    assert len(dataset) == len(names) and not dataset.info["rejected"]
    assert dataset.classes == ["a class, of course"]
