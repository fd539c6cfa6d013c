"""Unintentional action: is a time step of a video before, at, or after its failure, and where is the failure? (MemDPC
section 5.7 and appendix B; Epstein et al. 2020, the Oops data set.)

The method's window moves over the video by a quarter of a second, and ends with the time step that is classified. A time
step is as long as what its feature looks at: the last block, x_t, for methods that predict, whose feature is [z_t, ẑ_t];
the whole window for others. A video's failure is put in the middle of the time step that is most likely a transition.
`oops` trains a linear classifier on the frozen network, `oops-finetune` the network itself.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.context import Context, open_context
from evaluation.features import Features, extract
from evaluation.finetune import Task, check_folder, train_and_test, tuning_of
from evaluation.metrics import HELD_OUT, Hits, Split
from evaluation.model import SURPRISE
from evaluation.probe import Head, Probe, fit
from evaluation.results import describe
from evaluation.settings import Oops, OopsFinetune
from evaluation.table import finish
from objectives.base import FineTuning
from pipelines.eval_clips import ClipSampler, EvalClips
from pipelines.sampler import Sampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError

CLASSES = ("intentional", "transition", "unintentional")
HOP = 0.25  # seconds from one window to the next, as in the data set's code
SECONDS, PLACE = (3.2, 30.0), (0.01, 0.99)  # that code's filter: a video's length, and the failure's place
WITHIN = (0.25, 1.0)  # seconds, of localisation


def window_starts(num_frames: int, span: int, fps: float) -> NDArray[np.int64]:
    """First frames of a video's windows of `span` frames, one every quarter of a second. All of a window lies in the
    video, so a shorter video has none."""
    return np.unique(np.arange(0, num_frames - span + 1e-6, HOP * fps).round().astype(np.int64))


def time_step(spec: ViewSpec, layer: str) -> tuple[int, int]:
    """What a window's feature looks at: its first frame within the window, and how many frames; it ends with the window."""
    first = min(min(view) for view in (spec.offsets[-1:] if layer == SURPRISE else spec.offsets))
    return first, spec.span - first


