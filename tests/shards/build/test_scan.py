"""Which files are tried, how they are labelled, and that keys are unique and plain."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import InputError
from shards.build.job import LONGEST_KEY, keys
from shards.layouts import find

PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90)
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), unique=True, max_size=30)


@given(PATHS, st.randoms())
def test_keys_are_unique_plain_short_and_independent_of_order(paths: list[str], random) -> None:
    made = dict(zip(paths, keys(paths), strict=True))
    assert len(set(made.values())) == len(paths)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", key) and len(key) <= LONGEST_KEY + 17 for key in made.values())
    random.shuffle(paths)
    assert dict(zip(paths, keys(paths), strict=True)) == made


def test_keys_read_like_their_paths_and_only_colliding_ones_get_a_hash() -> None:
    made = keys(["handshake/17_13_0.avi", "a/b c.mp4", "a/b,c.mp4", "a-b.d/e.f.mp4", "no_extension"])
    assert made[0] == "handshake-17_13_0" and made[3:] == ["a-b_d-e_f", "no_extension"]
    assert made[1] != made[2] and all(re.fullmatch("a-b_c-[0-9a-f]{8}", key) for key in made[1:3])


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_class_folders_label_by_the_first_folder_and_skip_what_is_no_video(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "b/1.avi",
        "b/deep/er/2",
        "a/x.weird",
        "a/list.TXT",
        "a/.hidden.mp4",
        ".git/3.avi",
        "c/p.jpg",
    )
    found = [(source.relative, source.label_name, source.split) for source in find(tmp_path).sources]
    assert found == [("a/x.weird", "a", None), ("b/1.avi", "b", None), ("b/deep/er/2", "b", None)]


def test_flat_folders_have_no_labels(tmp_path: Path) -> None:
    assert [source.label_name for source in find(_touch(tmp_path, "1.mp4", "2.mp4")).sources] == [None, None]


def test_split_folders_become_splits(tmp_path: Path) -> None:
    found = find(_touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "test/a/3.mp4")).sources
    assert [(one.split, one.label_name) for one in found] == [("test", "a"), ("train", "a"), ("train", "b")]


def test_a_name_that_is_not_utf8_gets_a_spelling(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.avi")).write_bytes(b"x")
    (source,) = find(tmp_path).sources
    assert source.relative == "caf\\xe9.avi" and source.path.read_bytes() == b"x"


def test_what_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    folder = _touch(tmp_path / "in", "a/1.avi", "locked/2.avi")
    (folder / "a" / "gone.avi").symlink_to("nowhere.avi")
    (folder / "gone").symlink_to("/no/such/folder")
    (folder / "a" / "circle.mp4").symlink_to("circle.mp4")
    os.mkfifo(folder / "a" / "pipe.avi")
    found = find(folder)
    assert [one.relative for one in found.sources] == ["a/1.avi", "locked/2.avi"]
    assert {name: why.split(":")[0] for name, why in found.unreadable.items()} == {
        "a/circle.mp4": "a link to circle.mp4",
        "a/gone.avi": "a link to nowhere.avi",
        "a/pipe.avi": "not a file",
        "gone": "a link to /no/such/folder",
    }


def test_a_folder_without_the_right_to_list_it_is_named() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own is closed to other users
        folder = _touch(Path(name) / "in", "a/1.avi", "locked/2.avi")
        os.chmod(name, 0o755)
        os.chmod(folder / "locked", 0)
        user = os.geteuid()
        if user == 0:  # whom nothing is closed to
            os.seteuid(65534)
        try:
            found = find(folder)
            os.seteuid(user)
            os.chmod(folder, 0)
            os.seteuid(65534 if user == 0 else user)
            with pytest.raises(InputError, match="in: Permission denied"):
                find(folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)
            os.chmod(folder / "locked", 0o755)
    assert [one.relative for one in found.sources] == ["a/1.avi"]
    assert found.unreadable == {"locked": "the folder cannot be listed: Permission denied"}


def test_nothing_to_try_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find(tmp_path / "missing")
    with pytest.raises(InputError, match="no files"):
        find(tmp_path)
    with pytest.raises(InputError, match="2 files, none of which can be a video"):
        find(_touch(tmp_path, "a.txt", "b/c.jpg"))
    with pytest.raises(InputError, match="names no file that is there"):
        find(tmp_path / "a.txt")
