"""Action recognition: linear, nonlinear, attentive, fraction and finetune; and the baselines that a network has to beat:
random weights, features made by hand, and the videos' size and length.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.context import Context, open_context, union
from evaluation.features import Features
from evaluation.finetune import Recognition, check_folder, train_and_test, tuning_of
from evaluation.handmade import handmade
from evaluation.metrics import Labelled, Split, with_fraction
from evaluation.model import RANDOM, channels
from evaluation.probe import Head, run_probes
from evaluation.results import (
    BASELINES,
    Outcome,
    Trained,
    describe,
    most_frequent,
    save_predictions,
    scores,
    truth_labels,
)
from evaluation.settings import Attentive, Finetune, Fraction, Linear, Nonlinear, Supervised
from evaluation.table import finish
from objectives.base import FineTuning

Outcomes = dict[str, list[Outcome]]  # "" is the model, the others are its baselines


def linear(settings: Linear) -> None:
    _probe(settings, "linear")


def nonlinear(settings: Nonlinear) -> None:
    _probe(settings, "nonlinear")


def attentive(settings: Attentive) -> None:
    _probe(settings, "attentive")


def _probe(settings: Linear | Nonlinear | Attentive, protocol: str) -> None:
    context = open_context(settings, protocol)
    labelled, splits = context.labelled()
    train, failed = _prober(context, labelled, splits, protocol)
    if context.main:
        _finish(context, protocol, labelled, splits, train(None), failed)


def finetune(settings: Finetune) -> None:
    context = open_context(settings, "finetune")
    labelled, splits = context.labelled()
    recipes = _recipes(settings, context)
    check_folder(context, settings, *recipes.values(), fraction=settings.label_fraction)
    share = settings.label_fraction if settings.label_fraction < 1 else None
    failed: dict[str, str] = {}
    found = _trained(context, labelled, splits, recipes, "", share, failed)
    if not context.main:
        return
    sizes = size_length(context, union([rows for s in splits for rows in (s.train, s.test)]))
    if settings.baselines and sizes:
        title, both = BASELINES["size_length"], (sizes, sizes)
        found["size_length"] = run_probes(context, labelled, splits, both, Head(), title, share)
    network = context.with_random() if settings.from_scratch else context
    _finish(network, "finetune", labelled, splits, found, failed, tuning=asdict(recipes[""]))


def fraction(settings: Fraction) -> None:
    """Scores over label fractions; the folder's result has curves: model → fraction → score."""
    context = open_context(settings, "fraction")
    labelled, splits = context.labelled()
    by_share: dict[float, Outcomes] = {}
    if settings.probe == "finetune":
        failed: dict[str, str] = {}
        recipes = _recipes(settings, context)
        check_folder(context, settings, *recipes.values(), fractions=settings.fractions)
        for share in settings.fractions:  # all processes train together
            by_share[share] = _trained(context, labelled, splits, recipes, f"{share:g}", share, failed)
    else:
        train, failed = _prober(context, labelled, splits, settings.probe)
        by_share = {share: train(share) for share in settings.fractions if context.main}
    if not context.main:
        return
    truth = truth_labels(settings.permute_labels, labelled, splits)
    curves: dict[str, dict[str, Any]] = {}
    for share, found in by_share.items():
        for name, outcomes in found.items():
            curve = curves.setdefault(BASELINES.get(name, "model"), {})
            ours = found[""] if name else None
            curve[f"{share:g}"] = scores(outcomes, truth, labelled.groups, ours)
    evaluated = sum(len(outcome.rows) for outcome in found[""])
    finish(context, describe(context, "fraction", splits, evaluated, failed) | {"curves": curves})


