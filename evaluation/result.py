"""A result on disk: result.json, to be read by people and by the report, and predictions.npz, to be fused.

result.json       protocol, checkpoint, data, counts, scores with their intervals, baselines, confusion
predictions.npz   key (M,), label (M,), split (M,), probabilities (S, M, C); random, the same of random weights
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.bench import Bench
from evaluation.probe import Trained
from evaluation.splits import Labelled, Split
from shards import InputError
from shards.aside import written_aside


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


def scores(outcomes: list[Outcome], labels: NDArray[np.int64]) -> dict[str, Any]:
    """top1, top5 where there are more than five classes, class_mean, and the confusion over all splits and seeds."""
    C = outcomes[0].probabilities.shape[2]
    top = {"top1": 1} | ({"top5": 5} if C > 5 else {})
    found: dict[str, Any] = {}
    for name, k in top.items():
        by_split = [np.stack([metrics.hits(p, labels[o.rows], k) for p in o.probabilities]) for o in outcomes]
        found[name] = metrics.score(by_split).as_dict()
    counts = sum(metrics.confusion(p, labels[o.rows]) for o in outcomes for p in o.probabilities)
    assert isinstance(counts, np.ndarray)
    by_split_top1 = {
        o.split.name: float(np.mean([metrics.hits(p, labels[o.rows]).mean() for p in o.probabilities]))
        for o in outcomes
    }
    return found | {
        "class_mean": metrics.class_mean(counts),
        "by_split": by_split_top1,
        "confusion": counts.tolist(),
        "chosen": [o.chosen for o in outcomes],
    }


def describe(
    bench: Bench, protocol: str, splits: list[Split], evaluated: int, failed: dict[str, str]
) -> dict[str, Any]:
    """What every result says of itself. evaluated: videos that were tested, over all splits."""
    dataset, model = bench.dataset, bench.model
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(bench.settings).items()}
    down = bench.downstream
    windows = {"train": asdict(down.train), "test": asdict(down.test), "span": down.spec.span}
    return {
        "protocol": protocol,
        "checkpoint": bench.settings.checkpoint,
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
        "date": time.strftime("%Y-%m-%d"),
    }


def save(folder: Path, result: dict[str, Any]) -> None:
    with written_aside(folder / "result.json") as aside:
        aside.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_predictions(
    folder: Path, outcomes: list[Outcome], bench: Bench, labelled: Labelled, random: list[Outcome] | None
) -> None:
    rows = np.concatenate([o.rows for o in outcomes])
    of = {"probabilities": outcomes} | ({"random": random} if random else {})
    found: dict[str, Any] = {
        name: np.concatenate([o.probabilities for o in some], axis=1) for name, some in of.items()
    }
    with written_aside(folder / "predictions.npz") as aside, aside.open("wb") as handle:
        np.savez_compressed(
            handle,
            key=np.array(bench.dataset.keys(rows)),
            label=labelled.labels[rows],
            split=np.concatenate([[o.split.name] * len(o.rows) for o in outcomes]),
            **found,
        )


def load(folder: Path) -> dict[str, Any]:
    """A result.json; raises InputError where the folder has none."""
    try:
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: has no result of evaluate.py ({error})") from error


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


def counted(bench: Bench, splits: list[Split], evaluated: int, failed: dict[str, str]) -> str:
    """A line to print: how many videos were tested of how many, and which could not be read."""
    of = sum(len(split.test) for split in splits)
    line = f"{evaluated} of {of} test videos evaluated"
    if failed:
        line += f"; {len(failed)} videos cannot be decoded: {', '.join(sorted(failed)[:5])}"
    return line
