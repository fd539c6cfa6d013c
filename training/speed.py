"""The loader's settings for this machine, and what to change where the loop waits for data all the same.

What `tools/bench_loader.py --autotune` found is kept in one file, tuned.json in the cache folder: machine → spec → the
flags to use and what they were measured on.
"""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import objectives
from pipelines.backends import BACKENDS, BackendSettings, available, settings_for
from pipelines.loader import Loader
from pipelines.sampler import Sampler
from pipelines.views import ViewSpec
from shards import Dataset
from shards.atomic import locked
from shards.documents import Each, one_of, read_json, whole, write_json
from shards.storage import cache_folder
from training.run import Run
from training.settings import Settings

TOO_LONG = 0.05  # share of the time spent waiting from which a word is due
PATIENCE = 50  # steps that it has to last
_PREFETCH = 2
TUNED = "tuned.json"
_TUNED_ENTRY = {
    "device": one_of(*BACKENDS),
    "threads": whole(1, 2**16),
    "prefetch": whole(0, 2**16),
}
_TUNED_SHAPE = Each(str, Each(str, _TUNED_ENTRY))


@dataclass(frozen=True)
class Speed:
    """How this process's loaders work.

    backend: see pipelines.backends. prefetch: batches made ahead. origin: a line that says where each is from.
    """

    backend: BackendSettings
    prefetch: int
    origin: str = ""

    def loader(
        self,
        dataset: Dataset,
        sampler: Sampler,
        device: torch.device,
        *,
        quarantine: bool = False,
        training: bool = False,
    ) -> Loader:
        """A loader; to be closed. training: it works all the time, and with the cache that was asked for."""
        return Loader(
            dataset,
            sampler,
            # what runs now and then keeps no videos, and no processes that would lie idle
            self.backend if training else replace(self.backend, cache=None, processes=0),
            prefetch=self.prefetch if training else min(self.prefetch, 1),
            device=device,
            quarantine=quarantine,
        )


def settle(settings: Settings, spec: ViewSpec, dataset: Dataset) -> Speed:
    """How this process's loaders work.

    What is given counts, then what --autotune found for this machine and spec, then a default; threads are divided
    among the processes of this machine. Raises InputError for a device that cannot be had.
    """
    found = find_tuned(settings.objective, spec) or {}
    if found and not (settings.device in ("auto", found["device"]) and found["device"] in available(dataset)):
        found = {}
    prefetch = found.get("prefetch", _PREFETCH) if settings.prefetch is None else settings.prefetch
    usual = None
    if found:  # NVDEC is each GPU's own
        usual = found["threads"] if BACKENDS[found["device"]].nvdec else share(found["threads"])
    backend = settings_for(
        found.get("device", settings.device),
        dataset,
        threads=settings.threads or usual,
        decode_with=settings.decode_with,
        cores=share(cores()),
    )
    otherwise = "found by --autotune" if found else "default"
    given = {
        f"--device {backend.name}": settings.device != "auto",
        f"--threads {backend.threads}": settings.threads is not None,
        f"--prefetch {prefetch}": settings.prefetch is not None,
    }
    flags = ", ".join(f"{flag} ({'given' if is_given else otherwise})" for flag, is_given in given.items())
    backend = replace(backend, cache=settings.cache, cache_gib=settings.cache_gib)
    return Speed(backend, prefetch, f"loader: {flags}")


class Waiting:
    """Says when a word about waiting is due: where it stays too long for 50 steps, then for 500, 5,000, …"""

    def __init__(self) -> None:
        self._steps = self._lines = 0
        self._due = PATIENCE

    def judge(self, wait_share: float, steps: int) -> bool:
        """The share of the time spent waiting, 0–1, in the steps since this was last asked."""
        if wait_share <= TOO_LONG:
            self._steps = self._lines = 0
            return False
        self._steps, self._lines = self._steps + steps, self._lines + 1
        # a single line says nothing: a run's first one has the wait for its first batch in it
        if self._steps < self._due or self._lines < 2:
            return False
        self._steps, self._lines, self._due = 0, 0, 10 * self._due
        return True


