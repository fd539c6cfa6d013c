"""Miniatures of the data sets researchers have, with annotation files as published, become the expected rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from independent import make_shards, render

from shards import Dataset, InputError
from shards.build.pool import Limits
from shards.build.process_video import Processing
from shards.build.run import build, prepare
from shards.build.scan import Found
from shards.layouts import find
from shards.video.encode import Encoding

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("clip") / "clip.avi", frames=4, size=(48, 32))


@pytest.fixture
def place(clip: Path, tmp_path: Path) -> Maker:
    """Copies the clip to each of the names below tmp_path/data."""

    def copy(*names: str) -> Path:
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, tmp_path / "data" / name)
        return tmp_path / "data"

    return copy


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _built(folder: Path, out: Path, **options: Any) -> Dataset:
    job = prepare(folder, out, Processing(Encoding(codec="mjpeg")), **options)
    assert build(job, Limits(workers=1)) is not None
    return Dataset(out)


def _rows(dataset: Dataset, *columns: str) -> dict[str, tuple[Any, ...]]:
    values = [dataset.column(name) for name in columns]
    return dict(zip(dataset.column("source"), zip(*values, strict=True), strict=True))


def _rejected(dataset: Dataset) -> dict[str, str]:
    lines = (dataset.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["source"]: one["reason"] for one in map(json.loads, lines)}


def _ucf101(place: Maker) -> Path:
    folder = place(
        "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "UCF-101/HandstandPushups/v_HandStandPushups_g09_c02.avi",
    )
    lists = folder / "ucfTrainTestlist"
    _write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n")
    apply, stand = "ApplyEyeMakeup/v_ApplyEyeMakeup", "HandstandPushups/v_HandStandPushups"
    _write(lists / "trainlist01.txt", f"{apply}_g08_c01.avi 1\n{apply}_g09_c01.avi 1\n")
    _write(lists / "testlist01.txt", f"{apply}_g01_c01.avi\n{stand}_g01_c01.avi\n")
    _write(lists / "trainlist02.txt", f"{apply}_g01_c01.avi 1\r\n{stand}_g01_c01.avi 2\r\n")
    _write(lists / "testlist02.txt", f"{apply}_g08_c01.avi\r\n")
    _write(lists / "trainlist03.txt", f"{apply}_g01_c01.avi 1\n")
    _write(lists / "testlist03.txt", "")
    return folder


@pytest.mark.parametrize("below", [".", "UCF-101"])  # the lists lie in the folder, or beside it
def test_ucf101_has_three_splits(place: Maker, tmp_path: Path, below: str) -> None:
    folder = _ucf101(place) / below
    dataset = _built(folder, tmp_path / "out")
    prefix = "UCF-101/" if below == "." else ""
    assert _rows(dataset, "split1", "split2", "split3", "label_name", "label") == {
        f"{prefix}ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": ("test", "train", "train", "ApplyEyeMakeup", 0),
        f"{prefix}ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("train", "test", None, "ApplyEyeMakeup", 0),
        f"{prefix}HandstandPushups/v_HandStandPushups_g01_c01.avi": ("test", "train", None, "HandstandPushups", 1),
        f"{prefix}HandstandPushups/v_HandStandPushups_g09_c02.avi": (None, None, None, "HandstandPushups", 1),
    }  # fmt: skip
    assert dataset.info["settings"]["layout"] == "ucf101"
    assert _rejected(dataset) == {"ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c01": "missing"}
    unlisted = (tmp_path / "out" / "unlisted.txt").read_text().splitlines()
    assert unlisted == [f"{prefix}HandstandPushups/v_HandStandPushups_g09_c02.avi"]
    assert dataset.select(split="train", split_column="split2").size == 2


def test_hmdb51_has_three_splits_and_videos_that_a_split_leaves_out(place: Maker, tmp_path: Path) -> None:
    odd = "#122_Kirby_Is_Pumped!!_(1)_brush_hair_u_nm_np1_ba_goo_0.avi"
    names = (
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
        f"brush_hair/{odd}",
        "wave/Pippi_[x]_wave_f.avi",
    )
    folder = place(*names)
    for split, codes in enumerate(("12", "01", "20"), 1):
        lines = zip((names[0], names[1]), codes, strict=True)
        text = "".join(f"{name.partition('/')[2]} {code} \n" for name, code in lines)
        _write(folder / "testTrainMulti_7030_splits" / f"brush_hair_test_split{split}.txt", text)
        _write(
            folder / "testTrainMulti_7030_splits" / f"wave_test_split{split}.txt",
            "Pippi_[x]_wave_f.avi 1\ngone.avi 2\n",
        )
    dataset = _built(folder, tmp_path / "out")
    assert dataset.info["settings"]["layout"] == "hmdb51" and dataset.classes == ["brush_hair", "wave"]
    assert _rows(dataset, "split1", "split2", "split3", "label") == {
        names[0]: ("train", None, "test", 0),
        names[1]: ("test", "train", None, 0),
        names[2]: ("train", "train", "train", 1),
    }
    assert _rejected(dataset) == {"wave/gone": "missing"}


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
"massaging person's head",-AbCdEfGh_1,10,20,{split},0
tying knot (not on a tie),0123456789a,4,14,{split},0
"catching ""it"", or throwing",_gone_today,0,10,{split},1
"""


