"""Selections of rows, reads by offset, and what is said when a data set is not whole."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import make_shards

from shards import DamagedError, Dataset, InputError
from shards.table import quarantine_entries


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


@pytest.fixture(scope="module")
def large(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """200 rows over the small set's bytes: lengths 1–100, six labels and unlabelled ones, two splits."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("large") / "set"))
    table = pq.read_table(folder / "samples.parquet")
    table = table.take(np.arange(200) % len(table))
    generator = np.random.default_rng(0)
    columns = {
        "key": [f"k{n}" for n in range(200)],
        "num_frames": pa.array(generator.integers(1, 101, 200), pa.int32()),
        "label": pa.array(generator.integers(-1, 6, 200), pa.int32()),
        "split": generator.choice(["train", "test"], 200).tolist(),
        "split2": generator.choice(["train", "test", None], 200).tolist(),
    }
    for name, values in columns.items():
        place = table.column_names.index(name) if name in table.column_names else len(table.column_names)
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.add_column(place, name, pa.array(values))
    pq.write_table(table, folder / "samples.parquet")
    info = json.loads((folder / "dataset.json").read_text())
    info["classes"] = ["a", "b", "c", "d", "e", "f"]
    (folder / "dataset.json").write_text(json.dumps(info))
    return Dataset(folder)


def test_a_split_may_name_its_column(large: Dataset) -> None:
    chosen = large.select(split="split2:train")
    assert chosen.tolist() == np.flatnonzero(large.column("split2") == "train").tolist()
    assert chosen.tolist() == large.select(split="train", split_column="split2").tolist()
    assert chosen.tolist() != large.select(split="train").tolist()


def test_opens_with_its_description(dataset: Dataset, made: Path) -> None:
    assert (dataset.name, dataset.path) == ("small", made)
    assert dataset.classes == ["Run & walk", "jump", "wave"] and len(dataset) == dataset.info["rows"] == 13
    for row in range(len(dataset)):
        assert dataset.classes[dataset.column("label")[row]] == dataset.column("label_name")[row]
        assert hashlib.sha256(dataset.read(row)).hexdigest() == dataset.column("sha256")[row]
    assert dataset.column("num_frames").dtype == np.int32 and dataset.column("mp4_offset").dtype == np.int64
    for name, tar in dataset.info["tars"].items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == tar["sha256"]
    assert "split" not in pq.read_schema(made / "samples.parquet").names


