"""Scores against scikit-learn and worked cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from evaluation import metrics, retrieval
from evaluation.metrics import Hits


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_accuracies_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, 40)
    p = rng.dirichlet(np.ones(7), 40)
    for k in (1, 5):
        assert metrics.hits(p, labels, k).mean() == pytest.approx(
            top_k_accuracy_score(labels, p, k=k, labels=range(7))
        )
    counts = metrics.confusion(p, labels)
    assert (counts == confusion_matrix(labels, p.argmax(1), labels=range(7))).all()
    present = np.isin(p.argmax(1), labels).all()
    if present:  # scikit-learn warns of, and skips, classes that only predictions have
        assert metrics.class_mean(counts) == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))


def alone(values: np.ndarray) -> Hits:
    """Every video a group of its own."""
    return Hits(values, np.arange(values.shape[1]))


def test_paired_and_grouped_intervals_are_scipys() -> None:
    """A group of equal size is one observation, its mean; a pair is one too, its difference."""
    rng = np.random.default_rng(0)
    ours, theirs = (rng.random((2, 120)) < share for share in (0.7, 0.6))
    theirs = np.where(rng.random(120) < 0.5, ours, theirs)  # alike in half of the videos
    groups = np.arange(120) // 4
    found = metrics.difference([Hits(ours * 1.0, groups)], [Hits(theirs * 1.0, groups)])
    of_groups = (ours.mean(0) - theirs.mean(0)).reshape(30, 4).mean(1)
    wanted = bootstrap((of_groups,), np.mean, n_resamples=20_000, method="percentile", random_state=rng)
    assert found.value == pytest.approx(of_groups.mean())
    low, high = wanted.confidence_interval
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    unpaired = metrics.score([Hits(ours * 1.0, groups)])
    assert found.high - found.low < 1.3 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("shift, verdict", [(1.0, "better"), (-1.0, "worse"), (0.0, "undecided")])
def test_a_difference_is_decided_where_its_interval_leaves_zero_out(shift: float, verdict: str) -> None:
    ours = np.arange(40)[None] % 2 * 1.0
    assert metrics.difference([alone(ours)], [alone(ours - shift)]).verdict == verdict


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.repeat([[1.0, 0.0]], [1], axis=0).repeat(200, axis=1)  # 200 right, 200 wrong
    found = metrics.score([alone(values)])
    half = 1.96 * 0.5 / np.sqrt(400)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.006) and found.high == pytest.approx(
        0.5 + half, abs=0.006
    )


def test_splits_weigh_alike_and_seeds_are_no_further_evidence() -> None:
    one, other = np.ones((1, 10)), np.zeros((1, 1000))
    assert metrics.score([alone(one), alone(other)]).value == 0.5
    values = np.arange(40)[None] % 2 * 1.0
    repeated = np.repeat(values, 50, axis=0)
    assert metrics.score([alone(values)]) == metrics.score([alone(repeated)])
    runs = np.stack([np.ones(4), np.zeros(4)])
    assert metrics.score([alone(runs)]).spread == pytest.approx(np.std([1, 0], ddof=1))


def test_recall_of_known_neighbours() -> None:
    gallery, labels = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]]), np.array([0, 1, 1, 2])
    query, truth = np.array([[2.0, 0.1], [0.1, 3.0], [-1.0, 0.2]]), np.array([1, 0, 2])
    assert retrieval.neighbours(query, gallery, 4)[0].tolist() == [0, 1, 2, 3]
    found = retrieval.recall(query, truth, gallery, labels, (1, 2, 3, 50))
    assert {k: v.tolist() for k, v in found.items()} == {
        1: [0, 0, 1],
        2: [1, 0, 1],
        3: [1, 1, 1],
        50: [1, 1, 1],
    }


@pytest.mark.parametrize("centre", [False, True])
def test_neighbours_are_scikit_learns(centre: bool) -> None:
    rng = np.random.default_rng(0)
    gallery, query = rng.normal(2, 1, (90, 6)), rng.normal(2, 1, (25, 6))
    mean = gallery.mean(0) * centre
    theirs = NearestNeighbors(n_neighbors=9, metric="cosine").fit(gallery - mean)
    wanted = theirs.kneighbors(query - mean, return_distance=False)
    assert (retrieval.neighbours(query, gallery, 9, centre=centre) == wanted).all()


def test_chance_of_retrieval_is_that_of_random_features() -> None:
    rng = np.random.default_rng(1)
    gallery_labels, query_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 4000)
    gallery, query = rng.normal(size=(60, 50)), rng.normal(size=(4000, 50))
    for k, right in retrieval.recall(query, query_labels, gallery, gallery_labels, (1, 5)).items():
        assert retrieval.chance(query_labels, gallery_labels, k) == pytest.approx(right.mean(), abs=0.04)