def test_kinetics_class_folders_with_a_csv_beside_them(place: Maker, tmp_path: Path) -> None:
    folder = place(
        "train/massaging_persons_head/-AbCdEfGh_1_000010_000020.mp4",
        "train/tying knot (not on a tie)/0123456789a_000004_000014.mp4",
        "train/riding_a_bike/not_in_csv1_000004_000014.mp4",
    )
    _write(tmp_path / "kinetics400_train.csv", KINETICS.format(split="train"))
    dataset = _built(folder, tmp_path / "out")
    assert _rows(dataset, "label_name", "split") == {
        "train/massaging_persons_head/-AbCdEfGh_1_000010_000020.mp4": ("massaging person's head", "train"),
        "train/tying knot (not on a tie)/0123456789a_000004_000014.mp4": (
            "tying knot (not on a tie)",
            "train",
        ),
        "train/riding_a_bike/not_in_csv1_000004_000014.mp4": ("riding_a_bike", "train"),
    }
    assert dataset.classes == [
        'catching "it", or throwing', "massaging person's head", "riding_a_bike", "tying knot (not on a tie)"
    ]  # fmt: skip
    assert [dataset.classes[label] for label in dataset.column("label")] == list(dataset.column("label_name"))
    assert _rejected(dataset) == {'catching "it", or throwing/_gone_today_000000': "missing"}
    assert (tmp_path / "out" / "unlisted.txt").read_text().count("\n") == 1


def test_flat_kinetics_takes_label_and_split_from_the_csvs(place: Maker) -> None:
    folder = place(
        "-AbCdEfGh_1_000010_000020.mp4", "0123456789a_000004_000014.mp4", "0123456789a_000099_000109.mp4"
    )
    _write(folder / "annotations" / "train.csv", KINETICS.format(split="train"))
    _write(folder / "annotations" / "val.csv", "label,youtube_id,time_start,time_end,split\nabseiling,0123456789a,99,109,validate\n")  # fmt: skip
    found = find(folder)
    assert _told(found) == {
        "-AbCdEfGh_1_000010_000020.mp4": ("massaging person's head", "train"),
        "0123456789a_000004_000014.mp4": ("tying knot (not on a tie)", "train"),
        "0123456789a_000099_000109.mp4": ("abseiling", "val"),
    }
    assert not found.unlisted and len(found.missing) == 1


