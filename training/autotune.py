"""What `tools/bench_loader.py --autotune` found for this machine: where to decode, with how many threads, how far ahead.

One file, tuned.json, in the cache folder: machine → spec → the flags to use and what they were measured on.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from pipelines.backends import BACKENDS
from pipelines.views import ViewSpec
from shards.atomic import locked
from shards.cache import cache_folder
from shards.documents import Each, number, one_of, read_json, whole, write_json

FILE = "tuned.json"
_ENTRY = {
    "device": one_of(*BACKENDS),
    "threads": whole(1, 2**16),
    "prefetch": whole(0, 2**16),
    "cpu_share?": number(0, 1),
}
_FOUND = Each(str, Each(str, _ENTRY))


class Tuned(TypedDict):
    """device: the backend. threads, prefetch: of one process that has the machine to itself. cpu_share: of the samples
    that the CPU should decode beside NVDEC, by the rates of both."""

    device: str
    threads: int
    prefetch: int
    cpu_share: NotRequired[float]


@cache
def machine() -> str:
    """What a finding holds for: the processor, the cores this process may use, and the GPU.

    Not the host's name: a cluster's nodes are alike, and a container has a new one at every start.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {gpu}"


def lookup(objective: str, spec: ViewSpec) -> Tuned | None:
    """What was found on a machine like this for the objective's spec; None where nothing was.

    Raises InputError where the file is not one that `record` wrote.
    """
    found = _read().get(machine(), {}).get(_name(objective, spec))
    if not found:
        return None
    tuned = Tuned(device=found["device"], threads=found["threads"], prefetch=found["prefetch"])
    if found.get("cpu_share") is not None:
        tuned["cpu_share"] = found["cpu_share"]
    return tuned


def record(objective: str, spec: ViewSpec, tuned: Tuned, **measured: Any) -> Path:
    """Note a finding, in place of an earlier one for the same machine and spec; returns the file.

    measured: whatever says how it was found (data, clips_per_s …). Raises InputError as `lookup` does.
    """
    path = cache_folder() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{FILE}.lock")):
        found = _read()
        found.setdefault(machine(), {})[_name(objective, spec)] = tuned | measured
        write_json(path, found)
    return path


def _name(objective: str, spec: ViewSpec) -> str:
    return f"{objective} {spec.views}×{spec.frames}×{spec.size}² {spec.modality}"


def _read() -> dict[str, dict[str, Any]]:
    path = cache_folder() / FILE
    if not path.exists():
        return {}
    return dict(read_json(path, _FOUND, "it is not what tools/bench_loader.py --autotune writes: remove it"))
