"""Fine-tuning: it trains on everything, chooses on the training part, and resumes exactly."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import evaluate
import objectives
from evaluation.context import open_context
from evaluation.finetune import HeldOut, tuning_of
from evaluation.settings import Finetune
from evaluation.supervised import Classifier, still_spec
from objectives import checkpoint
from objectives.base import FineTuning
from pipelines.views import ViewSpec, eval_view
from shards import Dataset, InputError
from tests.evaluation.rendered import Video, write_set
from training.processes import Stopped
from training.state import read_rows
from training.trainer import Trainer


@pytest.fixture
def ask(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def asked(name: str, *flags: object) -> dict:
        common = ("--checkpoint", run, "--data", data, "--device", "cpu", "--output", tmp_path / name)
        few = ("--steps", 6, "--train-batch-size", 3, "--validate-every", 2, "--lr", 0.01, "--dropout", 0)
        evaluate.main(["finetune", *map(str, (*common, *few, *flags))])
        return json.loads((tmp_path / name / "result.json").read_text())

    return asked


def stopping_at(step: int, whole: Callable) -> Callable:
    """Trainer.train_step that is stopped before a step, in the last training of those that reach it."""

    def train_step(self: Trainer, meter: object) -> None:
        if self.step == step:
            raise Stopped(15)
        whole(self, meter)

    return train_step


@pytest.mark.parametrize("flags", [(), ("--held-out", 0.25, "--patience", 2, "--plateau", 1)])
def test_it_resumes_exactly(ask, tmp_path, monkeypatch, flags) -> None:
    whole = ask("whole", *flags)
    assert whole["evaluated"]["videos"] == whole["evaluated"]["of"] == 9
    assert set(whole["baselines"]) == {"scratch", "size_length", "most_frequent"}
    steps = whole["scores"]["chosen"][0][0]["steps"]
    assert steps in (2, 4, 6) if flags else steps == 6
    monkeypatch.setattr(Trainer, "train_step", stopping_at(3, Trainer.train_step))
    with pytest.raises(Stopped):
        ask("stopped", *flags)
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(InputError, match="--resume"):
        ask("stopped", *flags)
    with pytest.raises(InputError, match="tuning"):
        ask("stopped", *flags, "--resume", "--lr", 0.5)
    again = ask("stopped", *flags, "--resume")
    assert again["scores"] == whole["scores"] and again["baselines"] == whole["baselines"]
    for part in ("split-seed0", "scratch/split-seed0", *(["split-seed0/held-out"] if flags else [])):
        a, b = (weights(tmp_path / name / part) for name in ("whole", "stopped"))
        assert all(torch.equal(a[name], b[name]) for name in a)
        steps_of = [
            [
                json.loads(line)["loss"]
                for line in (tmp_path / name / part / "metrics.jsonl").read_text().splitlines()
            ]
            for name in ("whole", "stopped")
        ]
        assert steps_of[0] == steps_of[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a training's last checkpoint."""
    return load_file(checkpoint.newest(folder) / "model.safetensors")


def test_it_trains_on_every_training_video_and_holds_out_only_to_choose(ask, data, tmp_path) -> None:
    dataset = Dataset(data)
    everything = set(dataset.keys(dataset.select(split="train")))
    ask("all", "--no-baselines")
    ask("chosen", "--no-baselines", "--held-out", 0.25)

    def keys(place: str) -> set[str]:
        return set(read_rows(checkpoint.newest(tmp_path / place)))

    assert keys("all/split-seed0") == keys("chosen/split-seed0") == everything
    part = keys("chosen/split-seed0/held-out")
    assert len(part) == 9 and part < everything  # one of four of each of three classes is held out
    lines = [json.loads(line) for line in (tmp_path / "chosen/split-seed0/held-out/metrics.jsonl").open()]
    assert [line["step"] for line in lines if "held_out_top1" in line] == [2, 4, 6]


