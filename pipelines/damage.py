"""What a damaged video raises."""

from collections.abc import Iterator
from contextlib import contextmanager

import av


class DecodeError(Exception):
    """A video that cannot be decoded as its row of the table promises."""


@contextmanager
def damage_named() -> Iterator[None]:
    """What FFmpeg and PyAV raise for a damaged video, as DecodeError."""
    try:
        yield
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
