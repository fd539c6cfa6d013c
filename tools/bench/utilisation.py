"""How busy the GPU and its video decoder are, and how much of its memory is taken, through NVML."""

import statistics
import threading
from types import TracebackType
from typing import Any, Self

import torch

from .rounds import Figures, Part

PERIOD = 0.1  # seconds between two looks


def watched(part: Part) -> Part:
    """The part, with gpu_use and nvdec_use (0–1) and device_gib (all processes' memory) of its round; null without NVML."""

    def watching(first: int) -> Figures:
        with Watch() as watch:
            figures = part(first)
        return figures | watch.figures()

    return watching


class Watch:
    """Looks at torch's current GPU until it is left."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float, float]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if (nvml := _nvml()) is not None:
            self._thread = threading.Thread(target=self._look, args=nvml, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> Figures:
        if not self._seen:
            return {"gpu_use": None, "nvdec_use": None, "device_gib": None}
        gpu, nvdec, memory = zip(*self._seen, strict=True)
        return {
            "gpu_use": statistics.mean(gpu),
            "nvdec_use": statistics.mean(nvdec),
            "device_gib": max(memory),
        }

    def _look(self, nvml: Any, handle: Any) -> None:
        while not self._done.wait(PERIOD):
            gpu = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            nvdec = nvml.nvmlDeviceGetDecoderUtilization(handle)[0] / 100
            self._seen.append((gpu, nvdec, nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30))


def _nvml() -> tuple[Any, Any] | None:
    """The module pynvml (nvidia-ml-py) and its handle of torch's GPU."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # not installed, or a driver that does not answer: the figures stay null
        return None
