"""Unintentional action: which second of a video is before, at, or after its failure, and how well that is told (MemDPC
section 5.7 and appendix B; Epstein et al. 2020, the Oops data set).

Clips last a second, one every quarter of a second. A clip's feature is that of the method's window which ends with it:
of methods that predict, [z_t, ẑ_t] of the last block. A video's failure is put in the middle of the clip that is most
likely a transition. `oops` trains a linear classifier on the frozen network, `oops-finetune` the network itself.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.context import Context, open_context
from evaluation.data import HELD_OUT, Split
from evaluation.features import Features, extract
from evaluation.finetune import Task, check_folder, train_and_test, tuning_of
from evaluation.metrics import Hits
from evaluation.model import SURPRISE
from evaluation.probe import Head, Probe, fit
from evaluation.results import describe
from evaluation.settings import Oops, OopsFinetune
from evaluation.supervised import still_spec
from evaluation.table import finish
from objectives.base import FineTuning
from pipelines.eval_clips import ClipSampler, EvalClips
from pipelines.sampler import Sampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError

CLASSES = ("intentional", "transition", "unintentional")
CLIP, HOP = 1.0, 0.25  # seconds
WITHIN = (0.25, 1.0)  # seconds, of localisation


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

    def size_length(self, windows: EvalClips, spec: ViewSpec) -> Features:
        """What needs no network: the clip's moment, the video's length, size and frame rate."""
        columns = [
            self.dataset.column(name)[windows.row] for name in ("fps", "num_frames", "width", "height")
        ]
        begins, seconds = self.begins(windows, spec), columns[1] / columns[0]
        x = np.stack([begins, begins / seconds, seconds, *columns], axis=1).astype(np.float32)
        return Features(x, windows.row, windows.start, {})

    def held_out(self, row_N: NDArray[np.int64], seed: int, share: float = HELD_OUT) -> NDArray[np.bool_]:
        """Which clips of the training videos validate: those of this share of the videos, at least of one.

        Raises InputError where there is no other to train on.
        """
        videos = np.random.Generator(np.random.Philox(key=seed)).permutation(np.unique(row_N))
        if len(videos) < 2:
            raise InputError(f"{self.dataset.path}: has one annotated training video; two or more are needed")
        return np.isin(row_N, videos[: max(1, int(len(videos) * share))])

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
        scores = {name: metrics.score([Hits(np.stack(one), videos)]).as_dict() for name, one in hits.items()}
        return {"scores": scores, "class_mean": metrics.class_mean(counts), "confusion": counts.tolist()}


def surprised(context: Context) -> Context:
    """The context with [z_t, ẑ_t] as the feature, where the method predicts and --layer names no other."""
    if context.settings.layer or not hasattr(context.model.objective, SURPRISE):
        return context
    return replace(context, settings=replace(context.settings, layer=SURPRISE))


def oops(settings: Oops) -> None:
    """A linear classifier of clips' features."""
    context = surprised(open_context(settings, "oops"))
    fails, spec = Fails.of(context.dataset), context.downstream.spec
    clips = [fails.clips(rows, spec) for rows in (fails.split.train, fails.split.test)]
    models = {"": context, "random": context.random()}
    features = {
        name: [extract(one.model, one.dataset, c, spec, one.compute, one.settings.layer) for c in clips]
        for name, one in models.items()
        if one
    }
    if not context.main:
        return
    if settings.baselines:
        features["size_length"] = [fails.size_length(of_part, spec) for of_part in clips]
    judged = fails.permuted() if settings.permute_labels else fails
    found = {name: judged.scores(_probes(context, fails, *both), spec) for name, both in features.items()}
    failed = features[""][0].failed | features[""][1].failed
    _report(context, "oops", fails, features[""][1], failed, found)


