"""tools/check_shards.py: each kind of damage is found, named, quarantined or repaired."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from independent import ENVIRONMENT, ROOT, files, said

from shards import Dataset, InputError
from shards.check import PROBLEMS, Report, check
from shards.check.repair import repair

TOOL = ROOT / "tools" / "check_shards.py"


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def kinds(report: Report) -> dict[str, list[str]]:
    """Kind → where, ascending."""
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        assert problem.kind in PROBLEMS
        found.setdefault(problem.kind, []).append(problem.where)
    return {kind: sorted(where) for kind, where in found.items()}


def edit_table(folder: Path, row: int, **values: object) -> None:
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    schema = pq.read_schema(folder / "samples.parquet")
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "samples.parquet")


def flip(folder: Path, row: int, place: float) -> str:
    """Change one byte of a row's video, at this share of it; returns its key."""
    dataset = Dataset(folder)
    offset, size = (int(dataset.column(f"mp4_{name}")[row]) for name in ("offset", "size"))
    with open(folder / dataset.column("shard")[row], "r+b") as tar:
        tar.seek(offset + int(size * place))
        byte = tar.read(1)[0]
        tar.seek(-1, os.SEEK_CUR)
        tar.write(bytes([byte ^ 0x40]))
    return dataset.keys([row])[0]


@pytest.mark.parametrize("fast", [False, True])
def test_a_whole_data_set_has_no_problems(made: Path, fast: bool, capfd: pytest.CaptureFixture[str]) -> None:
    report = check(made, fast=fast, workers=2)
    assert not report.problems and report.tars == 4 and report.skipped == 0
    bar = capfd.readouterr().err
    assert " 0/17 " in bar and " 17/17 " in bar


@pytest.mark.parametrize("fast", [False, True])
def test_a_flipped_byte_in_a_video_is_found(copied: Path, fast: bool) -> None:
    key = flip(copied, 5, 0.9)
    report = check(copied, fast=fast, workers=2)
    (problem,) = [one for one in report.problems if one.row is not None]
    assert problem.row == 5 and problem.where == key and problem.kind in ("checksum", "undecodable")
    assert kinds(report)["tar_checksum"] == [Dataset(copied).column("shard")[5]]


def test_a_truncated_tar_is_found_with_the_rows_it_lost(copied: Path) -> None:
    dataset = Dataset(copied)
    shard = dataset.shards[0]
    rows = np.flatnonzero(dataset.shard_numbers == 0)
    cut = int(dataset.column("mp4_offset")[rows[2]]) + 10
    os.truncate(copied / shard, cut)
    with pytest.raises(InputError, match="but the table's rows in it end at"):
        Dataset(copied)
    found = kinds(check(copied, workers=2))
    assert found["truncated_tar"] == found["tar_checksum"] == [shard]
    assert found["past_end"] == sorted(dataset.keys(rows[2:]))
    assert set(found) == {"truncated_tar", "tar_checksum", "past_end", "wrong_index"}


def test_a_tar_without_its_end_or_not_there_at_all_is_found(copied: Path) -> None:
    first, second = sorted(copied.glob("*.tar"))[:2]
    os.truncate(first, first.stat().st_size - 10240)
    second.unlink()
    found = kinds(check(copied, fast=True, workers=2))
    assert first.name in found["truncated_tar"] + found.get("tar_checksum", [])
    assert found["missing_tar"] == [second.name] and len(found["past_end"]) >= 4


def test_missing_and_wrong_indexes_are_found(copied: Path) -> None:
    first, second = sorted(copied.glob("*.idx"))[:2]
    first.unlink()
    second.write_text(second.read_text().replace("mp4 512", "mp4 513", 1))
    assert kinds(check(copied, fast=True)) == {"missing_index": [first.name], "wrong_index": [second.name]}


def test_rows_that_point_elsewhere_are_found(copied: Path) -> None:
    dataset = Dataset(copied)
    keys = dataset.keys(range(3))
    edit_table(copied, 0, mp4_offset=10**9)
    edit_table(copied, 1, mp4_offset=int(dataset.column("mp4_offset")[2]))
    found = kinds(check(copied, fast=True))
    assert found == {"table": ["samples.parquet"], "past_end": [keys[0]], "misplaced": [keys[1]]}


def test_a_wrong_frame_count_is_found_by_decoding_only(copied: Path) -> None:
    key = Dataset(copied).keys([4])[0]
    edit_table(copied, 4, num_frames=99)
    assert "frame_count" not in kinds(check(copied, fast=True))
    assert kinds(check(copied))["frame_count"] == [key]


def test_duplicates_are_found_by_content_and_by_key(copied: Path, tmp_path: Path) -> None:

    from shards.table import publish
    from shards.tar import Sample, write_shard

    source, out = Dataset(copied), tmp_path / "twice"
    out.mkdir()
    names = ("num_frames", "fps", "width", "height", "source")
    facts = [{name: source.column(name)[row].item() for name in names[:4]} for row in (0, 1)]
    samples = [Sample(f"k{n}", source.read(row), facts[row]) for n, row in enumerate((0, 1, 0))]
    shard = write_shard(out, "twice-000000", samples)
    publish(out, [], [shard], {}, name="twice")
    report = check(out)
    assert kinds(report) == {"duplicate": ["k2"]} and "k0" in report.problems[0].detail
    edit_table(out, 2, key="k0")
    assert "k0" in kinds(check(out))["duplicate"]


