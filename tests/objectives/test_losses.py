"""The contrastive arithmetic against plain loops, in one process and in two."""

import itertools
import json
import math

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from two_ranks import HALF, features, rank_main
from vdim_reference import eq_3, share_right

from objectives import losses


@st.composite
def score_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """(A, N, B, M) scores, and an offset with which every antecedent has its own video."""
    A, N, M = (draw(st.integers(1, 4)) for _ in range(3))
    offset, more = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    scale, seed = draw(st.sampled_from([0.0, 0.01, 1.0, 30.0, 1000.0])), draw(st.integers(0, 2**31))
    shape = (A, N, offset + A + more, M)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale, offset


@settings(max_examples=150, deadline=None)
@given(score_tensors())
def test_info_nce_is_equation_3(drawn: tuple[torch.Tensor, int]) -> None:
    scores, offset = drawn
    for own in (False, True):
        assert float(losses.info_nce(scores, offset, own_locations=own)) == pytest.approx(
            eq_3(scores.tolist(), offset, own=own), rel=1e-4, abs=1e-4
        )


@settings(max_examples=100, deadline=None)
@given(score_tensors().filter(lambda drawn: bool(drawn[0].any())))
def test_top1_is_the_share_of_locations_that_find_their_video(drawn: tuple[torch.Tensor, int]) -> None:
    scores, offset = drawn
    assert float(losses.top1(scores, offset)) == pytest.approx(share_right(scores.tolist(), offset))


def test_eq_3_by_hand() -> None:
    """A = 2, N = 1, B = 2, M = 2, worked out on paper: logits ln 1, ln 2, ln 3, ln 4 of the first antecedent."""
    scores = torch.tensor([[1.0, 2, 3, 4], [1, 1, 1, 1]]).log().reshape(2, 1, 2, 2)
    first = -(torch.tensor(1 / 10).log() + torch.tensor(2 / 10).log()) / 2
    second = -torch.tensor(1 / 4).log()
    torch.testing.assert_close(losses.info_nce(scores, own_locations=True), (first + second) / 2)
    first = -(torch.tensor(1 / 8).log() + torch.tensor(2 / 9).log()) / 2  # a positive against 3 and 4
    second = -torch.tensor(1 / 3).log()
    torch.testing.assert_close(losses.info_nce(scores), (first + second) / 2)


def test_own_locations_push_the_best_of_two_positives_down() -> None:
    """Eq. 3 as it is written against Figure 1, where negatives are of other videos."""
    for own in (False, True):
        scores = torch.zeros(2, 1, 2, 2)
        scores[:, 0, 0, 0] = 5.0
        scores.requires_grad_()
        losses.info_nce(scores[:1], own_locations=own).backward()
        assert scores.grad is not None
        assert (scores.grad[0, 0, 0, 0] > 0) == own  # a step down the gradient lowers it


def test_equal_scores_cost_the_logarithm_of_all_candidates() -> None:
    for own, candidates in ((True, 6 * 7), (False, 5 * 7 + 1)):
        loss = losses.info_nce(torch.full((3, 5, 6, 7), 2.5), 2, own_locations=own)
        assert float(loss) == pytest.approx(math.log(candidates), abs=1e-5)


def test_top1_reaches_both_ends() -> None:
    own = torch.eye(3).reshape(3, 1, 3, 1).expand(3, 4, 3, 2)
    assert float(losses.top1(own)) == 1
    assert float(losses.top1(own.roll(1, dims=2))) == 0
    assert float(losses.top1(own.roll(1, dims=2)[:2], offset=1)) == 1


def test_top1_of_unrelated_features_is_chance() -> None:
    torch.manual_seed(0)
    scores = losses.scores(torch.randn(8, 200, 16), torch.randn(8, 3, 16), scale=True)
    assert float(losses.top1(scores)) == pytest.approx(1 / 8, abs=0.06)


@pytest.mark.parametrize("scale", [False, True])
def test_scores_are_dot_products_of_all_locations(scale: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 9), torch.randn(4, 5, 9)
    scores = losses.scores(a, b, scale=scale)
    assert scores.shape == (2, 3, 4, 5)
    for n in range(2 * 3 * 4 * 5):
        i, j, k, m = (int(x) for x in torch.unravel_index(torch.tensor(n), scores.shape))
        expected = sum(float(x) * float(y) for x, y in zip(a[i, j], b[k, m], strict=True)) / (
            3 if scale else 1
        )
        assert float(scores[i, j, k, m]) == pytest.approx(expected, abs=1e-5)


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 64).bfloat16(), torch.randn(2, 3, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = losses.scores(a, b, scale=True)
        full = losses.scores(a.float(), b.float(), scale=True)
        assert (a.float().flatten(1) @ b.float().flatten(1).T).dtype == torch.bfloat16  # autocast is on
    assert scores.dtype == full.dtype == torch.float32
    exact = torch.einsum("and,bmd->anbm", a.double(), b.double()) / 8
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(full, scores)


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(2, 3)
    assert losses.gather(x) is x and losses.rank_offset(5) == 0


@pytest.fixture(scope="module", params=[2, 4])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[dict[str, torch.Tensor], dict]]:
    """What each of two or four processes saw. A hang fails instead of hanging the tests."""
    folder = tmp_path_factory.mktemp("ranks")
    world = request.param
    context = mp.start_processes(
        rank_main, args=(world, str(folder)), nprocs=world, join=False, start_method="forkserver"
    )
    try:
        while not context.join(timeout=120):  # returns False when a process ended well and the other is on
            assert not all(p.is_alive() for p in context.processes), "the processes hung"
    finally:
        for process in context.processes:
            process.kill()
    return [
        (
            load_file(folder / f"rank-{rank}.safetensors"),
            json.loads((folder / f"rank-{rank}.json").read_text()),
        )
        for rank in range(world)
    ]


