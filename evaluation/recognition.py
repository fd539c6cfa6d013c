"""Action recognition: linear, nonlinear, fraction and finetune."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import baselines, metrics
from evaluation.context import Context, open_context, output_folder
from evaluation.data import Labelled, Split, with_fraction
from evaluation.features import Features
from evaluation.finetune import Recognition, claim, train_and_test, tuning_of
from evaluation.probe import Head, run_probes
from evaluation.results import (
    BASELINES,
    Outcome,
    Trained,
    coverage,
    describe,
    most_frequent,
    save,
    save_predictions,
    scores,
    truth_labels,
)
from evaluation.settings import Finetune, Fraction, Linear, Nonlinear, Supervised
from objectives.base import FineTuning
from training.processes import on_main

FROZEN = tuple[Features, Features]


def linear(settings: Linear) -> None:
    _probe(settings, "linear")


def nonlinear(settings: Nonlinear) -> None:
    _probe(settings, "nonlinear")


def _probe(settings: Linear | Nonlinear, protocol: str) -> None:
    context = open_context(settings)
    labelled, splits = context.labelled()
    both, others = context.features(splits), baselines.features(context, splits)
    if not context.main:
        return
    head = head_of(context, protocol)
    ours = run_probes(context, labelled, splits, both, head, context.model.name)
    found = {
        name: _joined([run_probes(context, labelled, splits, one, head, BASELINES[name]) for one in draws])
        for name, draws in others.items()
    }
    _finish(context, protocol, labelled, splits, ours, found, both[0].failed | both[1].failed)


def _joined(draws: list[list[Outcome]]) -> list[Outcome]:
    """Several networks' outcomes as one: a draw of weights is one more repetition."""
    return [
        Outcome(
            of_split[0].split,
            of_split[0].rows,
            np.concatenate([o.probabilities for o in of_split]),
            [chosen for o in of_split for chosen in o.chosen],
        )
        for of_split in zip(*draws, strict=True)
    ]


def head_of(context: Context, protocol: str) -> Head:
    if protocol == "linear":
        return Head()
    hidden = getattr(context.settings, "hidden", 0) or context.downstream.hidden
    return Head(hidden=hidden, dropout=context.downstream.dropout)


def _finish(
    context: Context,
    protocol: str,
    labelled: Labelled,
    splits: list[Split],
    ours: list[Outcome],
    others: dict[str, list[Outcome]],
    failed: dict[str, str],
    **more: Any,
) -> None:
    """Score, write and print a classification."""
    settings: Any = context.settings
    truth, groups = truth_labels(settings.permute_labels, labelled, splits), labelled.groups
    evaluated = sum(len(o.rows) for o in ours)
    result = describe(context, protocol, splits, evaluated, failed) | more
    result["scores"] = scores(ours, truth, groups)
    result["baselines"] = {name: scores(found, truth, groups, ours) for name, found in others.items()}
    result["baselines"]["most_frequent"] = most_frequent(splits, labelled, truth)
    folder = output_folder(settings, protocol, context.model, context.dataset)
    save_predictions(folder, ours, context, labelled, others.get("random") or others.get("scratch"))
    save(folder, result)
    lines = [context.model.origin, coverage(context, splits, evaluated, failed), *summary(result)]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def summary(result: dict[str, Any]) -> list[str]:
    """Lines to print of a classification's result."""
    found, given = result["scores"], result["baselines"]
    lines = [f"{'top-1':24}{metrics.Score(**found['top1'])} %", f"{'  mean over classes':24}{100 * found['class_mean']:.1f} %"]  # fmt: skip
    for name, title in BASELINES.items():
        if name in given:
            delta = metrics.Score(**given[name]["delta"])
            score = metrics.Score(**given[name]["top1"])
            lines.append(f"{'  ' + title:24}{score} %: {delta.verdict}, Δ {delta}")
    lines.append(f"{'  most frequent class':24}{100 * given['most_frequent']:.1f} %")
    by_split = found["by_split"] if len(found["by_split"]) > 1 else {}
    return lines + [f"  {name:22}{100 * value:.1f} %" for name, value in by_split.items()]


def finetune(settings: Finetune) -> None:
    context = open_context(settings)
    labelled, splits = context.labelled()
    folder = on_main(lambda: output_folder(settings, "finetune", context.model, context.dataset))
    tuning, recipes = _recipes(settings, context)
    claim(folder, context, settings, tuning, *(one for _, one in recipes), fraction=settings.label_fraction)
    part = settings.label_fraction if settings.label_fraction < 1 else None
    failed: dict[str, str] = {}
    network = context.with_random() if settings.from_scratch else context
    ours = _trained(network, labelled, splits, tuning, folder, failed, part)
    others = {
        name: _trained(context.with_random(), labelled, splits, recipe, folder / name, failed, part)
        for name, recipe in recipes
    }
    if not context.main:
        return
    others |= _size_length(context, labelled, splits, part)
    _finish(network, "finetune", labelled, splits, ours, others, failed, tuning=asdict(tuning))


