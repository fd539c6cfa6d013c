"""The dense NCE against plain loops, in one process and in two."""

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from dense_reference import HALF, WORLD, features, rank_main, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from objectives import losses


@settings(max_examples=40, deadline=None)
@given(
    *(st.integers(1, 4) for _ in range(4)),
    st.sampled_from([0.01, 1.0, 8.0]),
    st.booleans(),
    st.integers(1, 100),
    st.integers(0, 2**31),
)
def test_loss_accuracies_and_negatives_are_those_of_the_loops(
    B: int, N: int, L: int, D: int, scale: float, cosine: bool, at_once: int, seed: int
) -> None:
    params = torch.randn(2, B, N, L, D, generator=torch.Generator().manual_seed(seed)) * scale
    options = {"cosine": cosine, "temperature": 0.3}
    loss, metrics = losses.dense_nce(*params, at_once=at_once, **options)
    expected = slow(*params, **options)
    assert float(loss) == pytest.approx(expected.pop("loss"), rel=1e-4, abs=1e-4)
    if cosine and D == 1:  # all scores are ±1: ties, which the next test is about
        return
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


def test_negatives_are_counted_as_in_section_3_2() -> None:
    """64 videos, 3 steps, 4×4 locations: 1 : 2 : 45 : 3024, of 3,072 columns."""
    counts = losses.negative_counts(64, 3, 16)
    assert counts == {"temporal": 2, "spatial": 45, "easy": 3024} and sum(counts.values()) == 3072 - 1


def test_features_that_are_all_alike_are_right_as_often_as_chance() -> None:
    same = torch.ones(2, 3, 4, 5)
    loss, metrics = losses.dense_nce(same, same)
    assert float(loss) == pytest.approx(torch.tensor(24.0).log().item())
    for k in (1, 3, 5):
        assert float(metrics[f"top{k}"]) == pytest.approx(k / 24)
    assert float(metrics["chance"]) == pytest.approx(1 / 24)


def test_features_that_are_not_numbers_are_never_right() -> None:
    nan = torch.full((2, 3, 4, 5), torch.nan)
    loss, metrics = losses.dense_nce(nan, nan)
    assert loss.isnan() and not metrics["top5"]


@pytest.mark.parametrize("at_once", [1, 100, 2**26])
def test_gradients_flow_into_predictions_and_targets(at_once: int) -> None:
    """Against autograd of the whole score matrix in double precision."""
    predicted, target = (x.requires_grad_() for x in features())
    (3 * losses.dense_nce(predicted, target, at_once=at_once)[0]).backward()
    rows, columns = (x.detach().double().requires_grad_() for x in (predicted, target))
    scores = rows.flatten(0, 2) @ columns.flatten(0, 2).T
    (3 * F.cross_entropy(scores, torch.arange(len(scores)))).backward()
    for ours, exact in ((predicted, rows), (target, columns)):
        assert ours.grad.abs().sum() > 0
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_one_side_alone_may_want_a_gradient() -> None:
    predicted, target = features()
    losses.dense_nce(predicted.requires_grad_(), target)[0].backward()
    target.requires_grad_()
    losses.dense_nce(predicted.detach(), target)[0].backward()
    assert predicted.grad.any() and target.grad.any()


def test_never_more_scores_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: sizes.append(x.numel()) or softmax(x, dim))
    predicted, target = (x.requires_grad_() for x in features())
    losses.dense_nce(predicted, target, at_once=200)
    assert max(sizes) <= 200 and sum(sizes) == 48**2


def test_scores_are_float32_under_autocast() -> None:
    predicted, target = (x.bfloat16() for x in features())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = losses.dense_nce(predicted, target)
    exact = slow(predicted, target)["loss"]
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(exact, rel=1e-5)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, torch.Tensor], dict]]:
    folder = tmp_path_factory.mktemp("dense")
    context = mp.start_processes(
        rank_main, args=(str(folder),), nprocs=WORLD, join=False, start_method="forkserver"
    )
    try:
        while not context.join(timeout=120):
            assert not all(p.is_alive() for p in context.processes), "two processes hung"
    finally:
        for process in context.processes:
            process.kill()
    return [
        (load_file(folder / f"rank-{r}.safetensors"), json.loads(Path(folder, f"rank-{r}.json").read_text()))
        for r in range(WORLD)
    ]


def test_two_processes_that_gather_are_one_with_both_halves(ranks: list) -> None:
    predicted, target = (x.requires_grad_() for x in features())
    loss, metrics = losses.dense_nce(predicted, target)
    loss.backward()
    torch.testing.assert_close(torch.stack([t["loss"] for t, _ in ranks]).mean(), loss.detach())
    for name, value in metrics.items():
        assert sum(said[name] for _, said in ranks) / WORLD == pytest.approx(float(value), abs=1e-6), name
    for name, whole in (("predicted", predicted.grad), ("target", target.grad)):
        torch.testing.assert_close(torch.cat([t[name] for t, _ in ranks]) / WORLD, whole)
    assert ranks[0][0]["loss"].item() != ranks[1][0]["loss"].item() and len(predicted) == HALF * WORLD
