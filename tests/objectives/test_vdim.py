"""Video Deep InfoMax against the paper's equations, computed again from the model's weights."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vdim_reference import WIDTH, eq_3, random_views, share_right, tiny

import objectives
from objectives.vdim import VDIM, VDIMConfig
from pipelines.views import Jitter
from shards import InputError

# downsample, offset, difference: first and last frame of each view, frames spanned. Written by hand.
VIEWS = [
    (1, 0, False, [(0, 31), (0, 31)], 32),
    (1, 0, True, [(0, 31), (0, 31), (32, 63)], 64),
    (2, 0, False, [(0, 31), (0, 62)], 63),
    (2, 0, True, [(0, 31), (0, 62), (64, 126)], 127),
    (3, 0, False, [(0, 31), (0, 93)], 94),
    (3, 0, True, [(0, 31), (0, 93), (96, 189)], 190),
    (1, 32, False, [(0, 31), (32, 63)], 64),
    (1, 32, True, [(0, 31), (32, 63), (64, 95)], 96),
    (2, 32, False, [(0, 31), (32, 94)], 95),
    (2, 32, True, [(0, 31), (32, 94), (96, 158)], 159),
    (3, 32, False, [(0, 31), (32, 125)], 126),
    (3, 32, True, [(0, 31), (32, 125), (128, 221)], 222),
]


@pytest.mark.parametrize(("downsample", "offset", "difference", "ends", "span"), VIEWS)
def test_view_plan_takes_the_frames_of_the_paper(
    downsample: int, offset: int, difference: bool, ends: list[tuple[int, int]], span: int
) -> None:
    config = VDIMConfig(downsample=downsample, offset=offset, temporal_difference=difference)
    spec = VDIM.view_spec(config)
    assert (spec.views, spec.frames, spec.size, spec.span) == (len(ends), 32, 128, span)
    assert [(view[0], view[-1]) for view in spec.offsets] == ends
    for view, step in zip(spec.offsets, (1, downsample, downsample), strict=False):
        assert {after - before for before, after in itertools.pairwise(view)} == {step}


def test_the_two_halves_of_the_second_view_share_their_augmentation() -> None:
    spec = VDIM.view_spec(VDIMConfig(temporal_difference=True))
    for scope in (spec.box_scope, spec.colour_scope):
        assert spec.scope(scope)[:, 0].tolist() == [0, 1, 1]
    plain = VDIM.view_spec(VDIMConfig(temporal_difference=False))
    assert plain.scope(plain.box_scope)[:, 0].tolist() == [0, 1]


def test_view_plan_follows_the_options() -> None:
    jitter = VDIM.view_spec(VDIMConfig(colour="jitter", rotation=0.0, padding="wrap"))
    assert jitter.jitter is not None and jitter.jitter.grey > 0 and not jitter.lab_drop
    assert (jitter.rotation, jitter.padding) == (0, "wrap")
    assert jitter.jitter == Jitter(0.4, 0.4, 0.4, 0.1, probability=0.8, grey=0.25)  # AMDIM's for 128²
    assert [VDIM.view_spec(VDIMConfig(flip=flip)).flip_scope for flip in ("clip", "view")] == ["clip", "box"]
    assert VDIM.view_spec(VDIMConfig(flip="none")).flip == 0
    lab = VDIM.view_spec(VDIMConfig(colour="lab", rotation=30.0))
    assert lab.jitter is None and lab.lab_drop and lab.rotation == 30


@pytest.mark.parametrize(
    ("antecedents", "consequents", "reverse", "pairs"),
    [
        ((5, 6, 8), (8,), True, [(5, 8), (6, 8), (8, 8), (8, 5), (8, 6)]),
        ((5, 6, 8), (8,), False, [(5, 8), (6, 8), (8, 8)]),
        ((8,), (8,), True, [(8, 8)]),
        ((5,), (8,), True, [(5, 8), (8, 5)]),
        ((6, 8), (5, 8), True, [(6, 5), (6, 8), (8, 5), (8, 8), (5, 6), (8, 6), (5, 8)]),
    ],
)
def test_layer_pairs_count_once(
    antecedents: tuple[int, ...], consequents: tuple[int, ...], reverse: bool, pairs: list[tuple[int, int]]
) -> None:
    config = VDIMConfig(antecedents=antecedents, consequents=consequents, reverse=reverse)
    assert sorted(config.pairs) == sorted(pairs)


# The loss again. Features come from the encoder; everything after them is written out here.


def batch_norm(norm: nn.BatchNorm3d, rows: Tensor) -> Tensor:
    """Rows (…, D) normalised by their own statistics, as in training."""
    flat = rows.reshape(-1, rows.shape[-1])
    normed = (rows - flat.mean(0)) / (flat.var(0, unbiased=False) + norm.eps).sqrt()
    return normed * norm.weight + norm.bias


def features(objective: VDIM, views: Tensor) -> dict[int, Tensor]:
    """Layer → (B, V, N, D)."""
    found = objective.encoder(views.flatten(0, 1), objective.layers)
    return {layer: f.flatten(2).transpose(1, 2).unflatten(0, views.shape[:2]) for layer, f in found.items()}


def mlp(objective: VDIM, layer: int, rows: Tensor) -> Tensor:
    phi = objective.phi[str(layer)]
    hidden, out, shortcut = (m.weight.flatten(1) for m in (phi.hidden, phi.out, phi.shortcut))
    return F.relu(rows @ hidden.T) @ out.T + rows @ shortcut.T + phi.shortcut.bias


def loss_again(objective: VDIM, views: Tensor) -> tuple[float, dict[str, float]]:
    """The loss of Eq. 4 and each pair's loss and top-1."""
    config, found = objective.config, features(objective, views)
    total, metrics = 0.0, {}
    for j, k in config.pairs:
        a = batch_norm(objective.phi[str(j)].norm, mlp(objective, j, found[j][:, 0]))
        if config.temporal_difference:
            change = found[k][:, 2] - found[k][:, 1]  # second half − first half
            c = batch_norm(objective.difference_norms[str(k)], mlp(objective, k, change))
        else:
            c = batch_norm(objective.phi[str(k)].norm, mlp(objective, k, found[k][:, 1]))
        B, N, D = a.shape
        scores = (a.reshape(B * N, D) @ c.reshape(-1, D).T).reshape(B, N, B, -1)
        if config.scale_scores:
            scores = scores / math.sqrt(D)
        listed = scores.tolist()
        numbers = [s for w in listed for x in w for y in x for s in y]
        clip = config.soft_clip
        clipped = [
            [[[clip * math.tanh(s / clip) if clip else s for s in y] for y in x] for x in w] for w in listed
        ]
        metrics[f"loss_{j}_{k}"] = eq_3(clipped, own=config.own_locations)
        metrics[f"top1_{j}_{k}"] = share_right(listed)
        total += metrics[f"loss_{j}_{k}"] + config.score_penalty * sum(s * s for s in numbers) / len(numbers)
    return total, metrics


