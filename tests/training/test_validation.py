"""Validation, the plateau, the curriculum and --init-from, as a user's command has them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import objectives
from objectives import checkpoint
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.views import eval_view
from shards import Dataset
from tests.training.harness import lines, losses, train, train_together
from training.metrics import Decay

NET = ("--width", 0.05, "--blocks", 4, "--frames", 1, "--size", 34, "--pred-steps", 1, "--stride", 2)
FLAGS = (
    "--objective",
    "dpc",
    "--split",
    "train",
    "--log-every",
    1,
    "--checkpoint-every",
    1,
    "--keep",
    99,
    *NET,
)
VALIDATED = (
    *FLAGS,
    "--steps",
    6,
    "--val-split",
    "test",
    "--val-every",
    2,
    "--val-passes",
    2,
    "--curriculum",
    4,
)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5pred3 → 4pred4 in small: 3pred1, and 2pred2 from step 4 on. A validation that is lower by luck is no matter."""
    out = tmp_path_factory.mktemp("validated") / "run"
    done = train(*VALIDATED, "--batch-size", 4, "--patience", 1, "--data", data, "--output", out)
    assert done.status == 0, done.said
    return out


def test_the_curriculum_runs_in_one_command(whole: Path) -> None:
    """4 clips, one or two steps, 2×2 locations."""
    assert [round(1 / line["chance"]) for line in lines(whole)] == [16, 16, 16, 16, 32, 32]


