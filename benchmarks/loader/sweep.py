"""How the loader's speed depends on its flags, and which of them suit this machine best."""

import os
from dataclasses import replace
from itertools import product
from typing import Any

from benchmarks.loader.parts import Options, Step, loader_alone, together
from benchmarks.loader.rounds import Figures, Part, Source, in_turns, medians
from pipelines.backends import BACKENDS, available, choose_backend
from shards import InputError

LEAST = {
    "threads": 1,
    "prefetch": 0,
    "batch_size": 1,
    "pipelines": 1,
    "clips_per_decode": 1,
}
CHOICES = {"device": tuple(BACKENDS), "cache": ("none", "host", "gpu")}
ENOUGH = 0.97  # of the best rate: below this a difference counts


def parse_axes(words: tuple[str, ...]) -> dict[str, list[Any]]:
    """("threads=1,2", "device=cpu") → {"threads": [1, 2], "device": ["cpu"]}; raises InputError."""
    axes: dict[str, list[Any]] = {}
    for word in words:
        name, _, values = word.replace("-", "_").partition("=")
        try:
            if name in CHOICES:
                axes[name] = values.split(",")
                sound = set(axes[name]) <= set(CHOICES[name])
            else:
                axes[name] = [int(value) for value in values.split(",")]
                sound = min(axes[name]) >= LEAST[name]
        except (ValueError, KeyError):
            sound = False
        if not sound:
            raise InputError(
                f"--sweep {word}: give threads=1,2 prefetch=0,2 batch_size=8,16 pipelines=1,2 "
                f"clips_per_decode=1,2 device={','.join(BACKENDS)} cache={','.join(CHOICES['cache'])}"
            )
    return axes


def sweep(
    source: Source, options: Options, axes: dict[str, list[Any]], rounds: int, batches: int
) -> list[Figures]:
    """The loader alone for each combination: its flags and its figures, or why it is left out."""
    parts: dict[str, Part] = {}
    settings: dict[str, Figures] = {}
    for values in product(*axes.values()):
        flags = dict(zip(axes, values, strict=True))
        name = " ".join(f"{key}={value}" for key, value in flags.items())
        settings[name] = flags
        try:
            parts[name] = loader_alone(*_applied(flags, source, options), batches)
        except InputError as error:
            settings[name] = flags | {"left_out": str(error)}
    found = in_turns(parts, rounds, 0, "sweep")
    return [flags | (medians(found[name]) if name in found else {}) for name, flags in settings.items()]


def _applied(flags: dict[str, Any], source: Source, options: Options) -> tuple[Source, Options]:
    """The source and options with these flags. Raises InputError where they do not go together."""
    own = dict(flags)
    backend = choose_backend(own.pop("device", options.name), source.dataset)
    batch_size, clips = own.pop("batch_size", source.batch_size), own.pop("clips_per_decode", 1)
    if own.get("cache") == "none":
        own["cache"] = None
    elif own.get("cache", "host") not in BACKENDS[backend].caches:
        raise InputError(f"--cache {own['cache']}: --device {backend} cannot keep decoded videos there")
    source = replace(source, batch_size=batch_size, clips=clips)
    _ = source.sampler  # complains of clips that do not divide the batch
    return source, replace(options, name=backend, **own)


def autotune(
    source: Source, options: Options, step: Step | None, rounds: int, batches: int
) -> tuple[dict[str, Any], list[Figures]]:
    """The least that is as good as the best, and all that was tried.

    First backend and threads, then batches ahead; training on fresh batches decides, or without `step` the
    loader alone. Of flags within 3 % of the best rate those with the fewest threads, then the fewest batches, win.
    """
    tried: list[Figures] = []

    def best(candidates: list[Options]) -> Options:
        parts = {
            f"{one.name}, {one.threads} threads, {one.prefetch} ahead": together(step, source, one, batches)
            if step
            else loader_alone(source, one, batches)
            for one in candidates
        }
        found = [medians(figures) for figures in in_turns(parts, rounds, 0, "autotune").values()]
        tried.extend(flags_of(one) | figures for one, figures in zip(candidates, found, strict=True))
        return least(candidates, found)

    cores = len(os.sched_getaffinity(0))
    threads = sorted({max(1, cores // 4), max(1, cores // 2), cores, 2 * cores})
    every = [
        replace(options, name=name, threads=t)
        for name in available(source.dataset)
        for t in sorted({*threads, BACKENDS[name].threads(cores)})
    ]
    chosen = best(every)
    return flags_of(best([replace(chosen, prefetch=ahead) for ahead in (1, 2, 4)])), tried


def least(candidates: list[Options], found: list[Figures]) -> Options:
    """The one with the fewest threads, then batches ahead, of those as good as the best."""
    rates = [figures["clips_per_s"] for figures in found]
    enough = [one for one, clips in zip(candidates, rates, strict=True) if clips >= ENOUGH * max(rates)]
    return min(enough, key=lambda one: (one.threads, one.prefetch))


def flags_of(options: Options) -> dict[str, Any]:
    return {"device": options.name, "threads": options.threads, "prefetch": options.prefetch}
