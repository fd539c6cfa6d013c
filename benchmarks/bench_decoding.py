#!/usr/bin/env python3
"""What the options for when decoding is the limit save, here: the loader alone, the options taking turns.

    benchmarks/bench_decoding.py --objective dpc --data data/ut --others data/ut-dpc --json benchmarks/results/DATE-MACHINE-decoding.json

The plain loader on --data is compared with itself under each option, and with the plain loader on the other data sets,
which were made of the same videos (make_shards --for). A figure is the median over rounds of the plain one's time
divided by the option's: above 1 is faster. On a CPU the time is that of its cores, which other work disturbs little; with a
GPU it is the clock's. Caches are filled before; docs/guides/speed.md says what each option changes.
"""

import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from benchmarks.loader.rounds import Figures, Part, in_turns, medians, rate
from benchmarks.machine import describe
from objectives.base import Recipe
from objectives.command import parse, suited
from pipelines.backends import BACKENDS, BackendSettings, choose_backend
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset, at_least, demo, one_line


@dataclass(frozen=True)
class Settings:
    """What is timed. The objective's own flags follow further down."""

    objective: str = "dpc"
    """The method whose views are made."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; the rendered demo set by default."""
    others: tuple[Path, ...] = ()
    """Data sets of the same videos, made otherwise."""
    clips_per_decode: tuple[int, ...] = (2, 4)
    """Numbers of clips of a video to try; they divide the batch."""
    cpu_share: tuple[float, ...] = ()
    """With --device gpu: shares for the CPU to try."""
    cache_gib: float = 8.0
    """Memory of the caches."""
    batch_size: int = 8
    """Clips a batch."""
    batches: int = 3
    """Batches of each option in each round."""
    rounds: int = 5
    """Rounds, each of which times every option."""
    device: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    """Where videos are decoded and augmented."""
    threads: int = 1
    """Decoding threads."""
    json: Path | None = None
    """Write the result here as well."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "batches", "rounds", "threads")

    @classmethod
    def for_recipe(cls, _: Recipe, **fields: Any) -> "Settings":
        return cls(**fields)


def main(argv: list[str]) -> None:
    settings, config = parse(argv, Settings, __doc__, "bench_decoding.py")
    data = Dataset(settings.data or demo.ensure())
    backend = choose_backend(settings.device, data)
    kind = BACKENDS[backend]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = objectives.get(settings.objective).view_spec(config)
    cases: dict[str, tuple[Dataset, Any, dict[str, Any]]] = {"plain": (data, spec, {})}
    for clips in settings.clips_per_decode:
        cases[f"--clips-per-decode {clips}"] = data, spec, {"clips": clips}
    for share in settings.cpu_share:
        cases[f"--cpu-share {share:g}"] = data, spec, {"cpu_share": share}
    for where in kind.caches:
        cases[f"--cache {where}"] = data, spec, {"cache": where, "cache_gib": settings.cache_gib}
    for path in settings.others:
        cls = objectives.get(settings.objective)
        cases[str(path)] = Dataset(path), cls.view_spec(suited(cls, config, path)), {}

    with ExitStack() as stack:
        parts = {}
        for name, (dataset, looked, options) in cases.items():
            rows = dataset.select(min_frames=looked.span if looked.padding == "error" else 1)
            clips = options.pop("clips", 1)
            sampler = TrainSampler(dataset, rows, looked, settings.batch_size, clips=clips)
            loader = Loader(
                dataset,
                sampler,
                BackendSettings(backend, threads=settings.threads, **options),
                threads=settings.threads,
                prefetch=2 if kind.on_gpu else 0,
                device=device,
            )
            until = sampler.epoch_clips if "cache" in options else 0
            parts[name] = timed(stack.enter_context(loader), until, settings, device)
        rounds = in_turns(parts, settings.rounds, 0, settings.objective)
    time = "ms_per_clip" if kind.on_gpu else "cpu_ms_per_clip"
    figures = {name: medians(found) for name, found in rounds.items()}
    for name, found in rounds.items():
        ratios = [plain[time] / one[time] for plain, one in zip(rounds["plain"], found, strict=True)]
        figures[name] |= {
            "ratio": statistics.median(ratios),
            "kb_per_video": float(cases[name][0].column("mp4_size").mean()) / 1000,
        }
    print(table(settings.objective, figures, time))
    if settings.json:
        result = {
            "command": "benchmarks/bench_decoding.py " + " ".join(argv),
            "machine": describe("torch", "av", "numpy")
            | {"gpu": torch.cuda.get_device_name() if device.type == "cuda" else None},
            "objective": settings.objective,
            "backend": backend,
            "views": {"views": spec.views, "frames": spec.frames, "size": spec.size},
            "options": figures,
        }
        settings.json.write_text(json.dumps(result, indent=1) + "\n")


def timed(loader: Loader, until: int, settings: Settings, device: torch.device) -> Part:
    """A part of a round: some batches of a loader, which goes on from round to round. until: where its cache is full."""
    while loader.position < until:
        next(loader)
    next(loader)

    def part(_: int) -> Figures:
        figures = rate(lambda: next(loader), settings.batches, settings.batch_size, device)
        return figures | {"ms_per_clip": 1000 / figures["clips_per_s"]}

    return part


def table(objective: str, figures: dict[str, Figures], time: str) -> str:
    """The figures as lines of text."""
    width = max(map(len, figures))
    lines = [f"{objective}: {time.replace('_', ' ')}, times as fast as plain, kB a video"]
    lines += [
        f"{name:{width}}  {one[time]:7.2f}  {one['ratio']:5.2f}  {one['kb_per_video']:6.0f}"
        for name, one in figures.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
