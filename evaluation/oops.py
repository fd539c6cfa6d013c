"""Unintentional action: is a second of video before, at, or after its failure? (MemDPC section 5.7 and appendix B;
Epstein et al. 2020, the Oops data set.)

Clips last a second, one every quarter of a second. A clip's feature is that of the method's window which ends with it:
of methods that predict, [z_t, ẑ_t] of the last block. A video's failure is put in the middle of the clip that is most
likely a transition.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import metrics
from evaluation.bench import Bench, open_bench, output_folder
from evaluation.features import Features, extract
from evaluation.model import SURPRISE
from evaluation.probe import Classifier, Head, fit
from evaluation.result import describe, save
from evaluation.settings import Oops
from evaluation.splits import Split
from pipelines.windows import Windows
from shards import Dataset, InputError

CLASSES = ("intentional", "transition", "unintentional")
CLIP, HOP = 1.0, 0.25  # seconds
WITHIN = (0.25, 1.0)  # seconds, of localisation


def clip_begins(seconds: float) -> NDArray[np.float64]:
    """First moments, in seconds, of a video's clips; a video shorter than a clip has one."""
    return np.arange(0, max(seconds - CLIP, 0) + 1e-6, HOP)


def classify(begins: NDArray[np.float64], failure: float) -> NDArray[np.int64]:
    """The class of each clip [begin, begin + 1 s): 0 ends before the failure, 1 holds it, 2 begins after it."""
    return np.where(begins + CLIP <= failure, 0, np.where(begins > failure, 2, 1)).astype(np.int64)


def locate(begins: NDArray[np.float64], p_transition: NDArray[np.float64]) -> float:
    """The moment, in seconds, at which a video's failure is guessed."""
    return float(begins[p_transition.argmax()] + CLIP / 2)


def oops(settings: Oops) -> None:
    bench = open_bench(settings)
    if hasattr(bench.model.objective, SURPRISE) and not settings.layer:
        bench = replace(bench, settings=replace(settings, layer=SURPRISE))
    split, failures, unannotated = annotated(bench.dataset, settings)
    train, test = (_features(bench, rows) for rows in (split.train, split.test))
    fresh = bench.random() if settings.baselines else None
    random = (_features(fresh, split.train), _features(fresh, split.test)) if fresh else None
    if not bench.main:
        return
    folder = output_folder(settings, "oops", bench.model, bench.dataset)
    if settings.permute_labels:
        failures = failures.copy()
        failures[split.test] = np.random.Generator(np.random.Philox(key=0)).permutation(failures[split.test])
    result = describe(bench, "oops", [split], len(np.unique(test.row)), train.failed | test.failed)
    result |= {"unannotated": unannotated, **_scores(bench, train, test, failures)}
    if random:
        result["baselines"] = {"random": _scores(bench, random[0], random[1], failures)}
    save(folder, result)
    lines = [bench.model.origin, f"{len(np.unique(test.row))} of {len(split.test)} test videos evaluated; "
             f"{unannotated} have no failure time"]  # fmt: skip
    for name, found in {"": result, "  random weights": result.get("baselines", {}).get("random")}.items():
        if found:
            lines += [
                f"{name or what:24}{metrics.Score(**found['scores'][what])} %" for what in found["scores"]
            ]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def annotated(dataset: Dataset, settings: Oops) -> tuple[Split, NDArray[np.float64], int]:
    """The annotated videos of the train and val split; (rows,) failure times; how many have none."""
    try:
        failures, parts = dataset.column("failure_time").astype(np.float64), dataset.column("split")
    except InputError as error:
        raise InputError(
            f"{dataset.path}: is no data set of fails ({error}); make it with tools/make_shards.py --layout oops"
        ) from error
    usable = np.isin(np.arange(len(dataset)), dataset.select())
    test = next((name for name in ("val", "test") if name in set(parts)), "val")
    rows = [np.flatnonzero(usable & (parts == name) & ~np.isnan(failures)) for name in ("train", test)]
    if not all(len(one) for one in rows):
        raise InputError(f"{dataset.path}: has no annotated videos in train and {test}")
    without = int((usable & np.isnan(failures) & np.isin(parts, ("train", test))).sum())
    return Split("split", *rows), failures, without