def _prober(
    context: Context, labelled: Labelled, splits: list[Split], protocol: str
) -> tuple[Callable[[float | None], Outcomes], dict[str, str]]:
    """Share of the labels → outcomes of probes; and the videos that cannot be decoded. All processes call it together."""
    both, others = context.features(splits), baseline_features(context, splits)
    head = Head()
    if protocol == "attentive":
        head = Head(token=channels(context.model.objective, context.settings.layer, context.downstream.spec))
    if protocol == "nonlinear":
        hidden = getattr(context.settings, "hidden", 0) or context.downstream.hidden
        head = Head(hidden=hidden, dropout=context.downstream.dropout)

    def train(share: float | None) -> Outcomes:
        part = f", {share:g} of the labels" if share else ""
        return {
            name: _joined(
                [
                    run_probes(
                        context,
                        labelled,
                        splits,
                        one,
                        Head() if head.token and name not in ("", "random") else head,
                        BASELINES.get(name, "the model") + part,
                        share,
                    )
                    for one in draws
                ]
            )
            for name, draws in ({"": [both]} | others).items()
        }

    return train, both[0].failed | both[1].failed


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


def _finish(
    context: Context,
    protocol: str,
    labelled: Labelled,
    splits: list[Split],
    found: Outcomes,
    failed: dict[str, str],
    **more: Any,
) -> None:
    """Score, write and print a classification."""
    settings: Any = context.settings
    truth, groups = truth_labels(settings.permute_labels, labelled, splits), labelled.groups
    ours = found.pop("")
    result = describe(context, protocol, splits, sum(len(o.rows) for o in ours), failed) | more
    result["scores"] = scores(ours, truth, groups)
    result["baselines"] = {name: scores(theirs, truth, groups, ours) for name, theirs in found.items()}
    result["baselines"]["most_frequent"] = most_frequent(splits, labelled, truth)
    save_predictions(ours, context, labelled, found.get("random") or found.get("scratch"))
    finish(context, result)


def _recipes(settings: Supervised, context: Context) -> dict[str, FineTuning]:
    """How the model is trained, and the baseline from scratch: none where the model is random itself."""
    recipes = {"": tuning_of(settings, context, scratch=settings.from_scratch)}
    if not settings.from_scratch and context.random():
        recipes["scratch"] = tuning_of(settings, context, scratch=True)
    return recipes


def _trained(
    context: Context,
    labelled: Labelled,
    splits: list[Split],
    recipes: dict[str, FineTuning],
    place: str,
    share: float | None,
    failed: dict[str, str],
) -> Outcomes:
    """A training for each recipe, split and seed, below a place in the result's folder.

    share: of the labels, None for all. Videos that cannot be decoded are added to `failed`.
    """
    settings: Any = context.settings
    outcomes: Outcomes = {name: [] for name in recipes}
    for name, tuning in recipes.items():
        network = context.with_random() if name or settings.from_scratch else context
        for split in splits:
            runs = []
            for seed in range(settings.seed, settings.seed + settings.seeds):
                part = split if share is None else with_fraction(split, labelled, share, seed)
                task = Recognition(network, labelled, part, tuning)
                folder = context.folder / place / name / f"{split.name}-seed{seed}"
                found, chosen = train_and_test(network, task, tuning, seed, folder, settings)
                videos = found.by_video()
                runs.append(Trained(videos.row, videos.x, chosen))
                failed |= found.failed
            outcomes[name].append(Outcome.of(split, runs))
    return outcomes


def baseline_features(context: Context, splits: list[Split]) -> dict[str, list[tuple[Features, Features]]]:
    """Baseline → features of the training and of the test videos, several of what is random. Empty with --no-baselines.

    All processes call it together.
    """
    if not context.settings.baselines:
        return {}
    found = {}
    if not context.settings.checkpoint.startswith(RANDOM):
        found["random"] = [
            context.with_random(draw).features(splits) for draw in range(context.settings.random_draws)
        ]
    found["handmade"] = [handmade(context, splits)]
    sizes = size_length(context, union([rows for s in splits for rows in (s.train, s.test)]))
    if sizes:
        found["size_length"] = [(sizes, sizes)]
    return found


def size_length(context: Context, rows: NDArray[np.int64]) -> Features | None:
    """What needs no picture: a video's width, height, number of frames and frame rate; None where none of them varies."""
    names = ("width", "height", "num_frames", "fps")
    x = np.stack([context.dataset.column(name)[rows].astype(np.float32) for name in names], axis=1)
    x = x[:, x.std(0) > 0]
    return Features(x, rows, np.zeros_like(rows), {}) if x.shape[1] else None