def _recipes(settings: Supervised, context: Context) -> tuple[FineTuning, list[tuple[str, FineTuning]]]:
    """How the model is trained, and the baseline from scratch: none where the model is random itself."""
    random = settings.from_scratch or context.random() is None
    scratch = [] if random else [("scratch", tuning_of(settings, context, scratch=True))]
    return tuning_of(settings, context, scratch=settings.from_scratch), scratch


def _size_length(
    context: Context, labelled: Labelled, splits: list[Split], part: float | None
) -> dict[str, list[Outcome]]:
    if not context.settings.baselines:
        return {}
    rows = np.unique(np.concatenate([rows for s in splits for rows in (s.train, s.test)]))
    sizes = baselines.size_length(context, rows)
    if sizes is None:
        return {}
    title = BASELINES["size_length"]
    return {"size_length": run_probes(context, labelled, splits, (sizes, sizes), Head(), title, part)}


def _trained(
    context: Context,
    labelled: Labelled,
    splits: list[Split],
    tuning: FineTuning,
    folder: Path,
    failed: dict[str, str],
    share: float | None,
) -> list[Outcome]:
    """A training for each split and seed. Videos that cannot be decoded are added to `failed`."""
    settings: Any = context.settings
    outcomes = []
    for split in splits:
        runs = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            part = split if share is None else with_fraction(split, labelled, share, seed)
            task = Recognition(context, labelled, part, tuning)
            place = folder / f"{split.name}-seed{seed}"
            found, chosen = train_and_test(context, task, tuning, seed, place, settings)
            videos = found.by_video()
            runs.append(Trained(videos.row, videos.x, chosen))
            failed |= found.failed
        outcomes.append(Outcome.of(split, runs))
    return outcomes


def fraction(settings: Fraction) -> None:
    """Scores over label fractions; the folder's result has curves: model → fraction → score."""
    context = open_context(settings)
    labelled, splits = context.labelled()
    folder = on_main(lambda: output_folder(settings, "fraction", context.model, context.dataset))
    run = _by_finetuning if settings.probe == "finetune" else _by_probes
    models, failed = run(settings, context, labelled, splits, folder)
    if not context.main:
        return
    truth = truth_labels(settings.permute_labels, labelled, splits)
    curves: dict[str, dict[str, Any]] = {}
    evaluated = 0
    for name, trained in models.items():
        curves[name] = {}
        for share in settings.fractions:
            outcomes = trained(share)
            curves[name][f"{share:g}"] = scores(outcomes, truth, labelled.groups)
            evaluated = sum(len(o.rows) for o in outcomes)
    save(folder, describe(context, "fraction", splits, evaluated, failed) | {"curves": curves})
    lines = [context.model.origin, coverage(context, splits, evaluated, failed)]
    for name, curve in curves.items():
        lines += [
            f"{name}, {float(share):5.0%} of the labels: {metrics.Score(**found['top1'])} %"
            for share, found in curve.items()
        ]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


Models = dict[str, Callable[[float], list[Outcome]]]


def _by_probes(
    settings: Fraction, context: Context, labelled: Labelled, splits: list[Split], folder: Path
) -> tuple[Models, dict[str, str]]:
    both, others = context.features(splits), baselines.features(context, splits)
    head = head_of(context, settings.probe)

    def of(draws: list[FROZEN], name: str) -> Callable[[float], list[Outcome]]:
        return lambda share: _joined(
            [
                run_probes(context, labelled, splits, one, head, f"{name}, {share:g} of the labels", share)
                for one in draws
            ]
        )

    models = {"model": of([both], "model")}
    models |= {BASELINES[name]: of(draws, BASELINES[name]) for name, draws in others.items()}
    return models, both[0].failed | both[1].failed


def _by_finetuning(
    settings: Fraction, context: Context, labelled: Labelled, splits: list[Split], folder: Path
) -> tuple[Models, dict[str, str]]:
    tuning, recipes = _recipes(settings, context)
    claim(folder, context, settings, tuning, *(one for _, one in recipes), fractions=settings.fractions)
    failed: dict[str, str] = {}
    names = ["model", *(BASELINES[name] for name, _ in recipes)]
    found: dict[str, dict[float, list[Outcome]]] = {name: {} for name in names}
    network = context.with_random() if settings.from_scratch else context
    for share in settings.fractions:  # all processes train together
        place = folder / f"{share:g}"
        found["model"][share] = _trained(network, labelled, splits, tuning, place, failed, share)
        for name, recipe in recipes:
            fresh = context.with_random()
            found[BASELINES[name]][share] = _trained(
                fresh, labelled, splits, recipe, place / name, failed, share
            )
    return {name: by_share.__getitem__ for name, by_share in found.items()}, failed
