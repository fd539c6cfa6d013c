#!/usr/bin/env python3
"""A GPU's first hour as one command: what decodes how fast, what each model takes, and whether training waits.

    benchmarks/gpu_day.py --budget 540 --out gpu-day.json        again with the same file: what is left
    benchmarks/gpu_day.py --out dry.json --dry-run               every stage on a CPU, tiny, to test the command

Stages come in order of worth, each in a process of its own with a time limit. The file is written after each
measurement, so that a call that is cut off keeps what it has. docs/guides/gpu.md says how to read the file.
"""

import gc
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
from benchmarks.loader.gpu_stages import STAGES, Day, Stage
from shards import InputError, at_least, one_line
from shards.documents import write_json
from shards.storage import cache_folder

UNDER_WAY = "under way"


@dataclass(frozen=True)
class Arguments:
    out: Path
    """The JSON file. Of one that is there, what is missing is measured."""
    budget: float = 540
    """Seconds that this call may take."""
    dry_run: bool = False
    """On a CPU: every stage with two short videos and small models."""
    stages: tuple[str, ...] = ()
    """Only these, by the beginning of their names."""


def main(arguments: Arguments) -> None:
    at_least(arguments, 1, "budget")
    ends, out = time.monotonic() + arguments.budget, arguments.out
    chosen = [stage for stage in STAGES if stage.name.startswith(arguments.stages or "")]
    if not chosen:
        names = ", ".join(stage.name for stage in STAGES)
        raise InputError(f"--stages {' '.join(arguments.stages)}: choose of {names}")
    result = _opened(arguments)
    folder = cache_folder() / "gpu-day"
    folder.mkdir(parents=True, exist_ok=True)
    day = Day(arguments.dry_run, folder)
    for stage in chosen:
        entry = result["stages"].setdefault(stage.name, {"state": "waits", "seconds": 0.0, "found": {}})
        while entry["state"] != "done":
            left = ends - time.monotonic()
            if left < (1 if day.dry else stage.least):
                break
            _run(stage, day, result, out, min(stage.limit, left))
            if entry["state"] != "crashed":
                break
        print(_summary(stage, entry), flush=True)
    write_json(out, result)
    waiting = [stage.name for stage in chosen if result["stages"][stage.name]["state"] != "done"]
    print(f"{out}: " + (f"left for another call: {', '.join(waiting)}" if waiting else "all stages are done"))


def _opened(arguments: Arguments) -> dict[str, Any]:
    """The content of --out, without what was under way when an earlier call was killed."""
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
    for entry in result["stages"].values():
        entry["found"] = {key: value for key, value in entry["found"].items() if value != UNDER_WAY}
    result["calls"].append({"date": time.strftime("%Y-%m-%d %H:%M"), "command": " ".join(sys.argv)})
    return result


def _run(stage: Stage, day: Day, result: dict[str, Any], out: Path, limit: float) -> None:
    """Let a process measure what is missing of the stage, and note in its entry of the result how that ended."""
    entry = result["stages"][stage.name]
    began, before = time.monotonic(), len(entry["found"])
    write_json(out, result)
    # a fork: what is imported need not be imported again, and this process never touches CUDA
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(stage, day, result, out))
    process.start()
    process.join(limit)
    late = process.is_alive()
    if late and process.pid:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.kill()
        process.join()
    found = entry["found"] = json.loads(out.read_text())["stages"][stage.name]["found"]
    entry["seconds"] += round(time.monotonic() - began, 1)
    entry["state"] = "cut off" if late else "done" if process.exitcode == 0 else "crashed"
    broken = [key for key, value in found.items() if value == UNDER_WAY]
    for key in broken:
        if entry["state"] == "crashed":
            found[key] = {"error": f"its process ended with {process.exitcode}"}
        elif len(found) == before + 1 and limit >= stage.limit:
            found[key] = {"error": f"took more than {limit:.0f} s"}  # else every call would begin it again
        else:
            del found[key]
    if entry["state"] == "crashed" and not broken:
        entry["state"] = f"failed with exit status {process.exitcode}"
    write_json(out, result)


def _measure(stage: Stage, day: Day, result: dict[str, Any], out: Path) -> None:
    """In the stage's process: measure what is not in the result yet; an exception is noted in place of figures."""
    os.setsid()
    if day.dry:
        torch.set_num_threads(1)
    found = result["stages"][stage.name]["found"]
    for key, measure in stage.measurements(day):
        if key in found:
            continue
        found[key] = UNDER_WAY
        write_json(out, result)
        try:
            found[key] = measure()
        except Exception as error:  # whatever stops one measurement, the others follow
            found[key] = {"error": f"{type(error).__name__}: {str(error)[-800:]}"}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write_json(out, result)


def _summary(stage: Stage, entry: dict[str, Any]) -> str:
    lines = [f"{stage.name}: {entry['state']}, {entry['seconds']:.0f} s"]
    for key, figures in entry["found"].items():
        words = [f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float)]
        words += [f"{k} {figures[k]}" for k in ("error", "exit_status") if k in figures]
        lines.append(f"  {key}: " + ", ".join(words))
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
