"""A data set names files of its own folder and no others: a hostile one reads and writes nothing elsewhere."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from independent import files
from loopback import Server

from shards import Dataset, InputError
from shards.schema import is_plain, is_tar
from shards.storage import stamp

ELSEWHERE = [
    "/etc/passwd",
    "/tmp/x.tar",
    "../evil.tar",
    "..",
    ".",
    "",
    "a/b.tar",
    "a\\b.tar",
    "..\\evil.tar",
    "C:evil.tar",
    "c:\\evil.tar",
    "nul\0.tar",
    "line\nbreak.tar",
    "half\ud800.tar",
    "x" * 300 + ".tar",
    None,
    7,
    ["a.tar"],
]


@pytest.mark.parametrize("name", ELSEWHERE, ids=ascii)
def test_what_leads_elsewhere_is_no_plain_name(name: object) -> None:
    assert not is_plain(name) and not is_tar(name)


@pytest.mark.parametrize(
    "name", [".hidden.tar", "dataset.json", "samples.parquet", ".a.tar.partial", ".lock", "tar"]
)
def test_a_tar_is_neither_hidden_nor_another_file_of_a_data_set(name: str) -> None:
    assert is_plain(name) and not is_tar(name)


@pytest.mark.parametrize(
    "name", ["small-000000.tar", "日本語 é.tar", "with space.tar", "a..b.tar", "ab:c.tar"]
)
def test_plain_names(name: str) -> None:
    assert is_tar(name)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "served" / "small"))


def rename(folder: Path, name: str, *, table: bool = True, description: bool = True) -> None:
    """Call the first tar of a data set something else in its table and its description."""
    info = json.loads((folder / "dataset.json").read_text())
    first = next(iter(info["tars"]))
    if table:
        rows = pq.read_table(folder / "samples.parquet")
        place = rows.column_names.index("shard")
        renamed = pc.replace_substring_regex(rows.column("shard"), f"^{first}$", name.replace("\\", "\\\\"))
        pq.write_table(rows.set_column(place, "shard", renamed), folder / "samples.parquet")
        info["table"] = stamp(folder / "samples.parquet")
    if description:
        info["tars"] = {name if old == first else old: tar for old, tar in info["tars"].items()}
    (folder / "dataset.json").write_text(json.dumps(info))


TEXTS = [name for name in ELSEWHERE if isinstance(name, str) and "\ud800" not in name]


@pytest.mark.parametrize("name", [*TEXTS, ".hidden.tar", "quarantine.jsonl"], ids=ascii)
@pytest.mark.parametrize("where", ["table", "description", "both"])
def test_a_local_data_set_that_names_another_file_is_refused(copied: Path, name: str, where: str) -> None:
    rename(copied, name, table=where != "description", description=where != "table")
    named = "samples.parquet" if where == "table" else "dataset.json"
    with pytest.raises(
        InputError, match=rf"{named}: .* (is not|not) the plain name of a tar.*again"
    ) as caught:
        Dataset(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "", ".."])
def test_a_data_set_whose_own_name_leads_elsewhere_is_refused(copied: Path, name: str) -> None:
    info = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps(info | {"name": name}))
    with pytest.raises(InputError, match=r"dataset.json: name is .*, not a plain name"):
        Dataset(copied)


# ---------------------------------------------------------------------------------------------------- behind a URL

pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytest.importorskip("aiohttp", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


def read_all(url: str) -> None:
    dataset = Dataset(url)
    dataset.prefetch(range(len(dataset.shards)))
    for row in range(len(dataset)):
        dataset.read(row)


def test_a_server_cannot_have_a_file_written_outside_the_cache(
    copied: Path, server: Server, tmp_path: Path, cache: Path
) -> None:
    """The attack: the table calls a tar /…/authorized_keys, and the server has an answer for that path."""
    target = tmp_path / "home" / "authorized_keys"
    target.parent.mkdir()
    answer = copied / str(target).lstrip("/")
    answer.parent.mkdir(parents=True)
    shutil.copy(sorted(copied.glob("*.tar"))[0], answer)
    for table, description in ((True, True), (True, False), (False, True)):
        rename(copied, str(target), table=table, description=description)
        before = files(tmp_path)
        with pytest.raises(InputError, match="not the plain name of a tar"):
            read_all(f"{server.url}/small")
        after = files(tmp_path)
        assert {name for name in before.keys() ^ after.keys() if not name.startswith("cache/")} == set()
    assert not target.exists() and not server.asked["authorized_keys"]


@pytest.mark.parametrize("name", ["samples.parquet", "../x.tar", "..", ".lock"])
def test_nor_over_another_file_of_the_cache(copied: Path, server: Server, cache: Path, name: str) -> None:
    rename(copied, name)
    with pytest.raises(InputError, match="not the plain name of a tar"):
        read_all(f"{server.url}/small")
    assert not list(cache.glob("**/*.tar"))


@pytest.mark.parametrize("last", ["..", "%2e%2e", "a" * 300, "x?y=../../z", "a\nb"])
def test_a_url_makes_a_plain_folder_of_the_cache(
    server: Server, tmp_path: Path, cache: Path, last: str
) -> None:
    before = files(tmp_path)
    with pytest.raises(InputError):
        read_all(f"{server.url}/small/{last}")
    assert files(tmp_path) == before


def test_a_long_url_is_cut_to_a_folder_name(copied: Path, server: Server, cache: Path) -> None:
    copied.rename(copied.with_name("n" * 200))
    read_all(f"{server.url}/{'n' * 200}")
    assert len(list(cache.glob("*/*.tar"))) == 4


def planted_tar(folder: Path, tar: str, outside: Path) -> Path:
    link = folder / tar
    link.symlink_to(outside)
    return link


def planted_temporary(folder: Path, tar: str, outside: Path) -> Path:
    link = folder / f".{tar}.partial"
    link.symlink_to(outside)
    return link


@pytest.mark.parametrize("plant", [planted_tar, planted_temporary])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_cache_is_replaced_and_not_written_through(
    made: Path, server: Server, tmp_path: Path, plant: Callable[..., Path], there: bool
) -> None:
    remote, local, outside = Dataset(f"{server.url}/small"), Dataset(made), tmp_path / "outside.tar"
    if there:
        outside.write_bytes(bytes(remote.info["tars"][remote.shards[0]]["bytes"]))
        before = outside.read_bytes()
    plant(remote.path, remote.shards[0], outside)
    for row in range(len(remote)):
        assert remote.read(row) == local.read(row)
    assert outside.exists() == there and (not there or outside.read_bytes() == before)
    assert not (remote.path / remote.shards[0]).is_symlink()


@pytest.mark.parametrize("name", ["lock", "quarantine", "folder"])
def test_other_links_in_the_cache_end_in_a_line(
    server: Server, tmp_path: Path, cache: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote, outside = Dataset(f"{server.url}/small"), tmp_path / "outside"
    if name == "folder":
        shutil.move(remote.path, outside)
        remote.path.symlink_to(outside)
        before = files(outside)
        with pytest.raises(InputError, match=r"is a link, and links are not written through; remove it"):
            Dataset(f"{server.url}/small")
        assert files(outside) == before
        return
    if name == "lock":
        (remote.path / f".{remote.shards[0]}.lock").symlink_to(outside)
        with pytest.raises(InputError, match=r"lock: is a link.*remove it"):
            remote.read(0 if remote.shard_numbers[0] == 0 else int((remote.shard_numbers == 0).argmax()))
    else:
        (remote.path / "quarantine.jsonl").symlink_to(outside)
        remote.quarantine(0, "bad")
        assert "is not noted" in caplog.text
    assert not outside.exists()


def test_making_room_removes_nothing_through_a_link(
    made: Path, server: Server, tmp_path: Path, cache: Path
) -> None:
    """A link in the cache to somebody's data set: its tars are no files of the cache."""
    precious = Path(shutil.copytree(made, tmp_path / "precious"))
    before = files(precious)
    sizes = [tar.stat().st_size for tar in precious.glob("*.tar")]
    cache.mkdir(parents=True)
    (cache / "planted").symlink_to(precious)
    remote = Dataset(f"{server.url}/small", cache_gb=(2 * max(sizes) + 100) / 1e9)
    for row in range(len(remote)):
        remote.read(row)
    assert files(precious) == before


