"""A result on disk: result.json, to be read by people and by the report, and predictions.npz, to be fused.

result.json       protocol, checkpoint, data, counts, scores with their intervals, baselines, confusion, and by which
                  command, commit and machine it was made
predictions.npz   key (M,), label (M,), split (M,), probabilities (S, M, C); random, the same of random weights
"""

import re
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.context import Context, write_arrays
from evaluation.metrics import Hits, Labelled, Split
from objectives import checkpoint
from shards import InputError
from shards.documents import (
    TEXT,
    AllOf,
    AnyOf,
    Each,
    Is,
    check_numbers,
    number,
    one_of,
    problem,
    read_arrays,
    read_json,
    whole,
)
from shards.several import prefixes
from training.speed import machine
from training.state import ROWS, read_rows

BASELINES = {
    "random": "random weights",
    "scratch": "from scratch",
    "handmade": "hand-made features",
    "size_length": "size and length",
}

PREDICTIONS = {
    "key": "text M",
    "label": "whole M",
    "split": "text M",
    "probabilities": "real S M C",
    "random?": "real R M C",
    "group?": "whole M",
}

_SCORE = AllOf(
    {"value": number(), "low": number(), "high": number()},
    Each(one_of("value", "low", "high", "spread"), number()),
)
_SOME = Is("an object that is not empty", lambda value: isinstance(value, dict) and bool(value))
_SQUARE = Is(
    "a square of counts",
    lambda value: (
        isinstance(value, list)
        and not problem(value, [[whole(0)]])
        and {len(row) for row in value} == {len(value)}
    ),
)
_SHARE = Is(
    "a share above 0",
    lambda value: isinstance(value, str) and re.fullmatch(r"0?\.\d+|1|\d+e-\d+", value) is not None,
)
_CURVE = AllOf(_SOME, Each(_SHARE, {"top1": _SCORE, "delta?": _SCORE, "class_mean?": number(0, 1)}))
_NUMBER = Is("a number", lambda value: type(value) in (int, float))  # NaN where it was not logged
_RESULT = {
    "protocol": TEXT,
    "checkpoint": AnyOf(TEXT, [TEXT]),
    "objective": TEXT,
    "model": TEXT,
    "origin?": TEXT,
    "data": {"name": TEXT, "fingerprint": TEXT, "classes": [str]},
    "splits": Each(TEXT, dict),
    "evaluated": {"videos": whole(0), "of": whole(0), "unreadable?": Each(str, str)},
    "settings": {"layer?": TEXT, "data?": TEXT},
    "windows?": {"span": whole(1)},
    "scores?": AllOf(_SOME, {"confusion?": _SQUARE, "class_mean?": number(0, 1)}),
    "class_mean?": number(0, 1),
    "confusion?": _SQUARE,
    "recall?": {"video": _SOME},
    "baselines?": {f"{name}?": dict for name in BASELINES},
    "curves?": AllOf({"model": _CURVE}, Each(TEXT, _CURVE)),
    "points?": AllOf(
        Is("a list that is not empty", bool),
        [{"step": whole(0), "downstream": _SCORE, "pretraining_top1?": _NUMBER}],
    ),
    "random?": _SCORE,
    "nearest?": Each(str, [str]),
    "made?": dict,
}


@dataclass(frozen=True)
class Trained:
    """probabilities: (M, C) of the tested videos in the order of rows (M,). chosen: what the validation part chose."""

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One split's predictions: probabilities (S, M, C) of the videos rows (M,)."""

    split: Split
    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    chosen: list[dict[str, Any]]

    @classmethod
    def of(cls, split: Split, runs: list[Trained]) -> "Outcome":
        return cls(split, runs[0].rows, np.stack([r.probabilities for r in runs]), [r.chosen for r in runs])


def hits_of(
    outcomes: list[Outcome], labels: NDArray[np.int64], groups: NDArray[np.int64], k: int = 1
) -> list[Hits]:
    """Which test videos of each split are right, by every seed."""
    return [
        Hits(np.stack([metrics.hits(p, labels[o.rows], k) for p in o.probabilities]), groups[o.rows])
        for o in outcomes
    ]


