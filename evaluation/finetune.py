"""Supervised training of a whole network by the Trainer, resumed as exactly as pretraining.

A fine-tuning's folder: config.json, what was asked for, and for each split and seed a folder with first_batch.png,
metrics.jsonl, checkpoints/, with --held-out a folder held-out/ of the training that chooses the number of steps, and
tested.npz once it is done.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import metrics
from evaluation.context import Context, write_arrays, write_json
from evaluation.features import Features
from evaluation.metrics import Labelled, Split
from evaluation.settings import Supervised
from evaluation.supervised import Classifier, predict, still_spec
from objectives import checkpoint
from objectives.base import FineTuning
from pipelines.eval_clips import EvalClips, EvalLayout
from pipelines.sampler import Sampler, TrainSampler
from pipelines.views import Jitter, ViewSpec, eval_view
from shards import InputError
from shards.documents import Each, number, parse, read_arrays, read_json, whole
from training.metrics import Decay, Evaluator
from training.processes import StopSignals, on_main, writing
from training.run import Run, clear_leftovers
from training.settings import Settings
from training.speed import Speed
from training.trainer import Trainer

DONE, SELECTING = "tested.npz", "held-out"
TESTED = {"x": "float N D", "row": "whole N", "start": "whole N", "failed": "text", "chosen": "text"}
_AGAIN = "remove it, and --resume trains it again"


class Task(ABC):
    """What a network is trained to tell apart.

    context: of the network. classes: how many. train: (N,) rows of the training samples. tested: test clips, without augmentation.
    by_feature: a video is classified by its clips' mean feature, not by their mean probability.
    """

    context: Context
    classes: int
    train: NDArray[np.int64]
    tested: EvalClips
    by_feature = False

    @abstractmethod
    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        """Which samples (N,) choose the number of steps."""

    @abstractmethod
    def sampler(self, kept_N: NDArray[np.bool_]) -> Callable[..., Sampler]:
        """(batch_size, seed, rank, world) → endless batches of these samples; InputError where they are too few."""

    @abstractmethod
    def clips(self, kept_N: NDArray[np.bool_]) -> EvalClips:
        """The clips of these samples as they are tested."""

    @abstractmethod
    def judge(self, found: Features) -> tuple[float, float]:
        """Accuracy of predictions of `clips`, and their mean cross entropy."""


class Recognition(Task):
    """The classes of a split's videos."""

    def __init__(self, context: Context, labelled: Labelled, split: Split, tuning: FineTuning) -> None:
        self.context, self.labelled, self.spec = context, labelled, tuning.spec
        self.classes, self.train = len(labelled.classes), split.train
        self.by_feature = context.downstream.average == "features"
        self.tested = self._clips(split.test, context.downstream.test)

    def _clips(self, rows: NDArray[np.int64], layout: EvalLayout) -> EvalClips:
        """Of the method's own layout, of clips as long as those that are trained on."""
        still = still_spec(self.spec)
        moved = layout.hop and still.span != self.context.downstream.spec.span
        layout = replace(layout, hop=max(1, still.span // 2)) if moved else layout
        return EvalClips.of(self.context.dataset, rows, still, layout)

    def held_out(self, share: float, seed: int) -> NDArray[np.bool_]:
        held = self.labelled.held_out(self.train, seed, share)
        if not held.any():
            raise InputError(
                f"--held-out {share}: {self.context.dataset.path} has too few training videos; leave it out"
            )
        return held

    def sampler(self, kept_N: NDArray[np.bool_]) -> Callable[..., Sampler]:
        return partial(TrainSampler, self.context.dataset, self.train[kept_N], self.spec)

    def clips(self, kept_N: NDArray[np.bool_]) -> EvalClips:
        return self._clips(self.train[kept_N], self.context.downstream.train)

    def judge(self, found: Features) -> tuple[float, float]:
        videos, labels = found.by_video(), self.labelled.labels
        top1 = float(metrics.hits(videos.x, labels[videos.row]).mean())
        return top1, metrics.cross_entropy(found.x, labels[found.row])


class HeldOut(Evaluator):
    """Accuracy and loss on held-out training videos every so many steps.

    enough: `patience` of them in a row brought no better accuracy. falls: steps at which the learning rate is multiplied
    by the recipe's decay_by, after `plateau` of them in a row without a lower loss.
    """

    name = "held_out"
    _found: ClassVar = {"step": whole(0), "top1": number(0, 1), "loss": number(0)}
    shape: ClassVar[dict[str, Any]] = {"last": whole(0), "found": [_found]}

    def __init__(
        self, classifier: Classifier, task: Task, clips: EvalClips, every: int, settings: Supervised
    ) -> None:
        super().__init__()
        self.classifier, self.task, self.clips = classifier, task, clips
        self.every, self.patience = every, settings.patience
        self.plateau = settings.plateau
        self.found: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.found = state["found"]

    @property
    def best(self) -> dict[str, float]:
        return max(self.found, key=lambda line: (line["top1"], -line["step"]))

    @property
    def enough(self) -> bool:  # type: ignore[override]
        waited = len(self.found) - 1 - self.found.index(self.best) if self.found else 0
        return 0 < self.patience <= waited

    @property
    def falls(self) -> tuple[int, ...]:
        decay, falls = Decay(self.plateau), []
        for line in self.found:
            before = decay.falls
            decay.judge(line["loss"])
            falls += [int(line["step"])] * (decay.falls - before)
        return tuple(falls)

    @property
    def factor(self) -> float:  # type: ignore[override]
        return float(self.classifier.config.tuning.decay_by ** len(self.falls))

    def run(self, step: int) -> dict[str, float]:
        predicted = predict(self.task.context, self.classifier, self.clips, by_feature=self.task.by_feature)
        self.classifier.train()
        top1, loss = self.task.judge(predicted)
        self.found.append({"step": step, "top1": top1, "loss": loss})
        return {"held_out_top1": top1, "held_out_loss": loss}


class _Trainer(Trainer):
    def word(self, wait_share: float, late: float) -> str:
        return f"step {self.step}: {wait_share:.0%} of the time is spent waiting for data; try more --threads"


def tuning_of(settings: Supervised, context: Context, *, scratch: bool = False) -> FineTuning:
    """The paper's fine-tuning, or its recipe for random weights, with the user's changes. Raises InputError."""
    paper = context.downstream.finetuning
    paper = (paper.scratch or replace(paper, pull=0.0)) if scratch else paper
    flags = {"decay_at": "milestones", "decay_by": "decay_factor"}
    same = ("optimizer", "lr", "weight_decay", "pull", "decay_every", "dropout", "hidden")
    given = {field: getattr(settings, flags.get(field, field)) for field in (*flags, *same)}
    given["batch_size"] = settings.train_batch_size or None
    steps = settings.steps or (paper.steps if settings.data is not None else 200)
    scale = steps / paper.steps
    moved = replace(
        paper,
        steps=steps,
        freeze=settings.freeze,
        scratch=None,
        spec=_training_spec(settings, paper.spec),
        decay_at=tuple(round(at * scale) for at in paper.decay_at),
        decay_every=max(1, round(paper.decay_every * scale)) if paper.decay_every else 0,
    )
    if settings.plateau:
        moved = replace(moved, decay_at=(), decay_every=0)
    return replace(moved, **{field: value for field, value in given.items() if value is not None})


def _training_spec(settings: Supervised, spec: ViewSpec) -> ViewSpec:
    """The training clip with the user's changes; no video is too short for it."""
    if spec.padding == "error":
        spec = replace(spec, padding="repeat_last")
    if settings.segments:
        if not (spec.start_scope == "view" or spec.views == settings.segments == 1):
            raise InputError(
                f"--segments {settings.segments}: this method's segments follow each other; leave the flag out"
            )
        spec = replace(spec, offsets=spec.offsets[:1] * settings.segments, groups=())
    try:
        if settings.downsample > 1:
            apart = tuple(tuple(one * settings.downsample for one in view) for view in spec.offsets)
            spec = replace(spec, offsets=apart)
        if not settings.augment:
            return eval_view(spec)
        if settings.colour != "paper":
            still = eval_view(spec)
            names = ("jitter", "lab_drop", "channel_drop", "levels")
            spec = replace(spec, **{name: getattr(still, name) for name in names})
        if settings.colour == "jitter":
            levels = "imagenet" if spec.lab else spec.levels  # a jitter is of RGB
            spec = replace(spec, jitter=Jitter(), levels=levels, colour_scope=spec.box_scope)
    except ValueError as error:
        raise InputError(f"--downsample, --colour: not for this method's clips ({error})") from error
    return spec


def check_folder(context: Context, settings: Supervised, *tunings: FineTuning, **more: Any) -> None:
    """Take the result's folder for a new fine-tuning, or for one that was asked for the same. Raises InputError."""
    asked = {
        "weights": context.model.fingerprint,
        "data": context.dataset.fingerprint,
        "tuning": [asdict(one) for one in tunings],
        "layer": context.settings.layer,
        **{name: getattr(settings, name) for name in ("seed", "held_out", "patience", "plateau")},
        **more,
    }
    on_main(lambda: _check_folder(context.folder, json.loads(json.dumps(asked)), settings.resume))


def _check_folder(folder: Path, asked: dict[str, Any], resume: bool) -> None:
    path = folder / "config.json"
    if not path.exists():
        with writing(folder, "--output"):
            for old in folder.glob("**/*-seed*"):
                shutil.rmtree(old)
        write_json(path, asked)
    elif not resume:
        raise InputError(
            f"--output {folder} holds a fine-tuning already: add --resume, or name another folder"
        )
    else:
        then = read_json(path, dict, "name another --output")
        if changed := [key for key in asked if asked[key] != then.get(key)]:
            raise InputError(f"--resume: {folder} was made with another {', '.join(changed)}: give its flags")


def train_and_test(
    context: Context, task: Task, tuning: FineTuning, seed: int, folder: Path, settings: Supervised
) -> tuple[Features, dict[str, Any]]:
    """Train on all samples, or go on with it, and test, or read what was found: the tested clips' probabilities, and
    what was chosen. Raises Stopped after a signal, with a checkpoint written."""
    done = folder / DONE
    if settings.resume and done.exists():
        found = read_arrays(done, TESTED, _AGAIN)
        failed = parse(str(found["failed"]), Each(str, str), done, _AGAIN)
        chosen = parse(str(found["chosen"]), {"steps": whole(0)}, done, _AGAIN)
        return Features(found["x"], found["row"], found["start"], failed), chosen
    chosen = {"steps": tuning.steps}
    every = np.ones(len(task.train), dtype=bool)
    if settings.held_out:
        held = task.held_out(settings.held_out, seed)
        _, held_out = _train(context, task, tuning, seed, folder / SELECTING, settings, ~held)
        assert held_out
        steps = int(held_out.best["step"])
        falls = tuple(at for at in held_out.falls if at < steps)
        chosen = {"steps": steps, "held_out_top1": held_out.best["top1"], "rate_falls": falls}
        tuning = replace(tuning, steps=steps, decay_at=tuning.decay_at + falls)
    classifier, _ = _train(context, task, tuning, seed, folder, settings, every)
    predicted = predict(context, classifier, task.tested, by_feature=task.by_feature)
    arrays = {name: getattr(predicted, name) for name in ("x", "row", "start")}
    said = {"failed": json.dumps(predicted.failed), "chosen": json.dumps(chosen)}
    on_main(lambda: write_arrays(done, **arrays, **said))
    return predicted, chosen


def _train(
    context: Context,
    task: Task,
    tuning: FineTuning,
    seed: int,
    folder: Path,
    settings: Supervised,
    kept_N: NDArray[np.bool_],
) -> tuple[Classifier, HeldOut | None]:
    """The classifier trained on these samples, and what was found on the others, where there are others."""
    accelerator, compute = context.compute.accelerator, context.compute
    count, world = int(kept_N.sum()), accelerator.num_processes
    size = min(tuning.batch_size, count // world)
    if size < (2 if tuning.batch_norm else 1):
        raise InputError(
            f"fine-tuning with {size} clips a process and step ({count} to train on): batch norm needs 2; "
            "give --train-batch-size and as many videos"
        )
    on_main(lambda: _prepare(folder))
    resumed = on_main(lambda: checkpoint.newest(folder)) if settings.resume else None
    every = min(settings.validate_every or max(1, tuning.steps // 20), tuning.steps)
    asked = Settings(
        objective=context.model.objective.name,
        steps=tuning.steps,
        batch_size=size,
        seed=seed,
        output=folder,
        mixed_precision=settings.mixed_precision,
        checkpoint_every=every,
        keep=1,
        log_every=max(1, min(10, every)),
    )
    identity = {"global_batch": size * world, "seed": seed}
    rows = np.unique(task.train[kept_N])
    run = Run(folder, context.dataset, rows, np.array([], dtype=np.int64), identity, resumed)
    torch.manual_seed(seed)
    classifier = Classifier(context.model.objective, context.settings.layer, task.classes, tuning)
    held_out = None
    if not kept_N.all():
        held_out = HeldOut(classifier, task, task.clips(~kept_N), every, settings)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        trainer = _Trainer(
            asked,
            run,
            accelerator,
            classifier,
            Speed(compute.backend, 2),
            stop,
            evaluators=[held_out] if held_out else [],
            sampler=task.sampler(kept_N)(size, seed=seed, rank=accelerator.process_index, world=world),
        )
        stack.enter_context(trainer)
        trainer.run()
    return classifier, held_out


def _prepare(folder: Path) -> None:
    with writing(folder, "--output"):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        clear_leftovers(folder)
