"""Pace against the paper's equations, computed again in loops from the model's features."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pace_reference import SIZE, T, batch, eq_1, eq_2_or_3, tiny

import objectives
from models import BACKBONES
from objectives import checkpoint
from objectives.command import parse
from objectives.losses import pair_nce, pairs, positive_pair_nce
from objectives.pace import Pace, PaceConfig, confusion
from pipelines.sampling import sample_params
from shards import InputError
from training.settings import Settings

THIRDS = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)


# The spec


def test_the_plan_is_the_papers() -> None:
    spec = Pace.view_spec(PaceConfig())
    assert (spec.views, spec.frames, spec.size, spec.span) == (2, 16, 112, 61)
    assert (spec.paces, spec.padding, spec.circular, spec.levels) == ((1, 2, 3, 4), "wrap", False, "imagenet")
    assert (spec.crop, spec.flip, spec.box_scope, spec.colour_scope) == (112 / 128, 0.5, "view", "frame")
    jitter = spec.jitter
    assert jitter is not None
    strengths = (
        jitter.brightness,
        jitter.contrast,
        jitter.saturation,
        jitter.hue,
        jitter.probability,
        jitter.grey,
    )
    assert strengths == (0.8, 0.8, 0.8, 0.2, 0.8, 0)
    long = Pace.view_spec(PaceConfig(backbone="s3dg", clips=3))
    assert (long.views, long.frames, long.size, long.span) == (3, 64, 224, 253)


def test_the_plan_follows_the_options() -> None:
    config = PaceConfig(
        paces=THIRDS, frames=24, size=64, circular=True, padding="error", levels="bgr-255", jitter="clip"
    )
    spec = Pace.view_spec(config)
    assert (spec.paces, spec.frames, spec.size, spec.circular) == (THIRDS, 24, 64, True)
    assert (spec.padding, spec.levels, spec.colour_scope) == ("error", "bgr-255", "view")
    assert Pace.view_spec(replace(config, jitter="none")).jitter is None
    weak = Pace.view_spec(replace(config, jitter_strength=0.1)).jitter
    assert weak is not None and (weak.brightness, weak.hue) == (0.1, 0.025)


@pytest.mark.parametrize("paces", [(1.0, 2.0, 3.0, 4.0), THIRDS, (1.0, 8.0)])
def test_labels_are_balanced_and_name_the_step_between_frames(paces: tuple[float, ...]) -> None:
    spec, rows = Pace.view_spec(PaceConfig(paces=paces)), np.arange(1000)
    params = sample_params(spec, rows, rows * 0 + 300, rows * 0 + 340, rows * 0 + 256, seed=3, epoch=1)
    assert params.pace is not None and params.pace.shape == (1000, 2)
    counts = Counter(params.pace.ravel().tolist())
    share = 2000 / len(paces)
    assert set(counts) == set(range(len(paces)))
    assert all(abs(count - share) < 5 * share**0.5 for count in counts.values())
    together = Counter(map(tuple, params.pace.tolist()))  # the clips of a video draw independently
    pair = 1000 / len(paces) ** 2
    assert all(abs(count - pair) < 5 * pair**0.5 for count in together.values())
    for labels, clips in zip(params.pace[:50], params.frames[:50], strict=True):
        for label, clip in zip(labels, clips, strict=True):
            by_hand = [clip[0] + int(t * paces[label] + 1e-9) for t in range(16)]
            assert clip.tolist() == by_hand


# The losses


@pytest.mark.parametrize("contrast_", ["context", "pace"])
@pytest.mark.parametrize(("projection", "clips", "positives"), [(0, 2, "sum"), (8, 2, "sum"), (5, 3, "mean")])
@torch.no_grad()
def test_losses_are_the_papers_equations(contrast_: str, projection: int, clips: int, positives: str) -> None:
    options = {
        "projection": projection,
        "clips": clips,
        "positives": positives,
        "lambda_cls": 0.7,
        "lambda_ctr": 0.3,
    }
    objective, B = tiny(contrast=contrast_, **options), 4
    given_ = batch(B, clips)
    output = objective(given_)
    views = given_["views"].flatten(0, 1)
    features = objective.encoder.pooled(views)
    assert objective.head is not None
    logits, labels = objective.head(features), given_["pace"].flatten().tolist()
    if projection:
        layer = objective.projection[0]  # type: ignore[index]
        features = (features @ layer.weight.T + layer.bias).clamp(min=0)
    videos = [i // clips for i in range(B * clips)]
    ids = videos if contrast_ == "context" else labels
    same = [[j for j in range(B * clips) if j != i and ids[i] == ids[j]] for i in range(B * clips)]
    cls, ctr = eq_1(logits.tolist(), labels), eq_2_or_3(features.tolist(), same, positives)
    assert output.metrics["loss_cls"] == pytest.approx(cls, rel=1e-5)
    assert output.metrics["loss_ctr"] == pytest.approx(ctr, rel=1e-4)
    assert output.loss == pytest.approx(0.7 * cls + 0.3 * ctr, rel=1e-4)  # Eq. 4


def test_eq_2_of_two_videos_worked_by_hand() -> None:
    """z: video a at (1, 0) twice, b at (0, 1) twice: each clip's positive scores 1 against two negatives of 0."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    loss, metrics = pair_nce(z, torch.tensor([0, 0, 1, 1]))
    assert loss == pytest.approx(0.5514447, abs=1e-6)  # log((e + 2) / e)
    assert (metrics["top1"], metrics["chance"]) == (1, pytest.approx(1 / 3))


