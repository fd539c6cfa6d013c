"""How a run is watched and begun again: trackers, profile, run.json, --resume RUN, --config, --help, the last line."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import objectives
from shards import Dataset
from tests.training import harness
from tests.training.harness import TOY, lines, losses, steps, train
from tests.training.test_safety import one_line
from training.settings import as_argv, with_own_flags

ROOT = Path(__file__).parents[2]
FLAGS = (*TOY, "--batch-size", 4, "--checkpoint-every", 2)
OWN = "tests.training.tracker:Noted"


def noted(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "noted.jsonl").read_text().splitlines()]


def tensorboard(run: Path) -> list[tuple[int, float]]:
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return [(event.step, pytest.approx(event.value)) for event in read.Scalars("loss")]


def test_two_trackers_have_each_step_of_a_resumed_run_once(data, tmp_path) -> None:
    """The checkpoint is of step 2; steps 3 were logged before the run ended, and are trained again."""
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--tracker", "tensorboard", OWN)
    assert train(*flags, "--nan-at", 3, "--steps", 6).status == 2  # at step 4
    assert list(losses(run)) == [1, 2, 3] and steps(run) == [2]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"config": config["config"] | {"nan_at": -1}}))
    saved = run / "checkpoints/step-00000002/config.json"
    saved.write_text((run / "config.json").read_text())
    objectives.checkpoint.list_files(saved.parent)
    done = train("--resume", run)
    assert done.status == 0, done.said
    wanted = [(line["step"], line["loss"]) for line in lines(run)]
    assert [step for step, _ in wanted] == [1, 2, 3, 4, 5, 6]
    assert tensorboard(run) == wanted
    first, *told = noted(run)
    assert first["flags"]["lr"] == 0.01 and first["flags"]["batch_size"] == 4
    assert [(line["step"], line["loss"]) for line in told] == wanted


def test_a_tracker_that_joins_later_is_told_all_and_one_that_fails_is_left_out(data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run)
    assert train(*flags, "--steps", 2, "--tracker", "none").status == 0
    assert not (run / "tensorboard").exists()
    done = train("--resume", run, "--steps", 4, "--tracker", OWN)
    assert done.status == 0 and [line.get("step") for line in noted(run)] == [None, 1, 2, 3, 4], done.said
    failing = harness.Started(
        ("--resume", str(run), "--steps", "6"), {"ACCELERATE_USE_CPU": "true", "NOTED_FAILS_AT": "5"}
    ).end()
    assert failing.status == 0 and failing.said.count("the service is away") == 1, failing.said
    assert noted(run)[-1]["step"] == 4 and list(losses(run)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "tracker, says",
    [
        (("nope",), "there is no such tracker; choose of"),
        (("none", "tensorboard"), "none goes with no other"),
        (("tests.training.tracker:Nobody",), "Nobody"),
        (("nowhere:Nobody",), "nowhere"),
    ],
)
def test_a_tracker_that_cannot_be_had(data, tmp_path, tracker, says) -> None:
    done = train(*FLAGS, "--data", data, "--output", tmp_path / "run", "--steps", 1, "--tracker", *tracker)
    one_line(done, f"--tracker {' '.join(tracker)}", says)
    assert not (tmp_path / "run").exists()


def test_a_profile_has_the_phases_of_its_steps(data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--steps", 7, "--accumulate", 2, "--profile", 3)
    done = train(*flags)
    assert done.status == 0, done.said
    events = json.loads(gzip.decompress((run / "profile.json.gz").read_bytes()))["traceEvents"]
    for name in ("data", "forward", "backward", "step"):
        found = [one for one in events if one.get("name") == name and one.get("cat") == "user_annotation"]
        assert len(found) == 6, name  # of 3 steps of 2 batches
    again = train("--resume", run, "--steps", 8)  # it is not profiled again
    assert again.status == 0 and json.loads((run / "config.json").read_text())["flags"].get("profile") is None


def test_a_run_notes_how_it_was_started(data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--split", "train")
    first = train(*flags, "--steps", 2)
    assert f"next: evaluate.py linear --checkpoint {run} --data {data}" in first.said, first.said
    assert f"train.py --resume {run} --steps 4 trains on" in first.said
    assert train("--resume", run, "--steps", 3).status == 0
    first, second = json.loads((run / "run.json").read_text())["starts"]
    assert (first["from_step"], second["from_step"]) == (0, 2) and (first["steps"], second["steps"]) == (2, 3)
    dataset = Dataset(data)
    assert first["data"] == str(data) and first["fingerprint"] == dataset.fingerprint
    assert first["split"] == "train" and first["videos"] == len(dataset.select(split="train"))
    assert "--split train" in first["command"] and second["command"].endswith(f"--resume {run} --steps 3")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert first["commit"].startswith(head.stdout.strip())
    assert first["versions"]["torch"] and first["hardware"]["processes"] == 1


def test_resume_needs_no_flags_and_refuses_those_that_contradict(data, tmp_path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--data", data, "--output", run, "--split", "train", "--ema", 0.5, "--lr", 0.02)
    assert train(*flags, "--steps", 2).status == 0
    whole = tmp_path / "whole"
    assert train(*flags, "--output", whole, "--steps", 4).status == 0
    for changed, says in [
        (("--lr", 0.5), "lr 0.02 → 0.5"),
        (("--split", "test"), "split train → test"),
        (("--ema", 0), "ema 0.5 → 0"),
        (("--objective", "vdim"), "objective"),
    ]:
        done = train("--resume", run, *changed)
        assert done.status == 2 and "Traceback" not in done.said, done.said
        assert says in done.said or "vdim" in changed, done.said
    done = train("--resume", run, "--steps", 4, "--keep", 1, "--log-every", 2)  # and takes harmless ones
    assert done.status == 0 and steps(run) == [4], done.said
    assert losses(whole)[4] == pytest.approx(losses(run)[4], rel=0.5) and 3 not in losses(run)
    encoders = [(folder / "encoder.safetensors").read_bytes() for folder in (run, whole)]
    assert encoders[0] == encoders[1]
    config = json.loads((run / "config.json").read_text())
    config["flags"]["cpu_share"] = 0.0  # as if another version had written it
    (run / "config.json").write_text(json.dumps(config))
    done = train("--resume", run, "--steps", 5)
    assert done.status == 2 and "config.json: train.py has no flag cpu_share; remove it" in done.said, (
        done.said
    )


def test_resumed_by_two_processes_the_global_batch_is_kept(data, tmp_path) -> None:
    run = tmp_path / "run"
    assert train(*FLAGS, "--data", data, "--output", run, "--steps", 2).status == 0
    for done in harness.train_together(2, "--resume", run, "--steps", 4):
        assert done.status == 0, done.said
    assert list(losses(run)) == [1, 2, 3, 4]


def test_resuming_what_is_no_run(tmp_path) -> None:
    one_line(train("--resume", tmp_path / "nowhere"), "--resume", "nowhere", "--output")
    (tmp_path / "config.json").write_text('{"objective": "toy", "config": {"lr": [{}]}}')
    one_line(train("--resume", tmp_path), "config.json", "lr")


def test_a_config_file_gives_flags_and_given_ones_win(data, tmp_path) -> None:
    flags = {"objective": "toy", "data": str(data), "log_every": 1, "batch-size": 4, "steps": 3, "lr": 0.5}
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump(flags))
    run = ("--output", tmp_path / "run")
    done = train("--config", tmp_path / "flags.yaml", "--lr", 0.25, *run)
    assert done.status == 0 and json.loads((tmp_path / "run/config.json").read_text())["config"]["lr"] == 0.25
    again = train("--config", tmp_path / "run/config.json", "--output", tmp_path / "again")
    assert again.status == 0 and losses(tmp_path / "again") == losses(tmp_path / "run")


@pytest.mark.parametrize(
    "content", ["- a list", "lr: {a: 1}", "{", "lr: [[1]]", "\0", "&a [*a]", "no_such_flag: 1", "1: 2"]
)
def test_a_config_file_that_is_none(tmp_path, content) -> None:
    (tmp_path / "flags.yaml").write_text(content)
    done = train(*TOY, "--config", tmp_path / "flags.yaml", "--output", tmp_path / "run")
    assert done.status == 2 and "Traceback" not in done.said, done.said
    assert "flags.yaml" in done.said or "no-such-flag" in done.said


def test_flags_become_words_and_a_bare_resume_has_a_value() -> None:
    flags = {"lr": -0.5, "small": False, "ema": None, "paces": [1, 2], "data": "-odd name"}
    assert as_argv(flags) == ["--lr=-0.5", "--no-small", "--paces", "1", "2", "--data=-odd name"]
    for argv in (["--resume"], ["--resume", "--steps", "3"]):
        assert with_own_flags(["--output", "/nonexistent", *argv])[:3] == [
            "--output",
            "/nonexistent",
            "--resume=newest",
        ]


def test_help_shows_the_papers_defaults_and_what_small_changes() -> None:
    """On any machine; this one may have no GPU, where --small is the default without --data."""
    command = [sys.executable, "train.py", "--objective", "pace", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    pace = objectives.get("pace")
    assert f"(default: {pace.recipe.steps})" in said and f"(default: {pace.Config().frames})" in said
    assert f"--small changes these defaults of pace: steps {pace.small_recipe.steps}" in said


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED"])
def test_what_shards_the_model_is_refused_at_the_start(data, tmp_path, plugin) -> None:
    flags = tuple(map(str, (*FLAGS, "--data", data, "--output", tmp_path / "run")))
    environment = {"ACCELERATE_USE_CPU": "true", f"ACCELERATE_USE_{plugin}": "true"}
    one_line(harness.Started(flags, environment).end(), f"ACCELERATE_USE_{plugin}", "accelerate launch")
    assert not (tmp_path / "run").exists()


def test_moved_a_run_is_resumed_where_it_is(data, tmp_path) -> None:
    assert train(*FLAGS, "--data", data, "--output", tmp_path / "a", "--steps", 1).status == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert train("--resume", tmp_path / "b", "--steps", 2).status == 0
    assert list(losses(tmp_path / "b")) == [1, 2] and not (tmp_path / "a").exists()
