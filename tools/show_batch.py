#!/usr/bin/env python3
"""What is a model really fed? A picture, and a page of looping clips with the spec behind each.

    tools/show_batch.py --objective dpc --data data/k400          writes batch-dpc.png and batch-dpc.html
    tools/show_batch.py --objective tcp --modality flow --data data/k400 --device cpu --batch 3

The views come from the loader that training uses: its first batch (or --batch N) under the same --seed and --batch-size,
made by the same backend. Normalisation is undone, augmentation is not. The page is one file.
"""

import base64
import html
import io
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from objectives.command import data_once, parse
from pipelines.backends import Device, settings_for
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.sampling import ViewParams
from pipelines.views import ViewSpec, paced
from shards import Dataset, InputError, at_least, one_line
from shards.build.scan import data_folder
from shards.several import joined
from training.log import visible
from training.processes import writing

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 0 2rem; margin: 0 }
dl div { display: flex; gap: .8rem } dt { min-width: 6.5rem } dd { margin: 0; overflow-wrap: anywhere } dt, .soft { color: #888 }
.views { display: grid; grid-template-columns: repeat(var(--wide), minmax(0, 180px)); gap: 12px; align-items: start }
figure { margin: 0 } figure img { width: 100%; display: block; image-rendering: pixelated }
dl, figcaption, summary { font-size: 12px } figcaption { margin-top: 4px } .beyond { color: #dc2626 }
pre { font-size: 10px; margin: 4px 0; white-space: pre-wrap }
@media (max-width: 700px) { body { margin: 1rem } .views { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)) } }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } }
"""
BEYOND = "beyond the end"
RED, GREY, BAR = (220, 38, 38), (203, 213, 225), 1 / 24  # the bar below a frame, a share of its height


@dataclass(frozen=True)
class Settings:
    """Which batch is shown. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method whose views are shown."""
    data: tuple[Path, ...] | None = None
    """A data set made by tools/make_shards.py, or a folder of videos; the rendered demo set by default. Several as one."""
    split: str | None = None
    """Use only the rows of this split."""
    out: Path | None = None
    """Name of the two files, without .png and .html; batch-OBJECTIVE by default."""
    batch_size: int = 4
    """Videos shown; with training's batch size, training's batch."""
    batch: int = 0
    """Which batch, counted from 0."""
    fps: float = 10.0
    """Frames a second of the clips on the page."""
    device: Device = "auto"
    """Where videos are decoded and augmented."""
    threads: int | None = None
    """Decoding threads; as many as there are cores, or eight with NVDEC, by default."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    seed: int = 0
    """Of all random choices."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "threads")
        if self.batch < 0 or self.fps <= 0:
            raise InputError("--batch must be at least 0, --fps above 0")


def main(argv: list[str]) -> None:
    settings, config = parse(data_once(argv), Settings, __doc__, "show_batch.py")
    spec = objectives.get(settings.objective).view_spec(config)
    dataset = joined([Dataset(data_folder(one)) for one in settings.data or (None,)])
    rows = dataset.select(split=settings.split, min_frames=spec.span if spec.padding == "error" else 1)
    batch = load_batch(dataset, rows, spec, settings.batch_size, settings, settings.batch)
    out = settings.out or Path(f"batch-{settings.objective}")
    picture, page = out.with_name(out.name + ".png"), out.with_name(out.name + ".html")
    title = f"{settings.objective} on {dataset.name}, seed {settings.seed}, batch {settings.batch}"
    with writing(out, "--out", "choose a place that can be written to"):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(title, batch, spec, dataset, picture)
        page.write_text(make_page(title, batch, spec, dataset, settings.fps), encoding="utf-8")
    print(title)
    for key, params in zip(batch["key"], batch["params"], strict=True):
        print(key)
        for view in range(spec.views):
            print(f"  view {view}: " + ", ".join(f"{k} {v}" for k, v in describe(params, view, spec).items()))
    print(f"{picture}\n{page}")


def load_batch(
    dataset: Dataset, rows: np.ndarray, spec: ViewSpec, size: int, settings: Any, number: int = 0
) -> dict[str, Any]:
    """Training's batch of this number. settings: have a seed, a device and threads."""
    sampler = TrainSampler(dataset, rows, spec, size, seed=settings.seed)
    backend = settings_for(settings.device, dataset, threads=settings.threads)
    with Loader(dataset, sampler, backend, prefetch=0) as loader:
        loader.load_state_dict({"samples": number * size})
        return next(loader)


