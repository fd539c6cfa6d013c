"""--flow puts the flow of each video beside it: the same member in tar, index and table."""

import hashlib
import tarfile
from pathlib import Path

import pytest
from independent import decode, make_shards, render, said

from shards import DamagedError, Dataset
from shards.check import check
from shards.check.repair import repair

pytest.importorskip("cv2", reason="OpenCV, an extra, is not installed")


def test_rows_have_their_flow_frame_by_frame(tmp_path: Path) -> None:
    for n in range(2):
        render(tmp_path / "videos" / f"{n}.avi", frames=6 + n, size=(64, 48), seed=n)
    out = tmp_path / "set"
    settings = ("--flow", "dis", "--flow-limit", 10, "--workers", 1)
    result = make_shards(tmp_path / "videos", "--out", out, *settings)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(out)
    assert dataset.info["settings"]["flow"] == "dis" and dataset.info["settings"]["flow_limit"] == 10
    for row in range(2):
        video, flow = decode(dataset.read(row)), decode(dataset.read(row, "flow.mp4"))
        assert (flow.frames, flow.times, flow.width, flow.height) == (video.frames, video.times, 64, 96)
        offset, size = (int(dataset.column(f"flow.mp4_{name}")[row]) for name in ("offset", "size"))
        with tarfile.open(out / dataset.column("shard")[row]) as tar:
            member = tar.getmember(f"{dataset.column('key')[row]}.flow.mp4")
            assert (member.offset_data, member.size) == (offset, size)
        assert f" flow.mp4 {offset} {size} " in (out / "set-000000.idx").read_text()
    again = make_shards(tmp_path / "videos", "--out", out, "--flow", "dis", "--workers", 1)
    assert again.returncode == 2 and "--flow-limit 10.0, not 20.0" in said(again)[0]
    none = make_shards(tmp_path / "videos", "--out", out, "--workers", 1)
    assert none.returncode == 2 and "--flow dis, not None" in said(none)[0]


def test_flow_whose_bytes_changed_is_found_with_and_without_decoding(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "0.avi", frames=6, size=(64, 48))
    out = tmp_path / "set"
    assert make_shards(tmp_path / "videos", "--out", out, "--flow", "dis", "--workers", 1).returncode == 0
    dataset = Dataset(out)
    flow = dataset.read(0, "flow.mp4")
    assert dataset.column("flow.mp4_sha256")[0] == hashlib.sha256(flow).hexdigest()
    assert not check(out).problems
    tar = out / dataset.column("shard")[0]
    data = bytearray(tar.read_bytes())
    place = data.index(flow) + flow.index(b"mdat") - 5  # in the index of the mp4: it decodes as before
    data[place] ^= 1
    tar.write_bytes(data)
    for fast in (True, False):
        problems = {one.kind: one.detail for one in check(out, fast=fast).problems}
        assert problems.keys() == {"tar_checksum", "flow"}
        assert "not those that were written" in problems["flow"]
    with pytest.raises(DamagedError, match=r"not the bytes that were written \(sha256\)"):
        Dataset(out).read(0, "flow.mp4")
    assert Dataset(out).read(0) == dataset.read(0)
    repair(out)
    assert [one.kind for one in check(out).problems] == ["flow"]  # the checksum came from the sample's json