def _probes(context: Context, fails: Fails, train: Features, test: Features) -> list[Features]:
    """A classifier for each seed → its probabilities of the test clips."""
    y = fails.classes(train, context.downstream.spec)
    device, first = context.compute.accelerator.device, context.settings.seed
    runs = []
    for seed in range(first, first + context.settings.seeds):
        held = fails.held_out(train.row, seed)

        def judge(probe: Probe, x: NDArray, held: NDArray = held) -> tuple[float, float]:
            return metrics.class_mean(metrics.confusion(probe.predict(x), y[held])), 0.0

        times = oversampling(y)
        predict, _ = fit(train.x, y, held, 3, Head(), judge, seed=seed, device=device, times_N=times)
        runs.append(replace(test, x=predict(test.x)))
    return runs


class Intention(Task):
    """The three classes of the clips of videos of fails, transitions as often as the mean of the others."""

    classes = 3

    def __init__(self, context: Context, fails: Fails, tuning: FineTuning) -> None:
        self.context, self.fails, self.spec, self.still = context, fails, tuning.spec, still_spec(tuning.spec)
        clips = fails.clips(fails.split.train, self.still)
        often = np.repeat(np.arange(len(clips)), oversampling(fails.classes(clips, self.still)))
        self.samples = clips.at(often)
        self.train = self.samples.row
        self.tested = fails.clips(fails.split.test, self.still)

    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        return self.fails.held_out(self.train, seed, share)

    def sampler(self, kept_N: NDArray[np.bool_]) -> Callable[..., Sampler]:
        clips = self.samples.at(kept_N)
        return partial(
            ClipSampler, self.context.dataset, clips, self.fails.classes(clips, self.still), self.spec
        )

    def clips(self, kept_N: NDArray[np.bool_]) -> EvalClips:
        return self.fails.clips(np.unique(self.train[kept_N]), self.still)

    def judge(self, found: Features) -> float:
        return metrics.class_mean(metrics.confusion(found.x, self.fails.classes(found, self.still)))


def oops_finetune(settings: OopsFinetune) -> None:
    """The whole network trained; resumes exactly."""
    context = surprised(open_context(settings, "oops-finetune"))
    fails = Fails.of(context.dataset)
    # the clip decides where a window lies: one start for all views, as on the frozen network
    placed = {
        "offsets": context.downstream.spec.offsets,
        "paces": (),
        "circular": False,
        "start_scope": "clip",
    }

    def recipe(scratch: bool) -> FineTuning:
        tuning = tuning_of(settings, context, scratch=scratch)
        return replace(tuning, spec=replace(tuning.spec, **placed))  # type: ignore[arg-type]

    models = {
        "": (context.with_random() if settings.from_scratch else context, recipe(settings.from_scratch))
    }
    if not settings.from_scratch and context.random():
        models["scratch"] = context.with_random(), recipe(True)
    check_folder(context, settings, *(tuning for _, tuning in models.values()))
    runs: dict[str, list[Features]] = {}
    for name, (one, tuning) in models.items():
        for seed in range(settings.seed, settings.seed + settings.seeds):
            place = context.folder / name / f"split-seed{seed}"
            task = Intention(one, fails, tuning)
            found, _ = train_and_test(one, task, tuning, seed, place, settings)
            runs.setdefault(name, []).append(found)
    if not context.main:
        return
    tuning = models[""][1]
    still = still_spec(tuning.spec)
    if settings.baselines:
        both = [
            fails.size_length(fails.clips(r, still), still) for r in (fails.split.train, fails.split.test)
        ]
        runs["size_length"] = _probes(context, fails, *both)
    judged = fails.permuted() if settings.permute_labels else fails
    scores = {name: judged.scores(found, still) for name, found in runs.items()}
    _report(
        models[""][0], "oops-finetune", fails, runs[""][0], runs[""][0].failed, scores, tuning=asdict(tuning)
    )


def _report(
    context: Context,
    protocol: str,
    fails: Fails,
    tested: Features,
    failed: dict[str, str],
    found: dict[str, dict[str, Any]],
    **more: Any,
) -> None:
    """found: "" → the scores, and by name those of the baselines."""
    videos = len(np.unique(tested.row))
    result = describe(context, protocol, [fails.split], videos, failed)
    result |= {"unannotated": fails.unannotated, **found.pop(""), "baselines": found, **more}
    finish(context, result)
