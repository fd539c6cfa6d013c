"""TCP: the loss against loops written from the paper's equations, gradients, causality, settings."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tcp_reference import SMALL, as_lists, equation_1, given_features, random_views, tiny
from tcp_two_ranks import HALF, WORLD, D, K, V, rank_main

import objectives
from models.tcp import MaskedConv3d
from objectives.tcp import TCP, TCPConfig, candidates
from pipelines.sampling import sample_params
from shards import InputError


def share(terms: list, gap: int | None = None) -> float:
    right = [found for k, _, found in terms if gap in (None, k)]
    return sum(right) / len(right)


@pytest.mark.parametrize("difficult", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("B", "V", "K", "D", "scale"),
    [(2, 2, 1, 3, 1.0), (3, 5, 4, 6, 2.0), (2, 10, 9, 4, 0.1), (4, 6, 2, 8, 30.0)],
)
def test_loss_and_accuracy_are_those_of_the_equations(
    B: int, V: int, K: int, D: int, scale: float, difficult: bool, reduction: str
) -> None:
    objective = tiny(segments=V, predict_steps=K, difficult_negatives=difficult, reduction=reduction)
    z, predicted = given_features(B, V, K, D, scale)
    output = objective.contrast(z, predicted)
    terms = equation_1(z.tolist(), as_lists(predicted), K, difficult=difficult)
    total = sum(loss for _, loss, _ in terms)
    assert len(terms) == B * sum(V - k for k in range(1, K + 1))
    assert float(output.loss) == pytest.approx(total / (len(terms) if reduction == "mean" else 1), rel=1e-4)
    assert float(output.metrics["top1"]) == pytest.approx(share(terms))
    for k in range(1, K + 1):
        assert float(output.metrics[f"top1_{k}"]) == pytest.approx(share(terms, k)), k


@pytest.mark.parametrize(("difficult", "negatives"), [(True, 249), (False, 240)])
def test_equal_scores_cost_the_logarithm_of_the_papers_candidates(difficult: bool, negatives: int) -> None:
    """25 videos of 10 segments: 249 negatives (section 4.2.3), 24·10 of them in other videos."""
    objective = tiny(segments=10, predict_steps=9, difficult_negatives=difficult)
    output = objective.contrast(torch.ones(25, 10, 4), torch.zeros(25, 10, 9, 4))
    assert float(output.loss) == pytest.approx(math.log(negatives + 1), rel=1e-5)
    assert float(output.metrics["chance"]) == pytest.approx(1 / (negatives + 1))


def test_equation_1_by_hand() -> None:
    """Two videos of segments ln 1, ln 2 and ln 3, ln 4; the second of each is predicted."""
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log()[..., None]
    predicted = torch.ones(2, 2, 1, 1)
    output = tiny(segments=2, predict_steps=1).contrast(z, predicted)
    assert float(output.loss) == pytest.approx(-(math.log(2 / 10) + math.log(4 / 10)) / 2)
    assert float(output.metrics["top1"]) == 0.5
    easy = tiny(segments=2, predict_steps=1, difficult_negatives=False).contrast(z, predicted)
    assert float(easy.loss) == pytest.approx(-(math.log(2 / 9) + math.log(4 / 7)) / 2)


@settings(max_examples=50, deadline=None)
@given(
    B=st.integers(1, 3),
    before=st.integers(0, 2),
    V=st.integers(2, 5),
    D=st.integers(1, 4),
    difficult=st.booleans(),
)
def test_candidates_with_an_offset(B: int, before: int, V: int, D: int, difficult: bool) -> None:
    """Negatives are counted one by one; every answer is the segment that was predicted."""
    z, predicted = given_features(before + B + 1, V, V, D)
    future = torch.arange(1, V)
    logits, answers = candidates(
        predicted[before : before + B, 0, 1:], z, future, before, difficult=difficult
    )
    assert logits.shape == (B, V - 1, (before + B + 1) * V) and answers.shape == (B, V - 1)
    for b in range(B):
        for p in range(V - 1):
            expected = predicted[before + b, 0, p + 1] @ z[before + b, p + 1]
            torch.testing.assert_close(logits[b, p, answers[b, p]], expected)
            finite = int(logits[b, p].isfinite().sum())
            assert finite == (before + B + 1) * V - (0 if difficult else V - 1)


def test_one_video_alone_has_no_easy_negatives() -> None:
    with pytest.raises(InputError, match="--batch-size"):
        tiny(difficult_negatives=False).contrast(*given_features(1, 4, 3, 5))


def test_forward_is_encoder_context_and_w() -> None:
    """The whole, put together by hand for one t and k at a time, in eval mode."""
    objective = tiny(segments=5, predict_steps=3).eval()
    views = random_views(3, objective)
    with torch.no_grad():
        h = torch.stack(
            [torch.stack([objective.encoder(s.flatten(0, 1)[None])[0] for s in v]) for v in views]
        )
        z, c = h.mean((-2, -1)), objective.context(h.transpose(1, 2)).mean((-2, -1))
        w = objective.predict.weight.unflatten(0, (3, -1))  # W_1, W_2, W_3
        predicted = [[[None, *(w[k] @ c[i, :, t] for k in range(3))] for t in range(5)] for i in range(3)]
        listed = [[[p if p is None else p.tolist() for p in of_t] for of_t in v] for v in predicted]
        terms = equation_1(z.tolist(), listed, 3)
        output = objective({"views": views})
    assert float(output.loss) == pytest.approx(sum(loss for _, loss, _ in terms) / len(terms), rel=1e-4)


COMBINATIONS = [
    {},
    {"context": "conv2plus1d", "modality": "flow"},
    {"context": "convlstm", "modality": "difference", "negatives": "gathered"},
    {"context": "lstm", "difficult_negatives": False, "reduction": "sum"},
    {"segments": 2, "predict_steps": 1, "frames": 3, "gradient_checkpointing": True},
    {"segments": 2, "predict_steps": 1, "context": "convlstm"},
    {"predict_steps": 1, "width": 0.01, "colour_drop": False, "crop": "none"},
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_every_parameter_gets_a_finite_gradient(options: dict) -> None:
    objective = tiny(**options).train()
    output = objective({"views": random_views(3, objective)})
    output.loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert {"top1", "chance"} <= set(output.metrics)
    assert all(not value.requires_grad and value.isfinite() for value in output.metrics.values())


def test_gradients_flow_into_targets() -> None:
    """The last segment is never a context: in eval mode its gradient came through the target."""
    objective = tiny().eval()
    views = random_views(2, objective).requires_grad_()
    objective({"views": views}).loss.backward()
    assert views.grad is not None and views.grad[:, -1].flatten(1).any(-1).all()
    z, predicted = (x.requires_grad_() for x in given_features(2, 4, 3, 5))
    objective.contrast(z, predicted).loss.backward()
    assert z.grad is not None and z.grad.flatten(0, 1).any(-1).all()


@pytest.mark.parametrize("context", ["conv3d", "conv2plus1d", "convlstm", "lstm"])
def test_a_prediction_knows_nothing_of_what_it_predicts(context: str) -> None:
    objective, seen = tiny(context=context).eval(), []
    objective.predict.register_forward_hook(lambda _m, _i, out: seen.append(out))
    views = random_views(2, objective)
    changed = views.clone()
    changed[:, 2:] = 9 * torch.randn_like(changed[:, 2:])
    with torch.no_grad():
        objective({"views": views})
        objective({"views": changed})
    torch.testing.assert_close(seen[0][:, :2], seen[1][:, :2])
    assert not torch.allclose(seen[0][:, 2:], seen[1][:, 2:])


def test_logits_are_float32_under_autocast() -> None:
    objective = tiny()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z, predicted = (x.bfloat16() for x in given_features(3, 4, 3, 64))
            logits, _ = candidates(predicted[:, 0], z, torch.tensor([1, 2, 3]))
            half = objective({"views": random_views(3, objective)}).loss
        full = objective({"views": random_views(3, objective)}).loss
    assert logits.dtype == half.dtype == torch.float32
    exact = torch.einsum("bpd,avd->bpav", predicted[:, 0].double(), z.double()).flatten(2)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert float(half) == pytest.approx(float(full), rel=0.05)


@torch.no_grad()
def test_flow_loses_its_spatial_mean_and_the_third_channel() -> None:
    """A moving camera adds one vector to each frame's flow: it changes nothing."""
    objective = tiny(modality="flow").eval()
    assert objective.encoder.conv1.in_channels == 2 * 2
    views = random_views(2, objective)
    moved = views + 5 * torch.randn(2, 4, 3, 2, 1, 1)
    moved[:, :, 2] = 100 * torch.randn_like(moved[:, :, 2])
    torch.testing.assert_close(objective.embed(moved), objective.embed(views), rtol=1e-3, atol=1e-4)
    uneven = views.clone()
    uneven[..., :16] += 5
    assert not torch.allclose(objective.embed(uneven), objective.embed(views), rtol=1e-2)


