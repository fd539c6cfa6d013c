"""Methods: a view spec, a model and a loss each. `get(name)` finds one, `load(directory)` rebuilds a trained one."""

from objectives.base import Objective, Output, available, get
from objectives.checkpoint import load

__all__ = ["Objective", "Output", "available", "get", "load"]