@pytest.mark.parametrize("with_csv", [True, False])
def test_kinetics_folders_beside_each_other_stay_classes_of_their_own(place: Maker, with_csv: bool) -> None:
    names = [f"{label}/AAAAAAAAAA{n}_000010_000020.mp4" for n, label in enumerate(("C", "C++", "c_sharp"))]
    folder = place(*names)
    if with_csv:
        lines = 'C,AAAAAAAAAA0,10,20,train\nC++,AAAAAAAAAA1,10,20,train\n"c, sharp",gone_gone_g,0,10,train\n'
        _write(folder / "train.csv", f"label,youtube_id,time_start,time_end,split\n{lines}")
    found = find(folder)
    labels = ["C", "C++", "c, sharp" if with_csv else "c_sharp"]
    assert found.layout == "kinetics" and found.classes == labels
    assert sorted(str(one.label_name) for one in found.sources) == labels


def test_a_kinetics_folder_that_is_like_two_labels_keeps_its_name(place: Maker) -> None:
    folder = place("C__/AAAAAAAAAA0_000010_000020.mp4", "C/BBBBBBBBBBB_000010_000020.mp4")
    _write(
        folder / "train.csv",
        "label,youtube_id,time_start,time_end,split\nC++,BBBBBBBBBBB,10,20,train\nC,x,0,10,train\n",
    )
    labels = {one.relative[:2].rstrip("/"): one.label_name for one in find(folder).sources}
    assert labels == {"C": "C++", "C_": "C__"}


def _told(found: Found) -> dict[str, tuple[str | None, str | None]]:
    return {one.relative: (one.label_name, one.split) for one in found.sources}


def test_kinetics_without_times_in_the_names_or_labels_in_the_csv(place: Maker) -> None:
    folder = place("test/-AbCdEfGh_1.mp4", "test/0123456789a.mp4")
    _write(
        folder / "test.csv",
        "youtube_id,time_start,time_end,split\n-AbCdEfGh_1,1,11,test\n0123456789a,2,12,test\n",
    )
    found = find(folder)
    assert found.layout == "kinetics" and set(_told(found).values()) == {(None, "test")}


def test_another_kinetics_csv_beside_the_folder_is_left_alone(place: Maker, tmp_path: Path) -> None:
    folder = place("a b/AAAAAAAAAAA_000010_000020.mp4", "c/BBBBBBBBBBB_000010_000020.mp4")
    _write(tmp_path / "kinetics700.csv", KINETICS.format(split="train"))
    found = find(folder)
    assert found.layout == "kinetics" and found.classes == ["a b", "c"] and not found.missing + found.unlisted
    forced = find(folder, annotations=tmp_path / "kinetics700.csv")
    assert len(forced.missing) == 3 and len(forced.unlisted) == 2


def test_oops_has_the_median_failure_time(place: Maker, tmp_path: Path) -> None:
    folder = place(
        "oops_video/train/Fails (2018) 1.mp4",
        "oops_video/val/Best - \u00e9t\u00e9 2.mp4",
        "oops_video/val/new3.mp4",
        "oops_video/val/new4.mp4",
    )
    entries = {
        "Fails (2018) 1": {
            "n_notfound": 1,
            "len": 9.9,
            "t": [2.5, -1, 4.0, 3.0],
            "rel_t": [0.2, -1, 0.4, 0.3],
        },
        "Best - \u00e9t\u00e9 2": [-1, -1],
        "new3": {"t": [-1, 2.0, -1]},
        "removed 4": [1.0],
    }
    _write(folder / "annotations" / "transition_times.json", json.dumps(entries))
    dataset = _built(folder, tmp_path / "out")
    rows = _rows(dataset, "failure_time", "split", "label")
    assert rows["oops_video/train/Fails (2018) 1.mp4"] == (3.0, "train", -1)
    assert np.isnan(rows["oops_video/val/Best - \u00e9t\u00e9 2.mp4"][0])
    assert np.isnan(rows["oops_video/val/new3.mp4"][0])  # most saw no failure
    assert _rejected(dataset) == {"removed 4": "missing"}
    assert (tmp_path / "out" / "unlisted.txt").read_text() == "oops_video/val/new4.mp4\n"


