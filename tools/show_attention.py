#!/usr/bin/env python3
"""Where does a pace network look? Attention maps as in the pace paper's Fig. 5: a row a video, a column a pace.

    tools/show_attention.py runs/pace                                        the demo set's test clips
    tools/show_attention.py runs/pace --data data/ucf101 --split test1 --videos 6 --seed 3

A clip of every pace starts at the same frame; its map is the mean of conv5's squared activations over channels and
time (Zagoruyko & Komodakis 2017), laid over the clip's last frame, from its least value (blue) to its greatest (red).
Small clips have few locations in conv5, 3×3 at 40²: --stage 4 shows the stage before, 5×5. Writes attention.png and attention.html; the page plays the clips and needs nothing beside itself.
"""

import html
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from objectives.pace import Pace, PaceConfig, pace_name
from pipelines import colour
from pipelines.backends import Device
from pipelines.views import ViewSpec, eval_view, paced
from shards import Dataset, InputError, at_least, one_line
from shards.build.scan import data_folder
from tools.show_batch import animation, load_batch, page_of
from training.log import visible
from training.processes import writing

FPS = 10  # of the page's clips

STYLE = """
td, th { padding: 4px 6px; vertical-align: top; text-align: left; font-size: 12px } .wrong { color: #c00 }
img { width: 160px; image-rendering: pixelated; background: #ddd; display: block; margin-bottom: 4px }
"""


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: tyro.conf.Positional[Path]
    """A run of pace, one of its checkpoints, or an imported one."""
    data: Path | None = None
    """A data set made by tools/make_shards.py, or a folder of videos; the rendered demo set by default."""
    split: str | None = None
    """Use only the rows of this split; of the demo set "test" by default."""
    videos: int = 4
    """Rows of the picture."""
    seed: int = 0
    """Which videos, and where their clips begin."""
    out: Path = Path("attention")
    """Name of the two files, without .png and .html."""
    stage: Literal[1, 2, 3, 4, 5] = 5
    """Whose map: 5 is conv5, as in the paper; stages before it have more locations."""
    size: int = 160
    """Side of a cell of the picture in pixels, even; the network sees clips of its own size."""
    device: Device = "auto"
    """Where videos are decoded."""
    threads: int | None = None
    """Decoding threads; as many as there are cores, or eight with NVDEC, by default."""

    def __post_init__(self) -> None:
        at_least(self, 1, "videos", "threads")
        at_least(self, 2, "size")
        if self.size % 2:
            raise InputError(f"--size {self.size}: must be even")


