"""Unintentional action as a protocol: a linear classifier of clips on the frozen network, or the network trained."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import metrics, resume
from evaluation.bench import Bench, open_bench, output_folder
from evaluation.classifier import still_spec
from evaluation.fails import Fails, oversampling, seen_by
from evaluation.features import Features, extract
from evaluation.finetune import tuning_of
from evaluation.probe import Classifier, Head, fit
from evaluation.result import describe, save
from evaluation.settings import Oops, OopsFinetune
from evaluation.tuning import Task, Tuning
from objectives.downstream import FineTuning
from pipelines.eval_clips import ClipSampler
from pipelines.loader import Loader
from training.processes import StopSignals, on_main

HEAD = Head(lr=1e-3)


def oops(settings: Oops) -> None:
    """A linear classifier of clips' features."""
    bench = seen_by(open_bench(settings))
    fails, spec = Fails.of(bench.dataset), bench.downstream.spec
    clips = [fails.clips(rows, spec) for rows in (fails.split.train, fails.split.test)]
    models = {"": bench, "random": bench.random()}
    features = {
        name: [extract(one.model, one.dataset, w, spec, one.machine, one.settings.layer) for w in clips]
        for name, one in models.items()
        if one
    }
    if not bench.main:
        return
    if settings.baselines:
        features["trivial"] = [fails.trivial(windows, spec) for windows in clips]
    judged = fails.permuted() if settings.permute_labels else fails
    found = {name: judged.scores(_probes(bench, fails, *both), spec) for name, both in features.items()}
    failed = features[""][0].failed | features[""][1].failed
    _report(bench, "oops", fails, features[""][1], failed, found)


def _probes(bench: Bench, fails: Fails, train: Features, test: Features) -> list[Features]:
    """A classifier for each seed → its probabilities of the test clips."""
    y = fails.classes(train, bench.downstream.spec)
    device, first = bench.machine.accelerator.device, bench.settings.seed
    runs = []
    for seed in range(first, first + bench.settings.seeds):
        held = fails.held_out(train.row, seed)

        def judge(model: Classifier, held: NDArray = held) -> tuple[float, float]:
            return metrics.class_mean(metrics.confusion(model.predict(train.x[held]), y[held])), 0.0

        model, _ = fit(train.x, y, held, 3, HEAD, judge, seed=seed, device=device, weights_N=oversampling(y))
        runs.append(replace(test, x=model.predict(test.x)))
    return runs


def oops_finetune(settings: OopsFinetune) -> None:
    """The whole network trained; resumes exactly."""
    bench = seen_by(open_bench(settings))
    fails = Fails.of(bench.dataset)
    tuning = tuning_of(settings, bench)
    # the clip decides where a window lies: one start for all views, as on the frozen network
    offsets = bench.downstream.spec.offsets
    spec = replace(tuning.spec, offsets=offsets, paces=(), circular=False, start_scope="clip")
    tuning = replace(tuning, spec=spec)
    folder = on_main(lambda: output_folder(settings, "oops-finetune", bench.model, bench.dataset))
    resume.claim(folder, bench, tuning, settings, layer=bench.settings.layer)
    models = {"": bench, "random": bench.random()}
    runs: dict[str, list[Features]] = {}
    with StopSignals() as stop:
        stop.begin()
        for name, one in models.items():
            for seed in range(settings.seed, settings.seed + settings.seeds if one else 0):
                place = folder / name / f"split-seed{seed}"

                def make(one: Any = one, seed: int = seed, place: Any = place) -> Tuning:
                    return Tuning(one, intention(one, fails, tuning, seed), tuning, seed, place)

                found, _ = resume.tested(make, place, tuning, settings, stop)
                runs.setdefault(name, []).append(found)
        stop.end()
    if not bench.main:
        return
    still = still_spec(spec)
    if settings.baselines:
        both = [
            fails.trivial(fails.clips(rows, still), still) for rows in (fails.split.train, fails.split.test)
        ]
        runs["trivial"] = _probes(bench, fails, *both)
    judged = fails.permuted() if settings.permute_labels else fails
    scores = {name: judged.scores(found, still) for name, found in runs.items()}
    extra = {"tuning": asdict(tuning)}
    _report(bench, "oops-finetune", fails, runs[""][0], runs[""][0].failed, scores, extra)


def intention(bench: Bench, fails: Fails, tuning: FineTuning, seed: int) -> Task:
    """Telling the three classes of clips apart, a fifth of the training videos held out."""
    still, accelerator = still_spec(tuning.spec), bench.machine.accelerator
    clips = fails.clips(fails.split.train, still)
    held = fails.held_out(clips.row, seed)
    train = clips.at(~held)
    labels = fails.classes(train, still)
    often = np.repeat(np.arange(len(train)), oversampling(labels))

    def batches(size: int) -> Loader:
        sampler = ClipSampler(
            bench.dataset,
            train.at(often),
            labels[often],
            tuning.spec,
            size,
            seed=seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        return bench.machine.loader(bench.dataset, sampler)

    def judge(found: Features) -> float:
        return metrics.class_mean(metrics.confusion(found.x, fails.classes(found, still)))

    return Task(
        name="oops",
        classes=3,
        samples=len(often),
        batches=batches,
        held=clips.at(held),
        tested=fails.clips(fails.split.test, still),
        judge=judge,
    )


def _report(
    bench: Bench,
    protocol: str,
    fails: Fails,
    tested: Features,
    failed: dict[str, str],
    found: dict[str, dict[str, Any]],
    extra: dict[str, Any] | None = None,
) -> None:
    """found: "" → the scores, random, trivial → those of the baselines."""
    videos, of = len(np.unique(tested.row)), len(fails.split.test)
    folder = output_folder(bench.settings, protocol, bench.model, bench.dataset)
    result = describe(bench, protocol, [fails.split], videos, failed)
    result |= {"unannotated": fails.unannotated, **found.pop(""), "baselines": found, **(extra or {})}
    save(folder, result)
    lines = [
        bench.model.origin,
        f"{videos} of {of} test videos evaluated; {fails.unannotated} have no failure time",
    ]
    names = {"random": "random weights", "trivial": "moment, size and length alone"}
    for name, scores in {"": result["scores"], **{n: one["scores"] for n, one in found.items()}}.items():
        lines += [f"  {names[name]}:"] if name else []
        lines += [f"  {what:22}{metrics.Score(**one)} %" for what, one in scores.items()]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))
