"""Small videos rendered once, and a data set made of them by the command."""

from pathlib import Path

import pytest
from independent import make_shards, render

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
