"""How busy the GPU and its video decoder are, and who holds its memory, through NVML."""

import gc
import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

PERIOD = 0.1  # seconds between two looks
SPAN = 5.0  # seconds that a watched span lasts, at least
_LOOKS_BACK = 1.0  # seconds: NVML's figures are means over up to that time before


class Seen(NamedTuple):
    """gpu, nvdec: busy, 0–1. used, torch: GiB of the GPU that all processes hold, and that this process's torch holds."""

    gpu: float
    nvdec: float
    used: float
    torch: float


class Watch:
    """Looks at torch's current GPU from when it is entered until it is left.

    look: by default NVML's figures; None where there are none, and then nothing is seen.
    """

    def __init__(self, look: Callable[[], Seen] | None = None) -> None:
        self._look = look or _nvml()
        self.least = SPAN if self._look else 0.0  # seconds that the span should last
        self._seen: list[tuple[float, Seen]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._look is not None:
            self._thread = threading.Thread(target=self._watch, args=[self._look], daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> dict[str, float | None]:
        """gpu_use, nvdec_use: means, 0–1. device_gib: the most that all processes held; beside_torch_gib: of it, what this
        process's torch did not hold: DALI's pool, NVDEC's sessions, CUDA's own. None where nothing was seen."""
        if not self._seen:
            return dict.fromkeys(("gpu_use", "nvdec_use", "device_gib", "beside_torch_gib"))
        first = self._seen[0][0]
        late = [seen for at, seen in self._seen if at - first >= _LOOKS_BACK]
        gpu, nvdec, used, held = zip(*(late or [seen for _, seen in self._seen]), strict=True)
        return {
            "gpu_use": statistics.mean(gpu),
            "nvdec_use": statistics.mean(nvdec),
            "device_gib": max(used),
            "beside_torch_gib": max(a - b for a, b in zip(used, held, strict=True)),
        }

    def _watch(self, look: Callable[[], Seen]) -> None:
        while not self._done.wait(PERIOD):
            self._seen.append((time.perf_counter(), look()))


def dali_pool_gib() -> float | None:
    """What DALI's pool of GPU memory held after its last pipeline; gives it back. None without NVML.

    DALI states no figure, so it is what becomes free.
    """
    look = _nvml()
    if look is None:
        return None
    from nvidia.dali import backend

    gc.collect()
    before = look().used
    backend.ReleaseUnusedMemory()
    return before - look().used


def _nvml() -> Callable[[], Seen] | None:
    """What looks at torch's GPU, with pynvml (nvidia-ml-py)."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        handle: Any = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # not installed, or a driver that does not answer: the figures stay null
        return None

    def look() -> Seen:
        return Seen(
            nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            nvml.nvmlDeviceGetDecoderUtilization(handle)[0] / 100,
            nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
            torch.cuda.memory_reserved() / 2**30,
        )

    return look
