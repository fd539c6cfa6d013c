"""How a result is measured: which videos train a classifier and which test it, and the scores of its predictions.

Letters: M videos, C classes, S seeds, G groups. A prediction is a row of a NumPy array, a video each.
"""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards import Dataset, InputError

RESAMPLES = 2000
Verdict = Literal["better", "worse", "undecided"]
NUMBERED = ("1", "2", "3")
HELD_OUT = 0.2  # of the training videos, to choose epoch and regularisation by
_SOURCE = re.compile(r"_c\d+$")  # UCF101: v_Archery_g08_c01 and …_c02 are cut from one source


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


def cross_entropy(probabilities_MC: NDArray, labels_M: NDArray) -> float:
    """−log of the label's probability, the mean."""
    from sklearn.metrics import log_loss

    return float(log_loss(labels_M, probabilities_MC, labels=range(probabilities_MC.shape[1])))


def confusion(probabilities_MC: NDArray, labels_M: NDArray) -> NDArray[np.int64]:
    """(C, C) counts: rows are the labels, columns what was predicted."""
    from sklearn.metrics import confusion_matrix  # here, since it takes a second

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
    G, found = len(sum_G), []
    for some in np.array_split(np.arange(RESAMPLES), max(1, RESAMPLES * G // 2**20)):  # some MB at a time
        drawn_SG = rng.integers(0, G, (len(some), G))
        found.append(sum_G[drawn_SG].sum(1) / weight_G[drawn_SG].sum(1))
    return np.concatenate(found)


def expected_chance(train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]) -> float:
    """Accuracy of always naming the most frequent class of the training part."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


@dataclass(frozen=True)
class Split:
    """name; train, test: rows of the table, ascending."""

    name: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]


class Labelled:
    """A data set's labels and splits. groups: (rows,) numbers; videos of one group are never divided."""

    def __init__(self, dataset: Dataset, groups: tuple[Path, str] | None = None) -> None:
        self.dataset = dataset
        self.labels: NDArray[np.int64] = dataset.column("label").astype(np.int64)
        if not len(dataset.classes) or (self.labels < 0).all():
            raise InputError(f"{dataset.path}: the videos have no labels; give a labelled data set")
        self.groups = _groups_of(dataset, *groups) if groups else source_groups(dataset)

    @property
    def classes(self) -> list[str]:
        return self.dataset.classes

    def splits(self, names: tuple[str, ...], folds: int = 0) -> list[Split]:
        """The named splits: "1", "2", "3" of UCF101 and HMDB51, "all" for the three; by default the table's own.

        folds: instead, so many parts of whole groups, alike in their classes, each the test part once. Raises InputError.
        """
        if folds:
            return self._folds(folds)
        names = NUMBERED if names == ("all",) else names
        return [self._split(name) for name in names or ("",)]

    def _split(self, name: str) -> Split:
        column, values = self._column(name.removeprefix("split"))
        usable = np.isin(np.arange(len(self.labels)), self.dataset.select()) & (self.labels >= 0)
        there = {value for value in values if value is not None}
        tests = [value for value in ("test", "val", "validation") if value in there]
        if "train" not in there or not tests:
            raise InputError(f"{self.dataset.path}: column {column} has {sorted(there)}, not train and test")
        train, test = (np.flatnonzero(usable & (values == value)) for value in ("train", tests[0]))
        return Split(column, train, test)

    def _column(self, name: str) -> tuple[str, NDArray]:
        for column in (f"split{name}",) if name else ("split", "split1"):
            try:
                return column, self.dataset.column(column)
            except InputError:
                continue
        raise InputError(
            f"--split {name}: {self.dataset.path} has no such split; a data set without splits of its own needs "
            "--folds (and --groups)"
        )

    def _folds(self, folds: int) -> list[Split]:
        from sklearn.model_selection import StratifiedGroupKFold  # here, since it takes a second

        rows = self.dataset.select()
        rows = rows[self.labels[rows] >= 0]
        most = min(len(np.unique(self.groups[rows])), np.bincount(self.labels[rows], minlength=1).max())
        if not 2 <= folds <= most:
            raise InputError(
                f"--folds {folds}: choose from 2 to {most}, what there are of groups and of the largest class's videos"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class with fewer groups than folds
            parts = list(
                StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(
                    rows, self.labels[rows], self.groups[rows]
                )
            )
        return [Split(f"fold{k}", rows[train], rows[test]) for k, (train, test) in enumerate(parts, 1)]

    def held_out(self, rows: NDArray[np.int64], seed: int, share: float = HELD_OUT) -> NDArray[np.bool_]:
        """Which of the training rows validate: about this share of every class, whole groups, never all of a class."""
        labels, groups = self.labels[rows], self.groups[rows]
        rng = np.random.Generator(np.random.Philox(key=seed))
        members = _members(groups)
        left = np.bincount(labels)
        wanted = np.where(left > 1, np.maximum(1, np.round(share * left)), 0).astype(np.int64)
        held = np.zeros(len(rows), dtype=bool)
        for number in rng.permutation(len(np.unique(groups))):
            mine = members[number]
            of, counts = np.unique(labels[mine], return_counts=True)
            if (wanted[of] > 0).any() and (left[of] > counts).all():
                held[mine] = True
                wanted[of] -= counts
                left[of] -= counts
        return held


def _members(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of each group's members."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.unique(groups[order], return_index=True)[1][1:])


def source_groups(dataset: Dataset) -> NDArray[np.int64]:
    """(rows,) a number for each source video: of UCF101's keys without their clip number, else of each key."""
    return np.unique([_SOURCE.sub("", key) for key in dataset.column("key")], return_inverse=True)[1]


def with_fraction(split: Split, labelled: Labelled, fraction: float, seed: int) -> Split:
    """The split with that share of each class's training videos, at least one; a larger share contains a smaller."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    shuffled = rng.permutation(split.train)
    kept = []
    for label in np.unique(labelled.labels[split.train]):
        mine = shuffled[labelled.labels[shuffled] == label]
        kept.append(mine[: max(1, round(fraction * len(mine)))])
    return replace(split, train=np.sort(np.concatenate(kept)))


def _groups_of(dataset: Dataset, file: Path, column: str) -> NDArray[np.int64]:
    """The number of each row's group, from a CSV file whose first column is a video's file or key."""
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            lines = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--groups {file}: cannot be read ({error})") from error
    if not lines or column not in lines[0]:
        raise InputError(
            f"--groups {file}:{column}: the file has the columns {', '.join(lines[0] if lines else [])}"
        )
    first = next(iter(lines[0]))
    group = {line[first]: line[column] for line in lines}
    found = []
    for key, source in zip(dataset.column("key"), dataset.column("source"), strict=True):
        name = next((name for name in (key, source) if name in group), None)
        if name is None:
            raise InputError(f"--groups {file}: has no line for {source} (nor {key})")
        found.append(group[name])
    return np.unique(found, return_inverse=True)[1]
