"""How the loader's speed depends on its flags, and which of them suit this machine best."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, get_args

from pipelines.graph import Placement, choose_placement
from pipelines.tuned import Tuned

from shards import InputError

from .parts import Way, loader_alone
from .rounds import Figures, Part, in_turns, medians
from .source import Source
from .training import Step, together

LEAST = {"threads": 1, "prefetch": 0, "batch_size": 1}
ENOUGH = 0.97  # of the best rate: below this a difference counts


def parse_axes(words: tuple[str, ...]) -> dict[str, list[Any]]:
    """("threads=1,2", "device=cpu") → {"threads": [1, 2], "device": ["cpu"]}; raises InputError."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, _, values = word.replace("-", "_").partition("=")
        try:
            if name == "device":
                axes[name] = [value for value in values.split(",") if value in get_args(Placement)]
                sound = len(axes[name]) == len(values.split(","))
            else:
                axes[name] = [int(value) for value in values.split(",")]
                sound = min(axes[name]) >= LEAST[name]
        except (ValueError, KeyError):
            sound = False
        if not sound:
            raise InputError(
                f"--sweep {word}: give threads=1,2 prefetch=0,2 batch_size=8,16 device={','.join(get_args(Placement))}"
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
            placement = choose_placement(flags.get("device", way.placement))
        except InputError as error:
            settings[name] = flags | {"left_out": str(error)}
            continue
        tried = replace(
            way, placement=placement, **{k: flags[k] for k in ("threads", "prefetch") if k in flags}
        )
        sized = replace(source, batch_size=flags.get("batch_size", source.batch_size))
        parts[name] = loader_alone(sized, tried, batches)
    found = in_turns(parts, rounds, 0, "sweep")
    return [flags | (medians(found[name]) if name in found else {}) for name, flags in settings.items()]


def autotune(
    source: Source, way: Way, step: Step | None, rounds: int, batches: int, say: Callable[[str], None]
) -> tuple[Tuned, list[Figures]]:
    """The least that is as good as the best, and all that was tried.

    First placement and threads, then batches ahead; training on fresh batches decides, or without `step` the
    loader alone. Of flags within 3 % of the best rate those with the fewest threads, then the fewest batches, win.
    """
    tried: list[Figures] = []

    def best(ways: list[Way]) -> Way:
        parts = {
            f"{w.placement}, {w.threads} threads, {w.prefetch} ahead": together(step, source, w, batches)
            if step
            else loader_alone(source, w, batches)
            for w in ways
        }
        found = [medians(figures) for figures in in_turns(parts, rounds, 0, "autotune").values()]
        tried.extend(flags_of(w) | figures for w, figures in zip(ways, found, strict=True))
        rates = [figures["clips_per_s"] for figures in found]
        enough = [w for w, clips in zip(ways, rates, strict=True) if clips >= ENOUGH * max(rates)]
        return min(enough, key=lambda w: (w.threads, w.prefetch))

    cores = len(os.sched_getaffinity(0))
    threads = sorted({max(1, cores // 4), max(1, cores // 2), cores, 2 * cores})
    chosen = best([replace(way, placement=p, threads=t) for p in placements(say) for t in threads])
    chosen = best([replace(chosen, prefetch=ahead) for ahead in (1, 2, 4)])
    return flags_of(chosen), tried


def flags_of(way: Way) -> Tuned:
    return Tuned(device=way.placement, threads=way.threads, prefetch=way.prefetch)


def placements(say: Callable[[str], None]) -> list[Placement]:
    """Those that this machine has."""
    found: list[Placement] = []
    for name in get_args(Placement):
        try:
            found.append(choose_placement(name))
        except InputError as error:
            say(f"not tried: {error}")
    return found
