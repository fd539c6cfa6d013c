"""Lists as other projects write them, and WebDataset tars that others made, against csv's and webdataset's own readers."""

import csv
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from independent import ROOT, TOOL, decode, make_shards, render, run_tool
from loopback import Server

from shards import Dataset, InputError
from shards.build.finish import index_in_place
from shards.build.scan import Found, Source
from shards.layouts import find, hold_out
from shards.video.encode import Encoding

PLACES = ("a b.mp4", "c,d.mp4", "e.mp4", 'it\'s "quoted".mp4', "#1.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that a list can name; find() does not open them."""
    (tmp_path / "data").mkdir()
    for name in PLACES:
        (tmp_path / "data" / name).write_bytes(b"video")
    return tmp_path / "data"


def _told(found: Found) -> dict[str, tuple[str | None, str | None]]:
    return {one.relative: (one.label_name, one.split) for one in found.sources}


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "list"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_header_names_the_columns(folder: Path, ending: str, separator: str) -> None:
    file = folder / f"videos.{ending}"
    rows = [(name, f"class {n % 2}", "train" if n < 3 else "val") for n, name in enumerate(PLACES)]
    with open(file, "w", newline="") as handle:
        writer = csv.writer(handle, delimiter=separator)
        writer.writerow(["id", "split", "Label", "path"])
        writer.writerows([n, split, label, name] for n, (name, label, split) in enumerate(rows))
    assert _told(find(file)) == {name: (label, split) for name, label, split in rows}


LISTS = {
    # V-JEPA 2, SlowFast and VideoMAE: a blank between, in a file that is called CSV
    "blank.csv": ("e.mp4 3\na b.mp4 0\n", {"e.mp4": ("3", None), "a b.mp4": ("0", None)}),
    "videomae_pretrain.csv": ("e.mp4 0 -1\na b.mp4 -1\n", {"e.mp4": (None, None), "a b.mp4": (None, None)}),
    "comma.csv": ("e.mp4,a,train\nc,d.mp4 b\n", {"e.mp4": ("a", "train"), "c,d.mp4": ("b", None)}),
    "quoted.txt": ('"a b.mp4" run\n"c,d.mp4" 7\n', {"a b.mp4": ("run", None), "c,d.mp4": ("7", None)}),
    "quoted.csv": ('"c,d.mp4","x, y"\n#1.mp4,z\n# a remark\n', {"c,d.mp4": ("x, y", None), "#1.mp4": ("z", None)}),
    "bom.csv": ("\ufeffvideo,class\r\ne.mp4,x\r\n", {"e.mp4": ("x", None)}),
    "only_paths.csv": ("path\ne.mp4\n\n#1.mp4\n", {"e.mp4": (None, None), "#1.mp4": (None, None)}),
    "val.csv": ("file,label\ne.mp4,x\n", {"e.mp4": ("x", "val")}),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_other_projects_write_them(folder: Path, name: str) -> None:
    text, expected = LISTS[name]
    (folder / name).write_text(text, encoding="utf-8")
    assert _told(find(folder / name)) == expected
    (folder.parent / name).write_text(text, encoding="utf-8")
    assert _told(find(folder, annotations=folder.parent / name)) == expected


def test_each_row_without_a_file_is_a_reject_of_its_own(tmp_path: Path) -> None:
    render(tmp_path / "here.avi", frames=4, size=(48, 32))
    (tmp_path / "list.csv").write_text("path,label\nhere.avi,x\ngone.avi,x\n,y\nalso gone.avi,y\n")
    result = make_shards(tmp_path / "list.csv", "--out", tmp_path / "out", "--workers", 1)
    assert result.returncode == 0 and "rejected: 3" in result.stdout and "3 missing" in result.stdout
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["gone.avi", "list.csv, line 4: no path", "also gone.avi"]  # fmt: skip


def test_what_is_no_list_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "text.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "three.csv").write_text(f"{folder}/e.mp4,x,0,10\n")
    (tmp_path / "twice.csv").write_text(f"{folder}/e.mp4,x\n{folder}/e.mp4,y\n")
    (tmp_path / "no_path.csv").write_text("label,split\nx,train\n")
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("empty.tar", {}, "empty.tar: no sample with a video in 1 tars .*cannot be read as a tar"),
        ("text.tar", {}, "text.tar: no sample with a video .*no video among its members"),
        ("binary.txt", {}, "binary.txt: not a text list; give a folder"),
        ("data/e.mp4", {}, "e.mp4: "),
        ("three.csv", {}, "three.csv: line 1 has 4 columns; name the columns in a first line"),
        ("twice.csv", {}, "twice.csv: line 2 lists .*e.mp4 again, with another label"),
        ("no_path.csv", {}, "no_path.csv: its header has no column path"),
        ("empty", {}, "empty: no files; give a folder of videos"),
        ("data", {"annotations": tmp_path / "empty"}, "--annotations .*empty: an empty folder"),
        ("data", {"annotations": tmp_path / "binary.txt"}, "binary.txt: not a text list"),
        ("data", {"annotations": tmp_path / "text.tar"}, "text.tar: not a text list"),
        ("nowhere-{0..3}.tar", {}, "4 of 4 tars are not there, such as .*nowhere-0.tar"),
    )
    for source, options, said in cases:
        with pytest.raises(InputError, match=said) as caught:
            find(tmp_path / source, **options)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos that suit a data set already: short GOPs, no B-frames in a pyramid."""
    folder = tmp_path_factory.mktemp("clips")
    options = {"g": "8", "bf": "0", "crf": "30"}
    return [render(folder / f"{n}.mp4", 12 + n, codec="libx264", seed=n, **options) for n in range(4)]


def _tars(folder: Path, clips: list[Path], extension: str = "mp4", **parts: Any) -> Path:
    """Two tars by webdataset's own writer, as video2dataset names things; the last sample has no video."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, name in enumerate(("train-00000.tar", "val-00001.tar")):
        with webdataset.TarWriter(str(folder / name)) as writer:
            for n in (2 * shard, 2 * shard + 1):
                sample = {key: part(n) for key, part in parts.items()}
                writer.write({"__key__": f"{shard:05d}_{n:04d}", extension: clips[n].read_bytes(), **sample})
            if shard:
                writer.write({"__key__": "00001_0009", "npy": np.zeros(3), "txt": "an embedding alone"})
    return folder


NAMES = ("Jump", "Run & walk", "Jump", "Wave")
PARTS: dict[str, dict[str, Any]] = {
    "cls": {"cls": lambda n: (2, 0, 2, 1)[n], "json": lambda n: {"label_name": NAMES[n], "url": "x"}},
    "json": {"json": lambda n: {"class": NAMES[n]}, "txt": lambda n: f"caption {n}"},
    "caption": {"json": lambda n: {"fps": 30}, "txt": lambda n: f"caption {n}"},
    "class in txt": {"txt": lambda n: ("x", "y", "x", "y")[n]},
}


def _read_independently(folder: Path) -> dict[str, tuple[str, bytes, int | None, dict[str, Any], str | None]]:
    """webdataset's own reader: key → tar, video, cls, json, txt, of the samples with a video."""
    urls = sorted(map(str, folder.glob("*.tar")))
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        video = next((sample[name] for name in ("mp4", "webm") if name in sample), None)
        if video is not None:
            number = int(sample["cls"]) if "cls" in sample else None
            text = sample["txt"].decode() if "txt" in sample else None
            tar = Path(sample["__url__"]).name
            found[sample["__key__"]] = tar, video, number, json.loads(sample.get("json", b"{}")), text
    return found


@pytest.mark.parametrize("kind", PARTS)
def test_tars_give_the_rows_that_webdatasets_reader_finds(
    tmp_path: Path, clips: list[Path], kind: str
) -> None:
    folder = _tars(tmp_path / "tars", clips, **PARTS[kind])
    expected = _read_independently(folder)
    found = find(folder)
    assert found.layout == "webdataset" and len(expected) == len(found.sources) == 4
    for source in found.sources:
        assert source.member is not None
        tar, video, number, facts, text = expected.pop(source.member.key)
        with open(source.path, "rb") as handle:
            handle.seek(source.member.offset)
            assert handle.read(source.member.size) == video and source.path.name == tar
        assert source.split == tar.partition("-")[0]
        name = {"cls": facts.get("label_name"), "json": facts.get("class"), "class in txt": text}.get(kind)
        assert source.label_name == name and (kind == "caption") == (name is None)
        assert number is None or found.classes.index(source.label_name or "") == number
    assert list(found.unreadable) == ["val-00001/00001_0009"]


def test_tars_become_shards_by_the_command(tmp_path: Path, clips: list[Path]) -> None:
    webm = [render(tmp_path / f"{n}.webm", 10 + n, codec="libvpx-vp9", seed=n) for n in range(4)]
    folder = _tars(tmp_path / "tars", webm, "webm", **PARTS["cls"])
    for source in (folder, tmp_path / "tars" / "{train-00000,val-00001}.tar", Server(folder).url):
        out = tmp_path / f"out-{len(str(source))}"
        result = run_tool(
            TOOL, source, "--out", out, "--workers", 1, SLIPSTREAM_CACHE=str(tmp_path / "cache")
        )
        assert result.returncode == 0, result.stderr
        dataset = Dataset(out)
        assert sorted(dataset.column("num_frames")) == [10, 11, 12, 13]
        assert dataset.classes == ["Run & walk", "Wave", "Jump"] and "1 unreadable" in result.stdout
        seen = dict(zip(dataset.column("source"), dataset.column("label"), strict=True))
        assert seen["val-00001/00001_0003.webm"] == 1 and decode(dataset.read(0)).b_frames


def test_in_place_writes_table_and_index_only(tmp_path: Path, clips: list[Path]) -> None:
    folder = _tars(tmp_path / "tars", clips, **PARTS["cls"])
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    result = make_shards(folder, "--in-place", "--workers", 1)
    assert result.returncode == 0 and "4 videos" in result.stdout, result.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    written = {path.name for path in folder.iterdir()} - before.keys()
    assert written == {
        "train-00000.idx",
        "val-00001.idx",
        "samples.parquet",
        "dataset.json",
        "rejected.jsonl",
    }
    dataset, expected = Dataset(folder), _read_independently(folder)
    for row, key in enumerate(dataset.column("key")):
        _, video, number, facts, _ = expected.pop(key)
        assert dataset.read(row) == video and dataset.column("label")[row] == number
        assert dataset.column("label_name")[row] == facts["label_name"]
        assert dataset.column("num_frames")[row] == decode(video).frames
    assert dataset.select(split="val").tolist() == [2, 3] and not expected
    checked = run_tool(ROOT / "tools" / "check_shards.py", folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    again = make_shards(folder, "--in-place")
    assert again.returncode == 2 and "dataset.json already" in again.stderr


def test_in_place_refuses_what_does_not_suit(tmp_path: Path, clips: list[Path]) -> None:
    found = find(_tars(tmp_path / "tars", clips, **PARTS["cls"]))
    for encoding, why in (
        (Encoding(gop=4), r"00000_0000.mp4 does not suit: no key frame in 5 frames, more than --gop 4"),
        (Encoding(short_side=32), "short side 64, more than --short-side 32"),
        (Encoding(fps=10), "25 frames/s, not --fps 10"),
        (Encoding(codec="vp9"), "codec h264, not --codec vp9"),
    ):
        with pytest.raises(InputError, match=why):
            index_in_place(found, encoding)
    assert {path.suffix for path in (tmp_path / "tars").iterdir()} == {".tar"}
    result = make_shards(tmp_path / "tars", "--in-place", "--out", "there")
    remote = make_shards("https://127.0.0.1/tars", "--in-place")
    assert remote.returncode == 2 and "SRC is a URL" in remote.stderr
    assert result.returncode == 2 and "leave out --out" in result.stderr and result.stderr.count("\n") == 1


def test_in_place_refuses_times_that_are_not_steady_and_damage(tmp_path: Path, clips: list[Path]) -> None:
    damaged = tmp_path / "damaged.mp4"
    shutil.copyfile(clips[3], damaged)
    damaged.write_bytes(damaged.read_bytes()[:-400])
    uneven = render(
        tmp_path / "uneven.mp4", 15, codec="libx264", times=[40 * n + 30 * (n % 2) for n in range(15)], g="8", bf="0"
    )  # fmt: skip
    for bad in (damaged, uneven):
        folder = _tars(tmp_path / bad.stem, [*clips[:3], bad], **PARTS["cls"])
        with pytest.raises(InputError, match=r"00001_0003.mp4 does not suit: "):
            index_in_place(find(folder), Encoding())


def _sources(sizes: dict[str, int], groups: int = 0) -> list[Source]:
    return [
        Source(Path(f"{label}/{n}"), f"{label}/{n}", label, group=f"g{n % groups}" if groups else None)
        for label, size in sizes.items()
        for n in range(size)
    ]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1),
    st.floats(0.05, 0.95),
    st.randoms(),
)
def test_a_share_of_each_class_is_held_out_whatever_the_order(
    sizes: dict[str, int], share: float, random: Any
) -> None:
    sources = _sources(sizes)
    wanted = {label: round(share * size) for label, size in sizes.items()}
    if sum(wanted.values()) in (0, len(sources)):
        with pytest.raises(InputError, match="too few to divide"):
            hold_out(Found("list", sources, sorted(sizes)), share)
        return
    first = hold_out(Found("list", sources, sorted(sizes)), share)
    test = Counter(one.label_name for one in first.sources if one.split == "test")
    assert {label: test[label] for label in sizes} == wanted
    shuffled = random.sample(sources, len(sources))
    assert _told(hold_out(Found("list", shuffled, sorted(sizes)), share)) == _told(first)


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(10, 40), min_size=1), st.integers(5, 12))
def test_groups_are_never_divided(sizes: dict[str, int], groups: int) -> None:
    found = hold_out(Found("list", _sources(sizes, groups), sorted(sizes)), 0.3)
    splits: dict[str | None, set[str | None]] = {}
    for one in found.sources:
        splits.setdefault(one.group, set()).add(one.split)
    assert all(len(some) == 1 for some in splits.values())
    share = sum(one.split == "test" for one in found.sources) / len(found.sources)
    assert 0.1 < share < 0.5


def test_hold_out_by_the_command_and_its_mistakes(tmp_path: Path) -> None:
    for n in range(5):
        render(tmp_path / "videos" / "ab"[n % 2] / f"{n}.avi", frames=4, size=(48, 32), seed=n)
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "out", "--workers", 1, "--hold-out", 0.34)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(tmp_path / "out")
    assert sorted(dataset.column("label")[dataset.select(split="test")]) == [0, 1]
    assert len(dataset.select(split="train")) == 3 and dataset.info["settings"]["hold_out"] == 0.34
    other = make_shards(tmp_path / "videos", "--out", tmp_path / "out", "--hold-out", 0.5)
    assert other.returncode == 2 and "--hold-out 0.34, not 0.5" in other.stderr
    for share, said in ((0.0, "above 0 and below 1"), (1.0, "below 1"), (0.01, "too few to divide")):
        with pytest.raises(InputError, match=said):
            hold_out(find(tmp_path / "videos"), share)
    (tmp_path / "videos" / "list.csv").write_text("path,label,split\na/0.avi,a,train\n")
    with pytest.raises(InputError, match=r"have splits already \(train\)"):
        hold_out(find(tmp_path / "videos" / "list.csv"), 0.2)