def advice(settings: Settings, speed: Speed, run: Run, spec: ViewSpec, late: float) -> list[str]:
    """What would shorten the waiting, likeliest first, in the words of a command line.

    late: share of the batches, 0–1, that were not there when they were asked for.
    """
    found = []
    kind = BACKENDS[speed.backend.name]
    if late < 0.5 or not speed.prefetch:
        found.append(f"--prefetch {2 * speed.prefetch or _PREFETCH}")
    others = [name for name in available(run.dataset) if name != speed.backend.name]
    found += kind.advice(speed.backend, share(cores()), others)
    gib = _decoded_gib(run)
    if settings.cache is None and gib < _room("host"):
        where = next(cache for cache in reversed(kind.caches) if gib < _room(cache))
        found.append(f"--cache {where} --cache-gib {max(1, np.ceil(gib)):g}, since the decoded videos fit")
    if find_tuned(settings.objective, spec) is None:
        found.append(
            f"tools/bench_loader.py --autotune --objective {settings.objective} --data {run.dataset.members[0].source}"
        )
    side = float(np.median(np.minimum(run.dataset.column("width"), run.dataset.column("height"))[run.rows]))
    enough = objectives.get(settings.objective).shards.short_side
    if side > enough:
        found.append(
            f"shards of tools/make_shards.py --for {settings.objective}: the videos' short side is {side:.0f}, "
            f"and {enough} is enough"
        )
    if settings.clips_per_decode == 1:
        found.append("--clips-per-decode 2 (it changes the negatives: docs/guides/speed.md)")
    return found


def _decoded_gib(run: Run) -> float:
    """What --cache would need for all of the run's videos, 1.5 bytes a pixel."""
    pixels = np.ones(len(run.rows))
    for name in ("num_frames", "width", "height"):
        pixels *= run.dataset.column(name)[run.rows]
    return float(1.5 * pixels.sum() / 2**30)


def _room(where: str) -> float:
    """GiB of memory that a process may well fill with videos: half of its share."""
    if where == "host":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31 / _processes()
    return torch.cuda.mem_get_info()[1] / 2**31 if torch.cuda.is_available() else 0.0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def share(number: int) -> int:
    """The part of `number` threads or cores of this machine that one of its processes gets; at least 1."""
    return max(1, number // _processes())


def _processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def machine() -> str:
    """What a finding holds for: the processor, the cores this process may use, and the GPU.

    Not the host's name: a cluster's nodes are alike, and a container has a new one at every start.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {gpu}"


def find_tuned(objective: str, spec: ViewSpec) -> dict[str, Any] | None:
    """What was found on a machine like this for the objective's spec; None where nothing was.

    device: the backend. threads, prefetch: of one process that has the machine to itself. The rest says how it was measured.
    Raises InputError where the file is not one that `note_tuned` wrote.
    """
    return _read_tuned().get(machine(), {}).get(_tuned_name(objective, spec))


def note_tuned(objective: str, spec: ViewSpec, found: dict[str, Any]) -> Path:
    """Note a finding, in place of an earlier one for the same machine and spec; returns the file.

    found: as `find_tuned` has it. Raises InputError as `find_tuned` does.
    """
    path = cache_folder() / TUNED
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{TUNED}.lock")):
        notes = _read_tuned()
        notes.setdefault(machine(), {})[_tuned_name(objective, spec)] = found
        write_json(path, notes)
    return path


def _tuned_name(objective: str, spec: ViewSpec) -> str:
    return f"{objective} {spec.views}×{spec.frames}×{spec.size}² {spec.modality}"


def _read_tuned() -> dict[str, dict[str, Any]]:
    path = cache_folder() / TUNED
    if not path.exists():
        return {}
    return dict(
        read_json(path, _TUNED_SHAPE, "it is not what tools/bench_loader.py --autotune writes: remove it")
    )