def describe(params: ViewParams, view: int, spec: ViewSpec) -> dict[str, str]:
    """What was sampled for one view, in words."""
    left, top, width, height = params.boxes[view].tolist()
    words = {"frames": ranges(params.frames[view]), "box": f"{width}×{height} at {left},{top}"}
    if params.flips[view]:
        words["flip"] = "left to right"
    if params.angles[view]:
        words["turn"] = f"{params.angles[view]:.1f}°"
    if params.pace is not None:
        words["pace"] = f"label {params.pace[view]}"
    if count := int(beyond_end(params, spec)[view].sum()):
        words[BEYOND] = f"{count} of {spec.frames} frames"
    return words


def beyond_end(params: ViewParams, spec: ViewSpec) -> np.ndarray:
    """Which frames (V, T) of a sample lie beyond their video's end, so that the last frame, or an earlier one, stands in.

    For a difference: those of which either frame does.
    """
    offsets = spec.decoded_offsets
    start_of = spec.scope(spec.start_scope)[:, 0]
    if params.pace is not None:
        offsets, start_of = paced(offsets, np.array(spec.paces)[params.pace][:, None]), np.arange(spec.views)
    ahead = params.frames - offsets  # the start, or less where another frame stands in
    starts = np.array([ahead[start_of == group].max() for group in start_of])
    return np.asarray(ahead < starts[:, None])[:, -spec.frames :]


def ranges(numbers: np.ndarray) -> str:
    """Frame numbers in short: "3–9", "4–60 by 8, 61 ×3"; those of no pattern one by one."""
    parts, at = [], 0
    while at < len(numbers):
        steps = np.diff(numbers[at:])
        run = 1 + int(np.argmin(np.append(steps == steps[:1], False)))
        first, step = numbers[at], steps[0] if len(steps) else 1
        if step == 0:
            parts.append(f"{first} ×{run}")
        elif run > 2 and step > 0:
            parts.append(f"{first}–{numbers[at + run - 1]}" + (f" by {step}" if step > 1 else ""))
        else:
            parts.append(str(first))
            run = 1
        at += run
    return ", ".join(parts)


def save_picture(
    title: str, batch: dict[str, Any], spec: ViewSpec, dataset: Dataset, path: Path, columns: int = 8
) -> None:
    """A PNG: a row a view, frames from left to right with their numbers, and beside it what was sampled for the view.

    The numbers of frames beyond the video's end are red.
    """
    pixels_BVTHW3 = visible(batch["views"], spec).numpy()
    chosen = np.linspace(0, spec.frames - 1, min(columns, spec.frames)).round().astype(int)
    height = 1.25 * len(pixels_BVTHW3) * spec.views + 0.55
    title += "; frame numbers below; red: beyond the video's end"
    figure = Figure(figsize=(1.25 * len(chosen) + 2.5, height), dpi=100)
    figure.suptitle(title, x=0.01, ha="left", va="top", y=1 - 0.06 / height, fontsize=9)
    grid = figure.add_gridspec(
        len(pixels_BVTHW3) * spec.views, 1, left=2.5 / (1.25 * len(chosen) + 2.5), right=1, bottom=0.15 / height,
        top=1 - 0.4 / height, hspace=0.16,
    )  # fmt: skip
    for video, (clips, params) in enumerate(zip(pixels_BVTHW3, batch["params"], strict=True)):
        name = batch["key"][video] + name_of(int(batch["label"][video]), dataset)
        for view, clip in enumerate(clips):
            axes = figure.add_subplot(grid[video * spec.views + view])
            axes.imshow(np.concatenate(list(clip[chosen]), axis=1), aspect="auto")
            numbers = params.frames[view][chosen].tolist()
            axes.set_xticks((np.arange(len(chosen)) + 0.5) * clip.shape[2], numbers, fontsize=6)
            axes.tick_params(length=0, pad=1)
            axes.set_yticks([])
            for number, red in zip(
                axes.get_xticklabels(), beyond_end(params, spec)[view][chosen], strict=True
            ):
                number.set_color(np.array(RED if red else (0, 0, 0)) / 255)
            words = (fill(f"{key}: {value}", 38) for key, value in describe(params, view, spec).items())
            label = "\n".join([name] * (view == 0) + [f"view {view}", *words])
            axes.set_ylabel(label, rotation=0, ha="left", va="center", fontsize=7, labelpad=179)
            for side in axes.spines.values():
                side.set_visible(False)
    figure.savefig(path)


