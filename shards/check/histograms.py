"""A picture of what a data set holds: lengths, picture sizes, classes, splits."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from shards.atomic import atomic_write
from shards.errors import InputError
from shards.table import Table


def counts(columns: Table, name: str) -> Counter[str]:
    """Rows of each text of a column; rows without one are left out, as is a column that is not there."""
    if name not in columns.names:
        return Counter()
    codes, texts = columns.codes(name)
    numbers = np.bincount(codes[codes >= 0], minlength=len(texts))
    return Counter(dict(zip(texts, numbers.tolist(), strict=True)))


def draw(columns: Table, path: Path, title: str) -> None:
    """Four histograms as a PNG. Raises InputError where matplotlib is not installed."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise InputError("--picture: matplotlib is not installed; pip install matplotlib") from None
    figure = figures.Figure(figsize=(11, 7), layout="constrained")
    (frames, seconds), (sizes, labels) = figure.subplots(2, 2)
    figure.suptitle(f"{title}: {len(columns)} videos")
    lengths = columns.values("num_frames")
    frames.hist(lengths, bins=50)
    frames.set(xlabel="frames", ylabel="videos")
    rates = np.maximum(columns.values("fps") if "fps" in columns.names else np.ones(len(lengths)), 1e-3)
    seconds.hist(lengths / rates, bins=50)
    seconds.set(xlabel="seconds", ylabel="videos")
    pairs = zip(columns.values("width").tolist(), columns.values("height").tolist(), strict=True)
    common = Counter(f"{width}x{height}" for width, height in pairs).most_common(15)
    sizes.barh([name for name, _ in common][::-1], [number for _, number in common][::-1])
    sizes.set(xlabel="videos", title="width x height, the 15 most frequent")
    of_each = sorted(counts(columns, "label_name").values(), reverse=True)
    labels.bar(range(len(of_each)), of_each)
    labels.set(xlabel="class, the largest first", ylabel="videos")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
