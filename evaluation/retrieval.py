"""Nearest neighbours: does a test video find one of its class among the training videos?

Letters: Q queries, G gallery, D features.

The retrieval of a network with a memory (MemDPC) also leaves memory.npz (its appendix E): usage (k,), the mean of p over
all training clips; norm (k,), ‖M‖; p (M, k), each training video's mean, with label (M,); slot (n,), the n most used;
key (n, 3), start (n, 3) and share (n, 3) of the clips that address each most.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import baselines, metrics
from evaluation.context import Context, open_context, output_folder
from evaluation.data import Labelled, Split
from evaluation.features import Features
from evaluation.metrics import Hits
from evaluation.model import ADDRESSES
from evaluation.results import BASELINES, coverage, describe, save, truth_labels
from evaluation.settings import Retrieval
from pipelines.eval_clips import EvalLayout
from shards import InputError
from shards.atomic import atomic_write

KS = (1, 5, 10, 20, 50)
SLOTS, CLIPS = 6, 3  # shown of a memory: the most used slots, and the clips that address each most


def neighbours(query_QD: NDArray, gallery_GD: NDArray, k: int, *, centre: bool = False) -> NDArray[np.int64]:
    """(Q, min(k, G)) places in the gallery, nearest first by cosine; ties go to the lower place.

    centre: the gallery's mean is subtracted from both first, since features of one network share a large part.
    """
    mean = gallery_GD.mean(0) if centre else 0.0
    query, gallery = (_unit(np.asarray(x, dtype=np.float32) - mean) for x in (query_QD, gallery_GD))
    found = []
    for first in range(0, len(query), 1024):
        similarity = (query[first : first + 1024] @ gallery.T).astype(np.float32)
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


def _unit(x: NDArray) -> NDArray[np.float32]:
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def recall(
    query_QD: NDArray,
    query_labels: NDArray,
    gallery_GD: NDArray,
    gallery_labels: NDArray,
    ks: Sequence[int] = KS,
    *,
    centre: bool = False,
) -> dict[int, NDArray[np.float64]]:
    """k → (Q,), 1 where one of the k nearest has the query's label."""
    nearest = neighbours(query_QD, gallery_GD, max(ks), centre=centre)
    right = gallery_labels[nearest] == query_labels[:, None]
    return {k: right[:, :k].any(1).astype(np.float64) for k in ks}


def chance(query_labels: NDArray, gallery_labels: NDArray, k: int) -> float:
    """Expected recall of a random order of the gallery."""
    G = len(gallery_labels)
    same = np.bincount(gallery_labels, minlength=query_labels.max() + 1)[query_labels].astype(np.float64)
    missed = np.ones(len(query_labels))
    for taken in range(min(k, G)):
        missed *= np.maximum(G - same - taken, 0) / (G - taken)
    return float(1 - missed.mean())


def retrieve(settings: Retrieval) -> None:
    if not settings.k or min(settings.k) < 1:
        raise InputError(f"--k {settings.k}: name numbers of neighbours, 1 or more")
    context = same_sampling(open_context(settings))
    labelled, splits = context.labelled()
    both, others = context.features(splits), baselines.features(context, splits)
    p = addresses(context, splits[0])
    if not context.main:
        return
    truth = truth_labels(settings.permute_labels, labelled, splits)
    ours = _hits(settings, labelled, truth, splits, [both])
    beside: dict[str, Any] = {"chance": _chance(settings, labelled, truth, splits)}
    for name, draws in others.items():
        centred = replace(settings, centre=settings.centre or name != "random")  # numbers of different units
        theirs = _hits(centred, labelled, truth, splits, draws)
        first = ("video", str(settings.k[0]))
        delta = metrics.difference(ours[first[0]][first[1]], theirs[first[0]][first[1]])
        beside[name] = _scores(theirs) | {"delta": delta.as_dict()}
    failed = both[0].failed | both[1].failed
    evaluated = sum(len(np.unique(both[1].of(split.test).row)) for split in splits)
    folder = output_folder(settings, "retrieval", context.model, context.dataset)
    result = describe(context, "retrieval", splits, evaluated, failed)
    nearest = _nearest(context, splits[0], both, settings.centre)
    result |= {"recall": _scores(ours), "baselines": beside, "nearest": nearest}
    tested = both[1].of(splits[0].test).by_video()
    if p:
        save_memory(folder, context, p, labelled.labels)
    with atomic_write(folder / "features.npz") as temporary, temporary.open("wb") as handle:
        np.savez(handle, x=tested.x, label=labelled.labels[tested.row])
    save(folder, result)
    lines = [context.model.origin, coverage(context, splits, evaluated, failed), *summary(settings, result)]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def same_sampling(context: Context) -> Context:
    """Gallery and queries are looked at alike: the test layout, with a single crop unless --crops says otherwise."""
    layout = replace(context.downstream.test, crops=context.settings.crops or 1)
    return replace(context, downstream=replace(context.downstream, train=layout, test=layout))


