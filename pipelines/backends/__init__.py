"""The registry of backends: which there are, which suits this machine and these shards, and how one is made.

    cpu      FFmpeg decodes, crops and resizes; NumPy does the rest. DALI is not needed
    hybrid   FFmpeg decodes, crops and resizes; DALI does the rest on the GPU
    gpu      NVDEC decodes; DALI does the rest on the GPU

A further backend is a class and its line in BACKENDS.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.backends.base import Backend
from pipelines.backends.base import BackendSettings as BackendSettings
from pipelines.backends.cpu import Cache, CachedBackend, CpuBackend, CpuDecodeBackend
from pipelines.views import ViewSpec
from shards import Dataset, InputError

Device = Literal["auto", "gpu", "hybrid", "cpu"]
"""What --device takes: the backends, and auto."""
DecodeWith = Literal["auto", "processes", "threads"]
CORES_FOR_PROCESSES = 4  # with fewer, auto decodes in threads
# both by what an H200 measured: docs/notes/gpu.md
MANY_CORES = 8  # for one GPU: from about these on the CPU decodes more than NVDEC does
NVDEC_THREADS = 8  # 16 decoded less
# pixels of a side; other codecs NVDEC does not take
NVDEC_LEAST = {"h264": 64, "hevc": 144, "vp9": 128, "av1": 128}


Make = Callable[[ViewSpec, int, int, BackendSettings], Backend]
"""Spec, most videos and most clips of a video in a batch, settings → the backend."""


def _of_gpu(name: str) -> Callable[..., Backend]:
    """A class of pipelines.backends.gpu, which needs DALI and is not imported before one is made."""

    def make(*arguments: Any) -> Backend:
        backend: Backend = getattr(import_module("pipelines.backends.gpu"), name)(*arguments)
        return backend

    return make


@dataclass(frozen=True)
class Kind:
    """What there is to know of a backend before it is made.

    caches: where it can keep decoded videos. timed: its parts that benchmarks time one by one. nvdec: whether NVDEC
    decodes, or FFmpeg does.
    """

    make: Make
    caches: tuple[Literal["host", "gpu"], ...]
    timed: tuple[str, ...] = ("decode", "augment")
    nvdec: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether its views lie in GPU memory."""
        return "gpu" in self.caches

    def threads(self, cores: int) -> int:
        """Of the pool that prepares, by default. cores: for this process. NVDEC's threads wait for it, and need no core."""
        return NVDEC_THREADS if self.nvdec else cores

    def processes(self, threads: int) -> int:
        """How many processes could decode, in place of `threads` threads."""
        return 0 if self.nvdec else threads

    def bytes_to_gpu(self, spec: ViewSpec, encoded: int) -> int:
        """What goes to the GPU of a clip whose video has `encoded` bytes."""
        pixel = spec.planes if self.on_gpu else spec.channels * 4
        return encoded if self.nvdec else spec.views * spec.frames * spec.size**2 * pixel

    def advice(self, settings: BackendSettings, cores: int, others: list[str]) -> list[str]:
        """Flags that may make it faster. cores: for this process. others: backends that this machine has, too."""
        faster = "hybrid" if cores >= MANY_CORES else "gpu"
        found = [f"--device {faster}"] if faster in others else []
        if not self.nvdec and settings.threads < cores:
            found.insert(0, f"--threads {cores}, as many as there are cores for this process")
        return found


BACKENDS: dict[str, Kind] = {
    "cpu": Kind(CpuBackend, ("host",)),
    "hybrid": Kind(_of_gpu("HybridBackend"), ("host", "gpu")),
    "gpu": Kind(_of_gpu("NvdecBackend"), ("host", "gpu"), timed=("trim", "nvdec", "graph"), nvdec=True),
}


def open_backend(
    settings: BackendSettings,
    spec: ViewSpec,
    max_samples: int,
    max_clips: int,
    dataset: Dataset,
    rows: NDArray[np.int64],
) -> Backend:
    """Make the backend for a loader of these rows; to be closed. Raises InputError for settings that do not go together."""
    _check(settings)
    kind, cache = BACKENDS[settings.name], None
    if settings.cache is not None:
        gpu = settings.gpu if kind.on_gpu else None
        cache = Cache(dataset, rows, spec.component, settings.cache, settings.cache_gib, gpu)

    def made(make: Callable[..., Backend], **changes: Any) -> Backend:
        return make(spec, max_samples, max_clips, replace(settings, **changes))

    backend = made(kind.make)  # after the cache, which may refuse: it starts processes
    if cache is None:
        return backend
    if settings.cache == "gpu":  # NVDEC's backend renders frames that lie there by itself
        return CachedBackend(backend, backend if kind.nvdec else made(_of_gpu("MemoryBackend")), cache)
    if isinstance(backend, CpuDecodeBackend):
        return CachedBackend(backend, backend, cache)
    on_cpu = BACKENDS["cpu" if settings.on_cpu_dali else "hybrid"].make
    return CachedBackend(backend, made(on_cpu, processes=0), cache)


