"""Nearest neighbours: does a test video find one of its class among the training videos? Also while pretraining.

Letters: Q queries, G gallery, D features.

The retrieval of a network with a memory (MemDPC) also leaves memory.npz (its appendix E): usage (k,), the mean of p over
all training clips; norm (k,), ‖M‖; p (M, k), each training video's mean, with label (M,); slot (n,), the n most used;
key (n, 3), start (n, 3) and share (n, 3) of the clips that address each most.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.context import Context, open_context, write_arrays
from evaluation.features import Features
from evaluation.metrics import Hits, Labelled, Split, source_groups
from evaluation.model import ADDRESSES
from evaluation.recognition import baseline_features
from evaluation.results import describe, truth_labels
from evaluation.settings import Retrieval
from evaluation.table import finish
from objectives import Objective
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler
from shards import InputError
from training.metrics import Evaluator
from training.run import Run
from training.settings import Settings
from training.speed import Speed

KS = (1, 5, 10, 20, 50)
NEIGHBOURS = 20
MOST = 5_000  # videos of the gallery, and queries
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
    context = same_sampling(open_context(settings, "retrieval"))
    labelled, splits = context.labelled()
    both, others = context.features(splits), baseline_features(context, splits)
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
    result = describe(context, "retrieval", splits, evaluated, failed)
    nearest = _nearest(context, splits[0], both, settings.centre)
    result |= {"recall": _scores(ours), "baselines": beside, "nearest": nearest}
    tested = both[1].of(splits[0].test).by_video()
    if p:
        save_memory(context, p, labelled.labels)
    write_arrays(context.folder / "features.npz", x=tested.x, label=labelled.labels[tested.row])
    finish(context, result)


def same_sampling(context: Context) -> Context:
    """Gallery and queries are looked at alike: the test layout, with a single crop unless --crops says otherwise."""
    layout = replace(context.downstream.test, crops=context.settings.crops or 1)
    return replace(context, downstream=replace(context.downstream, train=layout, test=layout))


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


def save_memory(context: Context, p: Features, labels: np.ndarray) -> None:
    """Write memory.npz."""
    usage = p.x.mean(0, dtype=np.float64)
    slots = np.argsort(-usage, kind="stable")[:SLOTS]
    places = np.stack([_best(p, slot) for slot in slots])
    videos = p.by_video()
    memory = context.model.objective.get_parameter("memory.slots")
    write_arrays(
        context.folder / "memory.npz",
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


class Knn(Evaluator):
    """Every --knn-every steps each video of --knn-split is given the class that most of its nearest 20 have.

    Neighbours are sought among the labelled videos that are trained on, by cosine of the middle clip's feature. Videos
    of the query's own group (its source video) are left out. At most 5,000 videos of each split take part.
    Clips come from a loader of their own and nothing is drawn, so the run is the one without it.
    """

    name = "knn"

    def __init__(
        self,
        settings: Settings,
        run: Run,
        accelerator: Accelerator,
        objective: Objective,
        speed: Speed,
    ) -> None:
        super().__init__()
        self.settings, self.accelerator, self.objective = settings, accelerator, objective
        self.dataset, self.speed = run.dataset, speed
        self.every = settings.knn_every
        self.labels = run.dataset.column("label").astype(np.int64)
        self.groups = source_groups(run.dataset)
        trained = settings.trained_split
        self.gallery, self.query = (self._labelled(one) for one in (trained, settings.knn_split or trained))
        self.spec = objective.downstream().spec
        rows = np.union1d(self.gallery, self.query)
        self.clips = EvalClips.of(run.dataset, rows, self.spec, EvalLayout(count=1))

    def _labelled(self, split: str | None) -> NDArray[np.int64]:
        rows = self.dataset.select(split=split)
        rows = rows[self.labels[rows] >= 0]
        if len(rows) < 3:
            raise InputError(
                f"--knn-every: {self.dataset.source} has {len(rows)} labelled videos in {split or 'all'}; "
                "name another --knn-split, or leave the flag out"
            )
        return np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(rows)[:MOST])

    def run(self, step: int) -> dict[str, float]:
        """knn_top1 after `step` steps, and knn_chance."""
        accelerator = self.accelerator
        broadcast(list(self.objective.buffers()))  # all look with the model that is saved: the main process's
        sampler = EvalSampler(self.dataset, self.clips, self.spec, self.settings.batch_size)
        sampler.batches = range(accelerator.process_index, sampler.count, accelerator.num_processes)
        found: list[tuple[int, NDArray]] = []
        self.objective.eval()
        loader = self.speed.loader(self.dataset, sampler, accelerator.device)
        with loader, torch.no_grad(), accelerator.autocast():
            for batch in loader:
                self.notice(self.name)
                if len(batch["index"]):
                    x = self.objective.represent(batch["views"]).float().cpu().numpy()
                    found += zip(batch["row"].tolist(), x, strict=True)
        self.objective.train()
        found = sorted(gather_object(found), key=lambda one: one[0])
        rows, x_MD = np.array([row for row, _ in found]), np.stack([x for _, x in found])
        gallery, query = np.isin(rows, self.gallery), np.isin(rows, self.query)
        top1, chance = vote(
            x_MD[query],
            self.labels[rows[query]],
            self.groups[rows[query]],
            x_MD[gallery],
            self.labels[rows[gallery]],
            self.groups[rows[gallery]],
        )
        return {"knn_step": step, "knn_top1": top1, "knn_chance": chance}


def vote(
    query_QD: NDArray,
    query_labels: NDArray,
    query_groups: NDArray,
    gallery_GD: NDArray,
    gallery_labels: NDArray,
    gallery_groups: NDArray,
    k: int = NEIGHBOURS,
) -> tuple[float, float]:
    """Accuracy of the vote of the k nearest of other groups, and of the class of a random one of other groups.

    Where classes tie, that of the nearest neighbour wins. A query without a neighbour of another group counts as wrong.
    """
    most = int(np.bincount(gallery_groups).max())  # a query's own group may be so many of the nearest
    right, chance = np.zeros(len(query_QD)), np.zeros(len(query_QD))
    for number, places in enumerate(neighbours(query_QD, gallery_GD, k + most)):
        others = gallery_labels[places[gallery_groups[places] != query_groups[number]][:k]]
        if not len(others):
            continue
        votes = np.bincount(others)
        right[number] = others[np.argmax(votes[others] == votes.max())] == query_labels[number]
        chance[number] = (
            gallery_labels[gallery_groups != query_groups[number]] == query_labels[number]
        ).mean()
    return float(right.mean()), float(chance.mean())
