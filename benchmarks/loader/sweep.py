"""How the loader's speed depends on its flags, and which of them suit this machine best."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

from pipelines.backends import BACKENDS, SHARING, choose_backend
from shards import InputError
from training.speed import Tuned

from .parts import Way, loader_alone
from .rounds import Figures, Part, in_turns, medians
from .source import Source
from .training import Step, together

LEAST = {"threads": 1, "prefetch": 0, "batch_size": 1, "nvdec_threads": 1, "pipelines": 1}
ENOUGH = 0.97  # of the best rate: below this a difference counts


def parse_axes(words: tuple[str, ...]) -> dict[str, list[Any]]:
    """("threads=1,2", "device=cpu") → {"threads": [1, 2], "device": ["cpu"]}; raises InputError."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, _, values = word.replace("-", "_").partition("=")
        try:
            if name == "device":
                axes[name] = [value for value in values.split(",") if value in BACKENDS]
                sound = len(axes[name]) == len(values.split(","))
            else:
                axes[name] = [int(value) for value in values.split(",")]
                sound = min(axes[name]) >= LEAST[name]
        except (ValueError, KeyError):
            sound = False
        if not sound:
            raise InputError(
                f"--sweep {word}: give threads=1,2 prefetch=0,2 batch_size=8,16 nvdec_threads=8,14 pipelines=1,2 "
                f"device={','.join(BACKENDS)}"
            )
    return axes


def sweep(source: Source, way: Way, axes: dict[str, list[Any]], rounds: int, batches: int) -> list[Figures]:
    """The loader alone for each combination: its flags and its figures, or why it is left out."""
    parts: dict[str, Part] = {}
    settings: dict[str, Figures] = {}
    for values in product(*axes.values()):
        flags = dict(zip(axes, values, strict=True))
        name = " ".join(f"{key}={value}" for key, value in flags.items())
        settings[name] = flags
        try:
            backend = choose_backend(flags.get("device", way.backend), source.dataset)
        except InputError as error:
            settings[name] = flags | {"left_out": str(error)}
            continue
        own = {k: v for k, v in flags.items() if k not in ("device", "batch_size")}
        tried = replace(way, backend=backend, **own)
        sized = replace(source, batch_size=flags.get("batch_size", source.batch_size))
        parts[name] = loader_alone(sized, tried, batches)
    found = in_turns(parts, rounds, 0, "sweep")
    return [flags | (medians(found[name]) if name in found else {}) for name, flags in settings.items()]


def autotune(
    source: Source, way: Way, step: Step | None, rounds: int, batches: int, say: Callable[[str], None]
) -> tuple[Tuned, list[Figures]]:
    """The least that is as good as the best, and all that was tried.

    First backend and threads, then batches ahead; training on fresh batches decides, or without `step` the
    loader alone. Of flags within 3 % of the best rate those with the fewest threads, then the fewest batches, win.
    """
    tried: list[Figures] = []

    def timed(ways: list[Way], step: Step | None) -> list[Figures]:
        parts = {
            f"{w.backend}, {w.threads} threads, {w.prefetch} ahead": together(step, source, w, batches)
            if step
            else loader_alone(source, w, batches)
            for w in ways
        }
        return [medians(figures) for figures in in_turns(parts, rounds, 0, "autotune").values()]

    def best(ways: list[Way]) -> Way:
        found = timed(ways, step)
        tried.extend(flags_of(w) | figures for w, figures in zip(ways, found, strict=True))
        return least(ways, found)

    cores = len(os.sched_getaffinity(0))
    threads = sorted({max(1, cores // 4), max(1, cores // 2), cores, 2 * cores})
    ways = [replace(way, backend=name, threads=t) for name in backends(source, say) for t in threads]
    chosen = best(ways)
    share = cpu_share(ways, lambda those: timed(those, None))
    chosen = best([replace(chosen, prefetch=ahead) for ahead in (1, 2, 4)])
    found = flags_of(chosen)
    if share is not None:
        found["cpu_share"] = share
    return found, tried


def least(ways: list[Way], found: list[Figures]) -> Way:
    """The one with the fewest threads, then batches ahead, of those as good as the best."""
    rates = [figures["clips_per_s"] for figures in found]
    enough = [w for w, clips in zip(ways, rates, strict=True) if clips >= ENOUGH * max(rates)]
    return min(enough, key=lambda w: (w.threads, w.prefetch))


def cpu_share(ways: list[Way], timed: Callable[[list[Way]], list[Figures]]) -> float | None:
    """The share of the samples, 0–1, that the CPU should decode beside NVDEC, by what each does alone.

    ways: all that this machine has; of both kinds the one with the most threads is timed. None where one kind lacks.
    """
    most = {one.backend: one for one in ways if one.backend in SHARING}
    if len(most) < 2:
        return None
    on_cpu, on_gpu = (figures["clips_per_s"] for figures in timed([most[name] for name in SHARING]))
    return round(on_cpu / (on_cpu + on_gpu), 2)


def flags_of(way: Way) -> Tuned:
    return Tuned(device=way.backend, threads=way.threads, prefetch=way.prefetch)


def backends(source: Source, say: Callable[[str], None]) -> list[str]:
    """Those that this machine has for the data."""
    found: list[str] = []
    for name in BACKENDS:
        try:
            found.append(choose_backend(name, source.dataset))
        except InputError as error:
            say(f"not tried: {error}")
    return found