LOSSES = [
    {},
    {"temporal_difference": False},
    {"scale_scores": False},
    {"soft_clip": 0.0},
    {"soft_clip": 2.0},
    {"score_penalty": 0.0},
    {"own_locations": True},
    {"score_penalty": 1.0, "temporal_difference": False},
    {"scale_scores": False, "soft_clip": 0.0, "score_penalty": 0.0, "temporal_difference": False},
    {"reverse": False, "antecedents": (5,), "consequents": (6, 8), "temporal_difference": False},
]
FIXED = {"temporal_difference": True, "scale_scores": True, "soft_clip": 20.0, "score_penalty": 0.05}


@pytest.mark.parametrize("options", LOSSES, ids=str)
@torch.no_grad()
def test_loss_is_equation_4_with_the_stabilisers(options: dict) -> None:
    objective = tiny(**FIXED | options).train()
    views = random_views(2, 3 if objective.config.temporal_difference else 2)
    total, metrics = loss_again(objective, views)
    output = objective({"views": views})
    assert output.loss.shape == () and float(output.loss) == pytest.approx(total, rel=1e-3)
    for name, value in metrics.items():
        assert float(output.metrics[name]) == pytest.approx(value, rel=1e-3, abs=1e-4), name
    headline = "top1_8_8" if (8, 8) in objective.config.pairs else "top1_5_6"
    assert output.metrics["top1"] == output.metrics[headline]
    assert float(output.metrics["chance"]) == pytest.approx(1 / 2)


COMBINATIONS = [
    {},
    {"shaken": False},
    {"offset": 32, "downsample": 3, "colour": "lab", "rotation": 20.0, "padding": "wrap"},
    {"temporal_difference": False, "negatives": "gathered", "downsample": 1},
    {"reverse": False},
    {"reverse": False, "temporal_difference": False, "antecedents": (5, 6)},
    {"reverse": False, "antecedents": (5, 8), "consequents": (5, 8)},
    {"antecedents": (5,), "scale_scores": False},
    {"antecedents": (3, 4, 7, 8), "consequents": (8,), "soft_clip": 0.0, "score_penalty": 0.0},
    {"antecedents": (6, 8), "consequents": (5, 8), "temporal_difference": False},
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_every_parameter_gets_a_finite_gradient(options: dict) -> None:
    objective = tiny(**options).train()
    spec = objective.view_spec(objective.config)
    output = objective({"views": random_views(2, spec.views)})
    output.loss.backward()
    assert output.loss.isfinite()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert {"top1", "chance"} <= set(output.metrics)
    assert all(not value.requires_grad and value.isfinite() for value in output.metrics.values())


@pytest.mark.parametrize("difference", [False, True])
def test_gradients_reach_the_encoder_from_antecedents_and_consequents(difference: bool) -> None:
    """In evaluation mode the norms do not mix the views: a gradient on a view came through its own features."""
    objective = tiny(temporal_difference=difference, reverse=False, antecedents=(5, 8)).eval()
    views = random_views(2, 3 if difference else 2).requires_grad_()
    objective({"views": views}).loss.backward()
    assert views.grad is not None
    assert views.grad.flatten(2).any(-1).all()  # every view of every video


def test_bf16_autocast_gives_nearly_the_same_loss() -> None:
    objective, views = tiny(temporal_difference=False), random_views(2, 2)
    with torch.no_grad():
        full = objective({"views": views}).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = objective({"views": views}).loss
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(full), rel=0.1)


