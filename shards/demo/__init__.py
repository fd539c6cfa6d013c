"""The demo set: rendered on first use, so that everything can be tried without a download."""

from shards.demo.demo import ENCODING, VERSION, ensure, render, render_shown

__all__ = ["ENCODING", "VERSION", "ensure", "render", "render_shown"]
