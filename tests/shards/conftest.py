"""Small videos rendered once, and a data set made of them by the command."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from independent import make_shards, render
from loopback import Server

from shards import Dataset


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8, 4 and 1 videos; lengths 20 to 48; the names a scraped data set has."""
    folder = tmp_path_factory.mktemp("videos") / "clips"
    for n in range(8):
        render(folder / "jump" / f"{n}.avi", frames=20 + 4 * n, seed=n)
    names = ("with space.avi", 'it\'s, "quoted".avi', "日本語 é.avi", "deeper/down/3.mkv")
    for n, name in enumerate(names):
        render(folder / "Run & walk" / name, frames=24, seed=10 + n)
    render(folder / "wave" / "only.avi", frames=30, seed=20).rename(folder / "wave" / "no_extension")
    (folder / "wave" / "broken.mp4").write_bytes(b"<html>404</html>" * 20)
    (folder / "wave" / "notes.txt").write_text("not tried")
    (folder / ".hidden.avi").write_bytes(b"not tried")
    return folder


@pytest.fixture(scope="session")
def made(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `class_folders`, four videos a shard."""
    out = tmp_path_factory.mktemp("made") / "small"
    result = make_shards(class_folders, "--out", out, "--per-shard", 4, "--workers", 2)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def dataset(made: Path) -> Dataset:
    return Dataset(made)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """`made`, where a server can serve it as /small and a test may change it."""
    return Path(shutil.copytree(made, tmp_path / "served" / "small"))


@pytest.fixture
def server(copied: Path) -> Iterator[Server]:
    """An HTTP server of the folder that `copied` lies in."""
    server = Server(copied.parent)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of remote data sets, empty, without a limit of its own."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SLIPSTREAM_CACHE_GB", raising=False)
    return tmp_path / "cache" / "remote"
