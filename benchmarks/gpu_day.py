#!/usr/bin/env python3
"""A GPU's first hour as one command: what decodes how fast, what each model takes, and whether training waits.

    benchmarks/gpu_day.py --budget 540 --out gpu-day.json        again with the same file: what is left
    benchmarks/gpu_day.py --out dry.json --dry-run               every stage on a CPU, tiny, to test the command

Stages come in order of worth, each in a process of its own with a time limit. The file is written after each; what a
stage that is cut off has measured is kept. docs/guides/gpu.md says how to read it.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from benchmarks.loader.gpu_stages import STAGES, Day, Notes, Stage
from shards import InputError, at_least, one_line
from shards.cache import cache_folder
from shards.documents import write_json

UNDER_WAY = "under way"


@dataclass(frozen=True)
class Arguments:
    out: Path
    """The JSON file. One that is there is gone on with."""
    budget: float = 540
    """Seconds that this call may take."""
    dry_run: bool = False
    """On a CPU: every stage with two short videos and small models."""
    stages: tuple[str, ...] = ()
    """Only these, by the beginning of their names."""


def main(arguments: Arguments) -> None:
    at_least(arguments, 1, "budget")
    ends = time.monotonic() + arguments.budget
    chosen = [
        stage
        for stage in STAGES
        if not arguments.stages or any(stage.name.startswith(name) for name in arguments.stages)
    ]
    if not chosen:
        raise InputError(
            f"--stages {' '.join(arguments.stages)}: choose of {', '.join(s.name for s in STAGES)}"
        )
    result = _begun(arguments)
    kept = cache_folder() / "gpu-day"
    kept.mkdir(parents=True, exist_ok=True)
    day = Day(arguments.dry_run, kept)
    for stage in chosen:
        noted = result["stages"].setdefault(stage.name, {"state": "waits", "seconds": 0.0, "found": {}})
        _recover(arguments.out, stage, noted)
        while noted["state"] != "done":
            left = ends - time.monotonic()
            if left < (1 if day.dry else stage.least):
                break
            _take(stage, noted, day, arguments.out, min(stage.limit, left))
            write_json(arguments.out, result)
            if noted["state"] != "crashed":
                break
        print(_told(stage, noted), flush=True)
    write_json(arguments.out, result)
    waiting = [stage.name for stage in chosen if result["stages"][stage.name]["state"] != "done"]
    print(
        f"{arguments.out}: "
        + (f"left for another call: {', '.join(waiting)}" if waiting else "all stages are done")
    )


def _begun(arguments: Arguments) -> dict[str, Any]:
    result: dict[str, Any] = {"calls": [], "dry_run": arguments.dry_run, "stages": {}}
    if arguments.out.exists():
        try:
            result = json.loads(arguments.out.read_text())
            same = result["dry_run"] == arguments.dry_run
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--out {arguments.out}: is not what this command writes; name another file"
            ) from error
        if not same:
            raise InputError(f"--out {arguments.out}: a dry run and a real one need a file each")
    result["calls"].append({"date": time.strftime("%Y-%m-%d %H:%M"), "command": " ".join(sys.argv)})
    return result


def _take(stage: Stage, noted: dict[str, Any], day: Day, out: Path, limit: float) -> None:
    """Let a process measure the stage; noted: its entry of the result."""
    path, began, before = _partial(out, stage), time.monotonic(), len(noted["found"])
    # a fork: what is imported need not be imported again, and this process never touches CUDA
    process = multiprocessing.get_context("fork").Process(
        target=_in_process, args=(stage, Notes(path, noted["found"]), day)
    )
    process.start()
    process.join(limit)
    late = process.is_alive()
    if late and process.pid:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.kill()
        process.join()
    noted["seconds"] += round(time.monotonic() - began, 1)
    noted["state"] = "cut off" if late else "done" if process.exitcode == 0 else "crashed"
    found = json.loads(path.read_text()) if path.exists() else noted["found"]
    path.unlink(missing_ok=True)
    broken = [key for key, value in found.items() if value == UNDER_WAY]
    for key in broken:
        if noted["state"] == "crashed":
            found[key] = {"error": f"its process ended with {process.exitcode}"}
        elif len(found) == before + 1 and limit >= stage.limit:
            found[key] = {"error": f"took more than {limit:.0f} s"}  # else it would be begun for ever
        else:
            del found[key]
    noted["found"] = found
    if noted["state"] == "crashed" and not broken:
        noted["state"] = f"failed with exit status {process.exitcode}"


def _recover(out: Path, stage: Stage, noted: dict[str, Any]) -> None:
    """Take over what an earlier call, itself cut off, had measured of a stage."""
    path = _partial(out, stage)
    if path.exists():
        found = json.loads(path.read_text())
        noted["found"] = {key: value for key, value in found.items() if value != UNDER_WAY}
        noted["state"] = "cut off"
        path.unlink()


def _in_process(stage: Stage, notes: Notes, day: Day) -> None:
    os.setsid()
    if day.dry:
        torch.set_num_threads(1)
    stage.do(notes, day)


def _partial(out: Path, stage: Stage) -> Path:
    return out.with_name(f"{out.name}.{stage.name.replace(' ', '-')}")


def _told(stage: Stage, noted: dict[str, Any]) -> str:
    lines = [f"{stage.name}: {noted['state']}, {noted['seconds']:.0f} s"]
    for key, figures in noted["found"].items():
        if isinstance(figures, dict):
            shown = {
                k: v for k, v in figures.items() if k in ("error", "exit_status") or isinstance(v, float)
            }
            words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            lines.append(f"  {key}: " + ", ".join(words))
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