def classify(first_N: NDArray[np.int64], length: int, failure_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class of each time step of frames first … first + length − 1, by the (fractional) number of the frame at the
    failure: 0 ends before it, 1 holds it, 2 begins after it."""
    return np.where(first_N + length <= failure_N, 0, np.where(first_N > failure_N, 2, 1)).astype(np.int64)


def oversampling(y_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each time step occurs in an epoch: transitions are rare, and become as many as the mean of the others."""
    counts = np.bincount(y_N, minlength=3)
    times = max(1, round((counts[0] + counts[2]) / 2 / max(counts[1], 1)))
    return np.where(y_N == 1, times, 1)


@dataclass(frozen=True)
class Fails:
    """The annotated videos. split: train and val; failures: (rows of the table,) seconds. span: frames of a window; first,
    length: of its time step. left_out: why → how many videos of the two parts are.

    shuffled: scores compare with the failures and classes of other test videos and time steps.
    """

    dataset: Dataset
    split: Split
    failures: NDArray[np.float64]
    span: int
    first: int
    length: int
    left_out: dict[str, int] = field(default_factory=dict)
    shuffled: bool = False

    @classmethod
    def of(cls, dataset: Dataset, spec: ViewSpec, layer: str) -> "Fails":
        """The videos that the data set's own filter takes, and that are as long as a window. Raises InputError where
        the data set has no failure times, or one of its parts no such video."""
        try:
            failures, parts = dataset.column("failure_time").astype(np.float64), dataset.column("split")
        except InputError as error:
            raise InputError(
                f"{dataset.path}: is no data set of fails ({error}); make it with tools/make_shards.py --layout oops"
            ) from error
        num_frames = dataset.column("num_frames")
        seconds = num_frames / dataset.column("fps")
        place = failures / seconds
        filtered = (seconds < SECONDS[0]) | (seconds > SECONDS[1]) | (place < PLACE[0]) | (place > PLACE[1])
        test = next((name for name in ("val", "test") if name in set(parts)), "val")
        kept = np.isin(np.arange(len(dataset)), dataset.select()) & np.isin(parts, ("train", test))
        left_out = {}
        for why, these in (
            ("have no failure time", np.isnan(failures)),
            ("are left out by the data set's filter", filtered),
            (f"are shorter than a window of {spec.span} frames", num_frames < spec.span),
        ):
            left_out[why] = int((kept & these).sum())
            kept &= ~these
        rows = [np.flatnonzero(kept & (parts == name)) for name in ("train", test)]
        if not all(len(one) for one in rows):
            found = ", ".join(f"{count} {why}" for why, count in left_out.items())
            raise InputError(f"{dataset.path}: no videos are left in train or in {test} ({found})")
        return cls(dataset, Split("split", *rows), failures, spec.span, *time_step(spec, layer), left_out)

    def permuted(self) -> "Fails":
        """With the test part's annotation shuffled: what was learnt then scores at chance."""
        failures, test = self.failures.copy(), self.split.test
        failures[test] = np.random.Generator(np.random.Philox(key=0)).permutation(failures[test])
        return replace(self, failures=failures, shuffled=True)

    def clips(self, rows: NDArray[np.int64]) -> EvalClips:
        """The windows of these videos."""
        num_frames, fps = self.dataset.column("num_frames"), self.dataset.column("fps")
        found = [
            (row, start, 0)
            for row in rows.tolist()
            for start in window_starts(num_frames[row], self.span, fps[row])
        ]
        return EvalClips(*np.array(found, dtype=np.int64).T)

    def classes(self, found: Features | EvalClips) -> NDArray[np.int64]:
        """The class (N,) of each window's time step."""
        failure_N = self.failures[found.row] * self.dataset.column("fps")[found.row]
        return classify(found.start + self.first, self.length, failure_N)

    def middles(self, found: Features | EvalClips) -> NDArray[np.float64]:
        """The middle (N,), in seconds, of each window's time step."""
        return (found.start + self.first + self.length / 2) / self.dataset.column("fps")[found.row]

    def size_length(self, windows: EvalClips) -> Features:
        """What needs no network: the time step's moment, the video's length, size and frame rate."""
        columns = [
            self.dataset.column(name)[windows.row] for name in ("fps", "num_frames", "width", "height")
        ]
        middles, seconds = self.middles(windows), columns[1] / columns[0]
        x = np.stack([middles, middles / seconds, seconds, *columns], axis=1).astype(np.float32)
        return Features(x, windows.row, windows.start, {})

    def held_out(self, row_N: NDArray[np.int64], seed: int, share: float = HELD_OUT) -> NDArray[np.bool_]:
        """Which windows of the training videos validate: those of this share of the videos, at least of one.

        Raises InputError where there is no other to train on.
        """
        videos = np.random.Generator(np.random.Philox(key=seed)).permutation(np.unique(row_N))
        if len(videos) < 2:
            raise InputError(f"{self.dataset.path}: has one annotated training video; two or more are needed")
        return np.isin(row_N, videos[: max(1, int(len(videos) * share))])

    def scores(self, runs: list[Features]) -> dict[str, Any]:
        """Time steps' probabilities (a run a seed) → accuracy over all of them ("clips"; the interval is of videos drawn
        again), its mean over classes, and localisation, a video's one guess."""
        names = [f"within {seconds:g} s" for seconds in WITHIN]
        hits: dict[str, list[NDArray]] = {name: [] for name in ("clips", *names)}
        counts = np.zeros((3, 3), np.int64)
        for found in runs:
            middles, truth = self.middles(found), self.classes(found)
            if self.shuffled:
                truth = np.random.Generator(np.random.Philox(key=1)).permutation(truth)
            counts += metrics.confusion(found.x, truth)
            hits["clips"].append(metrics.hits(found.x, truth))
            order = np.lexsort((-found.x[:, 1], found.row))  # of each video the likeliest transition first
            videos, firsts = np.unique(found.row[order], return_index=True)
            away = np.abs(middles[order[firsts]] - self.failures[videos])
            for name, seconds in zip(names, WITHIN, strict=True):
                hits[name].append((away <= seconds) * 1.0)
        of = {"clips": found.row} | dict.fromkeys(names, videos)
        scores = {
            name: metrics.score([Hits(np.stack(one), of[name])]).as_dict() for name, one in hits.items()
        }
        return {"scores": scores, "class_mean": metrics.class_mean(counts), "confusion": counts.tolist()}


def surprised(context: Context) -> Context:
    """The context with [z_t, ẑ_t] as the feature, where the method predicts and --layer names no other."""
    if context.settings.layer or not hasattr(context.model.objective, SURPRISE):
        return context
    return replace(context, settings=replace(context.settings, layer=SURPRISE))


def oops(settings: Oops) -> None:
    """A linear classifier of time steps' features."""
    context = surprised(open_context(settings, "oops"))
    spec = context.downstream.spec
    fails = Fails.of(context.dataset, spec, context.settings.layer)
    clips = [fails.clips(rows) for rows in (fails.split.train, fails.split.test)]
    models = {"": context, "random": context.random()}
    features = {
        name: [extract(one.model, one.dataset, c, spec, one.compute, one.settings.layer) for c in clips]
        for name, one in models.items()
        if one
    }
    if not context.main:
        return
    if settings.baselines:
        features["size_length"] = [fails.size_length(of_part) for of_part in clips]
    judged = fails.permuted() if settings.permute_labels else fails
    found = {name: judged.scores(_probes(context, fails, *both)) for name, both in features.items()}
    failed = features[""][0].failed | features[""][1].failed
    _report(context, "oops", fails, features[""][1], failed, found)


def _probes(context: Context, fails: Fails, train: Features, test: Features) -> list[Features]:
    """A classifier for each seed → its probabilities of the test windows."""
    y = fails.classes(train)
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
    """The three classes of the time steps of videos of fails, transitions as often as the mean of the others."""

    classes = 3

    def __init__(self, context: Context, fails: Fails, tuning: FineTuning) -> None:
        self.context, self.fails, self.spec = context, fails, tuning.spec
        clips = fails.clips(fails.split.train)
        self.samples = clips.at(np.repeat(np.arange(len(clips)), oversampling(fails.classes(clips))))
        self.train = self.samples.row
        self.tested = fails.clips(fails.split.test)

    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        return self.fails.held_out(self.train, seed, share)

    def sampler(self, kept_N: NDArray[np.bool_]) -> Callable[..., Sampler]:
        clips = self.samples.at(kept_N)
        return partial(ClipSampler, self.context.dataset, clips, self.fails.classes(clips), self.spec)

    def clips(self, kept_N: NDArray[np.bool_]) -> EvalClips:
        return self.fails.clips(np.unique(self.train[kept_N]))

    def judge(self, found: Features) -> tuple[float, float]:
        truth = self.fails.classes(found)
        return metrics.class_mean(metrics.confusion(found.x, truth)), metrics.cross_entropy(found.x, truth)


def oops_finetune(settings: OopsFinetune) -> None:
    """The whole network trained; resumes exactly."""
    context = surprised(open_context(settings, "oops-finetune"))
    fails = Fails.of(context.dataset, context.downstream.spec, context.settings.layer)
    # the time step decides where a window lies: one start for all views, as on the frozen network
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
    if settings.baselines:
        both = [fails.size_length(fails.clips(rows)) for rows in (fails.split.train, fails.split.test)]
        runs["size_length"] = _probes(context, fails, *both)
    judged = fails.permuted() if settings.permute_labels else fails
    scores = {name: judged.scores(found) for name, found in runs.items()}
    one, tuning = models[""]
    _report(one, "oops-finetune", fails, runs[""][0], runs[""][0].failed, scores, tuning=asdict(tuning))


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
    result |= {"left_out": fails.left_out, **found.pop(""), "baselines": found, **more}
    finish(context, result)