@torch.no_grad()
def test_embed_is_phi_8_of_the_encoder() -> None:
    objective = tiny()
    objective({"views": random_views(2, 3)})  # running statistics that are not 0 and 1
    objective.eval()
    views = random_views(2, 2, seed=5)
    embedded = objective.embed(views)
    assert embedded.shape == (2, 2, objective.encoder.dim)
    for b in range(2):
        for v in range(2):
            alone = objective.phi["8"](objective.encoder(views[b, v][None])[8]).flatten()
            torch.testing.assert_close(embedded[b, v], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedded[0, 0], embedded[0, 1])


@torch.no_grad()
def test_embed_of_a_view_knows_nothing_of_the_others() -> None:
    objective = tiny().eval()
    views = random_views(2, 2)
    changed = views.clone()
    changed[0, 1] += 5
    changed[1] = 0
    torch.testing.assert_close(objective.embed(changed)[0, 0], objective.embed(views)[0, 0])
    alone = objective.embed(views[:1, :1])[0, 0]
    torch.testing.assert_close(alone, objective.embed(views)[0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--antecedents", {"antecedents": ()}),
        ("--antecedents", {"antecedents": (5, 9)}),
        ("--antecedents", {"antecedents": (2,)}),
        ("--consequents", {"consequents": ()}),
        ("--consequents", {"consequents": (1, 8)}),
        ("--width", {"width": 0.0}),
        ("--width", {"width": -1.0}),
        ("--rotation", {"rotation": -1.0}),
        ("--jitter 0.4", {"jitter": (0.4,)}),
        ("--grey", {"grey": 1.1}),
        ("--jitter-probability", {"jitter_probability": -0.1}),
        ("--soft-clip", {"soft_clip": -1.0}),
        ("--score-penalty", {"score_penalty": -0.1}),
        ("--lr", {"lr": 0.0}),
        ("--warmup-steps", {"warmup_steps": -1}),
        ("--lr", {"lr": float("nan")}),
        ("--rotation", {"rotation": float("inf")}),
        ("--antecedents, --consequents", {"antecedents": (5, 6), "consequents": (5, 6)}),
        ("--temporal-difference", {"antecedents": (5, 6), "reverse": False}),
    ],
)
def test_bad_settings_name_their_flag(flag: str, options: dict) -> None:
    with pytest.raises(InputError, match=flag) as caught:
        VDIMConfig(**options)
    assert "\n" not in str(caught.value)


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VDIMConfig().lr = 1.0  # type: ignore[misc]


def test_warm_up_is_linear_from_the_first_step() -> None:
    objective = tiny(warmup_steps=4)
    assert [objective.learning_rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [tiny(warmup_steps=0).learning_rate(step) for step in (0, 1, 10**6)] == [1, 1, 1]


def test_optimizer_is_adam_over_every_parameter() -> None:
    objective = tiny(lr=0.0123)
    optimizer = objective.optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in objective.parameters()}
    assert {group["lr"] for group in optimizer.param_groups} == {0.0123}


def test_objectives_are_found_by_name() -> None:
    assert objectives.get("vdim") is VDIM
    assert objectives.available()["vdim"] is VDIM
    with pytest.raises(InputError, match="nope") as caught:
        objectives.get("nope")
    assert all(name in str(caught.value) for name in objectives.available())


def test_subsequences_of_fine_tuning_are_augmented_each_on_its_own() -> None:
    spec = VDIM(VDIMConfig(width=WIDTH)).downstream(subsequences=3).finetuning.spec
    assert spec.views == 3 and spec.lab_drop
    for scope in (spec.box_scope, spec.colour_scope):
        assert spec.scope(scope)[:, 0].tolist() == [0, 1, 2]
    assert spec.flip_scope == "box"


@torch.no_grad()
def test_residual_branches_begin_at_zero() -> None:
    """AMDIM's initial weights: a residual step is its shortcut, and features differ between videos."""
    encoder = VDIM(VDIMConfig(width=1 / 8)).encoder
    x = torch.randn(2, encoder.dims[7], 3, 3, 3)
    torch.testing.assert_close(encoder.blocks["8"](x), F.avg_pool3d(x, 3))
    made, plain = (VDIM(VDIMConfig(width=1 / 8, init=init)).encoder for init in ("amdim", "torch"))  # type: ignore[arg-type]
    views = random_views(1, 1)[0]
    deviations = [float(net(views, (5,))[5].std()) for net in (made, plain)]
    assert deviations[0] > 5 * deviations[1]


def test_the_small_config_is_one_that_trains_on_a_cpu() -> None:
    assert VDIM.small().width < VDIMConfig().width == 1


def test_a_batch_of_one_names_the_flag() -> None:
    with pytest.raises(InputError, match="--batch-size 1"):
        tiny(temporal_difference=False)({"views": random_views(1, 2)})