def main(arguments: Arguments) -> None:
    objective = objectives.load(arguments.checkpoint)
    if not isinstance(objective, Pace):
        raise InputError(
            f"{arguments.checkpoint} is a checkpoint of {objective.name}: attention is shown for pace"
        )
    spec = column_spec(objective.config)
    for_eyes = replace(spec, size=arguments.size, levels="imagenet")
    dataset = Dataset(data_folder(arguments.data))
    batch, shown = (first_batch(arguments, dataset, wanted) for wanted in (spec, for_eyes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    maps_BVhw, shares_BVM = look(objective.to(device), batch["views"].to(device), arguments.stage)
    clips_BVTHW3 = visible(shown["views"], for_eyes).numpy()
    laid_BVHW3 = overlay(clips_BVTHW3[:, :, -1], maps_BVhw)
    names = [f"p = {pace_name(pace)}" for pace in objective.config.paces]
    picture, page = (arguments.out.with_name(arguments.out.name + end) for end in (".png", ".html"))
    with writing(arguments.out, "--out", "choose a place that can be written to"):
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        draw_grid(laid_BVHW3, names, arguments.size).save(picture)
        title = f"{arguments.checkpoint}: attention on {dataset.name}"
        page.write_text(make_page(title, batch["key"], names, clips_BVTHW3, laid_BVHW3, shares_BVM), "utf-8")
    print(f"{picture}\n{page}")


def first_batch(arguments: Arguments, dataset: Dataset, spec: ViewSpec) -> dict[str, Any]:
    """The clips of as many videos as the picture has rows: the same for every size of a view."""
    split = arguments.split or (None if arguments.data else "test")
    return load_batch(dataset, dataset.select(split=split), spec, arguments.videos, arguments)


def column_spec(config: PaceConfig) -> ViewSpec:
    """One view a pace, all from one start, in the middle of the picture, without augmentation."""
    spec = eval_view(Pace.view_spec(config))
    offsets = [tuple(paced(range(spec.frames), pace).tolist()) for pace in config.paces]
    return replace(spec, offsets=tuple(offsets), paces=(), circular=False, padding="wrap", box_scope="clip")


@torch.no_grad()
def look(objective: Pace, views_BVCTHW: Tensor, stage: int = 5) -> tuple[Tensor, Tensor | None]:
    """Attention (B, V, h, w) of a stage, from 0 to 1 in each map, on the CPU, and the paces' probabilities (B, V, M),
    None without a head."""
    B, V = views_BVCTHW.shape[:2]
    found = objective.encoder.maps(views_BVCTHW.flatten(0, 1), (stage, 5))
    conv5 = found[5].float()
    maps = found[stage].float().square().mean((1, 2))
    least, greatest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = (maps - least) / (greatest - least).clamp(min=1e-12)
    if objective.head is None:
        return maps.unflatten(0, (B, V)).cpu(), None
    shares = objective.head(conv5.mean((2, 3, 4))).softmax(-1)
    return maps.unflatten(0, (B, V)).cpu(), shares.unflatten(0, (B, V)).cpu()


def overlay(frames_BVHW3: np.ndarray, maps_BVhw: Tensor) -> np.ndarray:
    """Maps as heat over paled frames, thicker where it is hot; uint8 RGB (B, V, H, W, 3)."""
    large = F.interpolate(maps_BVhw, frames_BVHW3.shape[2:4], mode="bilinear", align_corners=False).numpy()
    heat = 255 * colormaps["jet"](large)[..., :3]
    luma = frames_BVHW3 @ colour.LUMA
    paled = (luma[..., None] + frames_BVHW3) / 2
    share = 0.3 + 0.3 * large[..., None]
    return ((1 - share) * paled + share * heat).round().astype(np.uint8)


def draw_grid(laid_BVHW3: np.ndarray, names: list[str], side: int) -> Image.Image:
    """A row a video, a column a pace, the paces' names above."""
    B, V = laid_BVHW3.shape[:2]
    gap, head = 4, 24
    grid = Image.new("RGB", (V * (side + gap) - gap, head + B * (side + gap) - gap), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(14)
    for v, name in enumerate(names):
        pen.text((v * (side + gap) + side / 2, head / 2), name, "black", font, anchor="mm")
        for b in range(B):
            cell = Image.fromarray(laid_BVHW3[b, v]).resize((side, side), Image.Resampling.BICUBIC)
            grid.paste(cell, (v * (side + gap), head + b * (side + gap)))
    return grid


def make_page(
    title: str,
    keys: list[str],
    names: list[str],
    clips_BVTHW3: np.ndarray,
    laid_BVHW3: np.ndarray,
    shares_BVM: Tensor | None,
) -> str:
    """The page's HTML: under each map its clip, and what the network takes the pace for."""
    rows = ""
    for b, key in enumerate(keys):
        cells = ""
        for v in range(len(names)):
            guess = "" if shares_BVM is None else guessed(shares_BVM[b, v], v, names)
            cells += f'<td><img alt="attention" src="{animation(laid_BVHW3[b, v][None], FPS)}">'
            cells += f'<img alt="clip" src="{animation(clips_BVTHW3[b, v], FPS)}">{guess}</td>'
        rows += f"<tr><th>{html.escape(key)}</th>{cells}</tr>"
    heads = "".join(f"<th>{name}</th>" for name in names)
    return page_of(title, f"<table><tr><th></th>{heads}</tr>{rows}</table>", STYLE)


def guessed(shares_M: Tensor, truth: int, names: list[str]) -> str:
    best = int(shares_M.argmax())
    mark = "" if best == truth else " class=wrong"
    return f"<span{mark}>taken for {names[best]} ({float(shares_M[best]):.0%})</span>"


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