def one_process(world: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """scores, loss and the gradients of antecedents and consequents with everything in one process."""
    a, c = (x.requires_grad_() for x in features(world))
    scores = losses.scores(a, c, scale=True)
    loss = losses.info_nce(scores)
    loss.backward()
    return scores.detach(), loss.detach(), a.grad, c.grad


def test_gather_puts_ranks_in_order(ranks: list) -> None:
    for rank, (tensors, said) in enumerate(ranks):
        assert torch.equal(tensors["gathered"], features(len(ranks))[1])
        assert said["offset"] == rank * HALF


def test_gathered_loss_is_that_of_one_process(ranks: list) -> None:
    scores, loss, _, _ = one_process(len(ranks))
    torch.testing.assert_close(torch.stack([tensors["loss"] for tensors, _ in ranks]).mean(), loss)
    torch.testing.assert_close(
        torch.stack([tensors["top1"] for tensors, _ in ranks]).mean(), losses.top1(scores)
    )
    for rank, (tensors, _) in enumerate(ranks):
        mine = scores[rank * HALF : (rank + 1) * HALF].tolist()
        assert float(tensors["loss"]) == pytest.approx(eq_3(mine, rank * HALF), abs=1e-5)


def test_gathered_gradients_after_ddps_mean_are_those_of_one_process(ranks: list) -> None:
    _, _, of_a, of_c = one_process(len(ranks))
    torch.testing.assert_close(torch.cat([tensors["a"] for tensors, _ in ranks]) / len(ranks), of_a)
    torch.testing.assert_close(torch.cat([tensors["c"] for tensors, _ in ranks]) / len(ranks), of_c)


def test_vdim_trains_in_several_processes_with_gathered_negatives(ranks: list) -> None:
    (first, said), *others = ranks
    assert first["parameters"].isfinite().all() and first["parameters"].any()
    assert all(torch.equal(first["parameters"], other["parameters"]) for other, _ in others)
    assert said["metrics"]["chance"] == pytest.approx(1 / (2 * len(ranks)))  # two clips on each


# NT-Xent


def nt_xent_in_loops(z: torch.Tensor, temperature: float) -> float:
    """SimCLR Eq. 1 over all views of all videos, in Python floats; z (B, V, D)."""
    B, V, _ = z.shape
    unit = [[z[b, v] / z[b, v].norm() for v in range(V)] for b in range(B)]
    costs = []
    for b, v in itertools.product(range(B), range(V)):
        others = [(c, w) for c in range(B) for w in range(V) if (c, w) != (b, v)]
        scores = {(c, w): float(unit[b][v] @ unit[c][w]) / temperature for c, w in others}
        normaliser = math.log(sum(map(math.exp, scores.values())))
        costs += [(normaliser - scores[b, w]) / (V - 1) for w in range(V) if w != v]
    return sum(costs) / (B * V)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(2, 3), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 2**31))
def test_nt_xent_is_simclrs_equation_1(B: int, V: int, temperature: float, seed: int) -> None:
    z = torch.randn(B, V, 6, generator=torch.Generator().manual_seed(seed)) * 3
    loss, metrics = losses.nt_xent(z, temperature=temperature)
    assert float(loss) == pytest.approx(nt_xent_in_loops(z.double(), temperature), rel=1e-4, abs=1e-5)
    assert float(metrics["chance"]) == pytest.approx((V - 1) / (B * V - 1))


def test_nt_xent_by_hand() -> None:
    """Two videos of two equal views at right angles: a cosine of 1 against two of 0, whatever the lengths."""
    z = torch.tensor([[[2.0, 0.0], [5.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    loss, metrics = losses.nt_xent(z, temperature=0.5)
    assert float(loss) == pytest.approx(math.log((math.exp(2) + 2) / math.exp(2)), rel=1e-5)
    assert (float(metrics["top1"]), float(metrics["chance"])) == (1.0, pytest.approx(1 / 3))


def test_nt_xent_gathers(ranks: list) -> None:
    """The mean over processes of loss and gradient is that of one process with all videos."""
    z = torch.stack([x[:, 0] for x in features(len(ranks))], 1).requires_grad_()
    loss, _ = losses.nt_xent(z, temperature=0.2)
    loss.backward()
    torch.testing.assert_close(
        torch.stack([tensors["nt_xent"] for tensors, _ in ranks]).mean(), loss.detach()
    )
    torch.testing.assert_close(torch.cat([tensors["z"] for tensors, _ in ranks]) / len(ranks), z.grad)


def test_nt_xent_is_float32_under_autocast() -> None:
    z = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = losses.nt_xent(z, temperature=0.1)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(nt_xent_in_loops(z.double(), 0.1), rel=1e-4)