# ------------------------------------------------------------------------------------------------ in a local folder


def test_a_tar_on_another_disk_may_be_linked_to(copied: Path, tmp_path: Path) -> None:
    tar = sorted(copied.glob("*.tar"))[0]
    expected = [Dataset(copied).read(row) for row in range(13)]
    shutil.move(tar, tmp_path / "elsewhere.bin")
    tar.symlink_to(tmp_path / "elsewhere.bin")
    dataset = Dataset(copied)
    assert [dataset.read(row) for row in range(13)] == expected


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, device, folder])
@pytest.mark.parametrize("which", ["tar", "samples.parquet", "dataset.json", "quarantine.jsonl"])
def test_a_pipe_a_device_or_a_folder_is_refused_at_once(
    copied: Path, make: Callable[..., None], which: str
) -> None:
    path = copied / which if which != "tar" else sorted(copied.glob("*.tar"))[0]
    path.unlink(missing_ok=True)
    make(path)
    if which == "quarantine.jsonl":
        assert len(Dataset(copied).select()) == 13
        return
    with pytest.raises(InputError, match=r"not a regular file|no samples.parquet|no dataset.json"):
        Dataset(copied)


def test_a_tar_that_becomes_a_pipe_is_damage(copied: Path) -> None:
    dataset = Dataset(copied)
    tar = copied / dataset.shards[dataset.shard_numbers[0]]
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(OSError, match="is not a regular file"):
        dataset.read(0)


def test_quarantine_is_not_written_through_a_link(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or a data set from elsewhere could append what it likes to a file of the user's."""
    (tmp_path / ".bashrc").write_text("mine\n")
    (copied / "quarantine.jsonl").symlink_to(tmp_path / ".bashrc")
    Dataset(copied).quarantine(0, "bad")
    assert (tmp_path / ".bashrc").read_text() == "mine\n" and "is not noted" in caplog.text
