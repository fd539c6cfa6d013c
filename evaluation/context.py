"""What every protocol has before it starts: model, data, splits, features, and where the result goes; embed, which ends there."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.features import Compute, Features, extract
from evaluation.metrics import Labelled, Split
from evaluation.model import RANDOM, Model, open_model
from evaluation.settings import Embed, Settings
from objectives import checkpoint
from objectives.base import Downstream
from objectives.blocks import with_running_statistics
from pipelines.backends import settings_for
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler
from shards import Dataset, InputError
from shards.atomic import WriterLock, atomic_write
from shards.build.scan import data_folder
from training.processes import on_main, writing
from training.run import data_remarks, in_turn
from training.speed import cores, share


@dataclass(frozen=True)
class Context:
    """settings, and what they name, opened. downstream: the method's protocol with the user's changes.

    folder: the result's. lock: of the main process, which lets nobody else write there while this object lives.
    """

    settings: Settings
    model: Model
    dataset: Dataset
    compute: Compute
    downstream: Downstream
    folder: Path = Path()
    lock: WriterLock | None = None

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
        return replace(self, model=with_statistics(model, self.dataset, self.settings, self.compute))


def union(rows: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate(rows))


def _small(settings: Settings) -> bool:
    return settings.small or (settings.data is None and not torch.cuda.is_available())


def begin_processes() -> PartialState:
    """The processes of this evaluation, connected."""
    return PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))


def open_context(settings: Settings, protocol: str = "") -> Context:
    """protocol: names the result's folder, "" for none. Raises InputError, also where another process writes there."""
    state = begin_processes()
    if settings.pool != "mean":
        settings = replace(settings, layer=f"{settings.layer}:{settings.pool}")
    model = open_model(settings.checkpoint, small=_small(settings), seed=settings.seed)
    dataset = in_turn(lambda: Dataset(data_folder(settings.data)))
    mine = share(cores())
    compute = Compute(
        Accelerator(mixed_precision=settings.mixed_precision),
        settings_for(settings.device, dataset, threads=settings.threads, decode_with="auto", cores=mine),
        settings.batch_size,
        settings.cache,
    )
    downstream = _downstream(model, settings)
    if model.folder and state.is_main_process:
        trained = checkpoint.read_config(model.folder)["settings"]
        for line in data_remarks(model.objective, downstream.spec.size, dataset, trained):
            print(f"warning: {line}", file=sys.stderr)
    model = with_statistics(model, dataset, settings, compute)
    if not protocol:
        return Context(settings, model, dataset, compute, downstream)
    folder = settings.output or Path("runs/evaluation") / default_name(settings, protocol, model, dataset)
    locks: list[WriterLock] = []
    on_main(lambda: locks.append(only_writer(folder)))
    return Context(settings, model, dataset, compute, downstream, folder, *locks)


def with_statistics(model: Model, dataset: Dataset, settings: Settings, compute: Compute) -> Model:
    """Running statistics for a network whose batch norms keep none, such as the released DPC's.

    They are the mean over batches of one clip, the middle one, of each training video. Without them a window's feature
    would depend on its neighbours in the batch. All processes call it together.
    """
    if getattr(model.objective.config, "norm", "") != "batch-statistics":
        return model
    spec, rows = model.objective.downstream().spec, _training_rows(dataset, settings)
    clips = EvalClips.of(dataset, rows, spec, EvalLayout(count=1))
    with compute.loader(dataset, EvalSampler(dataset, clips, spec, compute.batch_size)) as loader:
        objective = with_running_statistics(
            model.objective.to(compute.accelerator.device),
            (batch["views"] for batch in loader if len(batch["index"])),
        )
    broadcast(list(objective.buffers()))
    said = f"{model.origin}; batch norm's statistics are of {len(rows)} videos of {dataset.name}"
    return replace(model, objective=objective, origin=said)


def _training_rows(dataset: Dataset, settings: Settings) -> NDArray[np.int64]:
    """The training videos of the first split that there is; all videos where there is none, or with --folds."""
    named = [f"split{name.removeprefix('split')}:train" for name in settings.split]
    for name in () if settings.folds else (*named, "train", "split1:train"):
        with suppress(InputError):
            if len(rows := dataset.select(split=name)):
                return rows
    return dataset.select()


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


def default_name(settings: Settings, protocol: str, model: Model, dataset: Dataset) -> str:
    parts = [protocol, model.name, dataset.name, *settings.split]
    parts += [f"folds{settings.folds}"] if settings.folds else []
    parts += [settings.layer] if settings.layer else []
    return "-".join(parts).replace("/", "_")


def embed(settings: Embed) -> None:
    if settings.to.suffix not in (".parquet", ".npy"):
        raise InputError(f"--to {settings.to}: name a .parquet or a .npy file")
    context = open_context(settings)
    rows = context.dataset.select(split=settings.part)
    features = context.extract(rows, context.downstream.test)
    if not context.main:
        return
    features = features.by_video() if settings.per == "video" else features
    _write_features(context, features, settings.to)
    tqdm.write(
        f"{context.model.origin}\n{len(features.x)} features of {features.x.shape[1]} numbers: {settings.to}"
    )


def _write_features(context: Context, features: Features, to: Path) -> None:
    keys = context.dataset.keys(features.row)
    if to.suffix == ".npy":
        with written(to, "--to") as temporary, temporary.open("wb") as handle:
            np.save(handle, features.x)
        write_text(to.with_suffix(".txt"), "".join(f"{key}\n" for key in keys), "--to")
        return
    D = features.x.shape[1]
    columns = {
        "key": pa.array(keys),
        "label": pa.array(context.dataset.column("label")[features.row]),
        "start": pa.array(features.start),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.x.ravel()), D),
    }
    with written(to, "--to") as temporary:
        pq.write_table(pa.table(columns), temporary)


def only_writer(folder: Path, flag: str = "--output") -> WriterLock:
    """Make a result's folder and its lock. Raises InputError that says who holds it, or OwnError."""
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
        return WriterLock(folder, f"{flag} {folder}")


@contextmanager
def written(path: Path, flag: str = "--output") -> Iterator[Path]:
    """Give a temporary path, which becomes `path` at the end; its folder is made. Raises OwnError where that fails."""
    with writing(path, flag):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary


def write_text(path: Path, text: str, flag: str = "--output") -> None:
    with written(path, flag) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, flag: str = "--output") -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", flag)


def write_arrays(path: Path, flag: str = "--output", **arrays: Any) -> None:
    """An .npz file."""
    with written(path, flag) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)
