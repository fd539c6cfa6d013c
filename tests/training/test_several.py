"""train.py --data A B: a run on several data sets, resumed bit for bit, and refused where one of them changed."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from objectives.command import data_once, parse
from shards import Dataset, demo
from shards.several import Several
from tests.evaluation.rendered import Video, write_set
from tests.training.harness import TOY, losses, train
from tests.training.test_bad_input import refused
from training.settings import Settings, with_own_flags

FLAGS = (*TOY, "--batch-size", 6, "--split", "train", "--checkpoint-every", 2)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of other classes and sizes than the demo set's, 25 frames a second."""
    videos = [Video(label, "train", 60) for label in (0, 1, 2)] + [Video(0, "val", 60)]
    return write_set(tmp_path_factory.mktemp("second") / "colours", videos, fps=25)


@pytest.fixture(scope="module")
def whole(data: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on both, never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    record = run.parent / "rows"
    record.mkdir()
    done = train(*FLAGS, "--data", data, second, "--steps", 6, "--output", run, "--record", record)
    assert done.status == 0, done.said
    trained = [len(Dataset(one).select(split="train")) for one in (data, second)]
    assert f"{sum(trained)} videos ({trained[0]} + {trained[1]})" in done.said
    assert f"--checkpoint {run} --data {data}, on labelled videos" in done.said
    return run


def test_each_epoch_has_the_training_rows_of_both_once(data: Path, second: Path, whole: Path) -> None:
    several = Several([Dataset(data), Dataset(second)])
    rows = [row for line in (whole.parent / "rows/0").read_text().splitlines() for row in json.loads(line)]
    train_rows = several.select(split="train")
    epoch = len(train_rows) // 6 * 6
    assert len(rows) == 36 and all(count == 1 for count in Counter(rows[:epoch]).values())
    assert set(rows) <= set(train_rows.tolist())
    assert len({row >= len(several.members[0]) for row in rows}) == 2
    (started,) = json.loads((whole / "run.json").read_text())["starts"]
    assert started["data"] == f"{data}, {second}" and started["fingerprint"] == several.fingerprint
    assert json.loads((whole / "config.json").read_text())["flags"]["data"] == [str(data), str(second)]
    keys = (whole / "checkpoints/step-00000006/rows.txt").read_text().split()
    assert keys == several.column("key")[train_rows].tolist()


def test_resumed_it_ends_with_the_same_bytes(data: Path, second: Path, whole: Path, tmp_path: Path) -> None:
    """With --data written twice, and the second time with the run's own flags alone."""
    run, record = tmp_path / "run", whole.parent / "rows"
    first = train(*FLAGS, "--data", data, "--data", second, "--steps", 2, "--output", run, "--record", record)
    assert first.status == 0, first.said
    done = train("--resume", run, "--steps", 6)
    assert done.status == 0 and "step 2" in done.said, done.said
    assert losses(run) == losses(whole) and len(losses(run)) == 6
    assert (run / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


def test_a_set_that_changed_or_is_missing_is_named(
    data: Path, second: Path, other_data: Path, whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    digests = [Dataset(one).fingerprint[:12] for one in (data, second)]
    before = f"data {Dataset(data).name} {digests[0]} / colours {digests[1]}"
    changed = tmp_path / "colours"
    write_set(changed, [Video(0, "train", 60)] * 5, fps=25)
    for given in ([data, changed], [data], [second, data], [data, second, other_data]):
        done = train("--resume", run, "--steps", 8, "--data", *given)
        assert done.status == 2 and len(done.said.strip().splitlines()) == 1, done.said
        assert f"{before} → " in done.said, done.said
    gone = train("--resume", run, "--steps", 8, "--data", data, tmp_path / "nowhere")
    assert gone.status == 2 and "nowhere: no such folder" in gone.said, gone.said
    same = train("--resume", run, "--steps", 7, "--data", data, second)
    assert same.status == 0 and len(losses(run)) == 7, same.said


def test_sets_that_do_not_go_together_are_one_line(data: Path, second: Path, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "run")
    refused(*out, "--data", data, "--data", data, says=("hold the same", "name one of them"))
    refused(*out, "--data", says=("--data: names no data set",))
    slow = write_set(tmp_path / "slow", [Video(0, "train")] * 3)
    refused(*out, "--data", data, slow, says=("slow has 10 frames a second", "make them at one rate"))
    unsplit = demo.render(tmp_path / "other", clips_per_class=(1, 0), frames=10, seed=3, workers=2)
    says = (f"none of {unsplit} would be trained on", "--min-frames")
    refused(*out, "--data", data, unsplit, "--split", "train", "--min-frames", 20, says=says)


def test_both_spellings_are_one_and_win_over_a_files(tmp_path: Path) -> None:
    for argv in (["--data", "a", "b"], ["--data", "a", "--lr", "0.1", "--data=b"], ["--data=a", "--data=b"]):
        settings, _ = parse(with_own_flags(data_once(argv)), Settings, None, "train.py")
        assert settings.data == (Path("a"), Path("b")) and not settings.small
    (tmp_path / "flags.yaml").write_text("data: [x, y]")
    for argv, expected in (([], (Path("x"), Path("y"))), (["--data", "a"], (Path("a"),))):
        own = with_own_flags(data_once(["--config", str(tmp_path / "flags.yaml"), *argv]))
        assert parse(own, Settings, None, "train.py")[0].data == expected
    assert data_once(["--lr", "0.1"]) == ["--lr", "0.1"]


def test_validation_and_neighbours_look_at_both(data: Path, second: Path, tmp_path: Path) -> None:
    """Only the second has a split val; labels are of classes of both."""
    flags = ("--val-split", "val", "--val-every", 2, "--knn-every", 2)
    done = train(
        *FLAGS, *flags, "--data", data, second, "--steps", 2, "--batch-size", 1, "--output", tmp_path / "run"
    )
    assert done.status == 0, done.said
    found = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert found["val_step"] == found["knn_step"] == 2 and 0 < found["knn_chance"] < 1
