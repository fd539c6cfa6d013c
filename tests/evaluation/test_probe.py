"""Splits and classifiers: what may be seen, and what may not."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evaluation import metrics
from evaluation.features import Features
from evaluation.metrics import Hits, Labelled, Split, with_fraction
from evaluation.probe import Head, train_and_test
from evaluation.results import truth_labels
from shards import Dataset, InputError
from tests.evaluation.rendered import Video, write_set

QUICK = Head()


class Many(Labelled):
    """Labels without a data set: 300 videos, 3 classes, two videos a group."""

    def __init__(self, count: int = 300) -> None:
        self.labels = np.arange(count) // 2 % 3
        self.groups = np.arange(count) // 2
        self.split = Split("one", np.arange(count // 2), np.arange(count // 2, count))

    @property
    def classes(self) -> list[str]:
        return ["a", "b", "c"]


def features(labelled: Many, signal: float, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(len(labelled.labels)), 2)
    x = rng.normal(size=(len(row), 6)) + signal * np.eye(6)[labelled.labels[row]]
    return Features(x.astype(np.float32), row, np.tile([0, 1], len(row) // 2), {})


@pytest.mark.parametrize("head", [QUICK, Head(hidden=8, dropout=0.2, lr=1e-2, epochs=30)])
def test_what_can_be_told_apart_is_and_permuted_labels_are_chance(head: Head) -> None:
    many = Many()
    both = features(many, 6.0)
    train, test = both.of(many.split.train), both.of(many.split.test)
    trained = train_and_test(train, test, many, head, seed=0)
    assert (trained.rows == many.split.test).all()
    assert metrics.hits(trained.probabilities, many.labels[trained.rows]).mean() > 0.97
    permuted = truth_labels(True, many, [many.split])
    assert (np.sort(permuted) == np.sort(many.labels)).all()
    right = metrics.hits(trained.probabilities, permuted[trained.rows])
    found = metrics.score([Hits(right[None], many.groups[trained.rows])])
    assert found.low < 1 / 3 < found.high


def test_attention_finds_what_lies_anywhere_on_the_map() -> None:
    """One place of 12, another in every sample, has the class; the mean of the places hardly shows it."""
    many, rng = Many(600), np.random.default_rng(0)
    places = rng.normal(size=(len(many.labels), 12, 8)).astype(np.float32)
    marked = np.concatenate([4 * np.eye(3)[many.labels], np.full((len(many.labels), 1), 4)], 1)
    places[np.arange(len(places)), rng.integers(0, 12, len(places)), :4] = (
        marked  # and a mark that it is this place
    )
    rows = np.arange(len(places))

    def top1(x: np.ndarray, head: Head) -> float:
        both = Features(x.reshape(len(x), -1), rows, np.zeros_like(rows), {})
        train, test = both.of(many.split.train), both.of(many.split.test)
        trained = train_and_test(train, test, many, head, seed=0)
        return float(metrics.hits(trained.probabilities, many.labels[trained.rows]).mean())

    attentive = top1(places, Head(token=8, lr=1e-2, epochs=60, batch_size=64))
    assert attentive > 0.9 and top1(places, Head()) < 0.75 and top1(places.mean(1), Head()) < 0.9


def test_the_test_part_chooses_nothing() -> None:
    """Other test videos, other test labels: the same epoch, decay and classifier."""
    many = Many()
    both = features(many, 0.7)
    train, test = both.of(many.split.train), both.of(many.split.test)
    one = train_and_test(train, test, many, QUICK, seed=0)
    few = test.of(many.split.test[:20])
    many.labels = truth_labels(True, many, [many.split])
    other = train_and_test(train, few, many, QUICK, seed=0)
    assert one.chosen == other.chosen
    assert np.allclose(one.probabilities[:20], other.probabilities)


def test_a_videos_prediction_is_the_mean_of_its_windows() -> None:
    many = Many(30)
    both = features(many, 1.0)
    train, test = both.of(many.split.train), both.of(many.split.test)
    whole = train_and_test(train, test, many, QUICK, seed=0).probabilities
    parts = []
    for start in (0, 1):
        kept = test.start == start
        part = Features(test.x[kept], test.row[kept], test.start[kept], {})
        parts.append(train_and_test(train, part, many, QUICK, seed=0).probabilities)
    assert np.allclose(whole, (parts[0] + parts[1]) / 2)


def test_a_fifth_of_every_class_validates_and_no_group_is_divided() -> None:
    many = Many()
    for seed in range(3):
        held = many.held_out(many.split.train, seed)
        assert (np.bincount(many.labels[many.split.train[held]]) == 10).all()  # of 50 each
        assert (held[0::2] == held[1::2]).all()
    alone = many.held_out(np.array([0, 2, 4]), 0)  # one video a class
    assert not alone.any()


def test_larger_fractions_contain_smaller_ones_and_every_class() -> None:
    many = Many()
    parts = [with_fraction(many.split, many, share, 3).train for share in (0.001, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [3, 15, 75, 150]
    for small, large in pairwise(parts):
        assert np.isin(small, large).all()
        assert len(set(np.bincount(many.labels[small]))) == 1
    assert (with_fraction(many.split, many, 0.1, 4).train != parts[1]).any()


def test_three_splits_folds_and_groups_of_a_data_set(tmp_path: Path) -> None:
    videos = [Video(n % 3, "train") for n in range(12)]
    columns = {f"split{k}": ["test" if n % 3 == k - 1 else "train" for n in range(12)] for k in (1, 2, 3)}
    folder = write_set(tmp_path / "set", videos, splits=columns)
    labelled = Labelled(Dataset(folder))
    splits = labelled.splits(("all",))
    assert [s.name for s in splits] == ["split1", "split2", "split3"]
    assert [s.test.tolist() for s in splits] == [list(range(k, 12, 3)) for k in range(3)]
    with pytest.raises(InputError, match="split 4"):
        labelled.splits(("4",))
    with pytest.raises(InputError, match="not train and test"):
        labelled.splits(())
    groups = tmp_path / "groups.csv"
    groups.write_text(
        "file,scene\n" + "".join(f"{('red', 'green', 'blue')[n % 3]}/{n}.avi,s{n // 4}\n" for n in range(12))
    )
    grouped = Labelled(Dataset(folder), (groups, "scene"))
    folds = grouped.splits((), 3)
    assert sorted(tuple(fold.test) for fold in folds) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert all(set(f.train) | set(f.test) == set(range(12)) for f in folds)
    alone = Labelled(Dataset(folder))  # a group a video: classes are divided evenly
    parts = alone.splits((), 4)
    assert all(np.bincount(alone.labels[fold.test]).tolist() == [1, 1, 1] for fold in parts)
    for ask, few, most in ((alone, 5, 4), (grouped, 4, 3)):  # of four videos a class, and three groups
        with pytest.raises(InputError, match=rf"--folds {few}: choose from 2 to {most}\b"):
            ask.splits((), few)
        assert len(ask.splits((), most)) == most
    for bad, says in ((groups, "nope"), (tmp_path / "none.csv", "none.csv")):
        with pytest.raises(InputError, match=says):
            Labelled(Dataset(folder), (bad, "nope"))
