"""DPC against the paper's equations, computed again from the model's weights."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from dense_reference import slow
from torch import Tensor, nn

import objectives
from objectives.blocks import with_running_statistics
from objectives.dpc import DPC, DPCConfig
from pipelines.views import Jitter
from shards import InputError

TINY = {"width": 0.05, "size": 64}


def tiny(**options: object) -> DPC:
    torch.manual_seed(0)
    return DPC(DPCConfig(**(TINY | options)))  # type: ignore[arg-type]


def clips(B: int, V: int = 8, seed: int = 0, size: int = 64, T: int = 5) -> Tensor:
    return torch.randn(B, V, 3, T, size, size, generator=torch.Generator().manual_seed(seed))


def mlp(phi: nn.Module, x: Tensor) -> Tensor:
    return phi[2](F.relu(phi[0](x)))  # type: ignore[index]


def slow_predictions(objective: DPC, z: Tensor, steps: int) -> Tensor:
    """Eq. 2 to 4 block by block, dropout off."""
    state = torch.zeros_like(z[:, 0])
    for t in range(z.shape[1] - steps):
        state = objective.aggregator.step(z[:, t].clamp(min=0), state)
    predicted = []
    for q in range(steps):
        if objective.config.prediction == "parallel":
            predicted.append(mlp(objective.phi[q], state))
        else:
            predicted.append(mlp(objective.phi[0], state))
            state = objective.aggregator.step(predicted[-1].clamp(min=0), state)
    return torch.stack(predicted, 1)


def flat(z_BNDhw: Tensor) -> Tensor:
    """(B, N, D, h, w) → (B, N, h·w, D) by indexing."""
    h, w = z_BNDhw.shape[-2:]
    return torch.stack([z_BNDhw[..., i, j] for i, j in product(range(h), range(w))], 2)


@pytest.mark.parametrize(("network", "count"), [("resnet18", 14_583_104), ("resnet34", 32_947_776)])
def test_parameters_are_the_papers_to_the_unit(network: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in DPC(DPCConfig(network=network)).parameters()) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "B", "size"),
    [
        ({}, 2, 64),
        ({"pred_steps": 4}, 2, 64),
        ({"blocks": 3, "pred_steps": 1, "frames": 2}, 3, 96),
        ({"prediction": "parallel"}, 2, 64),
        ({"features": "pooled"}, 3, 64),
        ({"norm": "instance", "blocks": 4, "pred_steps": 2}, 1, 64),
    ],
)
@torch.no_grad()
def test_the_loss_is_equation_5(options: dict, B: int, size: int) -> None:
    objective = tiny(**options).eval()
    config = objective.config
    views = clips(B, config.blocks, size=size, T=config.frames)
    z = torch.stack([objective.encoder(views[:, v]) for v in range(config.blocks)], 1)
    if config.features == "pooled":
        z = z.mean((-2, -1), keepdim=True)
    predicted = slow_predictions(objective, z, config.pred_steps)
    expected = slow(flat(predicted), flat(z[:, -config.pred_steps :]))
    out = objective({"views": views})
    assert float(out.loss) == pytest.approx(expected.pop("loss"), rel=1e-3)
    assert {name: float(value) for name, value in out.metrics.items()} == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_negatives_of_5pred3_are_counted_as_in_the_paper() -> None:
    """B = 2, q = 3, 2×2 locations: 2 temporal, 9 spatial, 12 easy."""
    metrics = tiny()({"views": clips(2)}).metrics
    shares = [float(metrics[kind]) for kind in ("temporal", "spatial", "easy")]
    assert shares == pytest.approx([2 / 23, 9 / 23, 12 / 23]) and float(metrics["chance"]) == pytest.approx(
        1 / 24
    )


@torch.no_grad()
def test_c_t_never_sees_later_blocks() -> None:
    objective, views = tiny().eval(), clips(1)
    before = objective.context(views)
    for t in range(1, 8):
        changed = views.clone()
        changed[:, t:] += 1
        after = objective.context(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_predictions_never_see_the_blocks_they_predict() -> None:
    objective, views = tiny().eval(), clips(1)
    z = objective.encode(views)
    assert objective.predict(z[:, :5]).shape == (1, 3, 13, 2, 2)
    changed = views.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(objective.encode(changed)[:, :5], z[:, :5], rtol=1e-4, atol=1e-5)


OPTIONS = [
    {"prediction": p, "features": f, "norm": n, "gradient_checkpointing": c}
    for p, f, n, c in product(
        ("sequential", "parallel"),
        ("dense", "pooled"),
        ("batch", "batch-statistics", "instance"),
        (False, True),
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_parameter_gets_a_gradient(options: dict) -> None:
    objective = tiny(blocks=3, pred_steps=2, frames=1, **options)
    objective({"views": clips(2, V=3, T=1)}).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("pred_steps", [1, 7])
def test_every_parameter_gets_a_gradient_at_either_end(pred_steps: int) -> None:
    objective = tiny(pred_steps=pred_steps, frames=1)
    objective({"views": clips(2, T=1)}).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_gradients_flow_into_targets() -> None:
    """Detached targets would leave the last block without influence on the encoder."""
    objective, views = tiny().eval(), clips(2).requires_grad_()
    objective({"views": views}).loss.backward()
    assert views.grad is not None and all(views.grad[:, v].any() for v in range(8))


def test_the_curriculum_predicts_further_from_its_steps_on() -> None:
    objective = tiny(curriculum=(10, 30), warmup_steps=4, frames=1)
    seen = []
    for step in (0, 9, 10, 29, 30, 99):
        stage = objective.begin_step(step)
        out = objective({"views": clips(2, T=1)})
        seen.append((stage, objective.pred_steps, round(1 / float(out.metrics["chance"]))))
    assert seen == [(0, 3, 24), (0, 3, 24), (1, 4, 32), (1, 4, 32), (2, 5, 40), (2, 5, 40)]
    factors = [objective.learning_rate(step) for step in (0, 3, 9, 10, 13, 29, 30, 40)]
    assert factors == [0.25, 1, 1, 0.25, 1, 1, 0.25, 1]


def test_views_are_consecutive_blocks_of_every_third_frame() -> None:
    spec = DPC.view_spec(DPCConfig())
    assert [frame for view in spec.offsets for frame in view] == list(range(0, 120, 3))
    assert (spec.views, spec.frames, spec.size, spec.crop, spec.span) == (8, 5, 128, 0.875, 118)
    assert (spec.box_scope, spec.colour_scope, spec.flip) == ("clip", "frame", 0.5)
    assert spec.jitter is not None and (spec.jitter.grey, spec.jitter.hue, spec.jitter.probability) == (
        0.5,
        0.25,
        1,
    )


def test_the_released_codes_choices_are_options() -> None:
    spec = DPC.view_spec(DPCConfig(stride=5, crop="resized", grey_from="channel", padding="error", size=224))
    assert (spec.span, spec.crop, spec.area, spec.padding, spec.size) == (
        196,
        None,
        (0.5, 1.0),
        "error",
        224,
    )
    assert spec.jitter is not None and spec.jitter.grey_from == "channel"


@pytest.mark.parametrize(
    "options", [{}, {"pred_steps": 4}, {"curriculum": (9,)}, {"crop": "resized"}], ids=str
)
def test_downstream_sees_five_blocks_and_a_crop_of_224_of_256(options: dict) -> None:
    """Section 4, also after 4pred4; whatever training's crop was. Fine-tuning's jitter is the released code's."""
    down = tiny(**options).downstream()
    assert down.spec.views == down.finetuning.spec.views == 5
    assert down.spec.crop == 0.875 and down.spec.padding == down.finetuning.spec.padding == "repeat_last"
    found = down.finetuning.spec
    assert found.colour_scope == "clip" and found.jitter == Jitter(
        0.5, 0.5, 0.5, 0.25, probability=0.3, grey=0.0
    )


