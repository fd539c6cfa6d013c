"""What a result says of where it is from: date, command, and what a reader must know of the machine to compare figures."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "spdl-io",
    "PyNvVideoCodec",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "accelerate",
    "av",
    "numpy",
    "pyarrow",
)


def origin(command: str, argv: Sequence[str]) -> dict[str, Any]:
    """The head of a result. command: the script's path in the checkout; argv: its flags."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join([command, *argv]),
        "machine": describe(),
    }


def describe() -> dict[str, Any]:
    """CPU, cores, GPU, memory, load, and the versions of those of PACKAGES that are installed."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")  # not imported for this alone
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }
