"""Features to a file, for use elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from evaluation.bench import Bench, open_bench
from evaluation.features import Features
from evaluation.settings import Embed
from shards import InputError
from shards.atomic import atomic_write


def embed(settings: Embed) -> None:
    if settings.to.suffix not in (".parquet", ".npy"):
        raise InputError(f"--to {settings.to}: name a .parquet or a .npy file")
    bench = open_bench(settings)
    rows = bench.dataset.select(split=settings.part)
    features = bench.extract(rows, bench.downstream.test)
    if not bench.main:
        return
    features = features.by_video() if settings.per == "video" else features
    try:
        settings.to.parent.mkdir(parents=True, exist_ok=True)
        _write(bench, features, settings.to)
    except OSError as error:
        raise InputError(
            f"--to {settings.to}: {error.strerror}; choose a place that can be written to"
        ) from error
    tqdm.write(
        f"{bench.model.origin}\n{len(features.x)} features of {features.x.shape[1]} numbers: {settings.to}"
    )


def _write(bench: Bench, features: Features, to: Path) -> None:
    keys = bench.dataset.keys(features.row)
    if to.suffix == ".npy":
        with atomic_write(to) as aside, aside.open("wb") as handle:
            np.save(handle, features.x)
        with atomic_write(to.with_suffix(".txt")) as aside:
            aside.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        return
    D = features.x.shape[1]
    columns = {
        "key": pa.array(keys),
        "label": pa.array(bench.dataset.column("label")[features.row]),
        "start": pa.array(features.start),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.x.ravel()), D),
    }
    with atomic_write(to) as aside:
        pq.write_table(pa.table(columns), aside)
