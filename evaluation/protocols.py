"""The protocols on frozen features: linear, nonlinear, fraction, retrieval."""

from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import metrics, retrieval
from evaluation.bench import Bench, open_bench, output_folder
from evaluation.features import Features
from evaluation.memory import addresses, save_memory
from evaluation.probe import Head, train_and_test
from evaluation.result import Outcome, counted, describe, save, save_predictions, scores
from evaluation.settings import Fraction, Linear, Nonlinear, Retrieval
from evaluation.splits import Labelled, Split, with_fraction
from shards import InputError
from shards.atomic import atomic_write


def linear(settings: Linear) -> None:
    _probe(settings, "linear")


def nonlinear(settings: Nonlinear) -> None:
    _probe(settings, "nonlinear")


def _probe(settings: Linear | Nonlinear, protocol: str) -> None:
    bench = open_bench(settings)
    labelled, splits = bench.labelled()
    both = bench.features(splits)
    fresh = random.features(splits) if (random := bench.random()) else None
    if not bench.main:
        return
    folder = output_folder(settings, protocol, bench.model, bench.dataset)
    head = head_of(bench, protocol)
    outcomes = run_probes(bench, labelled, splits, both, head, bench.model.name)
    evaluated, failed = _seen(both, splits)
    truth = tested_labels(settings.permute_labels, labelled, splits)
    result = describe(bench, protocol, splits, evaluated, failed) | {"scores": scores(outcomes, truth)}
    baselines: dict[str, Any] = {"most_frequent": most_frequent(splits, labelled, truth)}
    random_outcomes = None
    if fresh:
        random_outcomes = run_probes(bench, labelled, splits, fresh, head, "random weights")
        baselines["random"] = scores(random_outcomes, truth)
    if settings.baselines:
        baselines["trivial"] = scores(trivial_outcomes(bench, labelled, splits, head), truth)
    result["baselines"] = baselines
    save_predictions(folder, outcomes, bench, labelled, random_outcomes)
    save(folder, result)
    tqdm.write("\n".join([bench.model.origin, counted(bench, splits, evaluated, failed), *told(result)]))
    tqdm.write(str(folder / "result.json"))


def trivial_outcomes(
    bench: Bench, labelled: Labelled, splits: list[Split], head: Head | None = None
) -> list[Outcome]:
    """Probes of the videos' size and length alone."""
    sizes = bench.trivial(np.unique(np.concatenate([rows for s in splits for rows in (s.train, s.test)])))
    return run_probes(bench, labelled, splits, (sizes, sizes), head or Head(), "size and length")


def head_of(bench: Bench, protocol: str) -> Head:
    if protocol == "linear":
        return Head()
    hidden = getattr(bench.settings, "hidden", 0) or bench.downstream.hidden
    return Head(hidden=hidden, dropout=bench.downstream.dropout, lr=1e-3)


def run_probes(
    bench: Bench,
    labelled: Labelled,
    splits: list[Split],
    features: tuple[Features, Features],
    head: Head,
    name: str,
    share: float | None = None,
) -> list[Outcome]:
    """A probe for each split and seed; share: of the labels, chosen again with each seed."""
    device, first = bench.machine.accelerator.device, bench.settings.seed
    seeds = range(first, first + bench.settings.seeds)
    outcomes = []
    with tqdm(
        total=len(splits) * len(seeds), desc=f"probes of {name}", unit="probe", dynamic_ncols=True
    ) as bar:
        for split in splits:
            test, runs = features[1].of(split.test), []
            for seed in seeds:
                part = split if share is None else with_fraction(split, labelled, share, seed)
                train = features[0].of(part.train)
                runs.append(train_and_test(train, test, labelled, head, seed=seed, device=device))
                bar.update()
            outcomes.append(Outcome.of(split, runs))
    return outcomes


def tested_labels(permute: bool, labelled: Labelled, splits: list[Split]) -> np.ndarray:
    labels = labelled.labels
    for number, split in enumerate(splits if permute else []):
        labels = replace_labels(labels, split, number)
    return labels


def replace_labels(labels: np.ndarray, split: Split, seed: int) -> np.ndarray:
    """The labels with those of the test part shuffled: whatever was learnt then scores at chance."""
    shuffled = labels.copy()
    shuffled[split.test] = np.random.Generator(np.random.Philox(key=seed)).permutation(labels[split.test])
    return shuffled


def most_frequent(splits: list[Split], labelled: Labelled, truth: np.ndarray) -> float:
    """Accuracy of always naming the training part's most frequent class."""
    return float(np.mean([metrics.expected_chance(labelled.labels[s.train], truth[s.test]) for s in splits]))


def told(result: dict[str, Any]) -> list[str]:
    """Lines to print of a classification's result."""
    rows = {"": result["scores"]} | {k: v for k, v in result["baselines"].items() if isinstance(v, dict)}
    names = {"": "top-1", "random": "  random weights", "trivial": "  size and length alone"}
    lines = [f"{names[name]:24}{metrics.Score(**row['top1'])} %" for name, row in rows.items()]
    lines.append(f"{'  most frequent class':24}{100 * result['baselines']['most_frequent']:.1f} %")
    by_split = result["scores"]["by_split"] if len(result["scores"]["by_split"]) > 1 else {}
    return lines + [f"  {name:22}{100 * value:.1f} %" for name, value in by_split.items()]


