"""Command lines that consist of a tool's settings and of the flags of the objective they name."""

import argparse
import os
import sys
from dataclasses import asdict, make_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from objectives.base import Objective, get
from shards import InputError
from shards.errors import command_line
from shards.schema import read_description

S = TypeVar("S")  # a tool's settings: objective, data, small and more


def parse(argv: list[str], settings: type[S], description: str | None, prog: str) -> tuple[S, Any]:
    """argv → (the tool's settings, the named objective's config); `--help` shows both and exits.

    With `--help` the paper's numbers are the defaults, on any machine, and a line says what --small changes.

    settings: a frozen dataclass with defaults; a 0 as the default of steps or batch_size stands for the recipe's.
    The objective's small config and recipe are the defaults with --small, and without --data on
    a machine that has no GPU. Where the objective names a stride (ShardSettings.stride), that field's default suits the
    data set's frame rate if make_shards --for made it.
    Raises InputError for flags that are not known, and for a value that the settings or the config refuse.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--objective", default="vdim")
    early.add_argument("--data", nargs="*")
    early.add_argument("--small", action=argparse.BooleanOptionalAction)
    known = early.parse_known_args(argv)[0]
    cls = get(known.objective)
    small = known.small if known.small is not None else known.data is None and not torch.cuda.is_available()
    if asks_help := not {"-h", "--help"}.isdisjoint(argv):
        small = bool(known.small)
    recipe = asdict(cls.small_recipe if small else cls.recipe)
    own = {name: value for name, value in recipe.items() if getattr(settings, name, None) == 0}
    defaults = settings(objective=known.objective, small=small, **own)  # type: ignore[call-arg]
    config = cls.small() if small else cls.Config()
    if (
        known.data and (found := suited(cls, config, Path(known.data[0]))) != config
    ):  # others have about its rate
        name = str(cls.shards.stride)
        flag = f"--{name.replace('_', '-')}"
        if not any(word.split("=")[0] == flag for word in argv) and os.environ.get("RANK", "0") == "0":
            stride = getattr(found, name)
            print(f"{flag} {stride}, as {known.data[0]} was made for (its dataset.json)", file=sys.stderr)
        config = found
    if asks_help:
        description = (
            f"{description or ''}\n\n--small changes these defaults of {cls.name}: {small_changes(cls)}."
        )
    flat = tyro.conf.OmitArgPrefixes
    parts: Any = [("tool", flat[settings], defaults), ("method", flat[cls.Config], config)]
    parsed: Any = command_line(
        make_dataclass("Command", parts), args=argv, prog=prog, description=description
    )
    return parsed.tool, parsed.method


def data_once(argv: list[str]) -> list[str]:
    """`--data A --data B` as `--data A B`, which is what it means; the last of two flags would win otherwise."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data", nargs="*", action="extend")
    named, rest = parser.parse_known_args(argv)
    return argv if named.data is None else [*rest, "--data", *named.data]


def small_changes(cls: type[Objective]) -> str:
    """What --small changes: "name value" of the recipe and the config, separated by commas."""
    paper, small = (
        asdict(recipe) | asdict(config)
        for recipe, config in ((cls.recipe, cls.Config()), (cls.small_recipe, cls.small()))
    )
    return ", ".join(f"{name} {value}" for name, value in small.items() if value != paper[name])


def config_of(cls: type[Objective], defaults: Any, flags: list[str], where: str) -> Any:
    """An objective's config from flags alone, such as those of `random:memdpc --modality flow`.

    Raises InputError, in one line that begins with `where`, for a flag or value that the config refuses.
    """
    try:
        return command_line(cls.Config, args=flags, default=defaults, prog=where)
    except InputError as error:
        raise InputError(f"{where}{cls.name} {' '.join(flags)}: {error}") from None


def suited(cls: type[Objective], config: Any, data: Path) -> Any:
    """The config with the stride that suits a data set whose dataset.json has one, as make_shards --for notes it.

    Which field that is: ShardSettings.stride. Another data set leaves the config as it is, and so does one that cannot be
    read here.
    """
    try:
        settings = read_description(data)["settings"]
    except InputError:  # whoever opens the data set says so
        return config
    stride = cls.shards.stride_at(settings.get("fps")) if "stride" in settings else None
    if stride is None or cls.shards.stride is None:
        return config
    return replace(config, **{cls.shards.stride: stride})
