"""Checkpoints of other people's code: which there are, and how their tensors are named.

A family is an entry of FAMILIES in a module of this package; nothing else has to be registered.
"""

import importlib
import pkgutil

from objectives.imports.family import Family
from shards import InputError

__all__ = ["Family", "families", "family", "listed"]


def families() -> dict[str, Family]:
    """Every family by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {f.name: f for module in modules for f in getattr(module, "FAMILIES", ())}


def family(name: str) -> Family:
    """The family called `name`; raises InputError that lists the names there are."""
    found = families()
    if name not in found:
        raise InputError(
            f"{name}: there is no such family of checkpoints; choose one of {', '.join(sorted(found))}"
        )
    return found[name]


def listed() -> str:
    """Every family and its source, a line each, for a command's help."""
    return "\n".join(f"    {name:12} {kind.source}" for name, kind in sorted(families().items()))
