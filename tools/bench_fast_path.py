#!/usr/bin/env python3
"""What the cpu placement's own steps save: milliseconds of a core, the ways of a row taking turns.

    tools/bench_fast_path.py --data data/ut

cut: crop, scale and RGB of a decoded frame in FFmpeg's filter graph, packed and in planes. paint: a frame's way from
pixels to a view of every objective's spec, by DALI's operators for the CPU and by pipelines.painter. See
docs/fast-path.md.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import tyro
from pipelines.cut import SCALE_FLAGS
from pipelines.graph import Graph
from pipelines.painter import Painter

import objectives
from pipelines.sampling import sample_params
from pipelines.views import ViewSpec
from shards import Dataset, demo, one_line


@dataclass(frozen=True)
class Settings:
    data: Path | None = None
    """A data set made by tools/make_shards.py; the rendered demo set by default."""
    size: int = 128
    """Side of a view that frames are cut to, in pixels."""
    rounds: int = 5
    """Turns that each way takes; the fastest counts."""


def main(settings: Settings) -> None:
    dataset = Dataset(settings.data or demo.ensure())
    with av.open(io.BytesIO(dataset.read(0))) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(32), strict=False)]
    graphs = {name: cutting(frames[0], settings.size, name) for name in ("rgb24", "gbrp")}
    ways = {name: lambda graph=graph: cut(graph, frames) for name, graph in graphs.items()}
    report(f"cut to {settings.size}²", in_turns(ways, len(frames), settings.rounds))
    for name, objective in objectives.available().items():
        spec = objective.view_spec(objective.Config())
        report(f"paint {name}", painting(spec, settings.rounds))
    lab = replace(
        objectives.get("vdim").view_spec(objectives.get("vdim").Config()), jitter=None, lab_drop=True
    )
    report("paint vdim, Lab", painting(lab, settings.rounds))


def cutting(frame: av.VideoFrame, size: int, format_: str) -> av.filter.Graph:
    side = min(frame.width, frame.height) * 7 // 16 * 2
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(None, frame.width, frame.height, frame.format, None, frame.time_base)]
    nodes += [graph.add("crop", f"{side}:{side}:2:2")]
    nodes += [graph.add("scale", f"{size}:{size}:flags={SCALE_FLAGS}"), graph.add("format", format_)]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def cut(graph: av.filter.Graph, frames: list[av.VideoFrame]) -> None:
    for frame in frames:
        graph.vpush(frame)
        graph.vpull()


def painting(spec: ViewSpec, rounds: int) -> dict[str, float]:
    one = np.ones(1, dtype=np.int64)
    params = sample_params(spec, 0 * one, 300 * one, 340 * one, 256 * one, seed=0, epoch=0).sample(0)
    shape = (spec.views * spec.decoded, spec.planes, spec.size, spec.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).transpose(0, 2, 3, 1)
    makers = {
        "DALI": Graph(spec, 1, "hybrid", threads=1, decoder="cpu"),
        "painter": Painter(spec, 1, threads=1),
    }
    ways = {name: lambda maker=maker: maker.run([params], [pixels]) for name, maker in makers.items()}
    return in_turns(ways, spec.views * spec.frames, rounds)


def in_turns(ways: dict[str, Callable[[], object]], frames: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a core a frame, of the fastest round; the first does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            since = time.process_time()
            way()
            taken[name].append(time.process_time() - since)
    return {name: 1000 * min(seconds[1:]) / frames for name, seconds in taken.items()}


def report(title: str, figures: dict[str, float]) -> None:
    before, after = figures.values()
    line = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    print(f"{title:18}{line} ms of a core a frame; {before / after:.1f} times", flush=True)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Settings, description=__doc__))
