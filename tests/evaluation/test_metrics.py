"""Scores against scikit-learn and worked cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from evaluation import metrics, retrieval


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


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.repeat([[1.0, 0.0]], [1], axis=0).repeat(200, axis=1)  # 200 right, 200 wrong
    found = metrics.score([values])
    half = 1.96 * 0.5 / np.sqrt(400)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.006) and found.high == pytest.approx(
        0.5 + half, abs=0.006
    )


def test_splits_weigh_alike_and_seeds_are_no_further_evidence() -> None:
    one, other = np.ones((1, 10)), np.zeros((1, 1000))
    assert metrics.score([one, other]).value == 0.5
    values = np.arange(40)[None] % 2 * 1.0
    assert metrics.score([values]) == metrics.score([np.repeat(values, 50, axis=0)])
    runs = np.stack([np.ones(4), np.zeros(4)])
    assert metrics.score([runs]).spread == pytest.approx(np.std([1, 0], ddof=1))


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