def test_short_videos_are_left_out_of_training_by_default() -> None:
    assert DPC.view_spec(DPCConfig()).padding == "error"


@torch.no_grad()
def test_running_statistics_make_features_independent_of_their_neighbours() -> None:
    """For released DPC, whose batch norm kept none."""
    released = tiny(norm="batch-statistics").eval()
    measured = with_running_statistics(released, [clips(4, V=2), clips(4, V=2)])
    together, alone = clips(3, V=5), clips(3, V=5)[:1]
    assert not torch.allclose(released.represent(together)[:1], released.represent(alone), atol=1e-3)
    torch.testing.assert_close(
        measured.represent(together)[:1], measured.represent(alone), rtol=1e-3, atol=1e-4
    )
    assert measured.config.norm == "batch" and not measured.training
    for name, value in released.state_dict().items():
        torch.testing.assert_close(measured.state_dict()[name], value)


@torch.no_grad()
def test_the_released_classifier_takes_the_mean_of_the_relu() -> None:
    ours, theirs = tiny(frames=9).eval(), tiny(frames=9, classified="relu-mean").eval()
    theirs.load_state_dict(ours.state_dict())
    views = clips(1, V=1, T=9)
    whole = ours.encoder.map(views[:, 0])
    assert whole.shape[2] == 3 and (whole < 0).any()
    torch.testing.assert_close(ours.classified(views)[:, 0], whole.mean(2))
    torch.testing.assert_close(theirs.classified(views)[:, 0], F.relu(whole).mean(2))
    torch.testing.assert_close(ours.encode(views), theirs.encode(views))  # pretraining is as it was