def test_validation_is_the_loss_on_fixed_plain_clips(whole: Path, data: Path) -> None:
    found = {line["val_step"]: line for line in lines(whole) if "val_step" in line}
    assert list(found) == [2, 4, 6]
    for step in found:
        objective = objectives.load(whole / f"checkpoints/step-{step:08d}")
        objective.begin_step(step - 1)
        dataset = Dataset(data)
        rows = dataset.select(split="test")
        spec = eval_view(objective.view_spec(objective.config))
        with (
            Loader(dataset, TrainSampler(dataset, rows, spec, 4)) as loader,
            torch.no_grad(),
        ):
            outs = [objective({"views": next(loader)["views"]}) for _ in range(2 * (len(rows) // 4))]
        assert found[step]["val_loss"] == pytest.approx(np.mean([float(o.loss) for o in outs]), rel=1e-4)
        assert found[step]["val_top1"] == pytest.approx(
            np.mean([float(o.metrics["top1"]) for o in outs]), abs=1e-6
        )
        dataset.close()


def at_step(whole: Path, step: int, run: Path, validation: dict | None = None) -> Path:
    """A copy of the run as it was after a step, with another state of its validation."""
    shutil.copytree(whole, run)
    for later in range(step + 1, 7):
        shutil.rmtree(run / f"checkpoints/step-{later:08d}")
    if validation:
        state = run / f"checkpoints/step-{step:08d}/state.json"
        state.write_text(
            json.dumps(json.loads(state.read_text()) | {"evaluators": {"validation": validation}})
        )
        checkpoint.list_files(state.parent)
    return run


def resume(run: Path, data: Path) -> None:
    done = train(*VALIDATED, "--batch-size", 4, "--patience", 1, "--data", data, "--output", run, "--resume")
    assert done.status == 0, done.said


def test_resumed_at_any_step_it_is_the_same_run(whole: Path, data: Path, tmp_path: Path) -> None:
    unvalidated = {"last": 0, "decay": Decay(0).state_dict()}  # as a signal between the two leaves it
    for step, validation in ((2, unvalidated), (3, None), (5, None)):
        run = at_step(whole, step, tmp_path / str(step), validation)
        resume(run, data)
        assert losses(run) == losses(whole)
        mine, expected = (load_file(r / "checkpoints/step-00000006/model.safetensors") for r in (run, whole))
        assert all(torch.equal(mine[key], expected[key]) for key in expected)


def test_a_plateau_lowers_the_learning_rate_until_the_next_stage(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    fallen = {"last": 2, "decay": {"stage": 0, "lowest": 0.0, "waited": 0, "falls": 1}}
    run = at_step(whole, 3, tmp_path / "run", fallen)
    resume(run, data)
    rates = []
    for step in (4, 5):
        state = json.loads((run / f"checkpoints/step-{step:08d}/state.json").read_text())
        rates.append(state["optimizer"]["param_groups"][0]["lr"])
    assert rates == pytest.approx([1e-4, 1e-3])


def test_two_processes_agree(data: Path, tmp_path: Path) -> None:
    flags = (*VALIDATED, "--batch-size", 2, "--patience", 1, "--data", data, "--output", tmp_path / "run")
    done = train_together(2, *flags)
    assert [d.status for d in done] == [0, 0], [d.said for d in done]
    assert [line["val_step"] for line in lines(tmp_path / "run") if "val_step" in line] == [2, 4, 6]


def test_init_from_clips_of_another_rate_or_size_is_named(whole: Path, data: Path, tmp_path: Path) -> None:
    """Of 25 frames/s: a stride of 2 is 80 ms, one of 3 is 120 ms. Eight clips a step are not the recipe's."""
    fps = json.loads((whole / "config.json").read_text())["settings"]["fps"]
    flags = (*FLAGS, "--data", data, "--steps", 1, "--batch-size", 4, "--init-from", whole)
    same = train(*flags, "--output", tmp_path / "same")
    assert same.status == 0 and "looked at other clips" not in same.said, same.said
    done = train(*flags, "--output", tmp_path / "run", "--stride", 3, "--size", 48)
    assert done.status == 0, done.said
    said = next(line for line in done.said.splitlines() if "looked at other clips" in line)
    assert f"size 34 → 48, ms from frame to frame {round(2000 / fps)} → {round(3000 / fps)}" in said, said


def test_a_stride_on_shards_made_for_another_is_named(data: Path, tmp_path: Path) -> None:
    """Demo videos have 30 frames a second, so that DPC's 10 are a stride of 3; on other shards any stride is as good."""
    made_for = Path(shutil.copytree(data, tmp_path / "made"))
    description = json.loads((made_for / "dataset.json").read_text())
    description["settings"] |= {"for": "dpc", "stride": 3, "fps": 30}
    (made_for / "dataset.json").write_text(json.dumps(description))
    said = "made has 30 frames a second and not about 60, so that a clip lasts 2 times as long"
    for folder, stride, named in ((made_for, 6, True), (data, 6, False)):
        out = tmp_path / f"{folder.name}-{stride}"
        flags = (*FLAGS, "--data", folder, "--steps", 1, "--batch-size", 4, "--stride", stride)
        done = train(*flags, "--padding", "repeat_last", "--output", out)
        assert done.status == 0 and ("frames a second and not" in done.said) == named, done.said
        assert (said in done.said) == named


def test_a_batch_that_is_not_the_recipes_is_named_with_the_learning_rate(data: Path, tmp_path: Path) -> None:
    dpc = objectives.get("dpc")
    flags = (*FLAGS, "--data", data, "--steps", 1, "--batch-size", 4)
    clips, lr = dpc.recipe.batch_size, dpc.Config().lr
    done = train(*flags, "--output", tmp_path / "run")
    said = f"a step has 4 clips, and --lr {lr:g} is meant for the recipe's {clips}"
    assert said in done.said and f"it would be {lr * 4 / clips:.2g}" in done.said, done.said
    done = train(*flags, "--output", tmp_path / "own", "--lr", 0.5)
    assert done.status == 0 and "is meant for" not in done.said, done.said


def test_init_from_starts_with_the_weights_of_another_stage(whole: Path, data: Path, tmp_path: Path) -> None:
    base = (*FLAGS, "--data", data, "--batch-size", 4, "--steps", 1, "--lr", 1e-30, "--weight-decay", 0)
    done = train(*base, "--pred-steps", 2, "--init-from", whole, "--output", tmp_path / "next")
    assert done.status == 0, done.said
    ours, theirs = (load_file(run / "encoder.safetensors") for run in (tmp_path / "next", whole))
    weights = [key for key in ours if key.endswith("weight")]
    assert weights and all(torch.equal(ours[key], theirs[key]) for key in weights)
    other = train(*base, "--width", 0.1, "--init-from", whole, "--output", tmp_path / "wider")
    assert other.status == 2 and "--init-from" in other.said and "Traceback" not in other.said


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--val-split", "train"), "--val-split train"),
        (("--val-split", "nowhere"), "nowhere"),
        (("--val-split", "test", "--val-every", 0), "--val-every"),
        (("--init-from", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(flags: tuple, named: str, data: Path, tmp_path: Path) -> None:
    done = train(*FLAGS, "--data", data, "--batch-size", 4, "--output", tmp_path / "run", *flags)
    assert done.status == 2 and named in done.said and "Traceback" not in done.said, done.said


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4), st.integers(0, 30))
def test_the_plateau_is_its_definition(values: list[int], patience: int, at: int) -> None:
    """Against a scan of the whole history; and saved and put back in between it goes on alike."""
    decay = Decay(patience)
    falls, since = 0, 0
    for n, loss in enumerate(values):
        if n == at:
            state, decay = decay.state_dict(), Decay(patience)
            decay.load_state_dict(state)
        decay.judge(float(loss))
        since = n + 1 if n == 0 or loss < min(values[:n]) else since
        if n + 1 - since == patience and falls < 1:
            falls, since = falls + 1, n + 1
        assert decay.factor == 0.1**falls
    decay.begin(1)
    assert decay.factor == 1 and decay.lowest is None
    unruled = Decay(0)
    for loss in values:
        unruled.judge(float(loss))
    assert unruled.factor == 1
