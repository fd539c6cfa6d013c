"""What a run notes of how it was made: OUTPUT/run.json has one entry for each time that it was started."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from accelerate import PartialState

from shards import InputError
from shards.atomic import atomic_write
from shards.documents import read_json
from training.autotune import machine
from training.run import Run
from training.settings import Settings

FILE = "run.json"
_ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "av", "pyarrow", "safetensors")


def record_start(settings: Settings, run: Run, argv: list[str], step: int) -> None:
    """Add this start to OUTPUT/run.json. Raises InputError where it cannot be written."""
    path = run.output / FILE
    entry = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join([sys.argv[0], *argv]),
        "from_step": step,
        "steps": settings.steps,
        "data": str(run.dataset.path),
        "fingerprint": run.dataset.fingerprint,
        "split": settings.trained_split,
        "videos": len(run.rows),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": {
            "host": socket.gethostname(),
            "machine": machine(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "processes": PartialState().num_processes,
        },
    }
    starts = read_json(path, {"starts": [dict]}, "remove it")["starts"] if path.exists() else []
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"starts": [*starts, entry]}, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room") from error


def _versions() -> dict[str, str]:
    """Of the packages that results depend on, DALI's CUDA variant among them."""
    installed = {one.name: one.version for one in metadata.distributions() if one.name}
    return {
        name: version
        for name, version in sorted(installed.items())
        if name in _PACKAGES or name.startswith("nvidia-dali")
    }


def _commit() -> str | None:
    """The checkout's commit, "+ changes" where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(_ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode or not (_ROOT / ".git").exists():
        return None
    return commit.stdout.strip() + (" + changes" if changes.stdout.strip() else "")
