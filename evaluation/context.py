"""What every protocol has before it starts: model, data, splits, features, and where the result goes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from numpy.typing import NDArray

from evaluation.data import Labelled, Split
from evaluation.features import Compute, Features, extract
from evaluation.model import RANDOM, Model, open_model
from evaluation.settings import Settings
from objectives.base import Downstream
from pipelines.backends import BackendSettings, choose_backend
from pipelines.eval_clips import EvalClips, EvalLayout
from shards import Dataset, InputError, demo
from training.speed import cores, decode_processes, share


@dataclass(frozen=True)
class Context:
    """settings, and what they name, opened. downstream: the method's protocol with the user's changes."""

    settings: Settings
    model: Model
    dataset: Dataset
    compute: Compute
    downstream: Downstream

    @property
    def main(self) -> bool:
        return bool(self.compute.accelerator.is_main_process)

    def labelled(self) -> tuple[Labelled, list[Split]]:
        labelled = Labelled(self.dataset, self.settings.grouped)
        return labelled, labelled.splits(self.settings.split, self.settings.folds)

    def features(self, splits: list[Split]) -> tuple[Features, Features]:
        """Of all training and of all test videos."""
        trained, tested = (union([getattr(split, part) for split in splits]) for part in ("train", "test"))
        down = self.downstream
        if down.train == down.test:
            both = self.extract(union([trained, tested]), down.test)
            return both.of(trained), both.of(tested)
        return self.extract(trained, down.train), self.extract(tested, down.test)

    def extract(self, rows: NDArray[np.int64], layout: EvalLayout) -> Features:
        clips = EvalClips.of(self.dataset, rows, self.downstream.spec, layout)
        found = extract(
            self.model, self.dataset, clips, self.downstream.spec, self.compute, self.settings.layer
        )
        return found.by_video() if self.downstream.average == "features" else found

    def random(self, draw: int = 0) -> "Context | None":
        """The same with fresh weights in the same network; None where no baselines are wanted, or these are tested
        anyway."""
        spec = self.settings.checkpoint
        if not self.settings.baselines or spec.startswith(RANDOM):
            return None
        return self.with_random(draw)

    def with_random(self, draw: int = 0) -> "Context":
        seed = self.settings.seed + 1 + draw
        what = self.settings.checkpoint.removeprefix(RANDOM)
        model = open_model(f"{RANDOM}{what}", small=_small(self.settings), seed=seed)
        return replace(self, model=model)


def union(rows: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(rows))


def _small(settings: Settings) -> bool:
    return settings.small or (settings.data is None and not torch.cuda.is_available())


def open_context(settings: Settings) -> Context:
    """Raises InputError for what cannot be had."""
    state = PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    model = open_model(settings.checkpoint, small=_small(settings), seed=settings.seed)
    with state.local_main_process_first():
        dataset = Dataset(settings.data if settings.data is not None else demo.ensure())
    name = choose_backend(settings.device, dataset, share(cores()))
    compute = Compute(
        Accelerator(mixed_precision=settings.mixed_precision),
        BackendSettings(name, threads=settings.threads, processes=decode_processes(name, settings.threads)),
        settings.threads,
        settings.batch_size,
        settings.cache,
    )
    return Context(settings, model, dataset, compute, _downstream(model, settings))


def _downstream(model: Model, settings: Settings) -> Downstream:
    downstream: Callable[..., Downstream] = model.objective.downstream
    changes: dict[str, Any] = {}
    if settings.subsequences:
        if "subsequences" not in signature(downstream).parameters:
            raise InputError(
                f"--subsequences {settings.subsequences}: {model.objective.name} has no subsequences; leave the flag out"
            )
        changes = {"subsequences": settings.subsequences}
    down = downstream(**changes)
    if settings.windows:
        crops = (down.train.crops, down.test.crops)
        down = replace(
            down,
            train=EvalLayout(settings.windows, 0, crops[0]),
            test=EvalLayout(settings.windows, 0, crops[1]),
        )
    if settings.crops:
        down = replace(down, test=replace(down.test, crops=settings.crops))
    return down


def output_folder(settings: Settings, protocol: str, model: Model, dataset: Dataset) -> Path:
    """The result's folder, made. Raises InputError where it cannot be written to."""
    parts = [protocol, model.name, dataset.name, *settings.split]
    parts += [f"folds{settings.folds}"] if settings.folds else []
    parts += [settings.layer] if settings.layer else []
    folder = settings.output or Path("runs/evaluation") / "-".join(parts).replace("/", "_")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output {folder}: {error.strerror}; choose a folder that can be written to"
        ) from error
    return folder