def make_page(title: str, batch: dict[str, Any], spec: ViewSpec, dataset: Dataset, fps: float) -> str:
    """The page's HTML. batch: as the loader gives it."""
    pixels_BVTHW3 = visible(batch["views"], spec).numpy()
    values = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "offsets"}
    usual = {name for name, value in values.items() if value == getattr(ViewSpec, name, None)}
    offsets = {f"view {view}": ranges(np.array(numbers)) for view, numbers in enumerate(spec.offsets)}
    rows = -(-spec.views // 10)
    columns = (
        f"--wide: {-(-spec.views // rows)}; --narrow: {3 if spec.views % 3 == 0 else min(spec.views, 2)}"
    )
    videos = "".join(
        f'<h2>{html.escape(key + name_of(label, dataset))}</h2><div class="views" style="{columns}">'
        + "".join(figure(clip, params, view, spec, fps) for view, clip in enumerate(clips))
        + "</div>"
        for key, label, params, clips in zip(
            batch["key"], batch["label"].tolist(), batch["params"], pixels_BVTHW3, strict=True
        )
    )
    return page_of(
        title,
        f"<h2>The spec: {spec.views} views of {spec.frames} frames, {spec.channels} × {spec.size}², "
        f"{spec.span} frames from first to last</h2>"
        + definitions(offsets | {name: values[name] for name in values if name not in usual})
        + f"<details><summary>{len(usual)} settings at their defaults</summary>"
        + definitions({name: values[name] for name in values if name in usual})
        + "</details><p class=soft>A bar below each clip is red while the video has ended and another frame stands in "
        f"(padding: {spec.padding}).</p>{videos}",
    )


def page_of(title: str, body: str, style: str = "") -> str:
    """A page of HTML that needs nothing beside itself."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f'<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href=data:,>'
        f"<style>{STYLE}{style}</style><h1>{html.escape(title)}</h1>{body}</html>\n"
    )


def definitions(values: dict[str, Any]) -> str:
    rows = (f"<div><dt>{name}</dt><dd>{html.escape(str(value))}</dd></div>" for name, value in values.items())
    return f"<dl>{''.join(rows)}</dl>"


def name_of(label: int, dataset: Dataset) -> str:
    return f" ({dataset.classes[label]})" if 0 <= label < len(dataset.classes) else ""


def figure(clip_THW3: np.ndarray, params: ViewParams, view: int, spec: ViewSpec, fps: float) -> str:
    words = "".join(
        f"<br><span{' class=beyond' if name == BEYOND else ''}>{name} {value}</span>"
        for name, value in describe(params, view, spec).items()
    )
    colours_TCP = params.colours[view]
    frames = "frame 0 of many" if (colours_TCP != colours_TCP[0]).any() else "all frames"
    matrix = "\n".join(" ".join(f"{value:8.4f}" for value in row) for row in colours_TCP[0])
    beyond_T = beyond_end(params, spec)[view]
    height = max(2, round(BAR * clip_THW3.shape[1]))
    bars_T13 = np.where(beyond_T[:, None], RED, GREY).astype(np.uint8)[:, None, None]
    bars_THW3 = np.broadcast_to(bars_T13, (len(clip_THW3), height, *clip_THW3.shape[2:]))
    return (
        f'<figure><img alt="view {view}" src="{animation(np.concatenate([clip_THW3, bars_THW3], axis=1), fps)}">'
        f"<figcaption><b>view {view}</b>{words}"
        f"<details><summary>colours</summary>{frames}<pre>{matrix}</pre></details></figcaption></figure>"
    )


def animation(clip_THW3: np.ndarray, fps: float) -> str:
    """A clip, uint8 RGB, as a data URI: a WebP that loops."""
    first, *rest = map(Image.fromarray, clip_THW3)
    out = io.BytesIO()
    first.save(out, "WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=80)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