def test_milestones_lower_the_rate_whatever_validation_says() -> None:
    objective = tiny(milestones=(3, 5))
    assert [objective.learning_rate(step) for step in (2, 3, 5)] == pytest.approx([1, 0.1, 0.01])


@torch.no_grad()
def test_embed_is_each_blocks_own_feature() -> None:
    objective, views = tiny().eval(), clips(2, V=3)
    embedded = objective.embed(views)
    assert embedded.shape == (2, 3, objective.encoder.dim)
    alone = objective.encoder(views[1, 2][None]).mean((-2, -1))[0]
    torch.testing.assert_close(embedded[1, 2], alone, rtol=1e-4, atol=1e-5)


def test_optimizer_and_plateau_are_the_papers() -> None:
    objective = tiny()
    optimizer = objective.optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-5)
    assert len(group["params"]) == len(list(objective.parameters()))
    assert objective.plateau() == objective.config.patience == 10 and tiny(patience=0).plateau() == 0


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--width", {"width": 0.0}),
        ("--backbone", {"network": "resnet101"}),
        ("--stride", {"stride": 0}),
        ("--frames", {"frames": 0}),
        ("--size", {"size": 32}),
        ("--size", {"size": 65}),
        ("--pred-steps", {"pred_steps": 0}),
        ("--pred-steps", {"pred_steps": 8}),
        ("--blocks", {"blocks": 3}),
        ("--curriculum", {"pred_steps": 6, "curriculum": (5, 9)}),
        ("--curriculum", {"curriculum": (9, 5)}),
        ("--curriculum", {"curriculum": (0,)}),
        ("--curriculum", {"curriculum": (5,), "prediction": "parallel"}),
        ("--grey", {"grey": 1.5}),
        ("--lr", {"lr": 0.0}),
        ("--weight-decay", {"weight_decay": -1.0}),
        ("--warmup-steps", {"warmup_steps": -1}),
        ("--patience", {"patience": -1}),
    ],
)
def test_bad_settings_name_their_flag(flag: str, options: dict) -> None:
    with pytest.raises(InputError, match=flag) as caught:
        DPCConfig(**options)
    assert "\n" not in str(caught.value)


def test_both_are_found_by_name() -> None:
    assert objectives.get("dpc") is DPC
    assert {"dpc", "memdpc", "vdim"} <= set(objectives.available())
