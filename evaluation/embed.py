"""Features to a file, for use elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from evaluation.context import Context, open_context
from evaluation.features import Features
from evaluation.settings import Embed
from shards import InputError
from shards.atomic import atomic_write


def embed(settings: Embed) -> None:
    if settings.to.suffix not in (".parquet", ".npy"):
        raise InputError(f"--to {settings.to}: name a .parquet or a .npy file")
    context = open_context(settings)
    rows = context.dataset.select(split=settings.part)
    features = context.extract(rows, context.downstream.test)
    if not context.main:
        return
    features = features.by_video() if settings.per == "video" else features
    try:
        settings.to.parent.mkdir(parents=True, exist_ok=True)
        _write(context, features, settings.to)
    except OSError as error:
        raise InputError(
            f"--to {settings.to}: {error.strerror}; choose a place that can be written to"
        ) from error
    tqdm.write(
        f"{context.model.origin}\n{len(features.x)} features of {features.x.shape[1]} numbers: {settings.to}"
    )


def _write(context: Context, features: Features, to: Path) -> None:
    keys = context.dataset.keys(features.row)
    if to.suffix == ".npy":
        with atomic_write(to) as temporary, temporary.open("wb") as handle:
            np.save(handle, features.x)
        with atomic_write(to.with_suffix(".txt")) as temporary:
            temporary.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        return
    D = features.x.shape[1]
    columns = {
        "key": pa.array(keys),
        "label": pa.array(context.dataset.column("label")[features.row]),
        "start": pa.array(features.start),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.x.ravel()), D),
    }
    with atomic_write(to) as temporary:
        pq.write_table(pa.table(columns), temporary)