def scores(
    outcomes: list[Outcome],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    ours: list[Outcome] | None = None,
) -> dict[str, Any]:
    """top1, top5 where there are more than five classes, class_mean, and the confusion over all splits and seeds.

    ours: outcomes of the model under test, where `outcomes` are a baseline's; delta is then ours − theirs of top1.
    """
    C = outcomes[0].probabilities.shape[2]
    top = {"top1": 1} | ({"top5": 5} if C > 5 else {})
    by_k = {name: hits_of(outcomes, labels, groups, k) for name, k in top.items()}
    found: dict[str, Any] = {name: metrics.score(hits).as_dict() for name, hits in by_k.items()}
    if ours:
        found["delta"] = metrics.difference(hits_of(ours, labels, groups), by_k["top1"]).as_dict()
    counts = sum(metrics.confusion(p, labels[o.rows]) for o in outcomes for p in o.probabilities)
    assert isinstance(counts, np.ndarray)
    return found | {
        "class_mean": metrics.class_mean(counts),
        "by_split": {
            o.split.name: float(one.values.mean()) for o, one in zip(outcomes, by_k["top1"], strict=True)
        },
        "confusion": counts.tolist(),
        "chosen": [o.chosen for o in outcomes],
    }


def most_frequent(splits: list[Split], labelled: Labelled, truth: NDArray[np.int64]) -> float:
    """Accuracy of always naming the training part's most frequent class."""
    return float(np.mean([metrics.expected_chance(labelled.labels[s.train], truth[s.test]) for s in splits]))


def truth_labels(permute: bool, labelled: Labelled, splits: list[Split]) -> NDArray[np.int64]:
    """The labels; permute: those of each test part shuffled, so that what was learnt scores at chance."""
    labels = labelled.labels.copy()
    for place, split in enumerate(splits if permute else []):
        rng = np.random.Generator(np.random.Philox(key=place))
        labels[split.test] = rng.permutation(labels[split.test])
    return labels


def describe(
    context: Context, protocol: str, splits: list[Split], evaluated: int, failed: dict[str, str]
) -> dict[str, Any]:
    """What every result says of itself. evaluated: videos that were tested, over all splits."""
    dataset, model = context.dataset, context.model
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(context.settings).items()}
    down = context.downstream
    windows = {"train": asdict(down.train), "test": asdict(down.test), "span": down.spec.span}
    return {
        "protocol": protocol,
        "checkpoint": context.settings.checkpoint,
        "objective": model.objective.name,
        "model": model.name,
        "origin": model.origin,
        "weights": model.fingerprint,
        "config": asdict(model.objective.config),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint, "classes": list(dataset.classes)},
        "splits": {s.name: {"train": len(s.train), "test": len(s.test)} for s in splits},
        "evaluated": {"videos": evaluated, "of": sum(len(s.test) for s in splits), "unreadable": failed},
        "windows": windows | {"average": down.average},
        "settings": settings,
        "seen_in_pretraining": seen_in_pretraining(context, splits),
        "made": {
            "date": time.strftime("%Y-%m-%d"),
            "command": shlex.join(sys.argv),
            "commit": checkpoint.git_commit(),
            "machine": machine(),
        },
    }


def seen_in_pretraining(context: Context, splits: list[Split]) -> int:
    """How many test videos the checkpoint was pretrained on; the user is warned of them."""
    folder, dataset = context.model.folder, context.dataset
    if folder is None or not (folder / ROWS).is_file():
        return 0
    sets = str(checkpoint.read_config(folder)["settings"].get("data", "")).split(" / ")
    pretrained = [one.rpartition(" ")[::2] for one in sets]  # name and fingerprint of each
    keys: set[str] = set()
    for prefix, (name, digest) in zip(prefixes([name for name, _ in pretrained]), pretrained, strict=True):
        if name == dataset.name or (digest and dataset.fingerprint.startswith(digest)):
            keys |= {key.removeprefix(prefix) for key in read_rows(folder) if key.startswith(prefix)}
    tested = dataset.keys(np.unique(np.concatenate([split.test for split in splits])))
    found = sum(key in keys for key in tested)
    if found and context.main:
        print(
            f"warning: {found} of {len(tested)} test videos were seen in pretraining (without labels): pretrain on the "
            "training split alone, train.py --split train",
            file=sys.stderr,
        )
    return found


