"""A fine-tuning's folder: what was asked for, which of its trainings are done, and going on with the others.

config.json, and a folder for each training (evaluation/tuning.py), with tested.npz once it is done.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.arrays import read_arrays
from evaluation.bench import Bench
from evaluation.features import Features
from evaluation.settings import Tuned
from evaluation.tuning import Tuning
from objectives import checkpoint
from objectives.downstream import FineTuning
from shards import InputError
from shards.atomic import atomic_write
from shards.documents import Each, number, parse, read_json, whole
from training.processes import StopSignals, on_main

DONE = "tested.npz"
TESTED = {"x": "float N D", "row": "whole N", "start": "whole N", "failed": "text", "chosen": "text"}
_AGAIN = "remove it, and --resume trains it again"


def claim(folder: Path, bench: Bench, tuning: FineTuning, settings: Tuned, **more: Any) -> None:
    """Take the folder for a new fine-tuning, or for going on with one that was asked for the same. Raises InputError."""
    asked = {
        "weights": bench.model.fingerprint,
        "data": bench.dataset.fingerprint,
        "tuning": asdict(tuning),
        "seed": settings.seed,
        **more,
    }
    on_main(lambda: _claim(folder, json.loads(json.dumps(asked)), settings.resume))


def _claim(folder: Path, asked: dict[str, Any], resume: bool) -> None:
    path = folder / "config.json"
    if not path.exists():
        for old in folder.glob("**/*-seed*"):
            shutil.rmtree(old)
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(asked, indent=1) + "\n")
    elif not resume:
        raise InputError(
            f"--output {folder} holds a fine-tuning already: add --resume, or name another folder"
        )
    else:
        then = read_json(path, dict, "name another --output")
        if changed := [key for key in asked if asked[key] != then.get(key)]:
            raise InputError(f"--resume: {folder} was made with another {', '.join(changed)}: give its flags")


def tested(
    make: Callable[[], Tuning], place: Path, tuning: FineTuning, settings: Tuned, stop: StopSignals
) -> tuple[Features, dict[str, Any]]:
    """Train what `make` makes, or go on with it, and test it, or read what was found: the tested windows'
    probabilities, and what validation chose."""
    done = place / DONE
    if settings.resume and done.exists():
        found = read_arrays(done, TESTED, _AGAIN)
        failed = parse(str(found["failed"]), Each(str, str), done, _AGAIN)
        chosen = parse(str(found["chosen"]), {"step": whole(0), "validation_top1": number()}, done, _AGAIN)
        return Features(found["x"], found["row"], found["start"], failed), chosen
    place.mkdir(parents=True, exist_ok=True)
    with make() as run:
        newest = on_main(lambda: checkpoint.newest(place)) if settings.resume else None
        if newest:
            run.load(newest)
        every = settings.validate_every or max(1, tuning.steps // 20)
        probabilities = run.run(stop, tuning.steps, every, settings.patience)
        chosen = {"step": run.best_step, "validation_top1": run.best}
    on_main(lambda: _write(done, probabilities, chosen))
    return probabilities, chosen


def _write(path: Path, found: Features, chosen: dict[str, Any]) -> None:
    with atomic_write(path) as aside, aside.open("wb") as handle:
        np.savez(
            handle,
            x=found.x,
            row=found.row,
            start=found.start,
            failed=json.dumps(found.failed),
            chosen=json.dumps(chosen),
        )
