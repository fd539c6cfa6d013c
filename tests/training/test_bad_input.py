"""What users get wrong ends in one line that names it, with a status other than 0, and costs them nothing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from objectives.checkpoint import list_files
from shards import Dataset
from tests.training.harness import TOY, steps, train

ROOT = Path(__file__).parents[2]


def refused(*argv: object, says: tuple[str, ...]) -> None:
    done = train(*TOY, "--batch-size", 2, "--steps", 1, *argv)
    assert done.status == 2, done.said
    assert len(done.said.strip().splitlines()) == 1 and done.said.startswith("error: "), done.said
    assert all(part in done.said for part in says), done.said


def out_of(folder: Path) -> tuple[str, Path]:
    return "--output", folder / "run"


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "copy"))


def test_no_such_folder(tmp_path) -> None:
    refused(
        *out_of(tmp_path), "--data", tmp_path / "nowhere", says=("nowhere: no such folder", "make_shards")
    )


def test_a_folder_that_is_no_data_set(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        *out_of(tmp_path), "--data", tmp_path / "empty", says=("empty: no samples.parquet", "make_shards")
    )


def test_a_folder_without_videos(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "tools/make_shards.py", tmp_path / "empty", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "empty" in done.stderr, done.stderr


def test_without_its_table(copy, tmp_path) -> None:
    (copy / "samples.parquet").unlink()
    refused(*out_of(tmp_path), "--data", copy, says=(str(copy), "no samples.parquet"))


def test_a_truncated_tar(copy, tmp_path) -> None:
    tar = next(copy.glob("*.tar"))
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size // 2)
    refused(*out_of(tmp_path), "--data", copy, says=(tar.name, "bytes", "restore the file"))


def test_a_table_that_points_past_the_tar(copy, tmp_path) -> None:
    table = pq.read_table(copy / "samples.parquet")
    place = table.schema.get_field_index("mp4_offset")
    far = pa.array([10**12] * len(table), table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), far), copy / "samples.parquet")
    refused(*out_of(tmp_path), "--data", copy, says=(".tar", "table's rows in it end at 10000000"))


def test_an_unknown_objective(tmp_path, data) -> None:
    flags = (*out_of(tmp_path), "--data", data, "--objective", "nope")
    refused(*flags, says=("--objective nope", "vdim"))


def test_a_batch_larger_than_the_data_set(tmp_path, data) -> None:
    refused(
        *out_of(tmp_path), "--data", data, "--batch-size", 19, says=("global batch of 19", "--batch-size")
    )


def test_videos_shorter_than_a_clip(tmp_path, other_data) -> None:
    """Under the policy error short videos are left out: 20 frames, and VDIM spans 63 and more."""
    done = train(
        *("--objective", "vdim", "--small", "--padding", "error", "--batch-size", 2, "--steps", 1),
        *(*out_of(tmp_path), "--data", other_data),
    )
    assert done.status == 2 and len(done.said.strip().splitlines()) == 1, done.said
    assert "0 are selected" in done.said and "--padding repeat_last" in done.said
    assert not (tmp_path / "run" / "config.json").exists(), "the folder is taken, though nothing was begun"
    again = train(
        *("--objective", "vdim", "--small", "--batch-size", 2, "--steps", 1, "--padding", "repeat_last"),
        *(*out_of(tmp_path), "--data", other_data),
    )
    assert again.status == 0 and "repeat their last frame" in again.said, again.said


def test_resuming_with_another_data_set(tmp_path, data, other_data) -> None:
    run = ("--output", tmp_path / "run")
    assert train(*TOY, "--batch-size", 2, "--steps", 1, *run, "--data", data).status == 0
    refused(*run, "--data", other_data, "--resume", "--steps", 2, says=("--resume", "data demo"))
    assert steps(tmp_path / "run") == [1]


def test_an_output_that_cannot_be_written_to(tmp_path, data) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused("--output", tmp_path / "file" / "run", "--data", data, says=("--output", "Not a directory"))
    assert (tmp_path / "file").read_text() == "not a folder"
    refused("--output", "/proc/run", "--data", data, says=("--output /proc/run", "can be written to"))


def test_an_output_that_holds_a_run(tmp_path, data) -> None:
    run = ("--output", tmp_path / "run", "--data", data)
    assert train(*TOY, "--batch-size", 2, "--steps", 1, *run).status == 0
    refused(*run, says=("holds a run already", "--resume"))


def test_resuming_where_nothing_was_begun_begins(tmp_path, data) -> None:
    """So that a job may be started again and again by the same command."""
    run = ("--output", tmp_path / "run", "--data", data)
    assert train(*TOY, "--batch-size", 2, "--steps", 1, *run, "--resume").status == 0


@pytest.mark.parametrize(
    "flags",
    [("--device", "gpu"), ("--sync-bn",), ("--mixed-precision", "fp16")],
    ids=lambda flags: flags[0],
)
def test_what_needs_a_gpu(tmp_path, data, flags) -> None:
    if torch.cuda.is_available() and flags[0] == "--device":
        pytest.skip("this machine has a GPU")
    refused(*out_of(tmp_path), "--data", data, *flags, says=(" ".join(flags), "GPU"))


@pytest.mark.parametrize("flags", [("--steps", 0), ("--ema", 1.0), ("--keep", 0), ("--clip-norm", -1)])
def test_senseless_numbers(tmp_path, data, flags) -> None:
    refused(*out_of(tmp_path), "--data", data, *flags, says=(flags[0], "must be"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_flag(tmp_path, data) -> None:
    done = train(*TOY, *out_of(tmp_path), "--data", data, "--no-such-flag", 1)
    assert done.status == 2 and "--no-such-flag" in done.said and "Traceback" not in done.said


def test_a_state_that_is_not_the_runs(tmp_path, data) -> None:
    """Two checkpoints mixed up by hand: the optimizer's state is refused in words of ours."""
    run = ("--output", tmp_path / "run", "--data", data)
    assert train(*TOY, "--batch-size", 2, "--steps", 1, *run).status == 0
    checkpoint = tmp_path / "run/checkpoints/step-00000001"
    (checkpoint / "rows.txt").write_text("no-such-video\n")
    list_files(checkpoint)
    refused(*run, "--resume", "--steps", 2, says=("lacks 1 videos of the run, no-such-video first",))
    (checkpoint / "rows.txt").write_text("\n".join(Dataset(data).column("key")))
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors")
    list_files(checkpoint)
    refused(
        *run, "--resume", "--steps", 2, says=("optimizer.safetensors does not hold this run's optimizer",)
    )