def fraction(settings: Fraction) -> None:
    """Scores over label fractions; the folder's result has curves: model → fraction → score."""
    if any(not 0 < share <= 1 for share in settings.fractions):
        raise InputError(f"--fractions {settings.fractions}: give shares above 0, at most 1")
    bench = open_bench(settings)
    labelled, splits = bench.labelled()
    both = bench.features(splits)
    fresh = random.features(splits) if (random := bench.random()) else None
    if not bench.main:
        return
    folder = output_folder(settings, "fraction", bench.model, bench.dataset)
    head = head_of(bench, settings.probe)
    truth = tested_labels(settings.permute_labels, labelled, splits)
    curves: dict[str, dict[str, Any]] = {}
    sizes = (
        bench.trivial(np.unique(np.concatenate([both[0].row, both[1].row]))) if settings.baselines else None
    )
    trivial = (sizes, sizes) if sizes else None
    for name, features in {"model": both, "random weights": fresh, "size and length": trivial}.items():
        if features is None:
            continue
        curves[name] = {}
        for share in settings.fractions:
            title = f"{name}, {share:g} of the labels"
            outcomes = run_probes(bench, labelled, splits, features, head, title, share)
            curves[name][f"{share:g}"] = scores(outcomes, truth)
    evaluated, failed = _seen(both, splits)
    save(folder, describe(bench, "fraction", splits, evaluated, failed) | {"curves": curves})
    lines = [bench.model.origin, counted(bench, splits, evaluated, failed)]
    for name, curve in curves.items():
        lines += [
            f"{name}, {float(share):5.0%} of the labels: {metrics.Score(**found['top1'])} %"
            for share, found in curve.items()
        ]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def _seen(both: tuple[Features, Features], splits: list[Split]) -> tuple[int, dict[str, str]]:
    """Videos tested, over all splits, and those that could not be read."""
    evaluated = sum(len(np.unique(both[1].of(split.test).row)) for split in splits)
    return evaluated, both[0].failed | both[1].failed


def retrieve(settings: Retrieval) -> None:
    if not settings.k or min(settings.k) < 1:
        raise InputError(f"--k {settings.k}: name numbers of neighbours, 1 or more")
    bench = open_bench(settings)
    labelled, splits = bench.labelled()
    both = bench.features(splits)
    fresh = random.features(splits) if (random := bench.random()) else None
    p = addresses(bench, splits[0])
    if not bench.main:
        return
    folder = output_folder(settings, "retrieval", bench.model, bench.dataset)
    truth = tested_labels(settings.permute_labels, labelled, splits)
    recalls = _recalls(settings, labelled, truth, splits, both)
    baselines: dict[str, Any] = {
        "chance": {
            f"{k}": float(
                np.mean([retrieval.chance(truth[s.test], labelled.labels[s.train], k) for s in splits])
            )
            for k in settings.k
        }
    }
    if fresh:
        baselines["random"] = _recalls(settings, labelled, truth, splits, fresh)
    if settings.baselines:
        trivial = (bench.trivial(np.unique(both[0].row)), bench.trivial(np.unique(both[1].row)))
        baselines["trivial"] = _recalls(replace(settings, centre=True), labelled, truth, splits, trivial)
    evaluated, failed = _seen(both, splits)
    nearest = _nearest(bench, splits[0], both, settings.centre)
    result = describe(bench, "retrieval", splits, evaluated, failed)
    save(folder, result | {"recall": recalls, "baselines": baselines, "nearest": nearest})
    tested = both[1].of(splits[0].test).by_video()
    if p:
        save_memory(folder, bench, p, labelled.labels)
    with atomic_write(folder / "features.npz") as aside, aside.open("wb") as handle:
        np.savez(handle, x=tested.x, label=labelled.labels[tested.row])
    lines = [bench.model.origin, counted(bench, splits, evaluated, failed)]
    for name, found in {"videos": recalls, "  random weights": baselines.get("random")}.items():
        if found:
            lines += [f"{name:18}R@{k:3} {metrics.Score(**found['video'][str(k)])} %" for k in settings.k]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def _recalls(
    settings: Retrieval,
    labelled: Labelled,
    truth: np.ndarray,
    splits: list[Split],
    features: tuple[Features, Features],
) -> dict[str, dict[str, Any]]:
    """per "video" and per "clip" → k → Score. A video's clips weigh as one where their interval is drawn."""
    found: dict[str, dict[str, Any]] = {}
    for per in ("video", "clip"):
        by_k: dict[int, list[np.ndarray]] = {k: [] for k in settings.k}
        for split in splits:
            gallery, query = features[0].of(split.train), features[1].of(split.test)
            if per == "video":
                gallery, query = gallery.by_video(), query.by_video()
            right = retrieval.recall(
                query.x,
                truth[query.row],
                gallery.x,
                labelled.labels[gallery.row],
                settings.k,
                centre=settings.centre,
            )
            for k, hit_Q in right.items():
                place = np.unique(query.row, return_inverse=True)[1]
                by_k[k].append((np.bincount(place, hit_Q) / np.bincount(place))[None])
        found[per] = {str(k): metrics.score(hits).as_dict() for k, hits in by_k.items()}
    return found


def _nearest(
    bench: Bench, split: Split, features: tuple[Features, Features], centre: bool
) -> dict[str, list[str]]:
    """The key of each test video → those of its three nearest training videos, for the report's gallery."""
    gallery, query = features[0].of(split.train).by_video(), features[1].of(split.test).by_video()
    places = retrieval.neighbours(query.x, gallery.x, 3, centre=centre)
    keys = np.array(bench.dataset.keys(gallery.row), dtype=object)
    return dict(zip(bench.dataset.keys(query.row), keys[places].tolist(), strict=True))
