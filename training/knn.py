"""How well nearest neighbours tell classes apart, while pretraining goes on."""

from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from evaluation.retrieval import neighbours
from objectives import Objective
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler
from shards import InputError
from shards.documents import whole
from training.run import Run
from training.settings import Settings
from training.speed import Speed
from training.validation import Evaluator

NEIGHBOURS = 20


class Knn(Evaluator):
    """Every --knn-every steps: each video of --knn-split is given the class that most of its nearest 20 among the others
    have (all but itself, where they are fewer), by cosine of the middle window's feature.

    Clips come from a loader of their own and nothing is drawn: training goes on as if it had not been asked.
    """

    name = "knn"
    shape: ClassVar[dict[str, Any]] = {"last": whole(0)}

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
        if not self.every:
            return
        rows = run.dataset.select(split=settings.knn_split or settings.trained_split)
        self.labels = run.dataset.column("label").astype(np.int64)
        rows = rows[self.labels[rows] >= 0]
        if len(rows) < 3:
            raise InputError(
                f"--knn-every: {run.dataset.path} has {len(rows)} labelled videos; name another --knn-split"
            )
        self.spec = objective.downstream().spec
        self.clips = EvalClips.of(run.dataset, rows, self.spec, EvalLayout(count=1))

    def run(self, step: int) -> dict[str, float]:
        """knn_top1 after `step` steps, and knn_chance; all processes call it together."""
        accelerator = self.accelerator
        broadcast(list(self.objective.buffers()))  # all look with the model that is saved: the main process's
        sampler = EvalSampler(self.dataset, self.clips, self.spec, self.settings.batch_size)
        sampler.batches = range(accelerator.process_index, sampler.count, accelerator.num_processes)
        found: list[tuple[int, np.ndarray]] = []
        self.objective.eval()
        loader = self.speed.loader(self.dataset, sampler, accelerator.device, most_ahead=1)
        with loader, torch.no_grad(), accelerator.autocast():
            for batch in loader:
                self.notice(self.name)
                if len(batch["index"]):
                    x = self.objective.represent(batch["views"]).float().cpu().numpy()
                    found += zip(batch["index"].tolist(), x, strict=True)
        self.objective.train()
        found = sorted(gather_object(found), key=lambda one: one[0])
        labels = self.labels[self.clips.row[[index for index, _ in found]]]
        top1, chance = leave_one_out(np.stack([x for _, x in found]), labels)
        return {"knn_step": step, "knn_top1": top1, "knn_chance": chance}


def leave_one_out(x_MD: np.ndarray, labels_M: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Accuracy of the vote of the k nearest others, the nearer first where classes tie; and of a random other's class."""
    M = len(labels_M)
    nearest = neighbours(x_MD, x_MD, min(k, M - 1) + 1)
    right = 0
    for number, places in enumerate(nearest):
        others = labels_M[places[places != number][: min(k, M - 1)]]
        votes = np.bincount(others)
        right += int(next(label for label in others if votes[label] == votes.max()) == labels_M[number])
    counts = np.bincount(labels_M)
    return right / M, float((counts * (counts - 1)).sum() / (M * (M - 1)))
