"""Slipstream in Python.

    import slipstream
    model = slipstream.load("runs/dpc")
    features = model.embed_videos(["clip.mp4"])      # (1, D)

Names are fetched from slipstream.api when they are first used: the command `slipstream make-shards` and its worker
processes need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.api import Dataset, HubModel, InputError, Jitter, Loader, Objective, ViewSpec, load

__all__ = ["Dataset", "HubModel", "InputError", "Jitter", "Loader", "Objective", "ViewSpec", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    from slipstream import api

    return getattr(api, name)
