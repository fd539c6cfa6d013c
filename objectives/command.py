"""Command lines that consist of a tool's settings and of the flags of the objective they name."""

import argparse
import io
import os
import sys
from contextlib import redirect_stderr
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import tyro

from objectives.base import Recipe, get
from shards import InputError
from shards.presets import stride_of


class Settings(Protocol):
    """What a tool's settings must at least have."""

    objective: str
    data: Any
    small: bool


S = TypeVar("S", bound=Settings)


def parse(argv: list[str], settings: type[S], description: str | None, prog: str) -> tuple[S, Any]:
    """argv → (the tool's settings, the named objective's config); `--help` shows both and exits.

    settings: a frozen dataclass with defaults, and with a classmethod for_recipe(Recipe, **fields) that makes
    its defaults. The objective's small config and recipe are the defaults with --small, and without --data on
    a machine that has no GPU; the stride is the one that the data set was made for (make_shards --for), if any.
    Raises InputError for a value that the settings or the config refuse.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--objective", default="vdim")
    early.add_argument("--data")
    early.add_argument("--small", action=argparse.BooleanOptionalAction)
    known = early.parse_known_args(argv)[0]
    cls = get(known.objective)
    small = known.small if known.small is not None else known.data is None and not torch.cuda.is_available()
    recipe: Recipe = cls.small_recipe if small else cls.recipe
    defaults = settings.for_recipe(recipe, objective=known.objective, small=small)  # type: ignore[attr-defined]
    config = _strided(cls.small() if small else cls.Config(), known.data, argv)
    flat = tyro.conf.OmitArgPrefixes
    parts = [
        ("tool", flat[settings], defaults),
        ("method", flat[cls.Config], config),
    ]  # type: ignore[valid-type,name-defined]
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            parsed: Any = tyro.cli(
                make_dataclass("Command", parts), args=argv, prog=prog, description=description
            )
    except SystemExit as end:
        under = end.__context__
        while under:
            if isinstance(under, InputError):  # tyro would frame its one line in four more
                raise under from None
            under = under.__context__
        sys.stderr.write(complaint.getvalue())
        raise
    return parsed.tool, parsed.method


def _strided(config: Any, data: str | None, argv: list[str]) -> Any:
    """The config with the stride that the data set was made for as its default, and a line that says so."""
    stride = stride_of(Path(data)) if data else None
    if stride is None or getattr(config, "stride", stride) == stride:
        return config
    if not any(word.startswith("--stride") for word in argv) and os.environ.get("RANK", "0") == "0":
        print(f"--stride {stride}, as {data} was made for (its dataset.json)", file=sys.stderr)
    return replace(config, stride=stride)
