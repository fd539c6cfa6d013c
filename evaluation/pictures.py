"""The report's pictures, each a data URI that needs nothing beside itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.decode import decode_views
from pipelines.eval_clips import EvalClips, eval_params
from pipelines.views import ViewSpec
from shards import Dataset
from shards.video.mp4 import DecodeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, FRAMES, MILLISECONDS = 112, 10, 120


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(width: float, height: float) -> "Figure":
    """An empty one, in inches."""
    from matplotlib.figure import Figure  # here, since it takes a second

    return Figure(figsize=(width, height))


def _drawn(figure: "Figure") -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, bbox_inches="tight")
    return _uri("png", out.getvalue())


def curves(lines: dict[str, list[tuple[float, dict[str, float]]]], x: str, *, log: bool = False) -> str:
    """Accuracy over something, with its intervals: name → (x, score)."""
    figure = _figure(5, 3.2)
    axes = figure.add_subplot()
    for name, points in lines.items():
        xs, found = zip(*points, strict=True)
        values, lows, highs = (
            np.array([100 * one[key] for one in found]) for key in ("value", "low", "high")
        )
        axes.errorbar(xs, values, [values - np.minimum(lows, values), np.maximum(highs, values) - values], marker="o", capsize=3, label=name)  # fmt: skip
    if log:
        axes.set_xscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set(xlabel=x, ylabel="accuracy, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return _drawn(figure)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> str:
    """name → (xs, ys)."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5, 3.2)
    axes = figure.add_subplot()
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, label=name, marker="." if len(xs) < 20 else "")
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if y == "%":
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    return _drawn(figure)


def confusion(counts_CC: NDArray, classes: Sequence[str]) -> str:
    shares = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    side = min(3 + 0.25 * len(classes), 12)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = min(10, 600 / max(len(classes), 1))  # so that the names of UCF101's classes do not overlap
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set(xlabel="predicted", ylabel="label")
    for i, j in np.ndindex(shares.shape) if len(classes) <= 20 else ():
        if shares[i, j]:
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black", fontsize=8)  # fmt: skip
    return _drawn(figure)


def t_sne(x_MD: NDArray, labels_M: NDArray, classes: Sequence[str]) -> str:
    """Videos as points, of at most ten classes."""
    from sklearn.manifold import TSNE

    kept = labels_M < 10
    x, labels = x_MD[kept], labels_M[kept]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    x = x - x.mean(0)
    x = x / max(x.std(), 1e-12)  # networks' features lie close together
    perplexity = max(1.0, min(30.0, (len(x) - 1) / 3))
    at = TSNE(2, perplexity=perplexity, init="random", random_state=0).fit_transform(x)
    figure = _figure(5, 4.2)
    axes = figure.add_subplot()
    for label in np.unique(labels):
        axes.scatter(at[labels == label, 0], at[labels == label, 1], s=14, label=classes[label])
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _drawn(figure)


def memory(usage_K: NDArray, norm_K: NDArray, marked: NDArray) -> str:
    """How much each slot is used, and how long it is, with some of them marked (MemDPC, Fig. 8)."""
    figure = _figure(5, 3.2)
    above, below = figure.subplots(2, sharex=True)
    for axes, values, name in ((above, 100 * usage_K, "use, %"), (below, norm_K, "‖M‖")):
        axes.bar(range(len(values)), values, width=1, color="#94a3b8")
        axes.bar(marked, values[marked], width=max(1, len(values) / 150), color="#ea580c")
        axes.set_ylabel(name)
    below.set_xlabel("slot")
    return _drawn(figure)


def clip(dataset: Dataset, row: int, window: tuple[int, int] | None = None) -> str | None:
    """A video's frames from its beginning to its end, or of a window (first frame, frames), as a looping WebP; None
    where it cannot be decoded."""
    length = int(dataset.column("num_frames")[row])
    first, frames = window or (0, length)
    first = min(max(first, 0), length - 1)
    last = min(first + frames, length) - 1
    offsets = tuple(np.unique(np.linspace(first, last, FRAMES).round().astype(int)).tolist())
    spec = ViewSpec(offsets=(offsets,), size=SIDE)
    params = eval_params(spec, dataset, EvalClips(*np.array([[row], [0], [0]]))).sample(0)
    try:
        pixels = decode_views(dataset.read(row), params, SIDE)
    except DecodeError:
        return None
    still, *rest = (Image.fromarray(frame) for frame in pixels)
    out = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": MILLISECONDS, "loop": 0}
    still.save(out, "WEBP", quality=70, **options)
    return _uri("webp", out.getvalue())
