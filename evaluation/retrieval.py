"""Nearest neighbours: does a test video find one of its class among the training videos?

Letters: Q queries, G gallery, D features.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KS = (1, 5, 10, 20, 50)


def neighbours(query_QD: NDArray, gallery_GD: NDArray, k: int, *, centre: bool = False) -> NDArray[np.int64]:
    """(Q, min(k, G)) places in the gallery, nearest first by cosine; ties go to the lower place.

    centre: the gallery's mean is subtracted from both first, since features of one network share a large part.
    """
    mean = gallery_GD.mean(0) if centre else 0.0
    query, gallery = (_unit(np.asarray(x, dtype=np.float32) - mean) for x in (query_QD, gallery_GD))
    found = []
    for first in range(0, len(query), 1024):
        similarity = (query[first : first + 1024] @ gallery.T).astype(np.float32)
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


def _unit(x: NDArray) -> NDArray[np.float32]:
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def recall(
    query_QD: NDArray,
    query_labels: NDArray,
    gallery_GD: NDArray,
    gallery_labels: NDArray,
    ks: Sequence[int] = KS,
    *,
    centre: bool = False,
) -> dict[int, NDArray[np.float64]]:
    """k → (Q,), 1 where one of the k nearest has the query's label."""
    nearest = neighbours(query_QD, gallery_GD, max(ks), centre=centre)
    right = gallery_labels[nearest] == query_labels[:, None]
    return {k: right[:, :k].any(1).astype(np.float64) for k in ks}


def chance(query_labels: NDArray, gallery_labels: NDArray, k: int) -> float:
    """Expected recall of a random order of the gallery."""
    G = len(gallery_labels)
    same = np.bincount(gallery_labels, minlength=query_labels.max() + 1)[query_labels].astype(np.float64)
    missed = np.ones(len(query_labels))
    for params in range(min(k, G)):
        missed *= np.maximum(G - same - params, 0) / (G - params)
    return float(1 - missed.mean())
