"""The tars and their index, as tar, webdataset and DALI read them."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from independent import check_dali_reads, check_webdataset_reads, files

from shards import Dataset
from shards.tar import Sample, write_shard


def test_same_samples_same_bytes_and_no_samples_no_files(tmp_path: Path) -> None:
    samples = [Sample(f"k{n}", bytes([n]) * (500 + 7 * n), {"num_frames": n}, n - 1) for n in range(4)]
    for name in "ab":
        (tmp_path / name).mkdir()
        shard = write_shard(tmp_path / name, "s-000000", iter(samples))
        assert shard is not None and (tmp_path / name / shard.name).stat().st_size == shard.bytes
        assert write_shard(tmp_path / name, "s-000001", []) is None
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sorted(files(tmp_path / "a")) == ["s-000000.idx", "s-000000.tar"]


def test_the_bytes_are_those_that_webdataset_writes_and_that_we_always_wrote(tmp_path: Path) -> None:
    """Our own sha256: of what the first version of write_shard made of these samples."""
    samples = [
        Sample("a-1", b"\x01" * 1000, {"num_frames": 3, "fps": 2.5, "label_name": "é"}, 0),
        Sample("b", bytes(range(256)) * 50, {"num_frames": 1, "x": None}, -1, b"flow" * 9),
        Sample("c" * 89, b"", {"num_frames": 1}, 12, b"f"),
    ]
    shard = write_shard(tmp_path, "s-000000", samples)
    assert shard is not None
    assert shard.sha256 == "5c33c7a94c0fd1dffec1d65f11e448f988635b125a97cad8988a45a8ac818521"
    webdataset = pytest.importorskip("webdataset")
    content = (tmp_path / shard.name).read_bytes()
    with (
        tarfile.open(tmp_path / shard.name) as ours,
        webdataset.TarWriter(
            str(tmp_path / "theirs.tar"), user="", group="", mode=0o644, mtime=0, encoder=False
        ) as theirs,
    ):
        for member in ours:
            key, _, component = member.name.partition(".")
            theirs.write({"__key__": key, component: ours.extractfile(member).read()})
    assert (tmp_path / "theirs.tar").read_bytes() == content
    for row in shard.rows:  # the offsets are where the tar has them
        at, size = row["mp4_offset"], row["mp4_size"]
        sample = next(one for one in samples if one.key == row["key"])
        assert content[at : at + size] == sample.mp4


def test_an_error_among_the_samples_leaves_no_file(tmp_path: Path) -> None:
    def samples():
        yield Sample("k", b"x", {})
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_shard(tmp_path, "s-000000", samples())
    assert not list(tmp_path.iterdir())


def test_tar_members_are_plain_and_complete(dataset: Dataset) -> None:
    members = {}
    for shard in np.unique(dataset.column("shard").astype(str)):
        with tarfile.open(dataset.path / shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                members[member.name] = tar.extractfile(member).read()
    expected = {}
    for row, key in enumerate(dataset.column("key")):
        for component in ("mp4", "json", "cls"):
            expected[f"{key}.{component}"] = dataset.read(row, component)
    assert members == expected
    facts = json.loads(dataset.read(0, "json"))
    for name in ("key", "num_frames", "fps", "width", "height", "label", "label_name", "source", "sha256"):
        assert facts[name] == dataset.column(name)[0]
    assert int(dataset.read(0, "cls")) == dataset.column("label")[0]


def test_index_is_what_dali_would_make(dataset: Dataset, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="comes with DALI")
    for tar in sorted(dataset.path.glob("*.tar")):
        creator = wds2idx.IndexCreator(str(tar), str(tmp_path / "made.idx"), verbose=False)
        creator.create_index()
        creator.close()
        assert (tmp_path / "made.idx").read_text() == tar.with_suffix(".idx").read_text()


def test_webdataset_and_dali_open_the_tars(dataset: Dataset) -> None:
    check_webdataset_reads(dataset)
    check_dali_reads(dataset)


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_dali_decodes_frames_by_number_from_a_house_mp4(tmp_path: Path, codec: str) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from independent import decode, render

    from shards.video.transcode import Encoding, transcode

    clip = transcode(render(tmp_path / "in.avi", codec="ffv1"), Encoding(codec=codec))
    numbers = [39, 0, 17, 17, 5]

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decoder():
        data = dali.fn.external_source(
            source=lambda: [np.frombuffer(clip.data, np.uint8)], dtype=dali.types.UINT8
        )
        return dali.fn.decoders.video(data, frames=numbers)

    pipeline = decoder()
    pipeline.build()
    frames_THWC = np.asarray(pipeline.run()[0].at(0))
    levels = np.array(decode(clip.data).levels)[numbers]
    expected = levels if codec == "mjpeg" else (levels - 16) * 255 / 219
    np.testing.assert_allclose(frames_THWC.mean((1, 2, 3)), expected, atol=2)
