"""Action recognition by supervised training of the whole network, as each method's paper does it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation import metrics, resume
from evaluation.bench import Bench, open_bench, output_folder
from evaluation.classifier import still_spec
from evaluation.features import Features
from evaluation.probe import Trained
from evaluation.protocols import most_frequent, tested_labels, told, trivial_outcomes
from evaluation.result import Outcome, counted, describe, save, save_predictions, scores
from evaluation.settings import Finetune, Tuned
from evaluation.splits import Labelled, Split, with_fraction
from evaluation.tuning import Task, Tuning, with_flags
from objectives.downstream import FineTuning
from pipelines.eval_clips import EvalClips, EvalLayout
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import InputError
from training.processes import StopSignals, on_main


def tuning_of(settings: Tuned, bench: Bench) -> FineTuning:
    """The paper's fine-tuning with the user's changes."""
    tuning = bench.downstream.finetuning
    given = {name: getattr(settings, name) for name in ("lr", "dropout", "hidden")}
    given["batch_size"] = settings.train_batch_size or None
    changes = {name: value for name, value in given.items() if value is not None}
    steps = settings.steps or (tuning.steps if settings.data is not None else 200)
    return with_flags(tuning, steps, changes)


def finetune(settings: Finetune) -> None:
    bench = open_bench(settings)
    labelled, splits = bench.labelled()
    folder = on_main(lambda: output_folder(settings, "finetune", bench.model, bench.dataset))
    tuning = tuning_of(settings, bench)
    resume.claim(folder, bench, tuning, settings, fraction=settings.label_fraction)
    failed: dict[str, str] = {}
    with StopSignals() as stop:
        stop.begin()
        outcomes = _outcomes(bench, labelled, splits, tuning, folder, stop, failed)
        fresh = bench.random()
        random = (
            _outcomes(fresh, labelled, splits, tuning, folder / "random", stop, failed) if fresh else None
        )
        stop.end()
    if not bench.main:
        return
    evaluated = sum(len(o.rows) for o in outcomes)
    truth = tested_labels(settings.permute_labels, labelled, splits)
    baselines: dict[str, Any] = {"most_frequent": most_frequent(splits, labelled, truth)}
    if settings.baselines:
        part = [_labelled_part(split, labelled, settings, settings.seed) for split in splits]
        baselines["trivial"] = scores(trivial_outcomes(bench, labelled, part), truth)
    if random:
        baselines["random"] = scores(random, truth)
    result = describe(bench, "finetune", splits, evaluated, failed)
    result |= {"scores": scores(outcomes, truth), "tuning": asdict(tuning), "baselines": baselines}
    save_predictions(folder, outcomes, bench, labelled, random)
    save(folder, result)
    lines = [bench.model.origin, counted(bench, splits, evaluated, failed), *told(result)]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def _outcomes(
    bench: Bench,
    labelled: Labelled,
    splits: list[Split],
    tuning: FineTuning,
    folder: Path,
    stop: StopSignals,
    failed: dict[str, str],
) -> list[Outcome]:
    """A training for each split and seed. Videos that cannot be decoded are added to `failed`."""
    settings: Any = bench.settings
    outcomes = []
    for split in splits:
        runs = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            part = _labelled_part(split, labelled, settings, seed)
            place = folder / f"{split.name}-seed{seed}"

            def make(part: Split = part, seed: int = seed, place: Path = place) -> Tuning:
                return Tuning(bench, recognition(bench, labelled, part, tuning, seed), tuning, seed, place)

            found, chosen = resume.tested(make, place, tuning, settings, stop)
            videos = found.by_video()
            runs.append(Trained(videos.row, videos.x, chosen))
            failed |= found.failed
        outcomes.append(Outcome.of(split, runs))
    return outcomes


def _labelled_part(split: Split, labelled: Labelled, settings: Finetune, seed: int) -> Split:
    return with_fraction(split, labelled, settings.label_fraction, seed)


def recognition(bench: Bench, labelled: Labelled, split: Split, tuning: FineTuning, seed: int) -> Task:
    """Telling the classes of a split's videos apart, a fifth of the training videos held out."""
    held = labelled.held_out(split.train, seed)
    if not held.any():
        raise InputError(f"{bench.dataset.path}: too few training videos to hold a fifth of them out")
    machine, still = bench.machine, still_spec(tuning.spec)
    accelerator = machine.accelerator
    rows = split.train[~held]

    def batches(size: int) -> Loader:
        sampler = TrainSampler(
            bench.dataset,
            rows,
            tuning.spec,
            size,
            seed=seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        return machine.loader(bench.dataset, sampler)

    def layout(part: str) -> EvalLayout:
        """The method's own, of windows as long as those that are trained on."""
        own: EvalLayout = getattr(bench.downstream, part)
        moved = own.hop and still.span != bench.downstream.spec.span
        return replace(own, hop=max(1, still.span // 2)) if moved else own

    def judge(found: Features) -> float:
        videos = found.by_video()
        return float(metrics.hits(videos.x, labelled.labels[videos.row]).mean())

    return Task(
        name=split.name,
        classes=len(labelled.classes),
        samples=len(rows),
        batches=batches,
        held=EvalClips.of(bench.dataset, split.train[held], still, layout("train")),
        tested=EvalClips.of(bench.dataset, split.test, still, layout("test")),
        judge=judge,
        by_feature=bench.downstream.average == "features",
    )
