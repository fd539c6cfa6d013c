"""Scores of predictions, and how sure one can be of them. All of it on NumPy arrays, a video a row.

Letters: M videos, C classes, S seeds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """value, with the bounds of its 95 % confidence interval; spread: deviation over seeds and splits."""

    value: float
    low: float
    high: float
    spread: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        spread = f" ± {100 * self.spread:.1f}" if self.spread else ""
        return f"{100 * self.value:.1f}{spread} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def hits(probabilities_MC: NDArray, labels_M: NDArray, k: int = 1) -> NDArray[np.float64]:
    """(M,) 1 where the label is among the k likeliest classes; ties go to the lower class number."""
    order = np.argsort(-probabilities_MC, axis=1, kind="stable")[:, :k]
    return (order == labels_M[:, None]).any(1).astype(np.float64)


def confusion(probabilities_MC: NDArray, labels_M: NDArray) -> NDArray[np.int64]:
    """(C, C) counts: rows are the labels, columns what was predicted."""
    C = probabilities_MC.shape[1]
    guesses = np.argsort(-probabilities_MC, axis=1, kind="stable")[:, 0]
    return np.bincount(labels_M * C + guesses, minlength=C * C).reshape(C, C)


def class_mean(counts_CC: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the share of their videos that were recognised."""
    totals = counts_CC.sum(1)
    return float((counts_CC.diagonal()[totals > 0] / totals[totals > 0]).mean())


def score(by_split: Sequence[NDArray[np.float64]], *, seed: int = 0) -> Score:
    """Values (S, M) of each split → their mean over splits, seeds and videos; every split weighs alike.

    The interval is the percentile bootstrap's: the videos of all splits are drawn again, with replacement; seeds are
    averaged first, since they are no further evidence about the videos.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    means_M = np.concatenate([values.mean(0) for values in by_split])
    weights_M = np.concatenate([np.full(values.shape[1], 1 / values.shape[1]) for values in by_split])
    draws = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        picked = rng.integers(0, len(means_M), size=len(means_M))
        draws[resample] = np.average(means_M[picked], weights=weights_M[picked])
    low, high = np.percentile(draws, [2.5, 97.5])
    runs = np.concatenate([values.mean(1) for values in by_split])
    value = float(np.mean([values.mean() for values in by_split]))
    return Score(value, float(low), float(high), float(runs.std(ddof=1)) if len(runs) > 1 else 0.0)


def expected_chance(train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]) -> float:
    """Accuracy of always naming the most frequent class of the training part."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())
