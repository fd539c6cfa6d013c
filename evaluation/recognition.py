"""Action recognition: linear, nonlinear, attentive, fraction and finetune; and the baselines that a network has to beat.

Baselines are random weights, features made by hand, and the videos' size and length.
Letters: B clips, V views, T frames a view, H W pixels, D features.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.context import Context, open_context, union
from evaluation.features import Features, extract
from evaluation.finetune import Recognition, check_folder, train_and_test, tuning_of
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
from pipelines import colour
from pipelines.eval_clips import EvalClips, EvalLayout
from pipelines.views import ViewSpec

Outcomes = dict[str, list[Outcome]]  # "" is the model, the others are its baselines
cv2: Any = import_module("cv2") if find_spec("cv2") else None  # OpenCV is an extra
SIZE, CELLS = 64, 2


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


def handmade(context: Context, splits: list[Split]) -> tuple[Features, Features]:
    """Features of the clips that the network is shown, in grey and small."""
    spec = hand_spec(context.downstream.spec)
    found = []
    for part in ("train", "test"):
        layout: EvalLayout = replace(getattr(context.downstream, part), crops=1)
        clips = EvalClips.of(context.dataset, union([getattr(s, part) for s in splits]), spec, layout)
        found.append(extract(None, context.dataset, clips, spec, context.compute, "", measure))
    return found[0].by_video(), found[1].by_video()


def hand_spec(spec: ViewSpec) -> ViewSpec:
    """The frames of a method's spec, as small RGB pictures."""
    return replace(spec, modality="rgb", levels="imagenet", size=SIZE)


def measure(views_BVCTHW: Tensor) -> Tensor:
    """RGB normalised as for ImageNet → (B, D): frame differences, space-time gradients, and with OpenCV optical flow.

    Of each quarter of the picture: a histogram of |difference| of consecutive frames in eight bins (0 to 1 in powers of
    two); one of the gradients' directions in eight bins, weighted by their length, and of their slope in time in four;
    of flow (dense inverse search) directions in eight bins weighted by speed, and mean, deviation, median and 95th
    percentile of speed. Flow's mean and deviation over time are given.
    """
    std, mean = (torch.tensor(of).float() for of in (colour.IMAGENET_STD, colour.IMAGENET_MEAN))
    weights = torch.tensor((0.299, 0.587, 0.114))
    rgb = views_BVCTHW.float().cpu().movedim(2, -1) * std + mean
    grey_BVTHW = (rgb @ weights).clamp(0, 1).numpy()
    return torch.from_numpy(np.stack([_of_clip(clip) for clip in grey_BVTHW]).astype(np.float32))


def _of_clip(grey_VTHW: NDArray[np.float32]) -> NDArray[np.float64]:
    grey_VTHW = grey_VTHW if grey_VTHW.shape[1] > 1 else grey_VTHW.reshape(1, -1, *grey_VTHW.shape[2:])
    if grey_VTHW.shape[1] == 1:  # a still: nothing moves
        grey_VTHW = np.repeat(grey_VTHW, 2, axis=1)
    moved = np.abs(np.diff(grey_VTHW, axis=1))
    edges = [0, *2.0 ** np.arange(-7, 0), 1.01]
    parts = [np.histogram(cell, edges)[0] / cell.size for cell in _cells(moved)]
    gt, gy, gx = np.gradient(grey_VTHW, axis=(1, 2, 3))
    length = np.hypot(gx, gy)
    direction, slope = np.arctan2(gy, gx), np.arctan2(gt, length + 1e-6)
    whole = np.sqrt(length**2 + gt**2)
    for one, two, lengths, all_lengths in zip(*map(_cells, (direction, slope, length, whole)), strict=True):
        parts.append(np.histogram(one, 8, (-np.pi, np.pi), weights=lengths)[0] / lengths.size)
        parts.append(np.histogram(two, 4, (-np.pi / 2, np.pi / 2), weights=all_lengths)[0] / lengths.size)
    if cv2 is not None:
        parts.append(_flow((grey_VTHW * 255).astype(np.uint8)))
    return np.concatenate(parts)


def _flow(grey_VTHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found = []
    for view in grey_VTHW:
        for one, two in pairwise(view):
            flow = method.calc(np.ascontiguousarray(one), np.ascontiguousarray(two), None)
            speed, direction = np.hypot(flow[..., 0], flow[..., 1]), np.arctan2(flow[..., 1], flow[..., 0])
            cells = [
                np.histogram(angle, 8, (-np.pi, np.pi), weights=fast)[0] / fast.size
                for angle, fast in zip(_cells(direction), _cells(speed), strict=True)
            ]
            levels = [speed.mean(), speed.std(), np.median(speed), np.percentile(speed, 95)]
            found.append(np.concatenate([*cells, levels]))
    return np.concatenate([np.mean(found, axis=0), np.std(found, axis=0)])


def _cells(values: NDArray) -> list[NDArray]:
    """The quarters of the picture, whose sides are the last two."""
    return [cell for row in np.array_split(values, CELLS, -2) for cell in np.array_split(row, CELLS, -1)]
