"""Parts and merge, or a Ray cluster, make what one process makes, byte for byte."""

import secrets
from pathlib import Path

import pytest
from independent import TOOL, files, make_shards, render, run_tool, said

from shards import InputError
from shards.build.finish import merge
from shards.build.job import Job, part_of
from shards.build.process_video import Processing
from shards.build.run import build, prepare
from shards.video.encode import Encoding

MERGE = TOOL.with_name("merge_shards.py")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "clips"
    for n in range(5):
        render(folder / "ab"[n % 2] / f"{n}.avi", frames=6, size=(64, 48), seed=n)
    (folder / "a" / "broken.avi").write_bytes(b"nothing")
    return folder


def _job(videos: Path, out: Path) -> Job:
    return prepare(videos, out, Processing(Encoding()), per_shard=1)


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("plain") / "set"
    assert build(_job(videos, out)) is not None
    return files(out)


def test_parts_in_one_folder_are_merged_in_place(
    videos: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    for part in (part_of("3/3"), part_of("1/3")):
        assert build(_job(videos, out), part=part) is None
    assert not (out / "dataset.json").exists()
    with pytest.raises(InputError, match=r"2 of 6 shards are not made \(set-000001, set-000004\)"):
        merge(out)
    result = make_shards(videos, "--out", out, "--per-shard", 1, "--part", "2/3", "--workers", 1)
    assert result.returncode == 0 and "part 2/3 is done" in result.stdout
    merge(out)
    assert files(out) == plain
    assert merge(out).already and files(out) == plain


def test_parts_of_several_machines_are_brought_together(
    videos: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    nodes = [tmp_path / f"node{n}" / "set" for n in (1, 2)]
    for number, out in enumerate(nodes, 1):
        build(_job(videos, out), part=part_of(f"{number}/2"))
    out = tmp_path / "all" / "set"
    result = run_tool(MERGE, out, nodes[0])
    assert result.returncode == 2 and "3 of 6 shards are not made" in said(result)[0]
    result = run_tool(MERGE, out, *nodes)  # goes on: what was moved is not moved again
    assert result.returncode == 0 and "5 videos" in result.stdout, result.stderr
    assert files(out) == plain and not any(node.exists() for node in nodes)
    result = run_tool(MERGE, out, *nodes)  # a job script that is started again
    assert result.returncode == 0 and "complete already: 5 videos" in result.stdout, result.stderr
    build(_job(videos, nodes[0]), part=part_of("1/2"))
    result = run_tool(MERGE, out, nodes[0])
    assert result.returncode == 2 and "is complete without them" in said(result)[0]
    assert files(out) == plain and any(nodes[0].glob("*.tar"))


def test_a_plain_run_takes_over_where_parts_stopped(
    videos: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    build(_job(videos, out), part=part_of("2/2"))
    assert build(_job(videos, out)) is not None
    assert files(out) == plain


def test_parts_of_other_jobs_or_names_are_refused(videos: Path, tmp_path: Path) -> None:
    build(_job(videos, tmp_path / "1" / "set"), part=part_of("1/6"))
    other = prepare(videos, tmp_path / "2" / "set", Processing(Encoding(gop=8)), per_shard=1)
    build(other, part=part_of("2/6"))
    with pytest.raises(InputError, match="--gop 16, not 8"):
        merge(tmp_path / "1" / "set", [tmp_path / "2" / "set"])
    with pytest.raises(InputError, match="same last folder name"):
        merge(tmp_path / "all", [tmp_path / "1" / "set"])
    with pytest.raises(InputError, match="holds no part"):
        merge(tmp_path / "set", [videos])
    with pytest.raises(InputError, match="holds no unfinished data set"):
        merge(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/2", "1/0"])
def test_a_senseless_part_names_its_flag(text: str) -> None:
    with pytest.raises(InputError, match="--part"):
        part_of(text)


def test_a_ray_cluster_makes_the_same_bytes(
    videos: Path, plain: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a cluster of its own, on loopback, that takes tasks from those who know this token only
    access = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray", reason="Ray, an extra, is not installed")
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    ray.init(_node_ip_address="127.0.0.1", **options)
    try:
        address = ray.get_runtime_context().gcs_address
        out = tmp_path / "set"
        result = run_tool(
            TOOL, videos, "--out", out, "--per-shard", 1, "--workers", 1, "--ray", address, **access
        )
        assert result.returncode == 0, result.stderr
        assert files(out) == plain
    finally:
        ray.shutdown()


def test_parts_and_ray_exclude_each_other(videos: Path, tmp_path: Path) -> None:
    result = make_shards(videos, "--out", tmp_path / "set", "--part", "1/2", "--ray", "auto")
    assert result.returncode == 2 and "give one of them" in said(result)[0]