def test_the_rate_falls_on_a_plateau_and_at_the_same_step_of_the_training_on_everything(
    ask, tmp_path, capsys
) -> None:
    """Against the held-out losses of the log; on a network that a high rate spoils at once."""
    flags = ("--no-baselines", "--validate-every", 1, "--plateau", 2, "--lr", 0.5, "--decay-factor", 0.25)
    result = ask("out", *flags, "--held-out", 0.25)
    lines = [json.loads(line) for line in (tmp_path / "out/split-seed0/held-out/metrics.jsonl").open()]
    losses = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and len(losses) == 6
    waited = [n - int(np.argmin(losses[: n + 1])) for n in range(6)]  # validations since the lowest loss
    fall = waited.index(2) + 1  # the first step after which two of them brought none
    rates = [0.5 * 0.25 ** (step >= fall) for step in range(6)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    (chosen,) = result["scores"]["chosen"][0]
    assert chosen["rate_falls"] == ([fall] if fall < chosen["steps"] else [])
    again = [json.loads(line)["lr"] for line in (tmp_path / "out/split-seed0/metrics.jsonl").open()]
    assert again == pytest.approx(rates[: chosen["steps"]])
    assert evaluate.ended(lambda argv: ask("no", *argv), ["--plateau", "2"]) == 2
    assert "--plateau: waits for validations; give --held-out" in capsys.readouterr().err


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=20), st.integers(1, 4), st.integers(1, 3))
def test_training_again_has_the_rates_of_the_plateau(losses: list[int], plateau: int, every: int) -> None:
    """The rate of each step while it is chosen, and of the recipe with the falls as milestones; put back in between alike."""
    tuning = replace(
        FineTuning(ViewSpec(offsets=((0,),), size=2)), decay_at=(), decay_by=0.5, steps=20 * every
    )
    task = SimpleNamespace(context=None)

    def held_out() -> HeldOut:
        return HeldOut(schedule(tuning), task, None, every, SimpleNamespace(patience=0, plateau=plateau))  # type: ignore[arg-type]

    looks, factors = held_out(), []
    for number, loss in enumerate(losses, 1):
        factors += [looks.factor] * every
        looks.found.append({"step": number * every, "top1": 0.0, "loss": float(loss)})
        state, looks = json.loads(json.dumps(looks.state_dict())), held_out()
        looks.load_state_dict(state)
    again = schedule(replace(tuning, decay_at=looks.falls))
    assert [Classifier.learning_rate(again, step) for step in range(len(factors))] == factors


def test_the_head_alone_is_trained_and_the_pull_keeps_weights_near_the_pretrained_ones(
    ask, tmp_path, run
) -> None:
    start = objectives.load(run).encoder.state_dict()
    sgd = ("--no-baselines", "--optimizer", "sgd", "--lr", 1e-4, "--weight-decay", 0)

    def distance(name: str, *flags: object) -> float:
        ask(name, *sgd, *flags)
        last = weights(tmp_path / name / "split-seed0")
        return sum(
            float((last[f"network.encoder.{key}"] - value).square().sum()) for key, value in start.items()
            if key.endswith("weight")
        )  # fmt: skip

    free, pulled = distance("free", "--pull", 0), distance("pulled", "--pull", 1000)
    assert 0 < pulled < 0.9 * free
    assert distance("frozen", "--freeze", "--lr", 0.1) == 0


