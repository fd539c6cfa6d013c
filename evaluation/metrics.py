"""Scores of predictions, and how sure one can be of them. All of it on NumPy arrays, a video a row.

Letters: M videos, C classes, S seeds, G groups.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

RESAMPLES = 2000
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Score:
    """value, with the bounds of its 95 % confidence interval; spread: deviation over seeds and splits."""

    value: float
    low: float
    high: float
    spread: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def verdict(self) -> Verdict:
        """Of a difference: on which side of 0 its interval lies."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"

    def __str__(self) -> str:
        spread = f" ± {100 * self.spread:.1f}" if self.spread else ""
        return f"{100 * self.value:.1f}{spread} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Hits:
    """What each of a split's test videos scored, (S, M) in 0–1, and the videos' groups, (M,).

    A seed's row is (M,); videos of one group are no independent evidence.
    """

    values: NDArray[np.float64]
    groups: NDArray[np.int64]


def hits(probabilities_MC: NDArray, labels_M: NDArray, k: int = 1) -> NDArray[np.float64]:
    """(M,) 1 where the label is among the k likeliest classes; ties go to the lower class number."""
    order = np.argsort(-probabilities_MC, axis=1, kind="stable")[:, :k]
    return (order == labels_M[:, None]).any(1).astype(np.float64)


def confusion(probabilities_MC: NDArray, labels_M: NDArray) -> NDArray[np.int64]:
    """(C, C) counts: rows are the labels, columns what was predicted."""
    counts = confusion_matrix(labels_M, probabilities_MC.argmax(1), labels=range(probabilities_MC.shape[1]))
    return counts.astype(np.int64)


def class_mean(counts_CC: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the share of their videos that were recognised."""
    totals = counts_CC.sum(1)
    return float((counts_CC.diagonal()[totals > 0] / totals[totals > 0]).mean())


def score(splits: Sequence[Hits], *, seed: int = 0) -> Score:
    """Mean over splits, seeds and videos; every split weighs alike.

    The interval is the percentile bootstrap's: the groups of all splits are drawn again, with replacement. Seeds are
    averaged first, since they are no further evidence about the videos.
    """
    value = float(np.mean([split.values.mean() for split in splits]))
    low, high = np.percentile(_resampled(splits, seed), [2.5, 97.5])
    runs = np.concatenate([split.values.mean(1) for split in splits])
    return Score(value, float(low), float(high), float(runs.std(ddof=1)) if len(runs) > 1 else 0.0)


def difference(ours: Sequence[Hits], theirs: Sequence[Hits], *, seed: int = 0) -> Score:
    """ours − theirs of the same videos, with the interval of the paired bootstrap: both are drawn again together."""
    return score(
        [Hits(one.values.mean(0)[None] - two.values.mean(0)[None], one.groups) for one, two in zip(ours, theirs, strict=True)],
        seed=seed,
    )  # fmt: skip


def _resampled(splits: Sequence[Hits], seed: int) -> NDArray[np.float64]:
    """Means (RESAMPLES,) of videos drawn again, group by group; a video weighs as its split says."""
    weights_M = np.concatenate([np.full(len(s.groups), 1 / len(s.groups)) for s in splits])
    means_M = np.concatenate([s.values.mean(0) for s in splits])
    place_M = np.unique(np.concatenate([s.groups for s in splits]), return_inverse=True)[1]
    weight_G, sum_G = np.bincount(place_M, weights_M), np.bincount(place_M, weights_M * means_M)
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn = (rng.integers(0, len(sum_G), len(sum_G)) for _ in range(RESAMPLES))
    return np.array([sum_G[one].sum() / weight_G[one].sum() for one in drawn])


def expected_chance(train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]) -> float:
    """Accuracy of always naming the most frequent class of the training part."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())
