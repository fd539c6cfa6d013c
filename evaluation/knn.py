"""The class of a video by its nearest neighbours, while pretraining is under way."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray

from evaluation.data import source_groups
from evaluation.retrieval import neighbours
from objectives import Objective
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler
from shards import InputError
from training.run import Run
from training.settings import Settings
from training.speed import Speed

NEIGHBOURS = 20
MOST = 5_000  # videos of the gallery, and queries


class Knn:
    """Every --knn-every steps each video of --knn-split is given the class that most of its nearest 20 have.

    Neighbours are sought among the labelled videos that are trained on, by cosine of the middle clip's feature. Videos
    of the query's own group (its source video) are left out. At most 5,000 videos of each split take part.
    Clips come from a loader of their own and nothing is drawn, so the run is the one without it.
    """

    enough = False

    def __init__(
        self,
        settings: Settings,
        run: Run,
        accelerator: Accelerator,
        objective: Objective,
        speed: Speed,
    ) -> None:
        self.settings, self.accelerator, self.objective = settings, accelerator, objective
        self.dataset, self.speed = run.dataset, speed
        self.start = int(run.resumed.name.removeprefix("step-")) if run.resumed else 0
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
                f"--knn-every: {self.dataset.path} has {len(rows)} labelled videos in {split or 'all'}; "
                "name another --knn-split, or leave the flag out"
            )
        return np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(rows)[:MOST])

    def due(self, step: int) -> bool:
        return step > self.start and step % self.settings.knn_every == 0

    def run(self, step: int) -> dict[str, float]:
        """knn_top1 after `step` steps, and knn_chance."""
        accelerator = self.accelerator
        broadcast(list(self.objective.buffers()))  # all look with the model that is saved: the main process's
        sampler = EvalSampler(self.dataset, self.clips, self.spec, self.settings.batch_size)
        sampler.batches = range(accelerator.process_index, sampler.count, accelerator.num_processes)
        found: list[tuple[int, NDArray]] = []
        self.objective.eval()
        loader = self.speed.loader(self.dataset, sampler, accelerator.device, most_ahead=1)
        with loader, torch.no_grad(), accelerator.autocast():
            for batch in loader:
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