def save_predictions(
    outcomes: list[Outcome], context: Context, labelled: Labelled, random: list[Outcome] | None
) -> None:
    rows = np.concatenate([o.rows for o in outcomes])
    of = {"probabilities": outcomes} | ({"random": random} if random else {})
    found: dict[str, Any] = {
        name: np.concatenate([o.probabilities for o in some], axis=1) for name, some in of.items()
    }
    found |= {"key": np.array(context.dataset.keys(rows)), "label": labelled.labels[rows]}
    found |= {"split": np.concatenate([[o.split.name] * len(o.rows) for o in outcomes])}
    write_arrays(context.folder / "predictions.npz", group=labelled.groups[rows], **found)


def read_predictions(folder: Path) -> dict[str, NDArray]:
    """A result's predictions.npz. Raises InputError where it has none, or they cannot be."""
    path, fix = folder / "predictions.npz", "linear, nonlinear and finetune leave predictions: evaluate again"
    found = read_arrays(path, PREDICTIONS, fix)
    if not all(value.size for value in found.values()):
        raise InputError(f"{path}: holds no predictions; {fix}")
    check_numbers(path, found["label"], found["probabilities"].shape[2], fix)
    return found


def same_videos(one: dict[str, NDArray], other: dict[str, NDArray]) -> bool:
    """Whether predictions are of the same videos, splits and classes."""
    alike = all(np.array_equal(one[name], other[name]) for name in ("key", "label", "split"))
    return alike and one["probabilities"].shape[2] == other["probabilities"].shape[2]


def hits_by_split(predictions: dict[str, NDArray], p_SMC: NDArray, k: int = 1) -> list[Hits]:
    """Which of these videos are right, by every seed; of splits in the order of their names."""
    label, split = predictions["label"], predictions["split"]
    group = predictions.get("group", np.arange(len(label)))
    hit_SM = np.stack([metrics.hits(p_MC, label, k) for p_MC in p_SMC])
    return [Hits(hit_SM[:, split == name], group[split == name]) for name in np.unique(split)]


def load(folder: Path) -> dict[str, Any]:
    """A result.json, without what is null in it. Raises InputError where the folder has none, or it says what cannot be."""
    path, fix = folder / "result.json", "evaluate again"
    found = {name: value for name, value in read_json(path, _RESULT, fix).items() if value is not None}
    if wrong := problem(found, _headline(found)):
        raise InputError(f"{path}: {wrong}; {fix}")
    return found


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """The shape of the score that a table shows of a result, and of the baselines beside it: they say the same."""
    given = result.get("baselines", {})
    beside: dict[str, dict[str, Any]] = {f"{name}?": {"delta?": _SCORE} for name in BASELINES}
    if "recall" in result:
        k = next(iter(result["recall"]["video"]))
        per = {"video": {k: _SCORE}}
        shapes = {name: shape | per for name, shape in beside.items()}
        return {"recall": per, "baselines": {"chance": {k: number()}} | shapes}
    if "scores" in result:
        name = next(iter(result["scores"]))
        score = {name: _SCORE}
        shapes = {
            one: shape | ({"scores": score} if "scores" in (given.get(one[:-1]) or {}) else score)
            for one, shape in beside.items()
        }
        return {"scores": score, "baselines?": shapes | {"most_frequent?": number()}}
    return {}


def results_below(folders: Iterable[Path]) -> list[Path]:
    """The folders that hold a result: each of these, or those inside it. Raises InputError where there is none."""
    found = []
    for folder in folders:
        here = [folder] if (folder / "result.json").exists() else []
        below = here or sorted(path.parent for path in folder.glob("*/result.json"))
        if not below:
            raise InputError(f"{folder}: has no result of evaluate.py")
        found += below
    return found
