"""Which videos train the classifier and which test it."""

import csv
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from shards import Dataset, InputError

NUMBERED = ("1", "2", "3")
HELD_OUT = 0.2  # of the training videos, to choose epoch and regularisation by
_SOURCE = re.compile(r"_c\d+$")  # UCF101: v_Archery_g08_c01 and …_c02 are cut from one source


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
        rows = self.dataset.select()
        rows = rows[self.labels[rows] >= 0]
        groups = np.unique(self.groups[rows])
        if not 2 <= folds <= len(groups):
            raise InputError(f"--folds {folds}: choose from 2 to the number of groups, {len(groups)}")
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
