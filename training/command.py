"""Flags that train.py does not have to be given: a resumed run's own, and those of --config.

They are put in front of the flags that were given, which win; so they pass the same checks as those.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from objectives import checkpoint
from shards import InputError
from shards.documents import TEXT, AnyOf, Each, Is, one_line_of, problem, read_bytes
from training.settings import Settings

NEWEST = "newest"
_NOT_KEPT = ("resume", "config", "output", "profile")
_VALUE = Is("a value of a flag", lambda one: one is None or isinstance(one, str | bool | int | float))
_FLAGS = Each(TEXT, AnyOf([_VALUE], _VALUE))


def with_own_flags(argv: list[str]) -> list[str]:
    """argv with the flags of --config, and of the run that --resume names, in front.

    `--resume` without a value becomes `--resume newest`: the run of --output, or the newest one of the objective.
    Raises InputError where the file or the run cannot be read.
    """
    argv = _with_value(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--resume", "--config", "--output", "--objective", "--batch-size"):
        early.add_argument(flag)
    known = early.parse_known_args(argv)[0]
    own: list[str] = []
    if known.config:
        own = as_argv(_read(Path(known.config)))
        known = early.parse_known_args([*own, *argv])[0]
    if not known.resume:
        return [*own, *argv]
    if known.resume != NEWEST:
        run = Path(known.resume)
        if not (run / checkpoint.CONFIG).is_file():
            raise InputError(
                f"--resume {run}: holds no run; its flags with --output {run} --resume begin one there"
            )
    elif known.output:
        run = Path(known.output)
    else:
        run = newest_run(known.objective or Settings.objective)
    if not (run / checkpoint.CONFIG).is_file():
        return [*own, *argv]
    flags = _read(run / checkpoint.CONFIG)
    objective = checkpoint.class_of(run, flags).name
    if known.objective not in (None, objective):
        raise InputError(
            f"--resume: {run} is a run of --objective {objective}, not {known.objective}; leave the flag out"
        )
    if not known.batch_size:
        flags |= _batch_size(run)
    return [*own, *as_argv(flags), f"--output={run}", *argv]


def _with_value(argv: list[str]) -> list[str]:
    following = [*argv[1:], "--"]
    pairs = zip(argv, following, strict=True)
    return [
        f"--resume={NEWEST}" if word == "--resume" and after.startswith("-") else word
        for word, after in pairs
    ]


def newest_run(objective: str) -> Path:
    """The run among runs/NAME, runs/NAME-2 … with the highest number; runs/NAME where there is none."""
    runs = numbered_runs(objective)
    free = next(number for number, run in enumerate(runs) if not run.exists())
    return runs[max(0, free - 1)]


def numbered_runs(objective: str) -> list[Path]:
    return [Path("runs") / (objective if i == 1 else f"{objective}-{i}") for i in range(1, 10_000)]


def _read(path: Path) -> dict[str, Any]:
    """The flags in a YAML file, or in a run's config.json."""
    fix = "give a YAML file of flags, such as `lr: 0.001`, or a run's config.json"
    try:
        content = yaml.safe_load(read_bytes(path, fix).decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {one_line_of(error)}; {fix}") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        own, config = content.get("flags"), content["config"]
        content = (own if isinstance(own, dict) else {}) | config | {"objective": content.get("objective")}
    if found := problem(content, _FLAGS):
        raise InputError(f"{path}: {found}; {fix}")
    return {str(name).replace("_", "-"): value for name, value in content.items()}


def as_argv(flags: dict[str, Any]) -> list[str]:
    """{"lr": 0.1, "ema": None, "small": True, "paces": [1, 2]} → --lr=0.1 --small --paces 1 2."""
    argv: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        elif value is not None:
            argv.append(f"--{name}={value}")
    return argv


def as_flags(settings: Settings) -> dict[str, Any]:
    """The settings that a run notes in its config.json: what `with_own_flags` reads there, as JSON has it."""
    flags = {name: value for name, value in asdict(settings).items() if name not in _NOT_KEPT}
    for name in ("data", "init_from"):
        if flags[name] is not None and flags[name].exists():
            flags[name] = flags[name].resolve()  # the run may be resumed from another folder
    return dict(json.loads(json.dumps(flags, default=str)))


def _batch_size(run: Path) -> dict[str, Any]:
    """--batch-size of as many processes as there are now, where the run's global batch can be divided among them."""
    batch = checkpoint.read_config(run)["settings"].get("global_batch") or 0
    own, rest = divmod(batch, int(os.environ.get("WORLD_SIZE", "1")))
    return {"batch-size": own} if own and not rest else {}