def settings_for(
    device: str,
    dataset: Dataset | None,
    *,
    threads: int | None = None,
    decode_with: DecodeWith = "threads",
    cores: int | None = None,
) -> BackendSettings:
    """The backend that `choose_backend` finds, and raises as it does, with threads to suit it unless they are given.

    cores: of this process; by default those that it may use.
    """
    cores = cores or len(os.sched_getaffinity(0))
    name = choose_backend(device, dataset, cores)
    threads = threads or BACKENDS[name].threads(cores)
    processes = BACKENDS[name].processes(threads) if in_processes(decode_with, cores) else 0
    return BackendSettings(name, threads=threads, processes=processes)


def in_processes(decode_with: DecodeWith, cores: int) -> bool:
    """Whether the CPU decodes in processes. cores: of this process."""
    return decode_with == "processes" or (decode_with == "auto" and cores >= CORES_FOR_PROCESSES)


def choose_backend(name: str, dataset: Dataset | None = None, cores: int | None = None) -> str:
    """Resolve "auto", and check that this machine has what was asked for; raises InputError where it has not.

    auto, without a GPU: cpu. With one: hybrid where NVDEC cannot be reached or does not take the data set's codec or
    size, or where the process has MANY_CORES or more; else gpu. tools/bench_loader.py --autotune measures it instead.
    cores: of this process; by default those that it may use.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"--device {name}: choose one of auto, {', '.join(BACKENDS)}")
    cuda = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not cuda):
        return "cpu"
    if not cuda:
        raise InputError(f"--device {name}: no CUDA GPU is visible here; use --device cpu")
    if not _has_dali():
        if name == "auto":
            return "cpu"
        raise InputError(
            f"--device {name}: DALI is not installed; pip install nvidia-dali-cuda130 (with CUDA 12 nvidia-dali-cuda120), "
            "or use --device cpu"
        )
    objection = _nvdec_objection(dataset)
    if name == "gpu" and objection:
        raise InputError(f"--device gpu: {objection}; or decode on the CPU with --device hybrid")
    if name == "auto":
        many = (cores or len(os.sched_getaffinity(0))) >= MANY_CORES
        return "hybrid" if objection or many else "gpu"
    return name


def available(dataset: Dataset | None = None) -> list[str]:
    """The backends that this machine has, for this data set."""
    found = []
    for name in BACKENDS:
        with suppress(InputError):
            found.append(choose_backend(name, dataset))
    return found


def release_memory() -> None:
    """Give back what DALI and torch keep of the GPU's memory for later. DALI's pool never shrinks by itself."""
    if dali := sys.modules.get("nvidia.dali.backend"):
        dali.ReleaseUnusedMemory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _nvdec_objection(dataset: Dataset | None) -> str:
    """Why NVDEC cannot decode a data set here; nothing where it can, as far as that is known."""
    if missing := _missing_of_nvdec():
        return missing
    if dataset is None:
        return ""
    codec = dataset.info["settings"].get("codec", "h264")
    if codec not in NVDEC_LEAST:
        return f"NVDEC does not decode {codec}; make the shards with --codec h264"
    sides = np.concatenate([dataset.column("width"), dataset.column("height")]).astype(np.int64)
    if (side := sides.min()) < NVDEC_LEAST[codec]:
        return f"NVDEC decodes {codec} from {NVDEC_LEAST[codec]} pixels a side on, and there are videos of {side}"
    if (sides % 2).any():
        return f"videos with an odd side ({sides[sides % 2 == 1][0]} pixels) are not decoded on NVDEC"
    return ""


def _missing_of_nvdec() -> str:
    """What of NVDEC and the library that reaches it cannot be loaded, and what helps."""
    try:
        ctypes.CDLL("libnvcuvid.so.1")
        import_module("PyNvVideoCodec")  # asks for libnvidia-encode.so.1
        import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        return f"NVDEC is reached by PyNvVideoCodec, and {error.name} is not installed: pip install PyNvVideoCodec cuda-bindings"
    except (OSError, ImportError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"NVDEC is out of reach: {first}. In a container the driver's *video* capability "
            "must be exposed (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        )
    return ""


def _has_dali() -> bool:
    with suppress(ModuleNotFoundError):  # no package of NVIDIA's at all
        return importlib.util.find_spec("nvidia.dali") is not None
    return False


def _check(settings: BackendSettings) -> None:
    if settings.cache == "gpu" and not BACKENDS[settings.name].on_gpu and not settings.on_cpu_dali:
        raise InputError(
            f"--cache gpu: with --device {settings.name} nothing is made on a GPU; use --cache host"
        )
