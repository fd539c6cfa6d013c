"""Fine-tuning: it learns, chooses on the training part, and goes on exactly where it was stopped."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import objectives
from evaluation import finetune
from evaluation.classifier import still_spec
from evaluation.tuning import Tuning, rate
from pipelines.views import eval_view
from shards import InputError
from tests.evaluation.rendered import Video, write_set
from training.processes import Stopped


@pytest.fixture
def ask(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def asked(name: str, *flags: object) -> dict:
        common = ("--checkpoint", run, "--data", data, "--device", "cpu", "--output", tmp_path / name)
        few = ("--steps", 6, "--train-batch-size", 3, "--validate-every", 2, "--lr", 0.01, "--dropout", 0)
        evaluate.main(["finetune", *map(str, (*common, *few, *flags))])
        return json.loads((tmp_path / name / "result.json").read_text())

    return asked


def test_it_resumes_exactly(ask, tmp_path, monkeypatch) -> None:
    whole = ask("whole")
    assert whole["evaluated"]["videos"] == whole["evaluated"]["of"] == 9
    assert whole["scores"]["chosen"][0][0]["step"] in (2, 4, 6)
    assert set(whole["baselines"]) == {"random", "trivial", "most_frequent"}
    step = Tuning.train_step

    def stopping(self: Tuning) -> float:
        if self.step == 4:
            raise Stopped(15)
        return step(self)

    monkeypatch.setattr(Tuning, "train_step", stopping)
    with pytest.raises(Stopped):
        ask("stopped")
    monkeypatch.setattr(Tuning, "train_step", step)
    with pytest.raises(InputError, match="--resume"):
        ask("stopped")
    with pytest.raises(InputError, match="tuning"):
        ask("stopped", "--resume", "--lr", 0.5)
    again = ask("stopped", "--resume")
    assert again["scores"] == whole["scores"] and again["baselines"] == whole["baselines"]
    for file in ("best.safetensors", "checkpoints/step-00000006/model.safetensors"):
        a, b = (load_file(tmp_path / run / "split-seed0" / file) for run in ("whole", "stopped"))
        assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [(tmp_path / name / "split-seed0/metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 3


def test_the_pull_keeps_weights_near_the_pretrained_ones(ask, tmp_path, run, monkeypatch) -> None:
    start = objectives.load(run).encoder.state_dict()
    made, distances = finetune.tuning_of, []
    for pull in (0.0, 1000.0):
        monkeypatch.setattr(
            finetune,
            "tuning_of",
            lambda *given, pull=pull: replace(
                made(*given), pull=pull, optimizer="sgd", lr=1e-4, weight_decay=0.0
            ),
        )
        ask(f"pull{pull:g}", "--no-baselines")
        last = load_file(
            tmp_path / f"pull{pull:g}" / "split-seed0/checkpoints/step-00000006/model.safetensors"
        )
        distances.append(
            sum(
                float((last[f"objective.encoder.{name}"] - value).square().sum())
                for name, value in start.items()
                if name.endswith("weight")
            )
        )
    assert 0 < distances[1] < 0.9 * distances[0]


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
        rates = [rate(tuning, step) for step in range(0, tuning.steps, 100)]
        assert rates[0] == tuning.lr and np.all(np.diff(rates) <= 0) and rates[-1] < tuning.lr


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