@torch.no_grad()
def test_embed_is_the_spatial_mean_of_each_segment_alone() -> None:
    objective = tiny(modality="difference").eval()
    views = random_views(2, objective)[:, :3]
    embedded = objective.embed(views)
    assert embedded.shape == (2, 3, objective.encoder.dim)
    alone = objective.encoder(views[1, 2].flatten(0, 1)[None]).mean((-2, -1))[0]
    torch.testing.assert_close(embedded[1, 2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("modality", "channels"), [("rgb", 30), ("flow", 20), ("difference", 10)])
def test_parameters_of_the_papers_model(modality: str, channels: int) -> None:
    with torch.device("meta"):
        objective = TCP(TCPConfig(modality=modality))  # type: ignore[arg-type]
    resnet18 = 11_689_512 - 513_000 + 64 * 49 * (channels - 3)
    context = 3 * 27 * 512 * 512 + 512 + 2 * 2 * 512
    assert sum(p.numel() for p in objective.parameters()) == resnet18 + context + 9 * 512 * 512


def test_the_papers_views() -> None:
    spec = TCP.view_spec(TCPConfig())
    assert (spec.views, spec.frames, spec.span, spec.size) == (10, 10, 55, 224)
    assert [view[0] for view in spec.offsets] == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert all(b - a == 1 for view in spec.offsets for a, b in pairwise(view))
    assert (spec.crop, spec.box_scope, spec.flip, spec.channel_drop) == (0.875, "view", 0.0, True)
    assert TCP.view_spec(TCPConfig(modality="difference")).span == 56
    assert not TCP.view_spec(TCPConfig(modality="flow")).channel_drop
    assert TCP.view_spec(TCPConfig(crop="clip")).box_scope == "clip"
    assert TCP.view_spec(TCPConfig(crop="none")).crop is None


@pytest.mark.parametrize("modality", ["rgb", "difference", "flow"])
def test_a_labelled_clips_segments_share_its_crop_and_flip(modality: str) -> None:
    """Section 4.2.2. Segments lie anywhere; in pretraining each has a crop of its own, and none is mirrored."""
    tuning = TCP(TCPConfig(width=0.125, size=64, modality=modality)).downstream().finetuning  # type: ignore[arg-type]
    ones = np.ones(2000, dtype=np.int64)
    params = sample_params(tuning.spec, np.arange(2000), 300 * ones, 342 * ones, 256 * ones, seed=0, epoch=0)
    assert tuning.spec.views == 8 and not tuning.spec.channel_drop
    assert (params.boxes == params.boxes[:, :1]).all() and (params.flips == params.flips[:, :1]).all()
    assert 0.45 < params.flips.mean() < 0.55
    starts = params.frames[:, :, 0]
    assert starts.min() < 20 and starts.max() > 270 and (starts[:, 0] != starts[:, 1]).mean() > 0.9


def test_from_scratch_is_its_own_recipe() -> None:
    """Section 4.2.4: one segment, batch 64, 50,000 iterations, .01 to .001, nothing to be pulled towards."""
    tuning = TCP(TCPConfig(width=0.125, size=64)).downstream().finetuning.scratch
    assert tuning is not None
    assert (tuning.spec.views, tuning.batch_size, tuning.steps, tuning.pull) == (1, 64, 50_000, 0)
    assert tuning.decay_at == (15_000, 30_000) and 0.01 * tuning.decay_by**2 == pytest.approx(0.001)


def test_milestone_factor_and_kernel_taps_are_flags() -> None:
    objective = tiny(milestones=(5,), milestone_factor=0.5, warmup_steps=0, kernel_taps=2)
    assert objective.learning_rate(4) == 1 and objective.learning_rate(5) == 0.5
    taps = [
        module.kernel_size[0] for module in objective.context.modules() if isinstance(module, MaskedConv3d)
    ]
    assert taps == [2, 2, 2]


def test_learning_rate_warms_up_and_falls_tenfold() -> None:
    objective = tiny(warmup_steps=4, milestones=(10, 20, 30))
    factors = [objective.learning_rate(step) for step in (0, 3, 9, 10, 19, 20, 29, 30, 149_999)]
    assert factors == pytest.approx([0.25, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_optimizer_is_the_papers_over_every_parameter() -> None:
    objective = tiny(lr=0.0123)
    optimizer = objective.optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.0123, 0.9, 1e-4)
    assert {id(p) for p in group["params"]} == {id(p) for p in objective.parameters()}
    assert TCPConfig().lr == 1e-2 and TCPConfig().milestones == (20_000, 40_000, 60_000)


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--segments", {"segments": 1, "predict_steps": 1}),
        ("--frames", {"frames": 1}),
        ("--predict-steps", {"predict_steps": 0}),
        ("--predict-steps", {"predict_steps": 4}),
        ("--size", {"size": 16}),
        ("--size", {"size": 113}),
        ("--width", {"width": 0.0}),
        ("--lr", {"lr": 0.0}),
        ("--warmup-steps", {"warmup_steps": -1}),
    ],
)
def test_bad_settings_name_their_flag(flag: str, options: dict) -> None:
    with pytest.raises(InputError, match=flag) as caught:
        TCPConfig(**SMALL | options)
    assert "\n" not in str(caught.value)