@pytest.mark.parametrize("damage", ["table", "description", "both", "garbage"])
def test_it_works_and_repairs_where_the_data_set_does_not_open(made: Path, copied: Path, damage: str) -> None:
    for index in copied.glob("*.idx"):
        index.unlink()
    if damage in ("table", "both"):
        (copied / "samples.parquet").unlink()
    if damage in ("description", "both"):
        (copied / "dataset.json").unlink()
    if damage == "garbage":
        (copied / "samples.parquet").write_bytes(b"PAR1 not really")
        (copied / "dataset.json").write_text('["not", "a data set"]')
    with pytest.raises(InputError):
        Dataset(copied)
    assert {"table", "description"} & kinds(check(copied)).keys()
    assert repair(copied) == (13, [])
    assert not check(copied).problems
    whole, before = files(copied), files(made)
    for name in before:
        if name.endswith((".tar", ".idx", ".parquet", ".jsonl")):
            assert whole[name] == before[name], name
    repaired = Dataset(copied)
    assert repaired.classes == Dataset(made).classes and repaired.fingerprint == Dataset(made).fingerprint


def test_repair_keeps_what_a_truncated_tar_still_holds(copied: Path) -> None:
    dataset = Dataset(copied)
    expected = {dataset.keys([row])[0]: dataset.read(row) for row in range(len(dataset))}
    rows = np.flatnonzero(dataset.shard_numbers == 1)
    os.truncate(copied / dataset.shards[1], int(dataset.column("mp4_offset")[rows[1]]) + 5)
    rows_left, _ = repair(copied)
    assert rows_left == len(dataset) - len(rows) + 1
    repaired = Dataset(copied)
    for row in range(len(repaired)):
        assert repaired.read(row) == expected[repaired.keys([row])[0]]
    assert (copied / "samples.parquet.before-repair").is_file()
    assert kinds(check(copied)).keys() == {"truncated_tar"}


def test_training_steps_over_quarantined_rows(copied: Path) -> None:
    dataset = Dataset(copied)
    shard = dataset.shards[2]
    lost = np.flatnonzero(dataset.shard_numbers == 2)[1:]
    os.truncate(copied / shard, int(dataset.column("mp4_offset")[lost[0]]) + 10)
    flipped = flip_lying(copied, dataset, 0)
    result = doctor(copied, "--quarantine", "--workers", 2)
    assert result.returncode == 1, result.stderr  # the tar itself stays damaged
    assert (
        "truncated_tar" in result.stdout and f"{1 + len(lost)} videos are in quarantine now" in result.stdout
    )
    again = Dataset(copied)
    left = again.select()
    assert set(range(len(again))) - set(left) == {flipped, *lost}
    for row in left:
        assert again.read(row) == dataset.read(row)
    report = check(copied, fast=True)
    assert report.skipped == 1 + len(lost) and not [one for one in report.problems if one.row is not None]


def flip_lying(folder: Path, dataset: Dataset, row: int) -> int:
    """As `flip`, for a folder that no longer opens."""
    with open(folder / dataset.column("shard")[row], "r+b") as tar:
        tar.seek(int(dataset.column("mp4_offset")[row]) + int(dataset.column("mp4_size")[row]) - 40)
        tar.write(b"\xff\x00\xff")
    return row


def test_the_command_tells_counts_draws_and_exits_with_what_it_found(copied: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = doctor(copied, "--picture", tmp_path / "seen.png", "--workers", 2)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "13 rows, 4 tars" in result.stdout and "nothing is wrong" in result.stdout
    assert "3 classes, from 1 (wave) to 8 videos (jump)" in result.stdout
    assert (tmp_path / "seen.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and not said(result)
    next(iter(copied.glob("*.idx"))).unlink()
    result = doctor(copied, "--fast")
    assert result.returncode == 1 and "1 missing_index" in result.stdout and "--repair" in result.stdout
    assert doctor(copied, "--fast", "--repair").returncode == 0
    edit_table(copied, 3, num_frames=7)
    info = json.loads((copied / "dataset.json").read_text())
    del info["table"]
    (copied / "dataset.json").write_text(json.dumps(info))
    result = doctor(copied, "--quarantine")
    assert result.returncode == 0 and "1 videos are in quarantine now" in result.stdout
    assert 3 not in Dataset(copied).select()


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere: no such folder"),
        ([tmp_path], "no tars and no samples.parquet"),
        ([tmp_path, "--repair"], "no tars to repair from"),
        ([tmp_path, "--workers", 0], "--workers 0: give 1 or more"),
    ):
        result = doctor(*arguments)
        (line,) = said(result)
        assert result.returncode == 2 and line.startswith("error: ") and message in line