def summary(settings: Retrieval, result: dict[str, Any]) -> list[str]:
    """Lines to print: R@k of videos for the model and each baseline, and the difference of the first k."""
    rows = {"videos": result["recall"]} | {
        "  " + title: result["baselines"][name]
        for name, title in BASELINES.items()
        if name in result["baselines"]
    }
    lines = [
        f"{name:22}R@{k:<3} {metrics.Score(**found['video'][str(k)])} %"
        for name, found in rows.items()
        for k in settings.k
    ]
    for name, title in BASELINES.items():
        if name in result["baselines"]:
            delta = metrics.Score(**result["baselines"][name]["delta"])
            lines.append(f"R@{settings.k[0]} against {title}: {delta.verdict}, Δ {delta}")
    return lines


def _chance(
    settings: Retrieval, labelled: Labelled, truth: NDArray[np.int64], splits: list[Split]
) -> dict[str, float]:
    return {
        str(k): float(np.mean([chance(truth[s.test], labelled.labels[s.train], k) for s in splits]))
        for k in settings.k
    }


def _hits(
    settings: Retrieval,
    labelled: Labelled,
    truth: NDArray[np.int64],
    splits: list[Split],
    draws: list[tuple[Features, Features]],
) -> dict[str, dict[str, list[Hits]]]:
    """per "video" and per "clip" → k → each split's hits, a repetition for each draw of weights. A video's score is the
    mean of its clips'."""
    found: dict[str, dict[str, list[Hits]]] = {}
    for per in ("video", "clip"):
        found[per] = {str(k): [] for k in settings.k}
        for split in splits:
            by_k: dict[int, list[NDArray]] = {k: [] for k in settings.k}
            rows = np.array([], dtype=np.int64)
            for of_gallery, of_query in draws:
                gallery, query = of_gallery.of(split.train), of_query.of(split.test)
                if per == "video":
                    gallery, query = gallery.by_video(), query.by_video()
                labels = labelled.labels[gallery.row]
                right = recall(
                    query.x, truth[query.row], gallery.x, labels, settings.k, centre=settings.centre
                )
                rows, place = np.unique(query.row, return_inverse=True)
                for k, hit_Q in right.items():
                    by_k[k].append(np.bincount(place, hit_Q) / np.bincount(place))
            for k, of_draws in by_k.items():
                found[per][str(k)].append(Hits(np.stack(of_draws), labelled.groups[rows]))
    return found


def _scores(hits: dict[str, dict[str, list[Hits]]]) -> dict[str, dict[str, Any]]:
    return {per: {k: metrics.score(one).as_dict() for k, one in by_k.items()} for per, by_k in hits.items()}


def _nearest(
    context: Context, split: Split, features: tuple[Features, Features], centre: bool
) -> dict[str, list[str]]:
    """The key of each test video → those of its three nearest training videos, for the report."""
    gallery, query = features[0].of(split.train).by_video(), features[1].of(split.test).by_video()
    places = neighbours(query.x, gallery.x, 3, centre=centre)
    keys = np.array(context.dataset.keys(gallery.row), dtype=object)
    return dict(zip(context.dataset.keys(query.row), keys[places].tolist(), strict=True))


def addresses(context: Context, split: Split) -> Features | None:
    """p of the training windows, (N, k); None of a network without a memory. All processes call it together."""
    if not hasattr(context.model.objective, ADDRESSES):
        return None
    looking = replace(context, settings=replace(context.settings, layer=ADDRESSES))
    train = context.downstream.train
    return looking.extract(split.train, EvalLayout(train.count, train.hop))


def save_memory(folder: Path, context: Context, p: Features, labels: np.ndarray) -> None:
    """Write memory.npz."""
    usage = p.x.mean(0, dtype=np.float64)
    slots = np.argsort(-usage, kind="stable")[:SLOTS]
    places = np.stack([_best(p, slot) for slot in slots])
    videos = p.by_video()
    memory = context.model.objective.get_parameter("memory.slots")
    with atomic_write(folder / "memory.npz") as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            usage=usage,
            norm=memory.detach().norm(dim=1).cpu().numpy(),
            p=videos.x,
            label=labels[videos.row],
            slot=slots,
            key=np.array(context.dataset.keys(p.row[places].ravel())).reshape(places.shape),
            start=p.start[places],
            share=p.x[places, slots[:, None]],
        )


def _best(p: Features, slot: int) -> np.ndarray:
    """The windows (CLIPS,) of different videos to whose prediction the slot gives most, the last again where they are
    fewer."""
    order = np.argsort(-p.x[:, slot], kind="stable")
    first = np.sort(np.unique(p.row[order], return_index=True)[1])[:CLIPS]
    return order[np.pad(first, (0, CLIPS - len(first)), mode="edge")]
