"""Features of every window of every video, computed once and kept.

A folder of the cache is named by what determines its content: weights, data, windows. It is filled chunk by chunk,
by any number of processes; one that was interrupted goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from evaluation.model import Model, Representation
from pipelines.backends import BackendSettings
from pipelines.eval_clips import EvalClips, EvalSampler, video_means
from pipelines.loader import Loader
from pipelines.sampler import Sampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError
from shards.atomic import atomic_write, locked
from shards.documents import Each, check_numbers, parse, read_arrays, write_json
from shards.storage import cache_folder
from training.processes import on_main, writing

CHUNK = 8  # batches a file
PART = {"x": "float N D", "index": "whole N", "failed": "text"}
_AGAIN = "remove it, and it is computed again"


@dataclass(frozen=True)
class Features:
    """x: (N, D), a window each, of features float32. row, start: (N,) int64, its video and first frame. failed: key → why unread."""

    x: NDArray
    row: NDArray[np.int64]
    start: NDArray[np.int64]
    failed: dict[str, str]

    def of(self, rows: NDArray[np.int64]) -> "Features":
        """Those of some videos."""
        kept = np.isin(self.row, rows)
        return replace(self, x=self.x[kept], row=self.row[kept], start=self.start[kept])

    def by_video(self) -> "Features":
        """One feature a video, the mean of its windows'; rows ascend, starts are 0."""
        rows, x = video_means(self.row, self.x)
        return replace(self, x=x.astype(self.x.dtype), row=rows, start=np.zeros_like(rows))


@dataclass(frozen=True)
class Compute:
    """How features are computed; nothing of it changes what they are."""

    accelerator: Accelerator
    backend: BackendSettings
    batch_size: int
    cache: Path | None = None

    def loader(self, dataset: Dataset, sampler: Sampler) -> Loader:
        """A loader whose threads work ahead of the model; to be closed."""
        return Loader(dataset, sampler, self.backend, device=self.accelerator.device)

    def my_batches(self, sampler: EvalSampler) -> EvalSampler:
        """The sampler, with this process's share of its batches."""
        world = self.accelerator.num_processes
        sampler.batches = range(self.accelerator.process_index, sampler.count, world)
        return sampler


def extract(
    model: Model | None,
    dataset: Dataset,
    windows: EvalClips,
    spec: ViewSpec,
    compute: Compute,
    layer: str = "",
    measure: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Features of all windows; all processes call it together, and each gets all of them.

    measure: views → features (B, D), in the place of a model; its file determines what they are.

    Raises InputError where no video can be decoded.
    """
    where = np.stack([windows.row, windows.start, windows.crop])
    identity = {
        "weights": model.fingerprint if model else _source(measure),
        "data": dataset.fingerprint,
        "windows": hashlib.sha256(where.tobytes()).hexdigest(),
        "spec": asdict(spec),
        "layer": layer,
        "batch_size": compute.batch_size,
        "precision": compute.accelerator.mixed_precision,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    folder = (compute.cache or cache_folder() / "features") / digest

    def begin() -> None:
        with _locked(folder):
            write_json(folder / "identity.json", identity)

    with writing(folder, "--cache"):
        folder.mkdir(parents=True, exist_ok=True)
    on_main(begin)
    sampler = EvalSampler(dataset, windows, spec, compute.batch_size)
    count = sampler.count
    chunks = [
        (folder / f"{first:08d}-{min(first + CHUNK, count):08d}.npz", range(first, min(first + CHUNK, count)))
        for first in range(0, count, CHUNK)
    ]
    mine = chunks[compute.accelerator.process_index :: compute.accelerator.num_processes]
    missing = [chunk for chunk in mine if not chunk[0].is_file()]
    if missing:
        if model:
            network = model.objective.to(compute.accelerator.device).eval()
            measure = Representation(network, layer)
        assert measure is not None
        title = f"features of {model.name if model else 'baselines'}"
        _compute(measure, title, dataset, sampler, compute, missing)
    compute.accelerator.wait_for_everyone()
    return _gather(dataset, windows, [file for file, _ in chunks])


def _compute(
    represent: Callable[[Tensor], Tensor],
    title: str,
    dataset: Dataset,
    sampler: EvalSampler,
    compute: Compute,
    chunks: list[tuple[Path, range]],
) -> None:
    accelerator = compute.accelerator
    bar = tqdm(
        total=sum(sampler.bounds[b[-1] + 1] - sampler.bounds[b[0]] for _, b in chunks),
        desc=title,
        unit="window",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    sampler.batches = [batch for _, batches in chunks for batch in batches]
    ends = {batches[-1]: file for file, batches in chunks}
    xs, index = [], []
    with bar, compute.loader(dataset, sampler) as loader:
        for batch in loader:
            if len(batch["index"]):
                with torch.inference_mode(), accelerator.autocast():
                    xs.append(represent(batch["views"]).float().cpu().numpy())
                index.append(batch["index"].numpy())
            bar.update(len(batch["index"]))
            if batch["epoch"] in ends:
                _write_chunk(ends[batch["epoch"]], xs, index, loader.failed, dataset)
                xs, index = [], []


def _write_chunk(
    file: Path, xs: list[NDArray], index: list[NDArray], failed: dict[int, str], dataset: Dataset
) -> None:
    arrays: dict[str, Any] = {
        "x": np.concatenate(xs) if xs else np.zeros((0, 0), np.float32),
        "index": np.concatenate(index) if index else np.zeros(0, np.int64),
        "failed": json.dumps({dataset.keys([row])[0]: reason for row, reason in failed.items()}),
    }
    with _locked(file.parent), atomic_write(file) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While no other evaluation writes to this folder of the cache, which they share."""
    with writing(folder, "--cache"), locked(folder / ".lock"):
        yield


def _gather(dataset: Dataset, windows: EvalClips, files: list[Path]) -> Features:
    parts = [read_arrays(file, PART, _AGAIN) for file in files]
    said = [
        parse(str(part["failed"]), Each(str, str), file, _AGAIN)
        for part, file in zip(parts, files, strict=True)
    ]
    failed = {key: why for one in said for key, why in one.items()}
    for part, file in zip(parts, files, strict=True):
        check_numbers(file, part["index"], len(windows), _AGAIN)
    filled = [part for part in parts if len(part["index"])]
    if not filled:
        raise InputError(
            f"{dataset.path}: none of the videos can be decoded ({next(iter(failed.items()), 'nothing selected')})"
        )
    index = np.concatenate([part["index"] for part in filled])
    return Features(
        np.concatenate([part["x"] for part in filled]), windows.row[index], windows.start[index], failed
    )


def _source(measure: Callable | None) -> str:
    """The sha256 of the file that a function is in, and what it depends on besides."""
    assert measure is not None
    opencv = "with" if find_spec("cv2") else "without"
    return f"{hashlib.sha256(Path(measure.__code__.co_filename).read_bytes()).hexdigest()} {opencv} OpenCV"