@settings(deadline=None, max_examples=50)
@given(
    split=st.sampled_from([None, "train", "test"]),
    least=st.integers(1, 120),
    fraction=st.none() | st.floats(0.01, 1),
    seed=st.integers(0, 5),
)
def test_a_selection_is_ascending_deterministic_and_keeps_its_conditions(
    large: Dataset, split: str | None, least: int, fraction: float | None, seed: int
) -> None:
    chosen = large.select(split=split, min_frames=least, label_fraction=fraction, seed=seed)
    again = Dataset(large.path).select(split=split, min_frames=least, label_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(chosen, again)
    assert chosen.dtype == np.int64 and np.all(np.diff(chosen) > 0)
    assert np.all(large.column("num_frames")[chosen] >= least)
    if split:
        assert set(large.column("split")[chosen]) <= {split}
    if fraction is None:
        expected = large.column("num_frames") >= least
        expected &= (large.column("split") == split) if split else True
        np.testing.assert_array_equal(chosen, np.flatnonzero(expected))


@settings(deadline=None, max_examples=50)
@given(smaller=st.floats(0.01, 1), larger=st.floats(0.01, 1), seed=st.integers(0, 5))
def test_a_label_fraction_takes_its_share_of_every_label(
    large: Dataset, smaller: float, larger: float, seed: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    labels = large.column("label")
    chosen = large.select(split="train", label_fraction=larger, seed=seed)
    for label in range(6):
        there = np.sum((labels == label) & (large.column("split") == "train"))
        assert np.sum(labels[chosen] == label) == max(1, round(larger * there))
    assert not np.any(labels[chosen] == -1)
    assert set(large.select(split="train", label_fraction=smaller, seed=seed)) <= set(chosen)


def test_the_seed_changes_the_fraction(large: Dataset) -> None:
    batch_params = {large.select(label_fraction=0.3, seed=seed).tobytes() for seed in range(5)}
    assert len(batch_params) == 5


def test_quarantined_rows_are_left_out_of_new_selections(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Dataset(copied)
    dataset.quarantine(3, "does not decode")
    assert json.loads((copied / "quarantine.jsonl").read_text()) == {
        "key": dataset.column("key")[3],
        "reason": "does not decode",
    }
    assert 3 not in dataset.select() and 3 not in Dataset(copied).select()
    assert 3 in dataset.select(quarantine=False) and len(dataset.select()) == len(dataset) - 1
    with open(copied / "quarantine.jsonl", "a") as handle:
        handle.write('{"key": "cut o')
    assert len(dataset.select()) == len(dataset) - 1 and "line 2" in caplog.text
    dataset.quarantine(5, "noted after a line that was cut off")
    assert dataset.quarantined().tolist() == [3, 5]
    with open(copied / "quarantine.jsonl", "ab") as handle:
        handle.write(b"\xff\x00 a broken disk's\n")
    assert dataset.quarantined().tolist() == [3, 5]


def _note_all(folder: Path, name: int) -> None:
    dataset = Dataset(folder)
    for n in range(200):
        dataset.quarantine(n % len(dataset), f"{name}-{n} " + "long " * 50)


def test_processes_that_quarantine_at_once_do_not_mix_their_lines(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_note_all, args=(copied, name)) for name in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (copied / "quarantine.jsonl").read_text().splitlines()
    found = {json.loads(line)["reason"].split()[0] for line in lines if line}
    assert found == {f"{name}-{n}" for name in range(4) for n in range(200)}
    with caplog.at_level(logging.WARNING):
        assert len(quarantine_entries(copied / "quarantine.jsonl")) == 800 and not caplog.text


def test_quarantine_in_a_folder_that_cannot_be_written_warns(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copied / "quarantine.jsonl").mkdir()  # root may write anywhere, but not to a folder
    Dataset(copied).quarantine(0, "bad")
    assert "is not noted" in caplog.text


def test_threads_share_one_data_set(dataset: Dataset) -> None:
    rows = np.random.default_rng(0).integers(0, len(dataset), 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda row: hashlib.sha256(dataset.read(row)).hexdigest(), rows))
    assert sums == [dataset.column("sha256")[row] for row in rows]
    copy = pickle.loads(pickle.dumps(dataset))
    dataset.close()
    assert copy.read(5) == dataset.read(5)


def test_a_tar_that_is_closed_while_it_is_read_is_read_to_its_end(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another thread finds that it has left the cache of a remote data set."""
    dataset, pread = Dataset(copied), os.pread

    def closed_just_before(*arguments: int) -> bytes:
        dataset.close()
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", closed_just_before)
    assert hashlib.sha256(dataset.read(0)).hexdigest() == dataset.column("sha256")[0]


def test_fingerprint_names_the_content(made: Path, copied: Path) -> None:
    assert Dataset(made).fingerprint == Dataset(copied).fingerprint
    info = json.loads((copied / "dataset.json").read_text())
    next(iter(info["tars"].values()))["sha256"] = "0" * 64
    (copied / "dataset.json").write_text(json.dumps(info))
    assert Dataset(made).fingerprint != Dataset(copied).fingerprint


def test_what_is_missing_is_named_with_its_fix(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; make one with tools/make_shards.py"):
        Dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no samples.parquet.*tools/make_shards.py"):
        Dataset(tmp_path)
    tar = sorted(copied.glob("*.tar"))[1]
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1500])
    with pytest.raises(
        InputError, match=rf"{tar.name}: 1500 bytes, but .* end at \d+; make the shards again"
    ):
        Dataset(copied)
    tar.unlink()
    with pytest.raises(InputError, match=rf"{tar.name}: no such file"):
        Dataset(copied)
    tar.write_bytes(whole)
    dataset = Dataset(copied)
    tar.write_bytes(whole[:1500])  # cut off after it was opened
    row = int(np.flatnonzero(dataset.column("shard") == tar.name)[-1])
    with pytest.raises(DamagedError, match=rf"{tar.name}: ends \d+ bytes before the end of the video"):
        dataset.read(row)


def test_a_damaged_tar_may_be_opened_and_is_read_again_when_it_is_put_back(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = sorted(copied.glob("*.tar"))[1]
    whole = tar.read_bytes()
    tar.unlink()
    dataset = Dataset(copied, damaged=True)
    assert f"{tar.name}: no such file" in caplog.text
    row = int(np.flatnonzero(dataset.column("shard") == tar.name)[0])
    with pytest.raises(DamagedError, match=rf"{tar.name}: No such file"):
        pickle.loads(pickle.dumps(dataset)).read(row)
    tar.write_bytes(whole[:600])
    with pytest.raises(DamagedError, match="ends"):
        dataset.read(row)
    tar.with_suffix(".new").write_bytes(whole)
    tar.with_suffix(".new").rename(tar)  # another file of that name
    assert hashlib.sha256(dataset.read(row)).hexdigest() == dataset.column("sha256")[row]


def test_tars_that_are_away_for_a_moment_are_waited_for(copied: Path) -> None:
    expected = {row: Dataset(copied).read(row) for row in range(13)}
    dataset = Dataset(copied)
    away = copied.with_name("away")
    copied.rename(away)
    timer = threading.Timer(0.7, away.rename, [copied])
    timer.start()
    with ThreadPoolExecutor(4) as pool:
        assert dict(enumerate(pool.map(dataset.read, range(13)))) == expected
    timer.join()


@pytest.mark.parametrize("trouble", ["folder gone", "disk error"])
def test_trouble_with_the_disk_is_no_damage(
    copied: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr("shards.dataset.PAUSES", (0.01, 0.01))
    dataset, tries = Dataset(copied), []
    if trouble == "folder gone":
        copied.rename(copied.with_name("away"))
    else:

        def failing(*arguments: int) -> bytes:
            tries.append(arguments)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OSError) as caught:
        dataset.read(0)
    assert not isinstance(caught.value, DamagedError)
    assert caught.value.filename == str(copied / dataset.column("shard")[0])
    assert len(tries) in (0, 3)


def test_other_bytes_than_were_written_are_told(copied: Path) -> None:
    dataset = Dataset(copied)
    tar = copied / dataset.column("shard")[2]
    with tar.open("r+b") as handle:
        handle.seek(int(dataset.column("mp4_offset")[2] + dataset.column("mp4_size")[2]) - 1)
        last = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([last[0] ^ 1]))
    with pytest.raises(DamagedError, match=r"not the bytes that were written \(sha256\)"):
        dataset.read(2)
    assert dataset.read(1) and dataset.read(2, "json")


def test_a_table_without_a_sum_for_each_row_is_refused(copied: Path) -> None:
    """Or whoever removed the sums could put other bytes in the place of any video."""
    table = pq.read_table(copied / "samples.parquet")
    place = table.column_names.index("sha256")
    half = table.column("sha256").to_pylist()[:5] + [None] * (len(table) - 5)
    for changed in (
        table.drop_columns(["sha256"]),
        table.set_column(place, "sha256", pa.array(half, pa.string())),
    ):
        pq.write_table(changed, copied / "samples.parquet")
        with pytest.raises(
            InputError, match=r"samples.parquet: .*column '?sha256.*check_shards.py DIR --repair"
        ):
            Dataset(copied).read(0)


def test_wrong_questions_list_the_answers(dataset: Dataset, large: Dataset) -> None:
    with pytest.raises(InputError, match=r"no column 'frames'; it has key, shard, num_frames"):
        dataset.column("frames")
    with pytest.raises(InputError, match=r"--split train: .* no such split: it has none; leave --split out"):
        dataset.select(split="train")
    for split in ("val", "split3:train"):
        with pytest.raises(
            InputError, match=rf"--split {split}: .* it has test, train, split2:test, split2:train"
        ):
            large.select(split=split)
    for fraction in (0.0, 1.5):
        with pytest.raises(InputError, match="--label-fraction"):
            large.select(label_fraction=fraction)
    with pytest.raises(InputError, match="no column 'flow_offset'"):
        dataset.read(0, "flow")
    with pytest.raises(IndexError):
        dataset.read(len(dataset))


def test_a_flat_folder_makes_a_data_set_without_labels(class_folders: Path, tmp_path: Path) -> None:
    result = make_shards(class_folders / "jump", "--out", tmp_path / "flat", "--short-side", 32)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(tmp_path / "flat")
    assert len(dataset) == 8 and dataset.classes == [] and set(dataset.column("label")) == {-1}
    assert set(dataset.column("label_name")) == {None} and dataset.read(0)
    with pytest.raises(InputError, match="no column 'cls_offset'"):
        dataset.read(0, "cls")
    with pytest.raises(InputError, match=r"--label-fraction 0.5: the rows of .* have no labels"):
        dataset.select(label_fraction=0.5)