def test_flags_change_the_recipe_and_from_scratch_has_its_own(run, data, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    given = dict(
        lr=0.5, weight_decay=0.0, milestones=(5, 7), decay_factor=0.5, decay_every=9, optimizer="sgd"
    )
    asked = Finetune(str(run), data=data, device="cpu", steps=10, **given)
    context = open_context(asked)
    made = tuning_of(asked, context)
    assert (made.lr, made.weight_decay, made.decay_at, made.decay_by, made.decay_every, made.optimizer) == tuple(given.values())  # fmt: skip
    classifier = Classifier(context.model.objective, "", 3, made)
    assert [classifier.learning_rate(step) for step in (0, 5, 7, 8, 9)] == [1, 0.5, 0.25, 0.25, 0.125]
    paper = context.downstream.finetuning
    assert tuning_of(Finetune(str(run), data=data), context) == replace(paper, spec=made.spec)
    waiting = tuning_of(Finetune(str(run), data=data, held_out=0.2, plateau=2), context)
    assert (waiting.decay_at, waiting.decay_every) == ((), 0)
    own = replace(paper, pull=1.0, scratch=replace(paper, lr=7.0))
    context = replace(context, downstream=replace(context.downstream, finetuning=own))
    plain = Finetune(str(run), data=data)
    assert tuning_of(plain, context).pull == 1 and tuning_of(plain, context, scratch=True).lr == 7
    unlike = replace(context, downstream=replace(context.downstream, finetuning=replace(own, scratch=None)))
    assert tuning_of(plain, unlike, scratch=True).pull == 0
    still = tuning_of(replace(plain, augment=False), context).spec
    assert still == eval_view(still)
    slow = tuning_of(replace(plain, downsample=3, colour="none"), context).spec
    assert slow.span == 3 * (paper.spec.span - 1) + 1 and slow.jitter is None
    with pytest.raises(InputError, match="--segments"):
        tuning_of(replace(plain, segments=3), context)


def test_a_head_without_batch_norm_is_a_layer(run) -> None:
    network = objectives.load(run)
    recipe = network.downstream().finetuning
    for batch_norm, kinds in ((True, ["BatchNorm1d", "Dropout", "Linear"]), (False, ["Dropout", "Linear"])):
        made = Classifier(network, "", 3, replace(recipe, batch_norm=batch_norm, hidden=0))
        assert [type(layer).__name__ for layer in made.head] == kinds


@pytest.mark.parametrize("name", objectives.available())
def test_every_methods_fine_tuning_sees_in_tests_what_it_trains_on(name) -> None:
    for config in (objectives.get(name).Config(), objectives.get(name).small()):
        with torch.device("meta"):
            objective = objectives.get(name)(config)
        tuning = objective.downstream().finetuning
        tested = still_spec(tuning.spec)
        assert (tested.size, tested.frames, tested.modality, tested.lab) == (
            tuning.spec.size,
            tuning.spec.frames,
            tuning.spec.modality,
            tuning.spec.lab,
        )
        assert tested == eval_view(tested) and not tested.starts_differ
        rates = [Classifier.learning_rate(schedule(tuning), step) for step in range(0, tuning.steps, 100)]
        assert rates[0] == 1 and np.all(np.diff(rates) <= 0) and rates[-1] < 1


def schedule(tuning: FineTuning) -> SimpleNamespace:
    """What a classifier's learning rate depends on."""
    return SimpleNamespace(config=SimpleNamespace(tuning=tuning))


def test_label_fractions_and_permuted_labels(ask, tmp_path: Path) -> None:
    result = ask("part", "--label-fraction", 0.5, "--permute-labels", "--seeds", 2, "--no-baselines")
    assert np.array(np.load(tmp_path / "part/predictions.npz")["probabilities"]).shape == (2, 9, 3)
    assert result["scores"]["top1"]["value"] < 0.9


def test_a_damaged_video_is_named_and_one_clip_is_no_batch(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    videos = [Video(n % 3, "train") for n in range(9)] + [Video(n % 3, "test") for n in range(3)]
    videos.append(Video(0, "test", 40, damaged=True))
    data = write_set(tmp_path / "set", videos)
    common = ["--checkpoint", run, "--data", data, "--device", "cpu", "--steps", 2, "--no-baselines"]
    with pytest.raises(InputError, match="--train-batch-size"):
        evaluate.main(["finetune", *map(str, [*common, "--output", tmp_path / "a", "--train-batch-size", 1])])
    evaluate.main(["finetune", *map(str, [*common, "--output", tmp_path / "b", "--train-batch-size", 3])])
    result = json.loads((tmp_path / "b/result.json").read_text())
    assert list(result["evaluated"]["unreadable"]) == ["v012"] and result["evaluated"]["of"] == 4


def test_fractions_and_checkpoints_by_fine_tuning(run, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    common = ["--checkpoint", run, "--data", data, "--device", "cpu", "--steps", 2, "--train-batch-size", 3]
    some = ["--fractions", 0.5, 1, "--probe", "finetune", "--seeds", 1, "--output", tmp_path / "parts"]
    evaluate.main(["fraction", *map(str, [*common, *some])])
    curves = json.loads((tmp_path / "parts/result.json").read_text())["curves"]
    assert {name: list(curve) for name, curve in curves.items()} == {
        "model": ["0.5", "1"],
        "from scratch": ["0.5", "1"],
    }
    half = read_rows(checkpoint.newest(tmp_path / "parts/0.5/split-seed0"))
    assert len(half) == 6 and set(half) < set(read_rows(checkpoint.newest(tmp_path / "parts/1/split-seed0")))
    few = ["--protocol", "finetune", "--seeds", 1, "--no-baselines", "--output", tmp_path / "curve"]
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    evaluate.main(["curve", *map(str, [*common, *few, "--checkpoint", copied])])
    (point,) = json.loads((tmp_path / "curve/result.json").read_text())["points"]
    assert point["step"] == 1 and 0 <= point["downstream"]["value"] <= 1


def test_from_scratch_is_the_result_itself(run, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    common = ["--checkpoint", run, "--data", data, "--device", "cpu", "--steps", 2, "--train-batch-size", 3]
    evaluate.main(["finetune", *map(str, [*common, "--from-scratch", "--output", tmp_path])])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == "random-dpc" and "scratch" not in result["baselines"]