def test_it_is_found_by_name_and_has_a_small_config() -> None:
    assert objectives.get("tcp") is TCP
    assert TCP.small().width < TCPConfig().width == 1


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What each of two processes saw. A hang fails instead of hanging the tests."""
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.start_processes(
        rank_main, args=(str(folder),), nprocs=WORLD, join=False, start_method="forkserver"
    )
    try:
        while not context.join(timeout=120):  # returns False when a process ended well and the other is on
            assert not all(p.is_alive() for p in context.processes), "two processes hung"
    finally:
        for process in context.processes:
            process.kill()
    return [load_file(Path(folder, f"rank-{rank}.safetensors")) for rank in range(WORLD)]


def test_gathered_on_two_processes_is_one_process(ranks: list) -> None:
    z, predicted = (x.requires_grad_() for x in given_features(WORLD * HALF, V, K, D))
    whole = tiny().contrast(z, predicted)
    whole.loss.backward()
    for name, value in {
        "loss": whole.loss.detach(),
        **{n: whole.metrics[n] for n in ("top1", "chance", "top1_3")},
    }.items():
        torch.testing.assert_close(torch.stack([seen[name] for seen in ranks]).mean(), value)
    torch.testing.assert_close(torch.cat([seen["z"] for seen in ranks]) / WORLD, z.grad)
    torch.testing.assert_close(torch.cat([seen["predicted"] for seen in ranks]) / WORLD, predicted.grad)
    for rank, seen in enumerate(ranks):
        mine = as_lists(predicted.detach()[rank * HALF : (rank + 1) * HALF])
        terms = equation_1(z.tolist(), mine, K, own=rank * HALF)
        assert float(seen["loss"]) == pytest.approx(sum(loss for _, loss, _ in terms) / len(terms), rel=1e-4)


def test_two_processes_train_as_one_model(ranks: list) -> None:
    first, second = ranks
    assert first["trained"].isfinite().all() and first["trained"].any()
    assert torch.equal(first["trained"], second["trained"])