def _features(bench: Bench, rows: NDArray[np.int64]) -> Features:
    """One window for each clip, ending where the clip ends; `start` is the clip's beginning in milliseconds."""
    dataset, plan = bench.dataset, bench.downstream.plan
    fps, num_frames = dataset.column("fps"), dataset.column("num_frames")
    found = [
        (int(row), round((begin + CLIP) * fps[row]) - plan.span, begin)
        for row in rows
        for begin in clip_begins(num_frames[row] / fps[row])
    ]
    row, start, begin = (np.array(values) for values in zip(*found, strict=True))
    # distinct clips of a short window may share a start where they end beyond the video
    windows = Windows(row, start, np.zeros_like(row))
    features = extract(bench.model, dataset, windows, plan, bench.machine, bench.settings.layer)
    begins = {(r, s): b for r, s, b in zip(row.tolist(), start.tolist(), begin.tolist(), strict=True)}
    milliseconds = [
        round(1000 * begins[pair])
        for pair in zip(features.row.tolist(), features.start.tolist(), strict=True)
    ]
    return replace(features, start=np.array(milliseconds))


def _scores(bench: Bench, train: Features, test: Features, failures: NDArray[np.float64]) -> dict[str, Any]:
    """Accuracy over clips (a video weighs as one in the interval), their mean over classes, and localisation."""
    y = _classes(train, failures)
    counts = np.bincount(y, minlength=3)
    # transitions are rare: as many as the mean of the other two
    times = max(1, round((counts[0] + counts[2]) / 2 / max(counts[1], 1)))
    weights = np.where(y == 1, times, 1)
    hits: dict[str, list[NDArray]] = {name: [] for name in ("clips", *(f"within {s:g} s" for s in WITHIN))}
    confusion = np.zeros((3, 3), np.int64)
    truth = _classes(test, failures)
    videos, place = np.unique(test.row, return_inverse=True)
    for seed in range(bench.settings.seed, bench.settings.seed + bench.settings.seeds):
        held = _held_out(train.row, seed)

        def judge(model: Classifier, held: NDArray = held) -> tuple[float, float]:
            p_NC = model.predict(train.x[held])
            return metrics.class_mean(metrics.confusion(p_NC, y[held])), 0.0

        model, _ = fit(
            train.x,
            y,
            held,
            3,
            Head(lr=1e-3),
            judge,
            seed=seed,
            device=bench.machine.accelerator.device,
            weights_N=weights,
        )
        p_NC = model.predict(test.x)
        confusion += metrics.confusion(p_NC, truth)
        hits["clips"].append(np.bincount(place, metrics.hits(p_NC, truth)) / np.bincount(place))
        guesses = [locate(test.start[place == v] / 1000, p_NC[place == v, 1]) for v in range(len(videos))]
        for seconds in WITHIN:
            hits[f"within {seconds:g} s"].append(
                (np.abs(np.array(guesses) - failures[videos]) <= seconds) * 1.0
            )
    scores = {name: metrics.score([np.stack(found)]).as_dict() for name, found in hits.items()}
    return {"scores": scores, "class_mean": metrics.class_mean(confusion), "confusion": confusion.tolist()}


def _classes(features: Features, failures: NDArray[np.float64]) -> NDArray[np.int64]:
    begins = features.start / 1000
    return np.array(
        [classify(begins[i : i + 1], failures[row])[0] for i, row in enumerate(features.row)], dtype=np.int64
    )


def _held_out(row_N: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    videos = np.random.Generator(np.random.Philox(key=seed)).permutation(np.unique(row_N))
    return np.isin(row_N, videos[: len(videos) // 5])