@settings(deadline=None)
@given(B=st.integers(1, 6), V=st.integers(2, 4), world=st.integers(1, 3), data=st.data())
def test_same_context_positives_are_the_other_clips_of_the_video_and_of_no_other(
    B: int, V: int, world: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world - 1))
    videos = torch.arange(B * world).repeat_interleave(V)
    mine = slice(rank * B * V, (rank + 1) * B * V)
    positive, itself = pairs(videos[mine], videos, mine.start)
    for a, b in itertools.product(range(B * V), range(B * V * world)):
        assert itself[a, b] == (b == mine.start + a)
        assert positive[a, b] == (b // V == (mine.start + a) // V and b != mine.start + a)
    assert positive.sum(1).tolist() == [V - 1] * (B * V)


@torch.no_grad()
def test_what_happens_in_another_video_is_only_ever_a_negative() -> None:
    """Drawing a clip of another video nearer raises the same-context loss, whatever the two clips' paces."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(3).repeat_interleave(2)
    for _ in range(20):
        z = torch.randn(6, 4, generator=generator)
        z[2] -= z[0] * (z[0] @ z[2] + 1) / z[0].square().sum()  # z₀·z₂ = −1
        far = pair_nce(z, ids)[0]
        positive, itself = pairs(ids, ids)
        scores = z @ z.T
        assert not positive[0, 2] and scores[0, 2] == pytest.approx(-1, abs=1e-5)
        scores[0, 2] = 3.0
        near = positive_pair_nce(scores.masked_fill(itself, -1e9), positive, "sum")
        assert near > far


@torch.no_grad()
def test_accuracies_and_confusion_are_counted() -> None:
    truth, guesses = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([0, 1, 1, 1, 3, 2, 3, 0])
    metrics = confusion(guesses, truth, (1, 2, 3, 4))
    assert metrics["top1"] == 5 / 8 and metrics["chance"] == 1 / 4
    assert [metrics[f"accuracy_{p}"].tolist() for p in (1, 2, 3, 4)] == [[1, 2], [2, 2], [1, 2], [1, 2]]
    off = {
        name: value.tolist() for name, value in metrics.items() if name.startswith("confusion") and value[0]
    }
    assert off == {"confusion_1_2": [1, 2], "confusion_3_4": [1, 2], "confusion_4_1": [1, 2]}
    named = confusion(torch.tensor([0]), torch.tensor([0]), THIRDS)
    assert {"accuracy_1/3", "accuracy_1/2", "confusion_1/3_3"} <= set(named)


def test_the_learning_rate_falls_every_6_epochs() -> None:
    objective = tiny(warmup_steps=4)
    steps = (0, 3, 17_999, 18_000, 36_000, 53_999)
    assert [objective.learning_rate(s) for s in steps] == pytest.approx([0.25, 1, 1, 0.1, 0.01, 0.01])
    assert tiny(drop_every=0).learning_rate(10**6) == 1
    (group,) = objective.optimizer().param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.9, 5e-3)
    assert (Pace.recipe.steps, Pace.recipe.batch_size) == (18 * 90_000 // 30, 30)


# Every option


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_trains_and_gives_features_and_logits(backbone: str) -> None:
    width = 1.0 if BACKBONES[backbone].fixed else 1 / 16
    objective = tiny(backbone=backbone, width=width, contrast="none", clips=1)
    given_ = batch(2, 1)
    objective(given_).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    objective.eval()
    with torch.no_grad():
        assert objective.logits(given_["views"]).shape == (2, 1, 4)
        for stage in (4, 5):
            assert objective.embed(given_["views"], stage).shape == (2, 1, objective.encoder.dims[stage - 1])


@pytest.mark.parametrize("contrast_", ["context", "pace", "none"])
@pytest.mark.parametrize("lambda_cls", [1.0, 0.0])
@pytest.mark.parametrize("projection", [8, 0])
@pytest.mark.parametrize("negatives", ["local", "gathered"])
def test_every_parameter_gets_a_gradient_or_the_flags_are_named(
    contrast_: str, lambda_cls: float, projection: int, negatives: str
) -> None:
    options: dict[str, Any] = {"contrast": contrast_, "lambda_cls": lambda_cls, "projection": projection}
    if contrast_ == "none" and not lambda_cls:
        with pytest.raises(InputError, match="--lambda-cls 0 with --contrast none"):
            tiny(**options)
        return
    objective = tiny(**options, negatives=negatives)
    output = objective(batch(3, 2, paces=3))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    assert 0 <= output.metrics["top1"] <= 1 and 0 < output.metrics["chance"] < 1
    assert all(value.shape in ((), (2,)) and value.isfinite().all() for value in output.metrics.values())


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"backbone": "i3d"}, "--backbone i3d: there is no such backbone; choose one of c3d"),
        ({"backbone": "c3d", "frames": 4}, "--backbone c3d: clips of 4 frames of 112² do not fit it"),
        ({"backbone": "mc3_18", "width": 0.5}, "--backbone mc3_18: torchvision's networks come at width 1"),
        ({"paces": (1.0,)}, "--paces 1:"),
        ({"paces": (1.0, 1.0)}, "--paces 1 1:"),
        ({"paces": (0.0, 1.0)}, "--paces 0 1:"),
        ({"clips": 1}, "--clips 1: must be at least 1, and 2 with --contrast context"),
        ({"size": 63}, "--size 63: must be even"),
        ({"lambda_ctr": 0.0}, "--lambda-ctr 0 with --contrast context: use --contrast none"),
        ({"lr": 0.0}, "--lr 0.0: must be above 0"),
        ({"momentum": -1.0}, "--momentum -1.0: must be at least 0"),
    ],
)
def test_senseless_flags_are_named(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError) as error:
        PaceConfig(**options)
    assert flag in str(error.value) and "\n" not in str(error.value)


def test_logits_say_when_there_is_no_head() -> None:
    with pytest.raises(InputError, match="no pace head"):
        tiny(lambda_cls=0.0).logits(batch(2, 2)["views"])


def test_fractions_are_flags_and_survive_a_checkpoint(tmp_path: Path) -> None:
    argv = ["--objective", "pace", "--small", "--paces", "1/3", "1/2", "1", "2", "3.0", "--width", "0.0625"]
    _, config = parse([*argv, "--frames", str(T), "--size", str(SIZE)], Settings, None, "train.py")
    assert config.paces == THIRDS
    objective = Pace(config).eval()
    checkpoint.save_config(tmp_path, objective, {})
    checkpoint.save_weights(tmp_path / "model.safetensors", objective)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["paces"] == list(THIRDS)
    again = objectives.load(tmp_path)
    assert isinstance(again, Pace) and again.config == config
    views = batch(2, 1)["views"]
    with torch.no_grad():
        assert torch.equal(again.logits(views), objective.logits(views))


def test_small_is_small() -> None:
    config = Pace.small()
    objective = Pace(config)
    assert sum(p.numel() for p in objective.parameters()) < 1_500_000
    assert config.backbone == "r2plus1d" and config.paces == (1, 2, 3, 4)