def test_a_list_selects_and_labels_names_with_blanks_included(place: Maker, tmp_path: Path) -> None:
    folder = place("videos/a b.mp4", "videos/c.mp4", "videos/not listed.mp4", "d.mp4")
    _write(
        folder / "train.txt",
        "videos/a b.mp4 riding a bike\nvideos/c.mp4\tsit-ups\n\n# a remark\ngone.mp4 x\n",
    )
    _write(folder / "val.txt", "d.mp4 riding a bike\n")
    found = find(folder)
    assert (
        found.layout == "list"
        and found.missing == ["gone.mp4"]
        and found.unlisted == ["videos/not listed.mp4"]
    )
    assert _told(found) == {
        "videos/a b.mp4": ("riding a bike", "train"),
        "videos/c.mp4": ("sit-ups", "train"),
        "d.mp4": ("riding a bike", "val"),
    }
    alone = find(folder / "val.txt")
    assert _told(alone) == {"d.mp4": ("riding a bike", "val")}


def test_a_list_takes_names_with_blanks_and_brackets(place: Maker) -> None:
    folder = place("train/drinking (31).mp4", "train/at a lecture (2).mp4")
    _write(folder / "train.txt", "train/drinking (31).mp4 1\ntrain/at a lecture (2).mp4 2\n")
    assert _told(find(folder)) == {
        "train/drinking (31).mp4": ("1", "train"),
        "train/at a lecture (2).mp4": ("2", "train"),
    }


def test_numbers_in_a_list_stay_the_labels(place: Maker, tmp_path: Path) -> None:
    folder = place("a.mp4", "b.mp4")
    _write(tmp_path / "list.txt", f"{folder / 'a.mp4'} 3\n{folder / 'b.mp4'} 0\n")
    dataset = _built(tmp_path / "list.txt", tmp_path / "out")
    assert sorted(dataset.column("label")) == [0, 3] and dataset.classes == ["0", "1", "2", "3"]


def test_class_names_keep_what_people_write_and_lose_what_file_systems_add(place: Maker) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    names = [
        "don't stop",
        "snake_case",
        " led by a blank",
        "trailing ",
        '"quoted"',
        "-dash",
        decomposed,
        "dot.",
    ]
    found = find(place(*(f"{name}/1.avi" for name in names)))
    assert found.layout == "class-folders"
    assert set(found.classes) == {
        "don't stop", "snake_case", "led by a blank", "trailing", '"quoted"', "-dash", composed, "dot."
    }  # fmt: skip


def test_linked_folders_are_followed_and_circles_end(place: Maker, tmp_path: Path) -> None:
    folder = place("a/1.avi")
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(folder / "a" / "1.avi", tmp_path / "elsewhere" / "2.avi")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "circle").symlink_to(folder)
    assert [one.relative for one in find(folder).sources] == ["a/1.avi", "b/2.avi"]


def test_a_layout_can_be_forced(place: Maker) -> None:
    folder = _ucf101(place)
    assert {one.label_name for one in find(folder, "class-folders").sources} == {"UCF-101"}
    assert {one.label_name for one in find(folder, "flat").sources} == {None}
    for layout, wanted in (
        ("hmdb51", "_test_split1.txt"),
        ("oops", "transition_times.json"),
        ("list", "no list"),
    ):
        with pytest.raises(InputError, match=rf"--layout {layout}: .*{wanted}.*give --annotations"):
            find(folder, layout)


def test_the_dry_run_tells_the_plan_and_writes_nothing(place: Maker, tmp_path: Path) -> None:
    folder = _ucf101(place)
    (folder / "UCF-101" / "broken.avi").write_bytes(b"nothing")
    result = make_shards(
        folder, "--out", tmp_path / "out", "--dry-run", "--workers", 1, "--part", "1/2", "--per-shard", 3
    )
    assert result.returncode == 0, result.stderr
    assert (
        "layout     ucf101" in result.stdout and "3 files" in result.stdout and "in 1 shards" in result.stdout
    )
    assert "missing    1: ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c01" in result.stdout
    assert "unlisted   2: " in result.stdout and "split1 " in result.stdout and "expected " in result.stdout
    assert not (tmp_path / "out").exists() and not list((tmp_path / "data").glob(".*"))
