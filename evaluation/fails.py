"""Videos of fails: which second of them is before, at, or after the failure, and how well that is told (MemDPC section
5.7 and appendix B; Epstein et al. 2020, the Oops data set).

Clips last a second, one every quarter of a second. A clip's feature is that of the method's window which ends with it:
of methods that predict, [z_t, ẑ_t] of the last block. A video's failure is put in the middle of the clip that is most
likely a transition.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.bench import Bench
from evaluation.features import Features
from evaluation.model import SURPRISE
from evaluation.splits import Split
from pipelines.eval_clips import EvalClips
from pipelines.views import ViewSpec
from shards import Dataset, InputError

CLASSES = ("intentional", "transition", "unintentional")
CLIP, HOP = 1.0, 0.25  # seconds
WITHIN = (0.25, 1.0)  # seconds, of localisation
HELD_OUT = 0.2  # of the training videos


def clip_begins(seconds: float) -> NDArray[np.float64]:
    """First moments, in seconds, of a video's clips; a video shorter than a clip has one."""
    return np.arange(0, max(seconds - CLIP, 0) + 1e-6, HOP)


def classify(begins: NDArray[np.float64], failure: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """The class of each clip [begin, begin + 1 s): 0 ends before the failure, 1 holds it, 2 begins after it."""
    return np.where(begins + CLIP <= failure, 0, np.where(begins > failure, 2, 1)).astype(np.int64)


def locate(begins: NDArray[np.float64], p_transition: NDArray[np.float64]) -> float:
    """The moment, in seconds, at which a video's failure is guessed."""
    return float(begins[p_transition.argmax()] + CLIP / 2)


def oversampling(y_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each clip occurs in an epoch: transitions are rare, and become as many as the mean of the others."""
    counts = np.bincount(y_N, minlength=3)
    times = max(1, round((counts[0] + counts[2]) / 2 / max(counts[1], 1)))
    return np.where(y_N == 1, times, 1)


@dataclass(frozen=True)
class Fails:
    """The annotated videos. split: train and val; failures: (rows of the table,) seconds; unannotated: how many are
    left out for want of a time. shuffled: scores compare with the failures and classes of other test videos and clips."""

    dataset: Dataset
    split: Split
    failures: NDArray[np.float64]
    unannotated: int
    shuffled: bool = False

    @classmethod
    def of(cls, dataset: Dataset) -> "Fails":
        """Raises InputError where the data set has no failure times."""
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
        return cls(dataset, Split("split", *rows), failures, without)

    def permuted(self) -> "Fails":
        """With the test part's annotation shuffled: what was learnt then scores at chance."""
        failures, test = self.failures.copy(), self.split.test
        failures[test] = np.random.Generator(np.random.Philox(key=0)).permutation(failures[test])
        return replace(self, failures=failures, shuffled=True)

    def clips(self, rows: NDArray[np.int64], spec: ViewSpec) -> EvalClips:
        """One window for each clip, ending where the clip ends."""
        found = [(row, start, 0) for row in rows.tolist() for start in self._begins(row, spec)]
        return EvalClips(*np.array(found, dtype=np.int64).T)

    def begins(self, found: Features | EvalClips, spec: ViewSpec) -> NDArray[np.float64]:
        """First moments (N,), in seconds, of the clips that windows end with."""
        of_row = {row: self._begins(row, spec) for row in np.unique(found.row).tolist()}
        pairs = zip(found.row.tolist(), found.start.tolist(), strict=True)
        return np.array([of_row[row][start] for row, start in pairs])

    def _begins(self, row: int, spec: ViewSpec) -> dict[int, float]:
        """A video's windows' first frames, and the first moments of their clips: of clips that show the same frames
        (below 4 a second) the first."""
        fps, length = (float(self.dataset.column(name)[row]) for name in ("fps", "num_frames"))
        moments: dict[int, float] = {}
        for begin in clip_begins(length / fps).tolist():
            moments.setdefault(round((begin + CLIP) * fps) - spec.span, begin)
        return moments

    def classes(self, found: Features | EvalClips, spec: ViewSpec) -> NDArray[np.int64]:
        """Each clip's class, (N,)."""
        return classify(self.begins(found, spec), self.failures[found.row])

    def trivial(self, windows: EvalClips, spec: ViewSpec) -> Features:
        """What needs no network: the clip's moment, the video's length, size and frame rate."""
        columns = [
            self.dataset.column(name)[windows.row] for name in ("fps", "num_frames", "width", "height")
        ]
        begins, seconds = self.begins(windows, spec), columns[1] / columns[0]
        x = np.stack([begins, begins / seconds, seconds, *columns], axis=1).astype(np.float32)
        return Features(x, windows.row, windows.start, {})

    def held_out(self, row_N: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
        """Which clips of the training videos validate: those of a fifth of the videos, at least of one.

        Raises InputError where there is no other to train on.
        """
        videos = np.random.Generator(np.random.Philox(key=seed)).permutation(np.unique(row_N))
        if len(videos) < 2:
            raise InputError(f"{self.dataset.path}: has one annotated training video; two or more are needed")
        return np.isin(row_N, videos[: max(1, int(len(videos) * HELD_OUT))])

    def scores(self, runs: list[Features], spec: ViewSpec) -> dict[str, Any]:
        """Clips' probabilities (a run a seed) → accuracy over clips (a video weighs as one in the interval), its mean
        over classes, and localisation."""
        names = [f"within {seconds:g} s" for seconds in WITHIN]
        hits: dict[str, list[NDArray]] = {name: [] for name in ("clips", *names)}
        counts = np.zeros((3, 3), np.int64)
        for found in runs:
            begins, truth = self.begins(found, spec), self.classes(found, spec)
            if self.shuffled:
                truth = np.random.Generator(np.random.Philox(key=1)).permutation(truth)
            videos, place = np.unique(found.row, return_inverse=True)
            counts += metrics.confusion(found.x, truth)
            hits["clips"].append(np.bincount(place, metrics.hits(found.x, truth)) / np.bincount(place))
            guesses = [locate(begins[place == v], found.x[place == v, 1]) for v in range(len(videos))]
            away = np.abs(np.array(guesses) - self.failures[videos])
            for name, seconds in zip(names, WITHIN, strict=True):
                hits[name].append((away <= seconds) * 1.0)
        scores = {name: metrics.score([np.stack(found)]).as_dict() for name, found in hits.items()}
        return {"scores": scores, "class_mean": metrics.class_mean(counts), "confusion": counts.tolist()}


def seen_by(bench: Bench) -> Bench:
    """The bench with [z_t, ẑ_t] as the feature, where the method predicts and --layer names no other."""
    if bench.settings.layer or not hasattr(bench.model.objective, SURPRISE):
        return bench
    return replace(bench, settings=replace(bench.settings, layer=SURPRISE))
