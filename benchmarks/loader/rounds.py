"""Rounds: every part is timed in each of them, one after the other, so that what else the machine does weighs on all."""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .utilisation import Watch

Figures = dict[str, Any]
Part = Callable[[int], Figures]
"""Times one part on the samples from a number on: {"clips_per_s": …}, and what else it has to say."""

_TICKS = os.sysconf("SC_CLK_TCK")


def in_turns(parts: dict[str, Part], rounds: int, samples: int, title: str) -> dict[str, list[Figures]]:
    """Each part's figures, a list of as many as there are rounds. samples: how far a round is from the next."""
    found: dict[str, list[Figures]] = {name: [] for name in parts}
    with tqdm(total=rounds * len(parts), desc=title, unit="part", leave=False, dynamic_ncols=True) as bar:
        for number in range(rounds):
            for name, part in parts.items():
                bar.set_postfix_str(name)
                found[name].append(part(number * samples))
                bar.update()
    return found


def medians(rounds: list[Figures]) -> Figures:
    """The median of each figure over the rounds; what is not a number stays as it was last."""
    return {
        name: statistics.median(figures[name] for figures in rounds)
        if isinstance(value, int | float)
        else value
        for name, value in rounds[-1].items()
    }


def ratio(ours: list[Figures], theirs: list[Figures]) -> float:
    """How many times the clips/s: the median of the rounds' ratios."""
    return statistics.median(a["clips_per_s"] / b["clips_per_s"] for a, b in zip(ours, theirs, strict=True))


def rate(
    do: Callable[[], Any],
    batches: int,
    clips: int,
    device: torch.device,
    workers: Iterable[int] = (),
    *,
    watched: bool = False,
) -> Figures:
    """clips_per_s of `do`, which handles a batch of `clips`; cpu_ms_per_clip of this process and of `workers`.

    watched: also what Watch sees of the GPU, which takes some seconds: `do` is then called more often.
    """
    processes = [os.getpid(), *workers]
    synchronise(device)
    done = 0
    with Watch() if watched else nullcontext() as watch:
        least = watch.least if watch else 0.0
        cpu, began = sum(map(cpu_seconds, processes)), time.perf_counter()
        while done < batches or time.perf_counter() - began < least:
            do()
            done += 1
        synchronise(device)
        seconds = time.perf_counter() - began
        cpu = sum(map(cpu_seconds, processes)) - cpu
    figures = {"clips_per_s": done * clips / seconds, "cpu_ms_per_clip": 1000 * cpu / (done * clips)}
    return figures | (watch.figures() if watch else {})


def cpu_seconds(process: int) -> float:
    """CPU time that all threads of a process have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_gib(process: int) -> float:
    """Memory that a process has in RAM, what it shares with others included."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
